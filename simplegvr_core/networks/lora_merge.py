"""Merges a control LoRA into a text-to-video Wan: the result takes a condition, which the base does not.

Such is the tile control LoRA for Wan 2.1 1.3B (huggingface.co/spacepxl/Wan2.1-control-loras): its condition is a latent beside the noised
one. Names and arithmetic are ComfyUI's: weight + alpha / rank * up @ down, after reshape_weight has widened the weight with zeros.
"""

import math
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn

from ..files import sha256
from ..latent_space import LATENT_CHANNELS
from .attention_config import AttentionConfig
from .foreign import dit_config, read_tensors, unprefixed

FAMILY = "control LoRA"
PARTS = {  # ends of names, by what they are
    ".lora_A.weight": "down", ".lora_down.weight": "down", ".lora_B.weight": "up", ".lora_up.weight": "up",
    ".alpha": "alpha", ".reshape_weight": "shape", ".diff": "weight", ".diff_b": "bias",
}  # fmt: skip
SAMPLING = {"steps": 25, "cfg": 3.0, "noise_augmentation": 0.0, "denoise": 1.0}  # the tile LoRA's author: from pure noise, many steps
EMBEDDING = "patch_embedding"

Change = dict[str, Tensor]  # of one layer, by the values of PARTS


def merge(lora: Path, base: Path, dtype: torch.dtype) -> tuple[dict[str, Tensor], dict]:
    """Returns the tensors and the configuration of the merged transformer, with full attention.

    Args:
        lora: File of the LoRA.
        base: File of the text-to-video Wan that it was made for, 16 input channels, not quantised.
        dtype: Of the merged weights. Sums are float32.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: A file cannot be read, the base is another model, the LoRA was made for another one, or it adds no condition.
    """
    weights, changes = unprefixed(read_tensors(base), base), read_lora(lora)
    check_base(weights, base)
    check_made_for(changes, weights, lora, base)
    for layer, change in changes.items():
        weights |= {name: value.to(dtype) for name, value in changed(weights, layer, change).items()}
    merged = {name: value.to(dtype) for name, value in weights.items()}
    try:
        config = dit_config(merged, lora, "SimpleGVR")
    except KeyError as error:
        raise ValueError(f"{base} is incomplete: missing {error.args[0]}") from error
    config |= {"attention": asdict(AttentionConfig(kind="full", unit=None)), "sampling": dict(SAMPLING)}
    config["origin"] = {"family": FAMILY, "source": lora.name, "base": base.name, "base_sha256": sha256(base), "assumed": False}
    return merged, config


def read_lora(path: Path) -> dict[str, Change]:
    """Returns a LoRA's tensors by layer.

    Raises:
        ValueError: It has tensors that this merge does not know, such as those of LoKr or DoRA, or none.
    """
    changes: dict[str, Change] = defaultdict(dict)
    for name, tensor in unprefixed(read_tensors(path), path).items():
        end = next((end for end in PARTS if name.endswith(end)), None)
        if end is None:
            raise ValueError(f"{path} has {name}, which no LoRA for Wan with up and down matrices has: it is another kind, or no LoRA")
        changes[name.removesuffix(end)][PARTS[end]] = tensor
    for layer, change in changes.items():
        if ("down" in change) != ("up" in change):
            raise ValueError(f"{path} is incomplete: {layer} has only one of its two matrices")
    return changes


def add_lora_file(model: nn.Module, path: Path) -> None:
    """Adds a LoRA to the weights of a network.

    Raises:
        FileNotFoundError: The file is missing.
        ValueError: It is no LoRA, or was made for another network.
    """
    weights, changes = model.state_dict(), read_lora(path)
    for layer, change in changes.items():
        weight = weights.get(f"{layer}.weight")
        if weight is None or not fits(change, tuple(weight.shape)):
            raise ValueError(f"{path} was made for another model: it changes {layer}, which the model does not have or has in another size")
        weights |= {name: value.to(weights[name]) for name, value in changed(weights, layer, change).items()}
    model.load_state_dict(weights)


def check_base(weights: dict[str, Tensor], base: Path) -> None:
    """Raises ValueError unless the weights are a text-to-video Wan's with 16 input channels, in a floating dtype of 16 bits or more."""
    embedding = weights.get(f"{EMBEDDING}.weight")
    if embedding is None or embedding.ndim != 5:
        raise ValueError(f"{base} is no Wan transformer, it has no {EMBEDDING}: give --base the file of Load Diffusion Model")
    if embedding.shape[1] != LATENT_CHANNELS:
        raise ValueError(
            f"{base} has {embedding.shape[1]} input channels, wanted {LATENT_CHANNELS}: give --base the plain text-to-video Wan "
            "that the LoRA was made for, such as wan2.1_t2v_1.3B_fp16.safetensors"
        )
    if small := next((name for name, tensor in weights.items() if tensor.dtype.itemsize < 2), None):
        raise ValueError(f"{base} is quantised, {small} is {weights[small].dtype}: give --base its file in fp16, bf16 or fp32")


def check_made_for(changes: dict[str, Change], weights: dict[str, Tensor], lora: Path, base: Path) -> None:
    """Raises ValueError when a LoRA changes layers that the base does not have or has in other sizes, or adds no condition."""
    for layer, change in changes.items():
        if f"{layer}.weight" not in weights:
            raise ValueError(f"{lora} was made for another model than {base}: it changes {layer}, which the base does not have")
        weight = weights[f"{layer}.weight"]
        shape = new_shape(weight, change)
        widens = len(shape) == weight.ndim and all(new >= old for new, old in zip(shape, weight.shape, strict=True))
        if not widens or not fits(change, shape):
            found = {part: tuple(tensor.shape) for part, tensor in change.items() if tensor.ndim and part != "shape"}
            raise ValueError(
                f"{lora} was made for another model than {base}: its {layer} has {found}, the base's weight is {tuple(weight.shape)}"
            )
    embedding = new_shape(weights[f"{EMBEDDING}.weight"], changes.get(EMBEDDING, {}))
    if embedding[1] != 2 * LATENT_CHANNELS:
        raise ValueError(
            f"{lora} makes {embedding[1]} input channels, wanted {2 * LATENT_CHANNELS}, noised latent and condition: a LoRA without a "
            "condition is loaded by LoraLoaderModelOnly, and works with a stock Wan in training-free mode"
        )


def new_shape(weight: Tensor, change: Change) -> tuple[int, ...]:
    """Returns the shape of a layer's weight after a change."""
    return tuple(change["shape"].tolist()) if "shape" in change else tuple(weight.shape)


def fits(change: Change, shape: tuple[int, ...]) -> bool:
    """Returns whether a change is one of a weight of that shape."""
    fit = "weight" not in change or change["weight"].shape == shape
    fit &= "bias" not in change or change["bias"].shape == shape[:1]
    if "down" not in change:
        return fit and ("weight" in change or "shape" not in change)
    if min(change[part].ndim for part in ("up", "down")) < 2:
        return False
    up, down = change["up"].flatten(1), change["down"].flatten(1)
    return fit and up.shape[1] == down.shape[0] and (up.shape[0], down.shape[1]) == (shape[0], math.prod(shape[1:]))


def changed(weights: dict[str, Tensor], layer: str, change: Change) -> dict[str, Tensor]:
    """Returns the changed weight and bias of a layer by name, float32."""
    weight = weights[f"{layer}.weight"]
    new = torch.zeros(new_shape(weight, change))
    new[tuple(map(slice, weight.shape))] = weight.float()
    if "down" in change:
        up, down = change["up"].float().flatten(1), change["down"].float().flatten(1)
        scale = float(change["alpha"]) / len(down) if "alpha" in change else 1.0
        new += scale * (up @ down).reshape(new.shape)
    if "weight" in change:
        new += change["weight"].float()
    bias = {f"{layer}.bias": weights[f"{layer}.bias"].float() + change["bias"].float()} if "bias" in change else {}
    return {f"{layer}.weight": new, **bias}
