"""Refinement of an upsampled latent of any length and size: Euler steps that stream through the clip, box by box.

The velocities of neighbouring boxes are blended in every step, so that all boxes refine one and the same latent
(MultiDiffusion, Bar-Tal et al., 2023). What is in memory is a segment of the clip and the network at work on one box;
the clip is in files. Latents are (B, C, T, H, W), normalised, float32, on the CPU.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise, zip_longest
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ..flow import clean_from_velocity, interpolate, positional_noise
from ..tiling import Box, Tiling, share, spans
from .latent_file import LatentFile, write_latent

STATE = "z.safetensors"  # of the last whole step


def is_out_of_memory(error: Exception) -> bool:
    """Returns whether PyTorch says that memory ran out, on any device."""
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(text in str(error) for text in ("out of memory", "can't allocate memory"))
    )


@dataclass
class TiledVelocity:
    """The velocity of a latent of any size, by a network that sees a box of it at a time.

    network: (z_t, condition or None, sigma) -> velocity, of a box. tiling: becomes finer when memory runs out, and stays so.
    alignment: tiling.alignment of the network's attention. on_tile(cells): called after each box.
    on_out_of_memory(size, tiling): called with the box that did not fit and the tiling that is tried now.
    """

    network: Callable[[Tensor, Tensor | None, Tensor], Tensor]
    tiling: Tiling
    alignment: tuple[int, int, int]
    on_tile: Callable[[int], None] = lambda cells: None
    on_out_of_memory: Callable[[tuple[int, int, int], Tiling], None] = lambda size, tiling: None
    is_out_of_memory: Callable[[Exception], bool] = is_out_of_memory

    def __call__(self, z: Tensor, condition: Tensor | None, sigma: Tensor) -> Tensor:
        """Returns the velocity of z. Raises ValueError when memory runs out with the smallest boxes."""
        extent = tuple(z.shape[2:])
        if self.tiling.fits(extent):
            velocity = self.attempt(z, condition, sigma)
            if velocity is not None:
                self.on_tile(z[0, 0].numel())
                return velocity
        tiling, fused = self.tiling, torch.zeros_like(z)
        for box in tiling.boxes(extent):
            part = self(z[box.slices], None if condition is None else condition[box.slices], sigma)
            fused[box.slices] += share(box, extent, tiling.overlap) * part
        return fused

    def attempt(self, z: Tensor, condition: Tensor | None, sigma: Tensor) -> Tensor | None:
        """Returns the network's velocity; None, and a finer tiling, when there is not enough memory for it."""
        try:
            return self.network(z, condition, sigma)
        except Exception as error:
            if not self.is_out_of_memory(error):
                raise
            extent = tuple(z.shape[2:])
            finer = self.tiling.halved(extent, self.alignment)
            if finer is None:
                raise ValueError(
                    f"out of memory with the smallest box of {extent} latent frames, rows and columns: "
                    "close other programs, use a smaller batch, or a model in a smaller dtype"
                ) from error
        self.on_out_of_memory(extent, finer)
        self.tiling = finer
        return None


def refine(
    velocity: TiledVelocity,
    upsampled: LatentFile,
    condition: LatentFile | None,
    sigmas: Tensor,
    seed: int,
    folder: Path,
    on_segment: Callable[[int, int, Tensor], None] = lambda step, first_frame, z_0: None,
    finish: Callable[[Tensor, int], Tensor] = lambda z, frame: z,
) -> LatentFile:
    """Returns the latent integrated from noise level sigmas[0] down to the last, by Euler's method (equation 2).

    It starts from upsampled, noised by a noise that seed draws by position; and from the last whole step where folder
    holds the file of one. condition: None for a network without one. on_segment(i, first_frame, z_0): called in
    step i with frames first_frame and on of the clean latent that their velocity points to. finish(z, frame):
    applied to each frame of the result.
    """

    sigmas = sigmas.cpu()

    def noised(start: int, stop: int) -> Tensor:
        return torch.cat([noised_frame(frame) for frame in range(start, stop)], dim=2)

    def noised_frame(frame: int) -> Tensor:
        z_0 = upsampled[frame : frame + 1]
        return interpolate(z_0, positional_noise(z_0.shape, seed, frame), sigmas[0])

    def stepped(start: int, stop: int) -> Tensor:
        return LatentFile(path)[start:stop]

    path = folder / STATE
    for i, (sigma, sigma_next) in list(enumerate(pairwise(sigmas)))[finished_steps(folder) :]:
        with write_latent(path, upsampled.shape, {"step": str(i + 1)}) as append:
            for first, z, v in fused_segments(velocity, stepped if i else noised, condition, upsampled.shape[2], sigma):
                on_segment(i, first, clean_from_velocity(z, v, sigma))
                for frame, (z_t, velocity_t) in enumerate(zip(z.split(1, dim=2), v.split(1, dim=2), strict=True), first):
                    z_next = z_t + (sigma_next - sigma) * velocity_t
                    append(finish(z_next, frame) if i == len(sigmas) - 2 else z_next)
                del z, v, z_t, velocity_t  # before there are those of the next segment
    return LatentFile(path)


def finished_steps(folder: Path) -> int:
    """Returns how many steps of refine are done, by the file that it left in folder; 0 without one."""
    path = folder / STATE
    return int(LatentFile(path).metadata["step"]) if path.exists() else 0


def fused_segments(
    velocity: TiledVelocity, frames: Callable[[int, int], Tensor], condition: LatentFile | None, num_frames: int, sigma: Tensor
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Yields (first frame, z_t, velocity) of stretches of the clip, in order and without a gap or an overlap.

    Where segments share frames, their velocities are blended. frames(a, b): z_t's frames a to b.
    """
    tiling, carried = velocity.tiling, None
    segments = spans(num_frames, tiling.size[0], tiling.overlap[0])
    for (start, stop), following in zip_longest(segments, segments[1:]):
        z = frames(start, stop)
        v = padded_velocity(velocity, z, condition and condition[start:stop], sigma)
        v *= share(Box((start, 0, 0), (stop, 1, 1)), (num_frames, 1, 1), (tiling.overlap[0], 0, 0))
        if carried is not None:
            v[:, :, : carried.shape[2]] += carried
        ready = following[0] - start if following else stop - start
        yield start, z[:, :, :ready], v[:, :, :ready]
        carried = v[:, :, ready:].clone()
        del z, v


def padded_velocity(velocity: TiledVelocity, z: Tensor, condition: Tensor | None, sigma: Tensor) -> Tensor:
    """Returns the velocity of z, whose odd sides are padded circularly before it is cut, as the network pads a whole latent."""
    height, width = z.shape[3:]
    pad = (0, width % 2, 0, height % 2, 0, 0)
    if any(pad):
        z, condition = (x if x is None else F.pad(x, pad, mode="circular") for x in (z, condition))
    return velocity(z, condition, sigma)[..., :height, :width]
