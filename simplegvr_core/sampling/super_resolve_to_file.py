"""super_resolve for clips of any length: every step is a file, a segment of the clip is in memory.

`super_resolve_to_file` is what evaluation and the node SimpleGVR Sampler run. They differ in the Runtime that they give it.
B batch, T latent frames, h, w low-resolution latent pixels, H, W those of the target; latents are normalised.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..flow import shifted_sigmas
from ..networks.dit import SimpleGVRDiT
from ..networks.slab_memory import slab_memory
from ..networks.upsampler import Upsampler
from ..tiling import Tiling
from .latent_file import LatentFile, LatentFrames, undamaged, write_latent
from .refine import OnSegment, Refinement, TiledVelocity, last_step, refine
from .super_resolve import (
    PAPER,
    UPSAMPLER_FRAMES,
    NoisedFrames,
    SamplingConfig,
    guided_network,
    match_source,
    takes_condition,
    weighed,
    whole,
)

Append = Callable[[Tensor], None]


@dataclass(frozen=True)
class Runtime:
    """What runs the networks: PyTorch alone (torch_runtime), or ComfyUI.

    Attributes:
        upsample: (z_lr, size, append): calls append with the frames of the upsampled latent (B, 16, t, H, W), in order.
        integrate: Runs a refinement with its velocity; returns the refined latent's file.
        takes_condition: Whether the model takes a condition.
        latents: Autoencoder of the latents, a key of COLOR_FACTORS.
        finish: Applied to each frame of the result before it is written.
        note: Called with a sentence on each file of an earlier run that is damaged.
    """

    upsample: Callable[[LatentFrames, tuple[int, int], Append], None]
    integrate: Callable[[Refinement], LatentFile]
    takes_condition: bool
    latents: str
    finish: Callable[[Tensor], Tensor] = lambda z: z
    note: Callable[[str], None] = lambda text: None


@torch.inference_mode()
def super_resolve_to_file(
    folder: Path,
    z_lr: LatentFrames,
    size: tuple[int, int],
    runtime: Runtime,
    *,
    sampling: SamplingConfig = PAPER,
    seed: int = 0,
    noise_seed: int = 0,
    color_match: float = 1.0,
) -> LatentFile:
    """Returns the file of the super-resolved latent (B, 16, T, H, W), what super_resolve returns.

    Args:
        folder: Folder for the files. A run whose files are there is continued after its last whole step; a damaged file is made again.
        z_lr: Low-resolution latent (B, 16, T, h, w), read a few frames at a time.
        size: (H, W), target size in latent pixels.
        runtime: The networks. Their guidance and tiling are its own.
        sampling: Steps and noise levels.
        seed: Seed of the starting noise.
        noise_seed: Seed of the condition's noise.
        color_match: Strength in [0, 1] of the removal of low-frequency color drift.

    Raises:
        tiling.OutOfMemory: There is not enough memory for the smallest box or tile.
        OSError: A file cannot be written, see files.atomic_write.
    """
    batch, channels, frames, *_ = z_lr.shape

    def upsample(append: Append) -> None:
        runtime.upsample(z_lr, size, append)

    z_up = stored(folder / "upsampled.safetensors", (batch, channels, frames, *size), upsample, runtime.note)

    def write_condition(append: Append) -> None:
        if sampling.noise_order == "before_upsampler":
            runtime.upsample(NoisedFrames(z_lr, sampling.noise_augmentation, noise_seed), size, append)
            return
        for z in parts(NoisedFrames(z_up, sampling.noise_augmentation, noise_seed), 1):
            append(z)

    def finish(z: Tensor, frame: int) -> Tensor:
        if sampling.weighs:
            z = weighed(z, z_up[frame : frame + 1].to(z), sampling)
        return runtime.finish(match_source(z, z_lr[frame : frame + 1], runtime.latents, color_match))

    condition = stored(folder / "condition.safetensors", z_up.shape, write_condition, runtime.note) if runtime.takes_condition else None
    sigmas = shifted_sigmas(sampling.steps, sampling.shift, sampling.denoise)
    resumed = last_step(folder, runtime.note)
    return runtime.integrate(Refinement(z_up, condition, sigmas, seed, folder, finish, sampling.start, sampling.solver, resumed))


def stored(path: Path, shape: tuple[int, ...], write: Callable[[Append], None], note: Callable[[str], None]) -> LatentFile:
    """Returns the latent at path, which write makes unless an earlier run has.

    Args:
        path: The file.
        shape: (B, 16, T, H, W).
        write: Makes the latent with append, see write_latent.
        note: Called with a sentence when the file of the earlier run is damaged.
    """
    if (latent := undamaged(path, note)) is not None:
        return latent
    with write_latent(path, shape, {}) as append:
        write(append)
    return LatentFile(path)


def torch_runtime(
    model: SimpleGVRDiT,
    upsampler: Upsampler,
    *,
    like: Tensor,
    sampling: SamplingConfig = PAPER,
    context: Tensor | None = None,
    negative_context: Tensor | None = None,
    tiling: Tiling | None = None,
    on_segment: OnSegment = lambda step, first_frame, z_0: None,
) -> Runtime:
    """Returns the runtime of networks that are loaded on one device.

    Args:
        model: The DiT. One with 16 input channels (any text-to-video Wan) takes no condition: training-free mode.
        upsampler: The latent upsampler.
        like: A tensor on the networks' device and in their dtype.
        sampling: The guidance scale is read.
        context: Text features (B, S, text_dim) of the prompt; None is the null prompt.
        negative_context: Those of the negative prompt; None is the null prompt.
        tiling: Boxes that the model is given one at a time; None is the whole clip.
        on_segment: See refine.

    Raises:
        ValueError: denoise is 1 and the model takes no condition.
    """

    def upsample(z_lr: LatentFrames, size: tuple[int, int], append: Append) -> None:
        for z in upsampler.stream((part.to(like) for part in parts(z_lr, UPSAMPLER_FRAMES)), size):
            append(z)

    def integrate(refinement: Refinement) -> LatentFile:
        memory = slab_memory(model.attention, refinement.upsampled.shape[2])
        network = guided_network(model, sampling.cfg, context, negative_context, like=like, memory=memory)
        velocity = TiledVelocity(network, tiling or whole(model), model.attention.alignment, memory=memory)
        return refine(velocity, refinement, on_segment)

    return Runtime(upsample, integrate, takes_condition(model, sampling), upsampler.config.latents)


def parts(z: LatentFrames, frames: int) -> Iterable[Tensor]:
    """Yields the frames of z, so many at a time."""
    for start in range(0, z.shape[2], frames):
        yield z[start : start + frames]
