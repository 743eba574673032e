"""Boxes of a latent: how a clip of any length and frames of any size are cut, and how what was computed is joined.

Extents, sizes and overlaps are latent pixels along T, H, W. A segment is a box's part of the clip, a tile its part of a frame.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product
from typing import TypeVar

import torch
from torch import Tensor

LEAST_OVERLAP = (5, 16, 16)

Plan = TypeVar("Plan")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Box:
    """A cuboid of latent pixels.

    Args:
        start: its first latent pixel along T, H, W.
        stop: the one after its last.
    """

    start: tuple[int, int, int]
    stop: tuple[int, int, int]

    @property
    def size(self) -> tuple[int, int, int]:
        T, H, W = (stop - start for start, stop in zip(self.start, self.stop, strict=True))
        return T, H, W

    def moved(self, by: tuple[int, int, int]) -> "Box":
        """Returns the box moved by a number of latent pixels along T, H, W."""
        t, h, w = by
        return Box(*((T + t, H + h, W + w) for T, H, W in (self.start, self.stop)))

    def intersection(self, other: "Box") -> "Box | None":
        """Returns the latent pixels that are in both boxes; None without any."""
        t, h, w = (max(pair) for pair in zip(self.start, other.start, strict=True))
        T, H, W = (min(pair) for pair in zip(self.stop, other.stop, strict=True))
        return Box((t, h, w), (T, H, W)) if t < T and h < H and w < W else None

    @property
    def slices(self) -> tuple:
        """Returns the index of the box in a latent (B, C, T, H, W)."""
        return (..., *(slice(start, stop) for start, stop in zip(self.start, self.stop, strict=True)))


@dataclass(frozen=True)
class Tiling:
    """How a latent is cut into boxes.

    Args:
        size: of a box along T, H, W. None is the whole extent.
        overlap: latent pixels that neighbours have in common, at most half a box.
    """

    size: tuple[int | None, int | None, int | None] = (None, None, None)
    overlap: tuple[int, int, int] = LEAST_OVERLAP

    def __post_init__(self):
        for size, overlap in zip(self.size, self.overlap, strict=True):
            if size is not None and size < 2 * max(1, overlap):
                raise ValueError(f"boxes of {self.size} overlap by {self.overlap}: wanted at least twice the overlap")

    def fits(self, extent: tuple[int, int, int]) -> bool:
        """Returns whether extent is one box."""
        return all(size is None or e <= size for e, size in zip(extent, self.size, strict=True))

    def tile_size(self, extent: tuple[int, int, int]) -> tuple[int, int, int]:
        """Returns the extent of the largest box."""
        T, H, W = (min(size or e, e) for size, e in zip(self.size, extent, strict=True))
        return T, H, W

    def boxes(self, extent: tuple[int, int, int]) -> list[Box]:
        """Returns the boxes that cover extent, along T, then H, then W."""
        axes = [spans(*axis) for axis in zip(extent, self.size, self.overlap, strict=True)]
        return [Box(*zip(*sides, strict=True)) for sides in product(*axes)]

    def halved(self, extent: tuple[int, int, int], alignment: tuple[int, int, int]) -> "Tiling | None":
        """Returns the tiling that cuts a box of extent along its longest axis, counted in overlaps; None when none can be cut."""
        halves = [max(2 * o, round_up(-(-e // 2), a)) for e, o, a in zip(extent, self.overlap, alignment, strict=True)]
        cuttable = [axis for axis in range(3) if halves[axis] < extent[axis]]
        if not cuttable:
            return None
        longest = max(cuttable, key=lambda axis: extent[axis] / (self.overlap[axis] or alignment[axis]))
        return replace(self, size=tuple(halves[axis] if axis == longest else self.size[axis] for axis in range(3)))


WHOLE = Tiling()


def aligned_tiling(wanted: tuple[int | None, int | None, int | None], alignment: tuple[int, int, int]) -> Tiling:
    """Returns the tiling whose boxes are at least as large as wanted and begin at multiples of alignment.

    Neighbours overlap by at least LEAST_OVERLAP, and by at least the alignment.

    Args:
        wanted: size of a box along T, H, W. None is the whole extent.
        alignment: of the network's attention, AttentionConfig.alignment.
    """
    t, h, w = overlap = [round_up(least, a) for least, a in zip(LEAST_OVERLAP, alignment, strict=True)]
    T, H, W = (None if e is None else max(2 * o, round_up(e, a)) for e, o, a in zip(wanted, overlap, alignment, strict=True))
    return Tiling((T, H, W), (t, h, w))


def round_up(number: int, multiple: int) -> int:
    """Returns the least multiple that is not below number."""
    return -(-number // multiple) * multiple


def padded(extent: tuple[int, int, int]) -> tuple[int, int, int]:
    """Returns the extent with odd rows and columns made even, as the network makes them."""
    return extent[0], round_up(extent[1], 2), round_up(extent[2], 2)


def spans(extent: int, size: int | None, overlap: int) -> list[tuple[int, int]]:
    """Returns (start, stop) of the boxes along one axis. The last is longer than overlap and at most size.

    Args:
        extent: of the axis, in latent pixels.
        size: of a box; None is the whole extent.
        overlap: latent pixels that each box has in common with the next.
    """
    if size is None or extent <= size:
        return [(0, extent)]
    starts = range(0, extent - overlap, size - overlap)
    return [(start, min(start + size, extent)) for start in starts]


def blend_weights(box: Box, extent: tuple[int, int, int], overlap: tuple[int, int, int]) -> Tensor:
    """Returns the weight (t, h, w) of each of a box's latent pixels in the whole: 1 inside, a straight ramp where boxes overlap.

    The weights of all boxes of a tiling add up to 1 in every latent pixel.

    Args:
        box: one of the tiling's.
        extent: of the whole along T, H, W.
        overlap: the tiling's.
    """
    weights = torch.ones(())
    for axis in range(3):
        ramp = (torch.arange(overlap[axis]) + 0.5) / max(1, overlap[axis])
        along = torch.ones(box.size[axis])
        if box.start[axis] > 0:
            along[: overlap[axis]] = ramp
        if box.stop[axis] < extent[axis]:
            along[len(along) - overlap[axis] :] = ramp.flip(0)
        weights = weights[..., None] * along
    return weights


class OutOfMemory(torch.OutOfMemoryError):
    """Memory ran out with the smallest plan. The message has the cure."""


def is_out_of_memory(error: Exception) -> bool:
    """Returns whether an error of PyTorch means that memory ran out, on any device."""
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(text in str(error) for text in ("out of memory", "can't allocate memory"))
    )


def with_less_memory(
    run: Callable[[Plan], Result],
    plan: Plan,
    *,
    smaller: Callable[[Plan], Plan | None],
    on_out_of_memory: Callable[[Plan, Plan], None],
    give_up: Callable[[Plan], str],
    is_out_of_memory: Callable[[Exception], bool] = is_out_of_memory,
) -> Result:
    """Returns run(plan), of the first plan for which there is enough memory.

    Args:
        run: The work. What it has done before memory ran out, it has to do again or to skip itself.
        plan: The plan to begin with.
        smaller: Returns the plan to try after one that took too much memory; None when there is none.
        on_out_of_memory: Called before each retry with the plan that took too much memory and the next one.
        give_up: Returns the error's message, with the cure, when the smallest plan takes too much memory.
        is_out_of_memory: Whether an error means that memory ran out.

    Raises:
        OutOfMemory: The smallest plan takes too much memory. One that run raises, of a part of its work, is final too.
    """
    while True:
        try:
            return run(plan)
        except OutOfMemory:
            raise
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            if (following := smaller(plan)) is None:
                raise OutOfMemory(give_up(plan)) from error
        on_out_of_memory(plan, following)  # here, what the error's traceback kept alive is free
        plan = following
