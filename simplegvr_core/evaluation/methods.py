"""The methods that evaluation compares, as data.

h, w low-resolution pixels, H, W the size wanted; z_lr normalised latent (1, 16, T, h / 8, w / 8); video (1, 3, F, H, W) in [-1, 1].
A method gives whole latent frames and cells: what is beyond the clip is cut off by whoever calls it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from torch import Tensor

from ..latent_space import scaled_size
from ..networks.dit import SimpleGVRDiT
from ..networks.tiny_vae import TinyVAE
from ..networks.upsampler import LatentUpsampler, resize
from ..networks.wan_vae import WanVAE
from ..sampling.latent_file import TensorFrames
from ..sampling.super_resolve import SamplingConfig
from ..sampling.super_resolve_to_file import super_resolve_to_file, torch_runtime
from ..tiling import WHOLE, Tiling
from ..video.frames import resize_frames
from . import baselines


@dataclass(frozen=True)
class Models:
    """The networks that methods share, on one device. tiling: the boxes that gvr refines."""

    vae: TinyVAE | WanVAE
    upsampler: LatentUpsampler
    dit: SimpleGVRDiT
    sampling: SamplingConfig
    seed: int
    tiling: Tiling = WHOLE


def gvr(z_lr: Tensor, scale: int, models: Models) -> Tensor:
    """SimpleGVR: upsample the latent, refine it, decode."""
    sampling, size = models.sampling, scaled_size(z_lr.shape[3:], scale)
    runtime = torch_runtime(models.dit, models.upsampler, like=z_lr, sampling=sampling, tiling=models.tiling)
    seeds = {"seed": models.seed, "noise_seed": models.seed + 1}
    with TemporaryDirectory(prefix="simplegvr_") as folder:
        z = super_resolve_to_file(Path(folder), TensorFrames(z_lr), size, runtime, sampling=sampling, **seeds)[:]
    return models.vae.decode(z.to(z_lr))


def upsampler(z_lr: Tensor, scale: int, models: Models) -> Tensor:
    """The latent upsampler alone: upsample the latent, decode."""
    return models.vae.decode(models.upsampler(z_lr, scaled_size(z_lr.shape[3:], scale)))


def latent_bilinear(z_lr: Tensor, scale: int, models: Models) -> Tensor:
    """Resize the latent bilinearly, decode."""
    return models.vae.decode(resize(z_lr, scaled_size(z_lr.shape[3:], scale)))


def decoded_bilinear(z_lr: Tensor, scale: int, models: Models) -> Tensor:
    """Decode, bilinear resize of the pixels: what there is to gain over, since the autoencoder costs quality too."""
    return bilinear(models.vae.decode(z_lr), scale, models)


def decoded_bicubic(z_lr: Tensor, scale: int, models: Models) -> Tensor:
    """Decode, bicubic resize of the pixels."""
    return bicubic(models.vae.decode(z_lr), scale, models)


def bilinear(video_lr: Tensor, scale: int, models: Models) -> Tensor:
    """Bilinear resize of the pixels."""
    return resize_frames(video_lr, scaled_size(video_lr.shape[3:], scale), "bilinear")


def bicubic(video_lr: Tensor, scale: int, models: Models) -> Tensor:
    """Bicubic resize of the pixels."""
    return resize_frames(video_lr, scaled_size(video_lr.shape[3:], scale), "bicubic")


def vae(original: Tensor, scale: int, models: Models) -> Tensor:
    """Encode and decode the original: what the autoencoder keeps, which a method in its latents can hardly exceed."""
    return models.vae.decode(models.vae.encode(original))


def vae_linear(original: Tensor, scale: int, models: Models) -> Tensor:
    """The same with TinyVAE's closed form alone. Raises ValueError for another autoencoder."""
    if models.vae.linear_decoder is None:
        raise ValueError("vae_linear is TinyVAE's closed form, and --vae is another autoencoder: leave vae_linear out of --methods")
    return models.vae.linear_decode(models.vae.encode(original))


@dataclass(frozen=True)
class Method:
    """run: (what it sees, scale, models) -> video. sees: the clip's latent z_lr, its low-resolution pixels, or the original."""

    run: Callable[[Tensor, int, Models], Tensor]
    sees: Literal["latent", "pixels", "original"]


METHODS = {
    run.__name__: Method(run, sees)
    for sees, runs in {
        "latent": (gvr, upsampler, latent_bilinear, decoded_bilinear, decoded_bicubic),
        "pixels": (bilinear, bicubic, *baselines.BASELINES.values()),
        "original": (vae, vae_linear),
    }.items()
    for run in runs
}
