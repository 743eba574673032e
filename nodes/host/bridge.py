"""The border between ComfyUI and the core: latents, target sizes, the upsampler's run, model folders.

ComfyUI's LATENT contains the VAE's own values ("VAE space"); the core only ever sees normalised latents z.
"""

from collections.abc import Callable
from functools import wraps
from itertools import pairwise
from pathlib import Path
from typing import cast

import comfy.latent_formats
import comfy.model_management
import folder_paths
import node_helpers
import numpy as np
import torch
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io
from PIL import Image
from server import PromptServer
from torch import Tensor

from ...simplegvr_core.latent_space import pixel_size, pixels, scaled_size, short_side_size
from ...simplegvr_core.networks.upsampler import Upsampler, UpsamplerConfig, smaller_tiles
from ...simplegvr_core.planning.network_memory import upsampler_bytes
from ...simplegvr_core.sampling.latent_file import LatentFrames
from ...simplegvr_core.sampling.super_resolve import UPSAMPLER_FRAMES, augment_condition
from ...simplegvr_core.sampling.super_resolve_to_file import Append, parts
from ...simplegvr_core.tiling import is_out_of_memory as is_out_of_memory_of_pytorch
from ...simplegvr_core.tiling import with_less_memory
from .inputs import DEFAULT_SCALE, SHORT_SIDES

CATEGORY = "SimpleGVR"
LATENT_FORMAT = comfy.latent_formats.Wan21()
TEXT_DIM = 4096  # of Wan's text encoder
TINY_VAE_FOLDER = "simplegvr_tiny_vae"


def refuse(node: type[io.ComfyNode], text: str) -> ValueError:
    """Returns the error of a node: its name and the text, which has what came, what is wanted and the cure."""
    return ValueError(f"{node.define_schema().display_name}: {text}")


def named_choices(execute: Callable[..., io.NodeOutput]) -> Callable[..., io.NodeOutput]:
    """Returns a node's execute, which raises ValueError when a choice is none of its options. ComfyUI drops such an input in silence."""

    @wraps(execute)
    def checked(cls: type[io.ComfyNode], **inputs) -> io.NodeOutput:
        hidden = getattr(cls, "hidden", None)
        given = hidden.dynprompt.get_node(hidden.unique_id)["inputs"] if hidden and hidden.dynprompt and hidden.unique_id else {}
        for each in cls.define_schema().inputs:
            if isinstance(each, io.DynamicCombo.Input) and each.id not in inputs and (each.id in given or not each.optional):
                came = f"is {given[each.id]!r}" if each.id in given else "is missing, or none of its options"
                raise refuse(cls, f"{each.id} {came}, wanted one of {', '.join(option.key for option in each.options)}")
        return execute(cls, **inputs)

    return checked


def register_model_folders() -> None:
    """Adds the pack's models/ folder to ComfyUI's search paths, after the user's own."""
    models = Path(__file__).resolve().parents[2] / "models"
    own = str(Path(folder_paths.models_dir) / TINY_VAE_FOLDER)
    folder_paths.folder_names_and_paths.setdefault(TINY_VAE_FOLDER, ([own], {".safetensors"}))
    for name in ("diffusion_models", "latent_upscale_models", TINY_VAE_FOLDER):
        folder_paths.add_model_folder_path(name, str(models / name))


def latent_samples(latent: dict, node: type[io.ComfyNode]) -> Tensor:
    """Returns the samples of a LATENT, (B, 16, T, H, W) in VAE space.

    Raises ValueError that names the node, what came and the cure, unless it is a finite Wan 2.1 video latent.
    """
    samples = latent["samples"]
    if samples.ndim != 5:
        raise refuse(
            node,
            f"the latent has shape {tuple(samples.shape)}, wanted (batch, 16, frames, height, width): "
            "connect a video latent, from a Wan 2.1 sampler or VAE Encode with a Wan 2.1 VAE",
        )
    if samples.shape[1] != LATENT_FORMAT.latent_channels:
        raise refuse(
            node,
            f"the latent has {samples.shape[1]} channels, wanted 16: SimpleGVR works on Wan 2.1 latents "
            "(also Wan 2.2 14B); for another model, decode it and encode the video with the Wan 2.1 VAE",
        )
    if not samples.numel():
        raise refuse(node, f"the latent has shape {tuple(samples.shape)}, wanted at least one frame: trim fewer frames before this node")
    if not all(torch.isfinite(frame).all() for frame in samples.unbind(2)):
        raise refuse(node, "the latent contains NaN or infinite values: look for the cause in the sampler before it")
    return samples


def to_core(samples: Tensor) -> Tensor:
    """Returns the normalised latent z, float32, of VAE-space samples (B, 16, T, H, W)."""
    return LATENT_FORMAT.process_in(samples.float())


class NormalizedFrames:
    """The frames of samples (B, 16, T, H, W) in VAE space, normalised when they are read."""

    def __init__(self, samples: Tensor):
        self.samples, self.shape = samples, tuple(samples.shape)

    def __getitem__(self, frames: slice) -> Tensor:
        return to_core(self.samples[:, :, frames])


def to_latent(samples: Tensor) -> dict:
    """Returns a LATENT of VAE-space samples, on the device and in the dtype ComfyUI keeps between nodes."""
    return {"samples": samples.to(comfy.model_management.intermediate_device(), comfy.model_management.intermediate_dtype())}


def rgb_frames(images: Tensor, node: type[io.ComfyNode], name: str) -> Tensor:
    """Returns the colors (F, H, W, 3) of an IMAGE of any floating-point dtype, without a copy where that is possible.

    Gray, of one channel or two with transparency, becomes three equal channels. The transparency of four is left out.

    Args:
        images: (F, H, W, 1 to 4) in [0, 1].
        node: The node that the error names.
        name: Of the input.

    Raises:
        ValueError: It is no IMAGE.
    """
    if images.ndim != 4 or images.shape[3] not in (1, 2, 3, 4) or not images.is_floating_point() or not images.numel():
        raise refuse(
            node,
            f"{name} is {images.dtype} of shape {tuple(images.shape)}, wanted floating-point (frames, height, width, 1 to 4 channels): "
            "connect an IMAGE, as VAE Decode or Get Video Components gives it",
        )
    return images[..., :3] if images.shape[3] > 2 else images[..., :1].expand(*images.shape[:3], 3)


def to_image(picture: Image.Image) -> Tensor:
    """Returns (H, W, 3) in [0, 1] of a picture, RGB."""
    return torch.from_numpy(np.array(picture)).float() / 255


def target_size(size: dict, samples: Tensor, node: type[io.ComfyNode], upsampler: ModelPatcher | None) -> tuple[int, int]:
    """Returns the target (H, W) in latent pixels that a `size` value asks for.

    Args:
        size: The value.
        samples: Low-resolution latent (B, 16, T, h, w).
        node: The node that errors name.
        upsampler: The LATENT_UPSCALE_MODEL; None is one of any scale.

    Raises:
        ValueError: It is smaller than the source, no multiple of 8 pixels, or no size that the upsampler makes; what
            upsampler_network raises.
    """
    source = samples.shape[3], samples.shape[4]
    config = UpsamplerConfig() if upsampler is None else upsampler_network(upsampler, node).config
    if size["size"] == "upsampler scale":
        target = scaled_size(source, config.scale or DEFAULT_SCALE)
    elif size["size"] == "scale":
        target = scaled_size(source, size["scale"])
    elif size["size"] == "width x height":
        target = pixel_size(size["width"], size["height"])
    else:
        target = short_side_size(source, SHORT_SIDES[size["preset"]])
    if target[0] < source[0] or target[1] < source[1]:
        raise refuse(node, f"the target {pixels(target)} is smaller than the source {pixels(source)}: choose a larger size")
    try:
        config.check_size(source, target)
    except ValueError as error:
        raise refuse(node, str(error)) from error
    return target


def null_prompt() -> list:
    """Returns a CONDITIONING of one zero token, the null prompt that SimpleGVR models are trained with."""
    return [[torch.zeros(1, 1, TEXT_DIM), {}]]


def add_condition(conditionings: tuple, z_up: Tensor, noise_augmentation: float, noise_seed: int) -> tuple:
    """Returns the CONDITIONINGs with the noised condition, in VAE space, where ComfyUI's Wan models read it.

    Args:
        conditionings: CONDITIONINGs.
        z_up: Upsampled latent (B, 16, T, H, W), normalised.
        noise_augmentation: Noise level of the condition, in [0, 1].
        noise_seed: Seed of its noise.
    """
    condition = LATENT_FORMAT.process_out(augment_condition(z_up, noise_augmentation, noise_seed))
    return tuple(node_helpers.conditioning_set_values(c, {"concat_latent_image": condition}) for c in conditionings)


def upsampler_network(upsampler: ModelPatcher, node: type[io.ComfyNode]) -> Upsampler:
    """Returns the network of a LATENT_UPSCALE_MODEL. Raises ValueError when it is another pack's."""
    network = getattr(upsampler, "model", None)
    if not isinstance(network, Upsampler):
        raise refuse(
            node,
            f"the latent upscale model is a {type(network or upsampler).__name__}, "
            "wanted a SimpleGVR upsampler: load it with Load SimpleGVR Upsampler",
        )
    return network


def upsample(upsampler: ModelPatcher, z_lr: LatentFrames, size: tuple[int, int], append: Append, node: type[io.ComfyNode]) -> None:
    """Calls append with the frames of the upsampled latent z, (B, 16, t, H, W) normalised float32, a few at a time, in order.

    Frames that do not fit ComfyUI's memory are upsampled in tiles, and in smaller ones when memory runs out.

    Args:
        upsampler: A LATENT_UPSCALE_MODEL of ours.
        z_lr: Low-resolution latent (B, 16, T, h, w).
        size: (H, W), target size in latent pixels.
        append: Takes the frames.
        node: The node that the error names.

    Raises:
        OutOfMemory: There is not enough memory for the smallest tiles.
        ValueError: What upsampler_network raises.
    """
    model, management = upsampler_network(upsampler, node), comfy.model_management
    batch, source, tiles, done = z_lr.shape[0], z_lr.shape[3:], list(smaller_tiles(size)), 0

    def tile_or_whole(tile: tuple[int, int]) -> tuple[int, int] | None:
        return None if tile == size else tile

    def needed(tile: tuple[int, int]) -> int:
        return upsampler_bytes(model.config, batch, UPSAMPLER_FRAMES, source, size, tile_or_whole(tile), model.get_dtype())

    def run(tile: tuple[int, int]) -> None:
        nonlocal done
        chunks = (part.to(upsampler.load_device, model.get_dtype()) for part in parts(z_lr, UPSAMPLER_FRAMES))
        for i, z in enumerate(model.stream(chunks, size, tile_or_whole(tile))):
            management.throw_exception_if_processing_interrupted()
            if i >= done:
                append(z.float().cpu())
                done = i + 1

    free = free_memory(upsampler) - upsampler.model_size()
    first = next((tile for tile in tiles if needed(tile) <= free), tiles[-1])
    management.load_models_gpu([upsampler], memory_required=needed(first))
    with_less_memory(
        run,
        first,
        smaller=dict(pairwise(tiles)).get,
        on_out_of_memory=lambda tile, smaller: management.soft_empty_cache(),
        give_up=lambda tile: (
            f"{node.define_schema().display_name}: out of memory with tiles of {pixels(tile)}: close other programs, or use a smaller batch"
        ),
        is_out_of_memory=is_out_of_memory,
    )
    management.soft_empty_cache()


def free_memory(model: ModelPatcher) -> int:
    """Returns the bytes that ComfyUI could give to a run of model, its weights included: what is free and what models hold."""
    device = model.load_device
    free = cast("float", comfy.model_management.get_free_memory(device)) - comfy.model_management.extra_reserved_memory()
    if comfy.model_management.is_device_cpu(device):
        return int(free) + model.model_size()  # in memory already; other models are not moved
    loaded = (other for other in comfy.model_management.current_loaded_models if other.device == device)
    return int(free) + sum(other.model_loaded_memory() for other in loaded)


def is_out_of_memory(error: Exception) -> bool:
    """Returns whether memory ran out. ComfyUI's own test does not know the errors of a CPU and of Apple's GPUs."""
    return comfy.model_management.is_oom(error) or is_out_of_memory_of_pytorch(error)


def show_text(node_id: str, text: str) -> None:
    """Shows a text on a node while the workflow runs."""
    PromptServer.instance.send_progress_text(text, node_id)
