"""Seams and flicker at the borders of segments and tiles.

A border is where a sampler joined boxes that it had sampled separately. Jumps at borders are divided by jumps nearby, so that the
content cancels: a clip without seams measures 1. Where boxes overlap, a border has two ends, where the second box begins and where
the first ends: the worse end counts.

B batch, C channels, H, W pixels or latent pixels; frames (B, C, H, W): video in [0, 1], latents normalised
"""

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..latent_space import PREVIEW_FACTORS, SPATIAL_FACTOR
from ..tiling import Tiling
from .seam_plot import Panel

BT709 = (0.2126, 0.7152, 0.0722)  # of red, green, blue in the brightness
DARK, STILL = 0.1, 0.01  # least change of brightness, in levels, and least jump, so that a still clip measures 1


@dataclass(frozen=True)
class Medium:
    """How a kind of frames is measured.

    Attributes:
        luma: Weight of each channel in the brightness, in levels of 255.
        floor: A jump too small to see.
        piece: Pixels of a line, or of a block's side, that are averaged before a difference is taken.
        block: Pixels a side that are averaged for jumps from frame to frame.
        grid: Period in frames, and in columns or rows, of what autoencoders and codecs do.
        lead: Frames by which the first segment is shorter: the first latent frame is one video frame.
    """

    luma: tuple[float, ...]
    floor: float
    piece: int
    block: int
    grid: tuple[int, int]
    lead: int


VIDEO = Medium(tuple(255 * weight for weight in BT709), floor=1 / 255, piece=8, block=2, grid=(4, 16), lead=3)
LATENT = Medium(tuple(127.5 * float(np.dot(rgb, BT709)) for rgb in PREVIEW_FACTORS), floor=0.02, piece=4, block=1, grid=(1, 2), lead=0)


Ends = tuple[list[int], list[int]]  # the first line of the second box, and the line after the last of the first, for every border


@dataclass(frozen=True)
class Borders:
    """Where borders are.

    Attributes:
        period: Frames from the start of one segment to the start of the next; 0 is no border.
        tile: Pixels (latent pixels of a latent) from the start of one tile to the next along the width and the height; 0 is no border.
        first: First frame of the second segment; None is that of the sampler's segments.
        overlap: Frames that segments share.
        tile_overlap: Pixels that tiles share along the width and the height.
    """

    period: int
    tile: tuple[int, int] = (0, 0)
    first: int | None = None
    overlap: int = 0
    tile_overlap: tuple[int, int] = (0, 0)

    def check(self, medium: Medium) -> None:
        """Raises ValueError where borders are so dense that nothing between them is left to compare with."""
        sides = zip(self.tile, self.tile_overlap, strict=True)
        axes = (("period", self.period, self.overlap, medium.grid[0]), *(("tile", *side, medium.grid[1]) for side in sides))
        for name, period, overlap, grid in axes:
            room = max(2 * grid, 4)
            least = overlap if max(overlap, period - overlap) >= room else overlap + room
            if 0 < period < least:
                shared = f" with an overlap of {overlap}" if overlap else ""
                raise ValueError(
                    f"{name} is {period}{shared}, wanted at least {least}: nothing is left between borders to compare with; 0 is none"
                )

    def segments(self, frames: int, medium: Medium) -> Ends:
        """Returns the ends of the borders of segments among so many frames."""
        first = self.period - medium.lead if self.first is None else self.first
        return ends(self.period, first, self.overlap, frames)

    def tiles(self, axis: int, extent: int) -> Ends:
        """Returns the ends of the borders of tiles among so many columns (axis 0) or rows (axis 1)."""
        return ends(self.tile[axis], self.tile[axis], self.tile_overlap[axis], extent)


def pixel_borders(tiling: Tiling) -> Borders:
    """Returns the borders, in frames and pixels of the video, of a tiling of its latent. An axis that is not cut has none."""
    size, overlap = (
        [scale * (extent or 0) for scale, extent in zip((4, SPATIAL_FACTOR, SPATIAL_FACTOR), each, strict=True)]
        for each in (tiling.size, tiling.overlap)
    )
    period, rows, columns = (max(0, side - shared) for side, shared in zip(size, overlap, strict=True))
    return Borders(period, (columns, rows), None, overlap[0], (overlap[2], overlap[1]))


def ends(period: int, first: int, overlap: int, extent: int) -> Ends:
    """Returns the ends of all borders along an axis.

    Args:
        period: Lines from the start of one box to the next; 0 is no border.
        first: First line of the second box.
        overlap: Lines that boxes share. As in the sampler, no box begins where only an overlap is left.
        extent: Lines along the axis.
    """
    starts = [line for line in range(first, extent - overlap, period) if line > 0] if period else []
    return starts, [line + overlap for line in starts]


@dataclass(frozen=True)
class Seam:
    """Jumps at the worse ends of borders over the jumps nearby.

    Attributes:
        ratio: Geometric mean over the borders; 1 is no seam.
        error: Standard error of the ratio.
        worst: Largest ratio of a border.
        place: Line of the largest ratio.
        count: Number of borders.
    """

    ratio: float
    error: float
    worst: float
    place: int
    count: int


@dataclass(frozen=True)
class Curves:
    """Brightness and jumps of a clip. NaN near the ends of the clip and of the frame.

    Attributes:
        luma: Brightness of each frame in levels of 255.
        changes: Change of brightness from the frame before in levels of 255, the median over blocks, which moving objects hardly affect.
        frames: Jump before each frame, in [0, 1), see `jumps`.
        columns: Jump before each column, in [0, 1).
        rows: Jump before each row, in [0, 1).
    """

    luma: np.ndarray
    changes: np.ndarray
    frames: np.ndarray
    columns: np.ndarray
    rows: np.ndarray


@dataclass(frozen=True)
class Seams:
    """Seams and flicker of a clip. None where there is no border.

    Attributes:
        segment_flicker: Change of brightness at the worse ends of segment borders over that at other frames; 1 is none.
        periodicity: Autocorrelation of the size of these changes at the period, less that at half of the period; 0 is none.
        segments: Jumps between frames at segment borders.
        columns: Jumps at tile borders along the width.
        rows: Jumps at tile borders along the height.
    """

    segment_flicker: float | None
    periodicity: float | None
    segments: Seam | None
    columns: Seam | None
    rows: Seam | None


def measure(frames: Iterable[Tensor], borders: Borders, medium: Medium) -> tuple[Seams, list[Panel]]:
    """Returns the seams of a clip, and the panels of their plot. At most four frames are in memory.

    Args:
        frames: Frames in order, each (B, C, H, W), of any device and dtype.
        borders: Where boxes meet.
        medium: VIDEO or LATENT.

    Raises:
        ValueError: Borders are too dense, see `Borders.check`.
    """
    borders.check(medium)
    curves = measure_curves(frames, medium)
    segments, columns, rows = border_lines(curves, borders, medium)
    panels = [
        Panel("brightness of each frame, levels of 255 (red: segment borders)", curves.luma, [*chain(*segments)]),
        Panel("jumps from frame to frame", curves.frames, [*chain(*segments)]),
        Panel("jumps from column to column (red: tile borders)", curves.columns, [*chain(*columns)]),
        Panel("jumps from row to row", curves.rows, [*chain(*rows)]),
    ]
    return find_seams(curves, borders, medium), panels


def border_lines(curves: Curves, borders: Borders, medium: Medium) -> tuple[Ends, Ends, Ends]:
    """Returns the ends of segments among the frames, and of tiles among the columns and the rows."""
    columns, rows = (borders.tiles(axis, len(curve)) for axis, curve in enumerate((curves.columns, curves.rows)))
    return borders.segments(len(curves.luma), medium), columns, rows


def find_seams(curves: Curves, borders: Borders, medium: Medium) -> Seams:
    """Returns the seams that curves show at the borders.

    Args:
        curves: Of `measure_curves`.
        borders: Where boxes meet; `Borders.check` has passed.
        medium: VIDEO or LATENT, as for the curves.
    """
    segments, columns, rows = border_lines(curves, borders, medium)
    return Seams(
        segment_flicker(curves.changes, segments, medium.grid[0]),
        periodicity(curves.changes, borders.period, medium.grid[0]),
        seam(curves.frames, segments, medium.grid[0]),
        seam(curves.columns, columns, medium.grid[1]),
        seam(curves.rows, rows, medium.grid[1]),
    )


def measure_curves(frames: Iterable[Tensor], medium: Medium) -> Curves:
    """Returns the curves of a clip.

    Args:
        frames: Frames in order, each (B, C, H, W), of any device and dtype.
        medium: VIDEO or LATENT.
    """
    weights, recent, blocks = torch.tensor(medium.luma), deque(maxlen=4), deque(maxlen=2)
    luma, changes, frame_jumps, columns, rows = [], [math.nan], [], [], []
    for frame in (each.float().cpu() for each in frames):
        brightness = torch.einsum("C, B C H W -> B H W", weights, frame)
        luma.append(float(brightness.mean()))
        blocks.append(F.avg_pool2d(brightness, min(medium.piece, *brightness.shape[1:])))
        if len(blocks) == 2:
            changes.append(float((blocks[1] - blocks[0]).median()))
        recent.append(F.avg_pool2d(frame, medium.block))
        if len(recent) == 4:
            frame_jumps.append(jumps(torch.stack(tuple(recent), dim=-1), medium.floor).mean())
        columns.append(line_jumps(frame, medium))
        rows.append(line_jumps(frame.mT, medium))

    def curve(values: Tensor) -> np.ndarray:
        return F.pad(values, (2, 1), value=math.nan).numpy()

    across = (curve(torch.stack(each).mean(0)) for each in (columns, rows))
    return Curves(np.array(luma), np.array(changes), curve(torch.tensor(frame_jumps)), *across)


def jumps(x: Tensor, floor: float) -> Tensor:
    """Returns the jump before each element along the last axis: j / (j + a + floor).

    j is the size of the difference of two neighbours less the mean of the differences before and after it, a the mean size of these
    two. A slope does not jump, an edge of the content stays below 1, and a small jump counts where its surroundings are smooth, as to
    the eye.

    Args:
        x: (..., L).
        floor: A jump too small to see.

    Returns:
        (..., L - 3) in [0, 1), before elements 2 to L - 2.
    """
    before, here, after = (x.diff(dim=-1)[..., i : x.shape[-1] - 3 + i] for i in range(3))
    jump = (here - (before + after) / 2).abs()
    return jump / (jump + (before.abs() + after.abs()) / 2 + floor)


def line_jumps(frame: Tensor, medium: Medium) -> Tensor:
    """Returns the mean jumps before columns 2 to W - 2 of a frame (B, C, H, W), (W - 3)."""
    piece = min(medium.piece, frame.shape[2])
    return jumps(F.avg_pool2d(frame, (piece, 1)), medium.floor).mean((0, 1, 2))


def seam(curve: np.ndarray, ends: Ends, grid: int) -> Seam | None:
    """Returns the jumps at the worse ends of borders over those nearby, None where there is no border.

    Args:
        curve: Jump before each line, NaN where there is none.
        ends: Ends of the borders among the lines.
        grid: Distance of comparable lines: nearby are the first two multiples on either side that are not next to an end.
    """
    beside = {line + step for line in chain(*ends) for step in (-1, 0, 1)}

    def clear(lines: range) -> list[int]:
        return [line for line in lines if line not in beside and not math.isnan(curve[line])][:2]

    def at(borders: list[int]) -> Seam | None:
        ratios: dict[int, float] = {}
        for border in borders:
            near = clear(range(border - grid, -1, -grid)) + clear(range(border + grid, len(curve), grid))
            if near and not math.isnan(curve[border]):
                ratios[border] = (curve[border] + STILL) / (curve[near].mean() + STILL)
        if not ratios:
            return None
        logs = np.log(list(ratios.values()))
        ratio = math.exp(logs.mean())
        error = ratio * logs.std(ddof=1) / math.sqrt(len(logs)) if len(logs) > 1 else math.inf
        place = max(ratios, key=lambda border: ratios[border])
        return Seam(ratio, float(error), float(ratios[place]), place, len(logs))

    return max(filter(None, map(at, ends)), key=lambda found: found.ratio, default=None)


def segment_flicker(changes: np.ndarray, ends: Ends, grid: int) -> float | None:
    """Returns the median size of changes of brightness at the worse ends of borders over that at other frames.

    Args:
        changes: Change of brightness before each frame, in levels of 255.
        ends: Ends of the borders among the frames.
        grid: Distance of comparable frames: others are multiples of it away from a border.
    """
    sizes, borders = np.abs(changes), set(chain(*ends))
    elsewhere = {frame for border in borders for frame in range(border % grid, len(sizes), grid) if frame > 0} - borders
    if not borders or not elsewhere:
        return None
    return float((max(np.median(sizes[end]) for end in ends) + DARK) / (np.median(sizes[list(elsewhere)]) + DARK))


def periodicity(changes: np.ndarray, period: int, grid: int) -> float | None:
    """Returns the autocorrelation of the sizes of the changes of brightness at the period, less that at half of it."""
    sizes = np.abs(changes[1:])
    if not period or len(sizes) < 2 * period or sizes.std() < DARK / 10:
        return None
    sizes -= sizes.mean()

    def autocorrelation(lag: int) -> float:
        return (sizes[:-lag] * sizes[lag:]).mean() / sizes.var()

    return float(autocorrelation(period) - autocorrelation(max(period // 2 // grid, 1) * grid))


def describe(seams: Seams) -> str:
    """Returns the measurement in words."""
    flicker, rhythm = seams.segment_flicker, seams.periodicity
    return "\n".join(
        (
            describe_seam("segment borders", seams.segments),
            describe_seam("tile borders along the width", seams.columns),
            describe_seam("tile borders along the height", seams.rows),
            "segment flicker: " + ("not measured, no border" if flicker is None else f"{flicker:.3f} times the change of other frames"),
            "periodicity: " + ("not measured, shorter than two periods or still" if rhythm is None else f"{rhythm:+.3f}"),
            "Without seams these are 1, 1, 1, 1 and 0 within their errors; a seam that can be seen is above 1.05.",
        )
    )


def describe_seam(name: str, found: Seam | None) -> str:
    if found is None:
        return f"{name}: not measured, no border"
    error = f" +- {found.error:.3f}" if found.count > 1 else ""
    return f"{name}: {found.ratio:.3f}{error} of what is nearby, {found.count} borders, worst {found.worst:.2f} at {found.place}"
