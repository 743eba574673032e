"""Checkpoints: safetensors files whose metadata carries the configuration, written atomically and read strictly."""

import json
import math
from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path
from typing import TypeVar, get_args, get_origin, get_type_hints

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..files import atomic_write

METADATA_KEY = "simplegvr_config"  # also the name of a tensor with the configuration, in files that ComfyUI's Model Save wrote
COMFY_PREFIX = "model.diffusion_model."  # of the names in such files
WIDEST, MOST_LAYERS = 2**20, 1024  # of a network: a file with larger numbers in its configuration is damaged
QUANTIZED = ("scaled_fp8", "scale_weight", "weight_scale", "scale_input", "input_scale", "comfy_quant")  # ends of names

Network = TypeVar("Network", bound=nn.Module)


def save(path: Path, kind: str, state_dict: dict[str, Tensor], **configs) -> None:
    """Writes a checkpoint with metadata {"kind": kind, name: config, ...}. The file appears whole or not at all.

    Args:
        path: of the safetensors file.
        kind: "dit", "upsampler" or "tiny_vae".
        state_dict: the weights.
        configs: dataclasses, or dicts that JSON can write.

    Raises:
        OSError: as files.atomic_write.
    """
    described = {name: config if isinstance(config, dict) else asdict(config) for name, config in configs.items()}
    metadata = {METADATA_KEY: json.dumps({"kind": kind, **described}), "format": "pt"}
    with atomic_write(path) as partial:
        save_file({key: tensor.contiguous() for key, tensor in state_dict.items()}, partial, metadata)


def part(state_dict: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Returns the tensors whose names begin with prefix, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in state_dict.items() if name.startswith(prefix)}


def half(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.half() for name, tensor in state_dict.items()}


def read(path: Path, kind: str) -> tuple[dict[str, Tensor], dict]:
    """Returns the tensors and the configuration of a checkpoint of this kind, as we or ComfyUI's Model Save wrote it.

    Raises:
        ValueError: What read_config raises, or the weights are quantised with scales.
        FileNotFoundError: There is none.
    """
    config = read_config(path, kind)
    tensors = {name.removeprefix(COMFY_PREFIX): tensor for name, tensor in load_file(path).items()}
    tensors.pop(METADATA_KEY, None)
    if any(name.endswith(QUANTIZED) for name in tensors):
        raise ValueError(
            f"{path} has weights with scales, as quantisers write them, which this loader does not read: "
            "load it with ComfyUI's Load Diffusion Model, set its attention with SimpleGVR Sparse Attention, "
            "and choose settings custom in SimpleGVR Sampler"
        )
    return tensors, config


def config_tensor(config: dict) -> Tensor:
    """Returns a configuration as a tensor that every floating-point dtype keeps: its JSON text, a value in [0, 15] for each half byte."""
    text = json.dumps(config).encode()
    return torch.tensor([half for byte in text for half in divmod(byte, 16)], dtype=torch.float16)


def config_of_tensor(values: Tensor) -> dict:
    """Returns the configuration of config_tensor. Raises ValueError when it is damaged."""
    halves = values.float().flatten().round().int().tolist()
    return json.loads(bytes(16 * high + low for high, low in zip(halves[::2], halves[1::2], strict=True)))


def read_config(path: Path, kind: str) -> dict:
    """Returns the configuration of a checkpoint; no tensor is read.

    Args:
        path: of the safetensors file.
        kind: wanted, "dit", "upsampler" or "tiny_vae".

    Raises:
        ValueError: the file is not safetensors, truncated, or of another kind.
        FileNotFoundError: there is none.
    """
    text = read_metadata(path).get(METADATA_KEY)
    try:
        config = read_config_tensor(path) if text is None else json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} has a damaged {METADATA_KEY!r} ({error}): get the file again") from error
    if config is None:
        raise ValueError(
            f"{path} carries no {METADATA_KEY!r} in its metadata: it is no SimpleGVR checkpoint; load stock models with ComfyUI's own nodes"
        )
    if not isinstance(config, dict) or "kind" not in config:
        raise ValueError(f"{path} has a {METADATA_KEY!r} without a kind: get the file again")
    if config["kind"] != kind:
        raise ValueError(f"{path} holds a {config['kind']!r}, but a {kind!r} is wanted here")
    return config


def is_ours(path: Path) -> bool:
    """Returns whether a safetensors file carries our configuration; stock models do not. Raises what read_metadata raises."""
    return METADATA_KEY in read_metadata(path) or read_config_tensor(path) is not None


def read_config_tensor(path: Path) -> dict | None:
    """Returns the configuration in the tensor of a file that ComfyUI's Model Save wrote; None in other files."""
    with safe_open(path, framework="pt") as file:
        name = next((name for name in file.offset_keys() if name.removeprefix(COMFY_PREFIX) == METADATA_KEY), None)
        return None if name is None else config_of_tensor(file.get_tensor(name))


def read_metadata(path: Path) -> dict[str, str]:
    """Returns the metadata of a safetensors file; no tensor is read.

    Raises ValueError that names the file and the cure when it is not complete; FileNotFoundError when it is missing.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} does not exist: check the name, or download or train the checkpoint first")
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(
            f"{path} is not a complete safetensors file ({error}): download it again; a pickled checkpoint's name ends with .pth or .pt"
        ) from error


def parse_config(config_class: type, config: dict, section: str, path: Path):
    """Returns config_class(**config[section]) with JSON's lists as tuples.

    Args:
        config_class: a dataclass.
        config: of a checkpoint.
        section: name of the part wanted.
        path: of the checkpoint, for the error's text.

    Raises:
        ValueError: the section is missing or has unknown keys.
    """
    if not isinstance(config, dict) or section not in config:
        raise ValueError(f"{path} has no {section!r} in its configuration: it was not written by this version's checkpoint.save")
    values = config[section]
    if not isinstance(values, dict):
        raise ValueError(f"{path} has a {section!r} that is no table in its configuration: get the file again")
    unknown = values.keys() - {field.name for field in fields(config_class)}
    if unknown:
        raise ValueError(
            f"{path} has unknown {config_class.__name__} keys {sorted(unknown)}: it was written by a newer version; update the pack"
        )
    types = get_type_hints(config_class)
    for key, value in values.items():
        if not fits_type(value, types[key]) or not is_sane(key, value):
            raise ValueError(f"{path} has {key} {str(value)[:40]!r} in its {section!r}, which no network has: get the file again")
    try:
        return config_class(**{key: tuple(v) if isinstance(v, list) else v for key, v in values.items()})
    except (TypeError, ValueError, ArithmeticError) as error:
        raise ValueError(f"{path} has a {section!r} that fits no network ({error}): get the file again") from error


def fits_type(value: object, wanted: object) -> bool:
    """Returns whether a value of JSON can be a field that is annotated as a number, text, truth value or tuple of them; True for others."""
    if get_origin(wanted) is tuple:
        first, *others = get_args(wanted)  # all are of one type
        length = None if others[-1:] == [...] else 1 + len(others)
        return isinstance(value, list | tuple) and length in (None, len(value)) and all(fits_type(part, first) for part in value)
    if wanted is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if wanted is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return not isinstance(wanted, type) or wanted not in (bool, str) or isinstance(value, wanted)


def is_sane(key: str, value: object) -> bool:
    """Returns whether every whole number in a value of JSON is small enough to build a network with."""
    if isinstance(value, list):
        return len(value) <= MOST_LAYERS and all(is_sane(key, part) for part in value)
    most = MOST_LAYERS if "layers" in key or "blocks" in key else WIDEST
    return not isinstance(value, int) or 0 <= value <= most


def load_fitted(make: Callable[..., Network], state_dict: dict[str, Tensor], path: Path) -> Network:
    """Returns a network with weights, after its sizes are checked without memory for them.

    Args:
        make: Makes the network; takes device.
        state_dict: The weights.
        path: Of the checkpoint, for the error's text.

    Raises:
        ValueError: As check_fit_of.
    """
    check_fit_of(make, state_dict, path)
    model = make(device=None)
    model.load_state_dict(state_dict)
    return model


def check_fit_of(make: Callable[..., nn.Module], state_dict: dict[str, Tensor], path: Path) -> None:
    """Raises ValueError when the sizes make no network, or check_fit does. make: makes the network; takes device."""
    try:
        empty = make(device="meta")
    except (TypeError, ValueError, ArithmeticError, RuntimeError) as error:
        raise ValueError(f"{path} has sizes that make no network ({error}): get the file again") from error
    check_fit(empty, state_dict, path)


def check_fit(model: nn.Module, state_dict: dict[str, Tensor], path: Path) -> None:
    """Raises ValueError that lists missing, unexpected and mis-shaped keys, unless state_dict fits model exactly."""
    own = model.state_dict()
    problems = [f"missing {key}" for key in own.keys() - state_dict.keys()]
    problems += [f"unexpected {key}" for key in state_dict.keys() - own.keys()]
    problems += [
        f"{key} is {tuple(state_dict[key].shape)}, wanted {tuple(own[key].shape)}"
        for key in own.keys() & state_dict.keys()
        if own[key].shape != state_dict[key].shape
    ]
    if problems:
        shown = "; ".join(sorted(problems)[:5])
        raise ValueError(f"{path} does not fit its configuration, {len(problems)} problems: {shown}")


def load_strict(model: nn.Module, state_dict: dict[str, Tensor], path: Path) -> None:
    """Copies state_dict into model. Raises ValueError as check_fit does."""
    check_fit(model, state_dict, path)
    model.load_state_dict(state_dict)
