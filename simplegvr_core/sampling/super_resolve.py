"""Super-resolution of a latent: upsample, noise the condition, integrate the velocity from noise to data.

`super_resolve` is the one entry that evaluation, benchmarks and tests share; inside ComfyUI its parts run under
ComfyUI's sampler. B batch, T latent frames, h, w low-resolution cells, H, W target cells; latents are normalised.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from ..flow import clean_from_velocity, interpolate, positional_noise, shifted_sigmas
from ..latent_space import LATENT_CHANNELS
from ..networks.dit import SimpleGVRDiT
from ..networks.upsampler import LatentUpsampler, resize
from ..tiling import Tiling, aligned_tiling
from .color_match import match_color
from .latent_file import LatentFile, write_latent
from .refine import TiledVelocity, refine

UPSAMPLER_FRAMES = 2  # latent, at a time
CONDITION_FIELD = 1  # of the condition's noise: with the same seed, too, it has nothing to do with the one to start from


@dataclass(frozen=True)
class SamplingConfig:
    """How a model wants to be sampled; it travels in the checkpoint.

    cfg: guidance scale, 1 is none. shift: of the noise levels. noise_augmentation: noise share of the condition.
    denoise: first noise level; below 1 sampling starts from the noised upsampled latent instead of pure noise.
    """

    steps: int = 50
    cfg: float = 1.0
    shift: float = 5.0
    noise_augmentation: float = 0.4
    denoise: float = 1.0


def super_resolve(model: SimpleGVRDiT, upsampler: LatentUpsampler, z_lr: Tensor, *arguments, **options) -> Tensor:
    """Returns super_resolve_in's latent (B, 16, T, *size) as a tensor. It takes the same arguments, but no folder."""
    with TemporaryDirectory(prefix="simplegvr_") as folder:
        return super_resolve_in(Path(folder), model, upsampler, z_lr, *arguments, **options)[:].to(z_lr)


@torch.inference_mode()
def super_resolve_in(
    folder: Path,
    model: SimpleGVRDiT,
    upsampler: LatentUpsampler,
    z_lr: Tensor,
    size: tuple[int, int],
    sampling: SamplingConfig,
    context: Tensor,
    null_context: Tensor,
    seed: int,
    noise_seed: int,
    tiling: Tiling | None = None,
    color_match: float = 1.0,
    on_segment: Callable[[int, int, Tensor], None] = lambda step, first_frame, z_0: None,
) -> LatentFile:
    """Returns the file, in folder, of the super-resolved latent (B, 16, T, *size).

    z_lr: (B, 16, T, h, w). context, null_context: (B, S, text_dim) text features of the prompt and of no prompt.
    seed draws the starting noise, noise_seed the condition's. tiling: boxes that the model sees at a time, by default the whole.
    color_match: strength of match_source on the result. on_segment: as in refine. A model with 16 input channels (any
    text-to-video Wan) takes no condition: training-free mode, which needs denoise < 1. Raises ValueError otherwise, and
    when memory runs out with the smallest boxes.
    """
    condition_free = model.config.in_dim == LATENT_CHANNELS
    if condition_free and sampling.denoise == 1:
        raise ValueError("denoise is 1, so a model with 16 input channels would not see the video: set denoise to 0.3-0.6")

    with write_latent(folder / "upsampled.safetensors", (*z_lr.shape[:3], *size), {}) as append:
        for z in upsampler.stream(z_lr.split(UPSAMPLER_FRAMES, dim=2), size):
            append(z)
    upsampled = LatentFile(folder / "upsampled.safetensors")
    condition = None if condition_free else write_condition(upsampled, sampling.noise_augmentation, noise_seed, folder)

    def finish(z: Tensor, frame: int) -> Tensor:
        return match_source(z, z_lr[:, :, frame : frame + 1], upsampler.config.latents, color_match)

    network = guided_network(model, sampling.cfg, context, null_context, z_lr)
    tiling = tiling or aligned_tiling((None, None, None), model.attention.alignment)
    velocity = TiledVelocity(network, tiling, model.attention.alignment)
    sigmas = shifted_sigmas(sampling.steps, sampling.shift, sampling.denoise)
    return refine(velocity, upsampled, condition, sigmas, seed, folder, on_segment, finish)


def guided_network(model: SimpleGVRDiT, cfg: float, context: Tensor, null_context: Tensor, like: Tensor) -> Callable:
    """Returns (z_t, condition or None, sigma) -> velocity by the model with guidance, as TiledVelocity takes it.

    cfg: guidance scale, 1 is none. like: a tensor on the model's device and in its dtype.
    """

    def network(z: Tensor, condition: Tensor | None, sigma: Tensor) -> Tensor:
        z = (z if condition is None else torch.cat((z, condition), dim=1)).to(like)
        timestep = (1000 * sigma).to(like.device).expand(len(z))
        conditional = model(z, timestep, context).float().cpu()
        if cfg == 1:
            return conditional
        unconditional = model(z, timestep, null_context).float().cpu()
        return unconditional + cfg * (conditional - unconditional)

    return network


def sample_euler(velocity: Callable, z: Tensor, sigmas: Tensor, on_step: Callable[[int, Tensor, Tensor], None]) -> Tensor:
    """Returns z integrated along velocity(z, sigma) through sigmas, by Euler's method (equation 2).

    on_step(i, z, z_0) is called in step i with the noised latent and the clean one that its velocity predicts.
    """
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        v = velocity(z, sigma)
        on_step(i, z, clean_from_velocity(z, v, sigma))
        z = z + (sigma_next - sigma) * v
    return z


def augment_condition(upsampled: Tensor, noise_augmentation: float, noise_seed: int, first_frame: int = 0) -> Tensor:
    """Returns the condition (1 - s) upsampled + s noise, s = noise_augmentation, noise drawn by position from noise_seed.

    first_frame: the number in the clip of upsampled's first frame.
    """
    noise = positional_noise(upsampled.shape, noise_seed, first_frame, CONDITION_FIELD).to(upsampled)
    return interpolate(upsampled, noise, noise_augmentation)


def write_condition(upsampled: LatentFile, noise_augmentation: float, noise_seed: int, folder: Path) -> LatentFile:
    """Returns the file, in folder, of augment_condition of a whole clip, which all steps read."""
    path = folder / "condition.safetensors"
    if not path.exists():
        with write_latent(path, upsampled.shape, {}) as append:
            for frame in range(upsampled.shape[2]):
                append(augment_condition(upsampled[frame : frame + 1], noise_augmentation, noise_seed, frame))
    return LatentFile(path)


def match_source(z: Tensor, z_lr: Tensor, latents: str, strength: float) -> Tensor:
    """Returns z (B, 16, T, H, W) with the colors of large areas of z_lr (B, 16, T, h, w), resized, at that strength.

    latents: whose they are, as the upsampler's configuration says. Large is what four source cells and more share; see match_color.
    """
    size = tuple(z.shape[3:])
    width = tuple(4 * large / small for large, small in zip(size, z_lr.shape[3:], strict=True))
    return match_color(z, resize(z_lr.to(z), size), latents, strength, width)
