"""Refinement of an upsampled latent of any length and size: steps that stream through the clip, box by box.

The velocities of neighbouring boxes are blended in every step, so that all boxes refine one and the same latent
(MultiDiffusion, Bar-Tal et al., 2023). What is in memory is a segment of the clip and the network at work on one box;
the clip is in files. Latents are (B, C, T, H, W), normalised, float32, on the CPU.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise, zip_longest
from pathlib import Path
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ..flow import clean_from_velocity, interpolate, positional_noise
from ..networks.slab_memory import SlabMemory
from ..tiling import Box, Tiling, blend_weights, is_out_of_memory, spans, with_less_memory
from .latent_file import LatentFile, LatentFrames, undamaged, write_latent
from .solvers import SOLVERS, Solver, step_ratio

STATES = ("z.safetensors", "z_odd.safetensors")  # of the last two whole steps: when one is damaged, the other is left

Network = Callable[[Tensor, Tensor | None, Tensor], Tensor]  # (z_t, condition or None, sigma) -> velocity
OnSegment = Callable[[int, int, Tensor], None]  # (step, first frame, z_0)


def working_latents(takes_condition: bool, solver: Solver) -> int:
    """Returns the number of latents in a run's files: upsampled, condition, the last two steps and the one that is being written."""
    return 1 + takes_condition + 3 * (1 if solver == "euler" else 2)


class StartAgain(Exception):
    """Causal tiles became smaller, and have no past: the step begins again with the clip's first segment."""


@dataclass(frozen=True)
class Segment:
    """What the velocity of a segment of a clip depends on.

    Attributes:
        z: z_t of the segment (B, 16, t, H, W).
        condition: The condition, of the same shape; None for a network without one.
        sigma: Noise level.
        first_frame: Number in the clip of its first latent frame.
    """

    z: Tensor
    condition: Tensor | None
    sigma: Tensor
    first_frame: int = 0


class SegmentVelocity(Protocol):
    """Computes the velocities of segments: in this process (TiledVelocity), or on a cluster."""

    @property
    def tiling(self) -> Tiling: ...

    def of_segments(self, segments: Iterable[Segment]) -> Iterator[Tensor]:
        """Yields the velocity (B, 16, t, H, W) of each segment, in order. Segments are read as they are needed."""
        ...


@dataclass
class TiledVelocity:
    """The velocity of a latent of any size, by a network that is given one box of it at a time.

    Attributes:
        network: (z_t, condition or None, sigma) -> velocity, of a box, on z_t's device and in its dtype.
        tiling: The boxes. They become smaller when memory runs out, and stay so.
        alignment: The multiples, in latent pixels along T, H, W, at which boxes may begin: AttentionConfig.alignment.
        on_tile: Called after each box with its number of latent pixels.
        on_out_of_memory: Called with the size of a box for which there was not enough memory, and the tiling that is tried next.
        is_out_of_memory: Whether an error means that memory ran out.
        memory: What a network with causal attention looks back on from one segment to the next. Then segments have no overlap.
        before_box: Called with each box before the network is given it. Its latent pixels are counted from the clip's first.
    """

    network: Network
    tiling: Tiling
    alignment: tuple[int, int, int]
    on_tile: Callable[[int], None] = lambda latent_pixels: None
    on_out_of_memory: Callable[[tuple[int, int, int], Tiling], None] = lambda size, tiling: None
    is_out_of_memory: Callable[[Exception], bool] = is_out_of_memory
    memory: SlabMemory | None = None
    before_box: Callable[[Box], None] = lambda box: None

    def __call__(self, z: Tensor, condition: Tensor | None, sigma: Tensor, start: tuple[int, int, int] = (0, 0, 0)) -> Tensor:
        """Returns the velocity (B, 16, T, H, W) of z.

        Args:
            z: z_t of the clip or of a part of it.
            condition: of the same part; None for a network without one.
            sigma: Noise level.
            start: The part's first latent pixel in the clip, along T, H, W.

        Raises:
            tiling.OutOfMemory: Memory ran out with the smallest box.
            StartAgain: Causal tiles became smaller after the clip's first segment.
        """
        while True:
            try:
                return self.part(z, condition, sigma, start)
            except StartAgain:
                if start[0] > 0:
                    raise

    def part(self, z: Tensor, condition: Tensor | None, sigma: Tensor, start: tuple[int, int, int]) -> Tensor:
        """Returns the velocity of z, which is cut into boxes where it does not fit. Raises what __call__ does, and StartAgain anywhere."""
        T, H, W = extent = z.shape[2], z.shape[3], z.shape[4]

        def predict(tiling: Tiling) -> Tensor:
            if not tiling.fits(extent):
                return self.blended(z, condition, sigma, tiling, start)
            self.before_box(Box((0, 0, 0), extent).moved(start))
            with self.memory.segment(start[0], (*start[1:], H, W)) if self.memory else nullcontext():
                velocity = self.network(z, condition, sigma)
            self.on_tile(T * H * W)
            return velocity

        def finer(tiling: Tiling, halved: Tiling) -> None:
            self.tiling = halved
            self.on_out_of_memory(tiling.tile_size(extent), halved)
            if self.memory and halved.size[1:] != tiling.size[1:]:
                self.memory.kept.clear()
                raise StartAgain

        return with_less_memory(
            predict,
            self.tiling,
            smaller=lambda tiling: tiling.halved(tiling.tile_size(extent), self.alignment),
            on_out_of_memory=finer,
            give_up=lambda tiling: (
                f"out of memory with the smallest box of {tiling.tile_size(extent)} latent frames, rows and columns: "
                "close other programs, use a smaller batch, or a model in a smaller dtype"
            ),
            is_out_of_memory=self.is_out_of_memory,
        )

    def of_segments(self, segments: Iterable[Segment]) -> Iterator[Tensor]:
        return map(partial(padded_velocity, self), segments)

    def blended(self, z: Tensor, condition: Tensor | None, sigma: Tensor, tiling: Tiling, start: tuple[int, int, int]) -> Tensor:
        """Returns the velocity of z, blended of those of its boxes."""
        extent, v = (z.shape[2], z.shape[3], z.shape[4]), torch.zeros_like(z)
        for box in tiling.boxes(extent):
            part = self.part(z[box.slices], None if condition is None else condition[box.slices], sigma, box.moved(start).start)
            v[box.slices] += blend_weights(box, extent, tiling.overlap).to(z.device) * part
        return v


@dataclass(frozen=True)
class Refinement:
    """Inputs of one refinement.

    Attributes:
        upsampled: Upsampled latent (B, 16, T, H, W).
        condition: The condition, of the same shape; None for a network without one.
        sigmas: Noise levels that fall to 0, one more than there are steps.
        seed: Seed of the starting noise, which depends on it and on the position.
        folder: Folder of the files with the last two whole steps.
        finish: (z, frame) -> z, applied to each latent frame of the result before it is written.
        start: SamplingConfig.start.
        solver: SamplingConfig.solver.
        resumed: The last whole step of an earlier run, from which the refinement is continued; None begins anew.
    """

    upsampled: LatentFrames
    condition: LatentFrames | None
    sigmas: Tensor
    seed: int
    folder: Path
    finish: Callable[[Tensor, int], Tensor] = lambda z, frame: z
    start: Literal["noise", "condition"] = "noise"
    solver: Solver = "euler"
    resumed: LatentFile | None = None

    @property
    def steps(self) -> int:
        return len(self.sigmas) - 1

    @property
    def finished_steps(self) -> int:
        """Returns the number of steps of the earlier run; 0 without one."""
        return 0 if self.resumed is None else step_of(self.resumed)


def step_of(latent: LatentFile) -> int:
    """Returns the number of the step whose result is in a file, counted from 1."""
    return int(latent.metadata["step"])


def last_step(folder: Path, note: Callable[[str], None]) -> LatentFile | None:
    """Returns the file of the last whole step in a folder, None without one. Damaged files are deleted; note gets a sentence on each."""
    found = [latent for name in STATES if (latent := undamaged(folder / name, note)) is not None]
    return max(found, key=step_of, default=None)


def refine(velocity: SegmentVelocity, refinement: Refinement, on_segment: OnSegment = lambda step, first_frame, z_0: None) -> LatentFile:
    """Returns the file of the refined latent, integrated along the velocity, segment by segment.

    The file of each step but the last has what the solver looks back on, too: the velocity, in the second half of the channels.

    Args:
        velocity: The velocity. Its tiling's segments are in memory one at a time.
        refinement: Where the integration begins, its noise levels and its folder.
        on_segment: Called in each step, for each segment, with the step's number, the segment's first latent frame and the clean
            latent z_0 that the velocity predicts there.
    """
    upsampled, sigmas, latent = refinement.upsampled, refinement.sigmas.cpu(), refinement.resumed
    batch, channels, *extent = upsampled.shape

    def noised_frame(frame: int) -> Tensor:
        z_0 = upsampled[frame : frame + 1]
        if refinement.start == "condition":
            return z_0
        return interpolate(z_0, positional_noise(tuple(z_0.shape), refinement.seed, frame), sigmas[0])

    def frames(start: int, stop: int) -> Tensor:
        if latent is None:
            return torch.cat([noised_frame(frame) for frame in range(start, stop)], dim=2)
        z = latent[start:stop]
        return z if z.shape[1] == channels else z[:, :channels].clone()

    def velocity_before(frame: int) -> Tensor | None:
        return None if latent is None or latent.shape[1] == channels else latent[frame : frame + 1][:, channels:]

    def step(i: int, sigma: Tensor, sigma_next: Tensor) -> LatentFile:
        path, last = refinement.folder / STATES[(i + 1) % 2], i == refinement.steps - 1
        looks_back, ratio = refinement.solver != "euler" and not last, step_ratio(sigmas, i)
        with write_latent(path, (batch, channels * (1 + looks_back), *extent), {"step": str(i + 1)}) as append:
            for first, z, v in fused_segments(velocity, frames, refinement.condition, upsampled.shape[2], sigma):
                on_segment(i, first, clean_from_velocity(z, v, sigma))
                for frame, (z_t, velocity_t) in enumerate(zip(z.split(1, dim=2), v.split(1, dim=2), strict=True), first):
                    slope = SOLVERS[refinement.solver](velocity_t, velocity_before(frame), ratio)
                    z_next = z_t + (sigma_next - sigma) * slope
                    if last:
                        z_next = refinement.finish(z_next, frame)
                    append(torch.cat((z_next, velocity_t), dim=1) if looks_back else z_next)
                del z, v, z_t, velocity_t, slope  # before there are those of the next segment
        return LatentFile(path)

    for i, (sigma, sigma_next) in list(enumerate(pairwise(sigmas)))[refinement.finished_steps :]:
        while True:
            try:
                latent = step(i, sigma, sigma_next)
                break
            except StartAgain:  # with the tiling that is smaller now
                continue
    assert latent is not None  # there is at least one step
    return latent


def fused_segments(
    velocity: SegmentVelocity, frames: Callable[[int, int], Tensor], condition: LatentFrames | None, num_frames: int, sigma: Tensor
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Yields (first frame, z_t, velocity) of stretches of the clip, in order and without a gap or an overlap.

    Where segments share frames, their velocities are blended. frames(a, b): z_t's frames a to b.
    """
    tiling, carried, latents = velocity.tiling, None, deque[Tensor]()
    segments = spans(num_frames, tiling.size[0], tiling.overlap[0])

    def inputs() -> Iterator[Segment]:
        for start, stop in segments:
            latents.append(frames(start, stop))
            yield padded_segment(Segment(latents[-1], None if condition is None else condition[start:stop], sigma, start))

    velocities = velocity.of_segments(inputs())
    for (start, stop), following in zip_longest(segments, segments[1:]):
        v = next(velocities)
        z = latents.popleft()
        v = v[..., : z.shape[3], : z.shape[4]]
        v *= blend_weights(Box((start, 0, 0), (stop, 1, 1)), (num_frames, 1, 1), (tiling.overlap[0], 0, 0))
        if carried is not None:
            v[:, :, : carried.shape[2]] += carried
        ready = following[0] - start if following else stop - start
        yield start, z[:, :, :ready], v[:, :, :ready]
        carried = v[:, :, ready:].clone()
        del z, v


def padded_segment(segment: Segment) -> Segment:
    """Returns a segment whose odd sides are padded circularly before it is cut, as the network pads a whole latent."""
    height, width = segment.z.shape[3:]
    pad = (0, width % 2, 0, height % 2, 0, 0)
    if not any(pad):
        return segment
    z, condition = (None if part is None else F.pad(part, pad, mode="circular") for part in (segment.z, segment.condition))
    return replace(segment, z=z, condition=condition)


def padded_velocity(velocity: TiledVelocity, segment: Segment) -> Tensor:
    """Returns the velocity of a segment, see padded_segment."""
    height, width = segment.z.shape[3:]
    even = padded_segment(segment)
    return velocity(even.z, even.condition, even.sigma, (even.first_frame, 0, 0))[..., :height, :width]
