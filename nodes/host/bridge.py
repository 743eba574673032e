"""The border between ComfyUI and the core: latents, target sizes, the upsampler's run, model folders.

ComfyUI's LATENT holds the VAE's own values ("VAE space"); the core only ever sees normalised latents z.
"""

from collections.abc import Iterator
from pathlib import Path

import comfy.latent_formats
import comfy.model_management
import comfy.model_patcher
import folder_paths
import numpy as np
import torch
from comfy_api.latest import io
from PIL import Image
from server import PromptServer
from torch import Tensor

from ...simplegvr_core.latent_space import pixel_size, pixels, scaled_size, short_side_size
from ...simplegvr_core.networks.upsampler import LatentUpsampler, smaller_tiles
from ...simplegvr_core.planning.network_memory import upsampler_bytes
from ...simplegvr_core.sampling.super_resolve import UPSAMPLER_FRAMES, refine

CATEGORY = "SimpleGVR"
LATENT_FORMAT = comfy.latent_formats.Wan21()
SHORT_SIDES = {"720p": 720, "1080p": 1080, "1440p": 1440, "2160p": 2160}
TINY_VAE_FOLDER = "simplegvr_tiny_vae"


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
    name, samples = node.define_schema().display_name, latent["samples"]
    if samples.ndim != 5:
        raise ValueError(
            f"{name}: the latent has shape {tuple(samples.shape)}, wanted (batch, 16, frames, height, width): "
            "connect a video latent, from a Wan 2.1 sampler or VAE Encode with a Wan 2.1 VAE"
        )
    if samples.shape[1] != LATENT_FORMAT.latent_channels:
        raise ValueError(
            f"{name}: the latent has {samples.shape[1]} channels, wanted 16: SimpleGVR works on Wan 2.1 latents "
            "(also Wan 2.2 14B); for another model, decode it and encode the video with the Wan 2.1 VAE"
        )
    if not all(torch.isfinite(frame).all() for frame in samples.unbind(2)):
        raise ValueError(f"{name}: the latent contains NaN or infinite values: look for the cause in the sampler before it")
    return samples


def to_core(samples: Tensor) -> Tensor:
    """Returns the normalised latent z, float32, of VAE-space samples (B, 16, T, H, W)."""
    return LATENT_FORMAT.process_in(samples.float())


def to_latent(samples: Tensor) -> dict:
    """Returns a LATENT of VAE-space samples, on the device and in the dtype ComfyUI keeps between nodes."""
    return {"samples": samples.to(comfy.model_management.intermediate_device(), comfy.model_management.intermediate_dtype())}


def to_image(picture: Image.Image) -> Tensor:
    """Returns (H, W, 3) in [0, 1] of a picture, RGB."""
    return torch.from_numpy(np.array(picture)).float() / 255


def seed_input(tooltip: str = "Draws everything that is random here. The same seed gives the same result.") -> io.Int.Input:
    """Returns the `seed` input."""
    return io.Int.Input(
        "seed", default=0, min=0, max=0xFFFFFFFFFFFFFFFF, control_after_generate=io.ControlAfterGenerate.fixed, tooltip=tooltip
    )


def size_input() -> io.DynamicCombo.Input:
    """Returns the `size` input: by scale, by width and height, or by the short side."""
    return io.DynamicCombo.Input(
        "size",
        tooltip="How the target size is given. It is met exactly, in steps of 8 pixels (1080 is 135 latent rows).",
        options=[
            io.DynamicCombo.Option(
                "scale",
                [
                    io.Float.Input(
                        "scale", default=3.0, min=1.0, max=8.0, step=0.01, tooltip="Target width and height divided by the source's."
                    )
                ],
            ),
            io.DynamicCombo.Option(
                "width x height",
                [
                    io.Int.Input("width", default=1920, min=16, max=16384, step=8, tooltip="Target width in pixels."),
                    io.Int.Input("height", default=1080, min=16, max=16384, step=8, tooltip="Target height in pixels."),
                ],
            ),
            io.DynamicCombo.Option(
                "short side",
                [
                    io.Combo.Input(
                        "preset",
                        options=list(SHORT_SIDES),
                        default="1080p",
                        tooltip="Target height of a landscape video, width of a portrait one.",
                    )
                ],
            ),
        ],
    )


def target_size(size: dict, samples: Tensor, node: type[io.ComfyNode]) -> tuple[int, int]:
    """Returns the target (H, W) in latent cells that a `size` value asks for.

    Raises ValueError when it is smaller than the source, or no multiple of 8 pixels.
    """
    source = tuple(samples.shape[3:])
    match size["size"]:
        case "scale":
            target = scaled_size(source, size["scale"])
        case "width x height":
            target = pixel_size(size["width"], size["height"])
        case "short side":
            target = short_side_size(source, SHORT_SIDES[size["preset"]])
    if target[0] < source[0] or target[1] < source[1]:
        name = node.define_schema().display_name
        raise ValueError(f"{name}: the target {pixels(target)} is smaller than the source {pixels(source)}: choose a larger size")
    return target


def upsampler_network(upsampler: comfy.model_patcher.ModelPatcher, node: type[io.ComfyNode]) -> LatentUpsampler:
    """Returns the network of a LATENT_UPSCALE_MODEL. Raises ValueError when it is another pack's."""
    network = getattr(upsampler, "model", None)
    if not isinstance(network, LatentUpsampler):
        raise ValueError(
            f"{node.define_schema().display_name}: the latent upscale model is a {type(network or upsampler).__name__}, "
            "wanted a SimpleGVR upsampler: load it with Load SimpleGVR Upsampler"
        )
    return network


def upsampled_frames(
    upsampler: comfy.model_patcher.ModelPatcher, samples: Tensor, size: tuple[int, int], node: type[io.ComfyNode]
) -> Iterator[Tensor]:
    """Yields the frames of the upsampled latent z, (B, 16, t, *size) normalised float32, a few at a time, in order.

    samples: (B, 16, T, h, w) in VAE space. Frames that do not fit ComfyUI's memory are upsampled in tiles, in smaller ones when it
    runs out all the same. Raises ValueError when it does with the smallest tiles, and what upsampler_network raises.
    """
    model = upsampler_network(upsampler, node)
    source, tiles = tuple(samples.shape[3:]), list(smaller_tiles(size))

    def needed(tile: tuple[int, int]) -> int:
        return upsampler_bytes(
            model.config, len(samples), UPSAMPLER_FRAMES, source, size, tile if tile != size else None, model.get_dtype()
        )

    free = free_memory(upsampler) - upsampler.model_size()
    while len(tiles) > 1 and needed(tiles[0]) > free:
        tiles.pop(0)
    comfy.model_management.load_models_gpu([upsampler], memory_required=needed(tiles[0]))
    parts, done = samples.split(UPSAMPLER_FRAMES, dim=2), 0
    while done < len(parts):
        chunks = (to_core(part).to(upsampler.load_device, model.get_dtype()) for part in parts)
        try:
            for i, z in enumerate(model.stream(chunks, size, tiles[0] if tiles[0] != size else None)):
                comfy.model_management.throw_exception_if_processing_interrupted()
                if i == done:
                    done += 1
                    yield z.float().cpu()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            if len(tiles) == 1:
                raise ValueError(
                    f"{node.define_schema().display_name}: out of memory with tiles of {pixels(tiles[0])}: "
                    "close other programs, or use a smaller batch"
                ) from error
            tiles.pop(0)
        comfy.model_management.soft_empty_cache()


def free_memory(model) -> int:
    """Returns the bytes that ComfyUI could give to a run of model, its weights included: what is free and what models hold."""
    device = model.load_device
    free = comfy.model_management.get_free_memory(device) - comfy.model_management.extra_reserved_memory()
    if comfy.model_management.is_device_cpu(device):
        return int(free) + model.model_size()  # they are there already; other models stay where they are
    loaded = (other for other in comfy.model_management.current_loaded_models if other.device == device)
    return int(free) + sum(other.model_loaded_memory() for other in loaded)


def is_out_of_memory(error: Exception) -> bool:
    """Returns whether memory ran out, by ComfyUI's word or PyTorch's: ComfyUI does not know a CPU's errors and Apple's."""
    return comfy.model_management.is_oom(error) or refine.is_out_of_memory(error)


def show_text(node_id: str, text: str) -> None:
    """Shows a text on a node while the workflow runs."""
    PromptServer.instance.send_progress_text(text, node_id)
