"""The methods that evaluation compares, as data.

h, w low-resolution pixels, H, W pixels of the result; z_lr normalised latent (1, 16, T, h / 8, w / 8); video (1, 3, F, H, W) in [-1, 1].
A method returns whole latent frames and latent pixels; the caller cuts off what is beyond the clip.
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
    """

    vae: TinyVAE | WanVAE
    upsampler: Upsampler
    dit: SimpleGVRDiT
    sampling: SamplingConfig
    seed: int
    tiling: Tiling = WHOLE


def upscaled(x: Tensor, scale: int) -> tuple[int, int]:
    """Returns the height and width of a latent or video (B, C, F, h, w) times scale."""
    return scaled_size((x.shape[3], x.shape[4]), scale)


def gvr(z_lr: Tensor, scale: int, models: Models) -> Tensor:
    """SimpleGVR: upsample the latent, refine it, decode."""
    sampling, size = models.sampling, upscaled(z_lr, scale)
    runtime = torch_runtime(models.dit, models.upsampler, like=z_lr, sampling=sampling, tiling=models.tiling)
    seeds = {"seed": models.seed, "noise_seed": models.seed + 1}
    with TemporaryDirectory(prefix="simplegvr_") as folder:
        z = super_resolve_to_file(Path(folder), TensorFrames(z_lr), size, runtime, sampling=sampling, **seeds)[:]
    return models.vae.decode(z.to(z_lr))


def upsampler(z_lr: Tensor, scale: int, models: Models) -> Tensor:
    """The latent upsampler alone: upsample the latent, decode."""
    return models.vae.decode(models.upsampler(z_lr, upscaled(z_lr, scale)))


def latent_bilinear(z_lr: Tensor, scale: int, models: Models) -> Tensor:
    """Resize the latent bilinearly, decode."""
    return models.vae.decode(resize(z_lr, upscaled(z_lr, scale)))


def decoded_bilinear(z_lr: Tensor, scale: int, models: Models) -> Tensor:
    """Decode, bilinear resize of the pixels: the baseline without super-resolution, with the loss of the autoencoder."""
    return bilinear(models.vae.decode(z_lr), scale, models)


def decoded_bicubic(z_lr: Tensor, scale: int, models: Models) -> Tensor:
    """Decode, bicubic resize of the pixels."""
    return bicubic(models.vae.decode(z_lr), scale, models)


def bilinear(video_lr: Tensor, scale: int, models: Models) -> Tensor:
    """Bilinear resize of the pixels."""
    return resize_frames(video_lr, upscaled(video_lr, scale), "bilinear")


def bicubic(video_lr: Tensor, scale: int, models: Models) -> Tensor:
    """Bicubic resize of the pixels."""
    return resize_frames(video_lr, upscaled(video_lr, scale), "bicubic")


def vae(original: Tensor, scale: int, models: Models) -> Tensor:
    """Encode and decode the original: about the best that a method in these latents can reach."""
    return models.vae.decode(models.vae.encode(original))


def vae_linear(original: Tensor, scale: int, models: Models) -> Tensor:
    """The same with TinyVAE's closed form alone. Raises ValueError for another autoencoder."""
    if not isinstance(models.vae, TinyVAE):
        raise ValueError("vae_linear is TinyVAE's closed form, and --vae is another autoencoder: leave vae_linear out of --methods")
    return models.vae.linear_decode(models.vae.encode(original))


Input = Literal["latent", "pixels", "original"]
Run = Callable[[Tensor, int, Models], Tensor]


@dataclass(frozen=True)
class Method:
    """A way to make a video of a clip.

    Attributes:
        run: Maps its input, the scale and the models to video.
        sees: Its input: the clip's latent z_lr, its low-resolution pixels, or the original.
    """

    run: Run
    sees: Input


LATENT_METHODS: tuple[Run, ...] = (gvr, upsampler, latent_bilinear, decoded_bilinear, decoded_bicubic)
PIXEL_METHODS: tuple[Run, ...] = (bilinear, bicubic, *baselines.BASELINES.values())
METHODS = {
    **{run.__name__: Method(run, "latent") for run in LATENT_METHODS},
    **{run.__name__: Method(run, "pixels") for run in PIXEL_METHODS},
    **{run.__name__: Method(run, "original") for run in (vae, vae_linear)},
}
