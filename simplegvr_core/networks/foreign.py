"""Weights that others published, read as they are: recognised by keys and shapes, never by name, and described as ours are.

Known are Ultra Flash's transformer and latent upsampler (arXiv 2606.09150). What is read here still has to fit its network
exactly, which loaders check.
"""

import logging
import math
import re
from dataclasses import asdict
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.torch_version import TorchVersion

from ..checks import amount
from ..latent_space import LATENT_CHANNELS
from . import checkpoint
from .block_causal_config import BlockCausalConfig
from .ultra_upsampler import UltraUpsamplerConfig

FAMILIES = ("auto", "SimpleGVR", "Ultra Flash")
SAFE_TORCH = TorchVersion("2.10")  # before it, a file read with weights_only can corrupt memory (CVE-2026-24747)
WRAPPERS = ("model", "generator")  # keys under which trainers put a network's weights
PREFIXES = ("module.", "_orig_mod.", "_fsdp_wrapped_module.", "model.diffusion_model.", "diffusion_model.", "model.")
HEAD_DIM = 128  # of Wan's transformers in every size
RELEASED = (1536, 30)  # width and layers of Ultra Flash's transformer
SAMPLING = {"steps": 1, "cfg": 1.0, "noise_augmentation": 0.0, "denoise": 1.0}  # Ultra Flash's; at one step no shift matters
NAMES = {"dit": "a diffusion transformer", "upsampler": "a latent upsampler", "tiny_vae": "a TinyVAE"}
MOST_SHARED = 2  # bytes of tensors over bytes of their file: tied weights are in it once
SAFETENSORS = (".safetensors", ".sft")
CONVERT = "python3 scripts/run.py convert"  # in a clone: the published package leaves commands out
FOLDERS = {"dit": "models/diffusion_models", "upsampler": "models/latent_upscale_models"}


def read_any(path: Path, kind: str, family: str = "auto") -> tuple[dict[str, Tensor], dict]:
    """Returns the tensors and the configuration of a checkpoint: ours, or another's that is recognised.

    The configuration has the sections that checkpoint.save writes, and for another's file "origin": family and file name.

    Args:
        kind: "dit" or "upsampler".
        family: whose network a file without our metadata is, of FAMILIES; auto takes a transformer with 32 input channels for
            Ultra Flash's and logs it, as nothing in such a file tells it from a SimpleGVR's.

    Raises:
        FileNotFoundError: there is no file.
        ValueError: it is incomplete, unsafe to read, of another kind or not recognised; the message says what it is and the cure.
    """
    path = Path(path)
    if is_safetensors(path) and checkpoint.is_ours(path):
        return checkpoint.read(path, kind)
    found, tensors, config = read_recognised(path, family)
    if found != kind:
        raise ValueError(f"{path} holds {NAMES[found]}, but {NAMES[kind]} is wanted here: move it to {FOLDERS[found]}")
    return tensors, config


def read_recognised(path: Path, family: str = "auto") -> tuple[str, dict[str, Tensor], dict]:
    """Returns the kind, the tensors and the configuration of another's checkpoint. Arguments and errors are those of read_any."""
    tensors = unprefixed(read_tensors(path), path)
    try:
        kind, config = describe(tensors, path, family)
    except KeyError as error:
        raise ValueError(f"{path} is incomplete: missing {error.args[0]}") from error
    return kind, tensors, config


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Returns the tensors of a safetensors or pickled file, unwrapped, at least one. Raises what read_any raises."""
    if is_safetensors(path):
        checkpoint.read_metadata(path)  # complete
        content = load_file(path)
    else:
        content = read_pickled(path)
    for wrapper in WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
            break
    if not isinstance(content, dict) or not content:
        raise ValueError(f"{path} holds {type(content).__name__} of no tensors, wanted a network's: it is not read")
    if others := [key for key, value in content.items() if not isinstance(value, Tensor)]:
        raise ValueError(f"{path} holds other things than a network's tensors, such as {others[0]!r}: it is not read")
    there, claimed = path.stat().st_size, sum(tensor.nbytes for tensor in content.values())
    if claimed > MOST_SHARED * there:
        raise ValueError(f"{path} has {amount(there)} and its tensors claim {amount(claimed)}: it is damaged, get the file again")
    return content


def is_safetensors(path: Path) -> bool:
    return path.suffix.lower() in SAFETENSORS


def read_pickled(path: Path) -> Any:
    """Returns what a pickled checkpoint holds: tensors, containers and plain values, nothing that runs code. Tensors stay in the file.

    Raises:
        ValueError: PyTorch is too old to read it safely, the file is incomplete, or it holds other objects.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: check the name, or download the checkpoint first")
    if not torch_is_safe():
        raise ValueError(
            f"{path} is a pickled checkpoint, which PyTorch {torch.__version__} cannot read safely: update PyTorch to "
            f"{SAFE_TORCH} or newer, or convert the file on a machine that has it, in a clone of this pack: {CONVERT} {path.name}"
        )
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except UnpicklingError as error:
        reason = str(error).split("\n", maxsplit=1)[0]
        raise ValueError(f"{path} holds other objects than tensors, which could run any code, and is not read: {reason}") from error
    except Exception as error:  # whatever a broken archive raises, of several kinds
        raise ValueError(
            f"{path} is not a complete PyTorch checkpoint ({error}): download it again, or, where it is of PyTorch before 1.6, "
            "load it with torch.load(weights_only=True) and save it again with torch.save"
        ) from error


def torch_is_safe() -> bool:
    return TorchVersion(torch.__version__) >= SAFE_TORCH


def unprefixed(tensors: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Returns the tensors without the prefixes that all names share. Raises ValueError when only some names have one."""
    for prefix in PREFIXES:
        prefixed = [name for name in tensors if name.startswith(prefix)]
        if len(prefixed) == len(tensors):
            return unprefixed(checkpoint.part(tensors, prefix), path)
        if prefixed:
            raise ValueError(
                f"{path}: {len(prefixed)} of {len(tensors)} names begin with {prefix!r}, such as {prefixed[0]}, the others do not: "
                "it mixes two networks or is damaged"
            )
    return tensors


def describe(tensors: dict[str, Tensor], path: Path, family: str) -> tuple[str, dict]:
    """Returns the kind and the configuration of another's checkpoint.

    Raises:
        KeyError: a tensor is missing that tells the network's sizes.
        ValueError: it is something else; the message says what it looks like.
    """
    names = list(tensors)
    if any("lora_" in name or name.endswith((".diff", ".diff_b")) for name in names):
        raise ValueError(
            f"{path} looks like a LoRA: load it with a LoRA loader behind the model that it was made for; a control LoRA is merged by "
            f"{CONVERT} --lora --base, in a clone of this pack"
        )
    if any(name.startswith("pre_shuffle.") for name in names):
        if family == "SimpleGVR":
            raise ValueError(f"{path} is an upsampler of Ultra Flash, not of SimpleGVR: choose family auto or Ultra Flash")
        return "upsampler", {"model": asdict(upsampler_config(tensors, path)), "origin": origin(path, "Ultra Flash")}
    if "patch_embedding.weight" in tensors or "blocks.0.self_attn.q.weight" in tensors:
        return "dit", dit_config(tensors, path, family)
    if any(name.startswith(("encoder.", "decoder.", "net.")) for name in names):
        raise ValueError(
            f"{path} looks like an autoencoder or a decoder: load it with Load VAE, or a small one with Load SimpleGVR Video Decoder"
        )
    raise ValueError(
        f"{path} is no SimpleGVR checkpoint, nor a transformer or upsampler of Ultra Flash; its first names are {', '.join(names[:3])}: "
        "load stock models with ComfyUI's own nodes"
    )


def shape(tensors: dict[str, Tensor], name: str, axes: int, path: Path) -> tuple[int, ...]:
    """Returns the shape of a tensor from which sizes are read. Raises KeyError without it, ValueError when it has other axes."""
    found = tuple(tensors[name].shape)
    if len(found) != axes:
        raise ValueError(f"{path}: {name} has shape {found}, wanted {axes} axes: it is another network or damaged")
    return found


def upsampler_config(tensors: dict[str, Tensor], path: Path) -> UltraUpsamplerConfig:
    """Returns the sizes of an Ultra Flash upsampler by its shapes. Raises ValueError when they are no such network's."""
    if unused := [name for name in tensors if name.startswith("skip_up.") or ".skip." in name]:
        raise ValueError(f"{path} has a skip connection ({unused[0]}), which no released upsampler of Ultra Flash has: it is not supported")
    width = shape(tensors, "final.weight", 4, path)[1]
    shuffles = sorted(int(name.split(".")[1]) for name in tensors if name.startswith("pre_shuffle.") and name.endswith(".weight"))
    factors = tuple(math.isqrt(len(tensors[f"pre_shuffle.{index}.weight"]) // width) for index in shuffles)
    return UltraUpsamplerConfig(width=width, blocks=numbered(tensors, "blocks"), factors=factors)


def dit_config(tensors: dict[str, Tensor], path: Path, family: str) -> dict:
    """Returns the configuration of a transformer with Wan's names by its shapes. Raises ValueError when it has no condition."""
    dim, in_dim, *_ = shape(tensors, "patch_embedding.weight", 5, path)
    if in_dim != 2 * LATENT_CHANNELS:
        raise ValueError(
            f"{path} is a Wan transformer with {in_dim} input channels, wanted {2 * LATENT_CHANNELS}, noised latent and condition: "
            "load it with Load Diffusion Model; a text-to-video Wan (16) works training-free in SimpleGVR Sampler"
        )
    sizes = {
        "in_dim": in_dim,
        "dim": dim,
        "ffn_dim": shape(tensors, "blocks.0.ffn.0.weight", 2, path)[0],
        "num_heads": dim // HEAD_DIM,
        "num_layers": numbered(tensors, "blocks"),
        "text_dim": shape(tensors, "text_embedding.0.weight", 2, path)[1],
        "freq_dim": shape(tensors, "time_embedding.0.weight", 2, path)[1],
    }
    if dim % HEAD_DIM:
        raise ValueError(f"{path} is {dim} wide, wanted a multiple of {HEAD_DIM}, the width of Wan's heads")
    if family == "SimpleGVR":
        return {"model": sizes, "attention": {}, "sampling": {}, "origin": origin(path, family)}
    if family == "auto":
        logging.info(f"SimpleGVR: {path.name} does not name its family and is read as Ultra Flash; choose family SimpleGVR if it is one")
    if (dim, sizes["num_layers"]) != RELEASED:
        logging.warning(
            f"SimpleGVR: {path.name} is {dim} wide with {sizes['num_layers']} layers; Ultra Flash's released transformers are "
            f"{RELEASED[0]} wide with {RELEASED[1]}: is it complete?"
        )
    attention = asdict(BlockCausalConfig())
    return {
        "model": sizes | {"exact_time": True},
        "attention": attention,
        "sampling": dict(SAMPLING),
        "origin": origin(path, "Ultra Flash", assumed=family == "auto"),
    }


def origin(path: Path, family: str, assumed: bool = False) -> dict:
    """Returns where a checkpoint comes from. assumed: nobody said so, nor does the file."""
    return {"family": family, "source": path.name, "assumed": assumed}


def numbered(tensors: dict[str, Tensor], module: str) -> int:
    """Returns how many parts a list of modules has, by the highest number in the names."""
    numbers = [int(match[1]) for match in (re.match(rf"{module}\.(\d+)\.", name) for name in tensors) if match]
    return 1 + max(numbers, default=-1)
