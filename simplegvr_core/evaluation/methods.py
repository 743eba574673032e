"""The methods that evaluation compares, as data.

h, w low-resolution pixels, H, W pixels of the result; z_lr normalised latent (1, 16, T, h / 8, w / 8); video (1, 3, F, H, W) in [-1, 1];
size: (H, W) of the result of the whole input, whose sides a latent rounds up. The caller cuts off what is beyond the clip.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import torch
from torch import Tensor

from ..latent_space import SPATIAL_FACTOR
from ..networks.dit import SimpleGVRDiT
from ..networks.tiny_vae import TinyVAE
from ..networks.upsampler import Upsampler, resize
from ..networks.wan_vae import WanVAE
from ..sampling.latent_file import TensorFrames
from ..sampling.super_resolve import SamplingConfig
from ..sampling.super_resolve_to_file import super_resolve_to_file, torch_runtime
from ..tiling import WHOLE, Tiling
from ..video.frames import resize_frames
from . import baselines


@dataclass(frozen=True)
class Models:
    """The networks that methods share, on one device.

    Attributes:
        vae: Autoencoder of the latents.
        upsampler: Latent upsampler.
        dit: Transformer that refines.
        sampling: How gvr samples.
        seed: Seed of the noise.
        tiling: Boxes that gvr refines.
        context: Text features (1, S, text_dim) of the clip's prompt; None is the null prompt.
        bf16: Whether upsampler and transformer compute in bfloat16, as in training.
    """

    vae: TinyVAE | WanVAE
    upsampler: Upsampler
    dit: SimpleGVRDiT
    sampling: SamplingConfig
    seed: int
    tiling: Tiling = WHOLE
    context: Tensor | None = None
    bf16: bool = False

    def mixed_precision(self, device: torch.device) -> torch.autocast:
        """Returns the context in which upsampler and transformer compute, as in training."""
        return torch.autocast(device.type, torch.bfloat16, enabled=self.bf16)

    def decode(self, z: Tensor, size: tuple[int, int]) -> Tensor:
        """Returns the video of a latent at the size wanted, which may be up to 7 pixels smaller than the latent's: bicubic then."""
        video = self.vae.decode(z.float())
        return video if video.shape[3:] == size else resize_frames(video, size, "bicubic")


def latent_size(size: tuple[int, int]) -> tuple[int, int]:
    """Returns the rows and columns of the smallest latent that covers a size in pixels."""
    return -(-size[0] // SPATIAL_FACTOR), -(-size[1] // SPATIAL_FACTOR)


def gvr(z_lr: Tensor, size: tuple[int, int], models: Models) -> Tensor:
    """SimpleGVR: upsample the latent, refine it, decode."""
    sampling, tiling = models.sampling, models.tiling
    runtime = torch_runtime(models.dit, models.upsampler, like=z_lr, sampling=sampling, context=models.context, tiling=tiling)
    seeds = {"seed": models.seed, "noise_seed": models.seed + 1}
    with TemporaryDirectory(prefix="simplegvr_") as folder, models.mixed_precision(z_lr.device):
        z = super_resolve_to_file(Path(folder), TensorFrames(z_lr), latent_size(size), runtime, sampling=sampling, **seeds)[:]
    return models.decode(z.to(z_lr), size)


def upsampler(z_lr: Tensor, size: tuple[int, int], models: Models) -> Tensor:
    """The latent upsampler alone: upsample the latent, decode."""
    with models.mixed_precision(z_lr.device):
        z = models.upsampler(z_lr, latent_size(size))
    return models.decode(z, size)


def latent_bilinear(z_lr: Tensor, size: tuple[int, int], models: Models) -> Tensor:
    """Resize the latent bilinearly, decode."""
    return models.decode(resize(z_lr, latent_size(size)), size)


def decoded_bilinear(z_lr: Tensor, size: tuple[int, int], models: Models) -> Tensor:
    """Decode, bilinear resize of the pixels: the baseline without super-resolution, with the loss of the autoencoder."""
    return bilinear(models.vae.decode(z_lr), size, models)


def decoded_bicubic(z_lr: Tensor, size: tuple[int, int], models: Models) -> Tensor:
    """Decode, bicubic resize of the pixels."""
    return bicubic(models.vae.decode(z_lr), size, models)


def encoded_bicubic(z_lr: Tensor, size: tuple[int, int], models: Models) -> Tensor:
    """Decode, bicubic resize of the pixels, encode, decode: the pixel route to a high-resolution latent, which the upsampler replaces."""
    height, width = (SPATIAL_FACTOR * side for side in latent_size(size))
    video = models.vae.decode(z_lr)
    return models.decode(models.vae.encode(resize_frames(video, (height, width), "bicubic")), size)


def bilinear(video_lr: Tensor, size: tuple[int, int], models: Models) -> Tensor:
    """Bilinear resize of the pixels."""
    return resize_frames(video_lr, size, "bilinear")


def bicubic(video_lr: Tensor, size: tuple[int, int], models: Models) -> Tensor:
    """Bicubic resize of the pixels."""
    return resize_frames(video_lr, size, "bicubic")


def vae(original: Tensor, size: tuple[int, int], models: Models) -> Tensor:
    """Encode and decode the original: about the best that a method in these latents can reach."""
    return models.vae.decode(models.vae.encode(original))


def vae_linear(original: Tensor, size: tuple[int, int], models: Models) -> Tensor:
    """The same with TinyVAE's closed form alone. Raises ValueError for another autoencoder."""
    if not isinstance(models.vae, TinyVAE):
        raise ValueError("vae_linear is TinyVAE's closed form, and --vae is another autoencoder: leave vae_linear out of --methods")
    return models.vae.linear_decode(models.vae.encode(original))


Input = Literal["latent", "pixels", "original"]
Run = Callable[[Tensor, tuple[int, int], Models], Tensor]


@dataclass(frozen=True)
class Method:
    """A way to make a video of a clip.

    Attributes:
        run: Maps its input, the size in pixels and the models to video.
        sees: Its input: the clip's latent z_lr, its low-resolution pixels, or the original.
    """

    run: Run
    sees: Input


LATENT_METHODS: tuple[Run, ...] = (gvr, upsampler, latent_bilinear, decoded_bilinear, decoded_bicubic, encoded_bicubic)
PIXEL_METHODS: tuple[Run, ...] = (bilinear, bicubic, *baselines.BASELINES.values())
METHODS = {
    **{run.__name__: Method(run, "latent") for run in LATENT_METHODS},
    **{run.__name__: Method(run, "pixels") for run in PIXEL_METHODS},
    **{run.__name__: Method(run, "original") for run in (vae, vae_linear)},
}
