"""Seams and flicker: `python3 scripts/run.py seams --video FILE --period FRAMES --tile W H`.

A border is where a sampler joined what it had sampled apart: two segments of a clip, two tiles of a frame. What a picture
does there is compared with what it does nearby, so that its content cancels: a clip without seams measures 1. Where
neighbours overlap, a border has two ends, where the second begins and where the first has ended: the worse one counts.

B batch, C channels, H, W pixels or cells; frames (B, C, H, W): video in [0, 1], latents normalised
"""

import math
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor
from tqdm import tqdm

from ..files import atomic_write
from ..latent_space import PREVIEW_FACTORS
from ..sampling.latent_file import LatentFile
from ..video.read import VIDEO_SUFFIXES, read_frames
from .seam_plot import Panel, draw_panels

BT709 = (0.2126, 0.7152, 0.0722)  # of red, green, blue in the brightness
DARK, STILL = 0.1, 0.01  # what a change of brightness, in levels, and a jump count at least: nothing changes in a still clip


@dataclass(frozen=True)
class Medium:
    """How a kind of frames is measured. luma: what a channel adds to the brightness, in levels of 255. floor: a jump too
    small to see. piece: cells of a line that are averaged; block: cells a side, for jumps from frame to frame. grid: after
    how many frames, and after how many columns or rows, autoencoders and codecs treat them the same. lead: frames that the
    first segment has less, as the first latent frame stands for one video frame."""

    luma: tuple[float, ...]
    floor: float
    piece: int
    block: int
    grid: tuple[int, int]
    lead: int


VIDEO = Medium(tuple(255 * weight for weight in BT709), floor=1 / 255, piece=8, block=2, grid=(4, 16), lead=3)
LATENT = Medium(tuple(127.5 * float(np.dot(rgb, BT709)) for rgb in PREVIEW_FACTORS), floor=0.02, piece=4, block=1, grid=(1, 2), lead=0)


Ends = tuple[list[int], list[int]]


@dataclass(frozen=True)
class Borders:
    """Where borders are. period: frames from one segment's start to the next's; tile: pixels (cells of a latent) from one
    tile's start to the next's along the width and the height; 0 is none. first: the second segment's first frame, by
    default as the sampler's segments have it. overlap, tile_overlap: what neighbours share, 0 where they are cut hard."""

    period: int
    tile: tuple[int, int] = (0, 0)
    first: int | None = None
    overlap: int = 0
    tile_overlap: tuple[int, int] = (0, 0)

    def check(self, medium: Medium) -> None:
        """Raises ValueError for borders so dense that nothing beside them is left to compare with."""
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
        first = self.period - medium.lead if self.first is None else self.first
        return ends(self.period, first, self.overlap, frames)

    def tiles(self, axis: int, extent: int) -> Ends:
        """Returns the ends along the width (axis 0) or the height (1)."""
        return ends(self.tile[axis], self.tile[axis], self.tile_overlap[axis], extent)


def ends(period: int, first: int, overlap: int, extent: int) -> Ends:
    """Returns the first line of every box but the first, and the line after the last of the box before each.

    As the sampler does, none begins where only an overlap is left. Nothing when period is 0.
    """
    starts = [line for line in range(first, extent - overlap, period) if line > 0] if period else []
    return starts, [line + overlap for line in starts]


@dataclass(frozen=True)
class Seam:
    """Jumps at borders, at their worse end, over those nearby: geometric mean, its standard error, the largest and where."""

    ratio: float
    error: float
    worst: float
    place: int
    count: int


@dataclass(frozen=True)
class Curves:
    """luma: brightness of each frame in levels of 255; changes: what each frame adds to it everywhere, the median over
    blocks, which things that move hardly touch; and the jumps before each frame, column and row (see `jumps`), in [0, 1].
    NaN next to the ends."""

    luma: np.ndarray
    changes: np.ndarray
    frames: np.ndarray
    columns: np.ndarray
    rows: np.ndarray


@dataclass(frozen=True)
class Seams:
    """segment_flicker: change of brightness at segment borders, at their worse end, over that at other frames. periodicity:
    autocorrelation of its size at the period, less that at half of it. 1 and 0 are none. None: no border was there."""

    segment_flicker: float | None
    periodicity: float | None
    segments: Seam | None
    columns: Seam | None
    rows: Seam | None


def measure(frames: Iterable[Tensor], borders: Borders, medium: Medium) -> tuple[Seams, list[Panel]]:
    """Returns the seams of a clip, frame after frame, of which four are held at a time; and the panels of their picture.

    Raises what borders.check raises.
    """
    borders.check(medium)
    curves = draw_curves(frames, medium)
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
    """Returns what the curves show at the borders, which borders.check has let pass."""
    segments, columns, rows = border_lines(curves, borders, medium)
    return Seams(
        segment_flicker(curves.changes, segments, medium.grid[0]),
        periodicity(curves.changes, borders.period, medium.grid[0]),
        seam(curves.frames, segments, medium.grid[0]),
        seam(curves.columns, columns, medium.grid[1]),
        seam(curves.rows, rows, medium.grid[1]),
    )


def draw_curves(frames: Iterable[Tensor], medium: Medium) -> Curves:
    """Returns the curves of frames (B, C, H, W), of any device and dtype."""
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
    """Returns how much x (..., L) jumps before its elements 2 to L - 2, (..., L - 3), in [0, 1).

    j / (j + a + floor): j is the size of the difference of two neighbours less the mean of the one before and the one
    after, a the mean size of these two. So a slope does not jump, an edge of the content is not more than 1, and a small jump
    counts where its surroundings are smooth, as to the eye.
    """
    before, here, after = (x.diff(dim=-1)[..., i : x.shape[-1] - 3 + i] for i in range(3))
    jump = (here - (before + after) / 2).abs()
    return jump / (jump + (before.abs() + after.abs()) / 2 + floor)


def line_jumps(frame: Tensor, medium: Medium) -> Tensor:
    """Returns the mean jumps before columns 2 to W - 2 of a frame (B, C, H, W), (W - 3)."""
    piece = min(medium.piece, frame.shape[2])
    return jumps(F.avg_pool2d(frame, (piece, 1)), medium.floor).mean((0, 1, 2))


def seam(curve: np.ndarray, ends: Ends, grid: int) -> Seam | None:
    """Returns the jumps at one end of the borders, the worse, over those of the nearest lines like it: a multiple of grid
    away, two on either side, none of them at an end."""
    beside = {line + step for line in chain(*ends) for step in (-1, 0, 1)}

    def clear(lines: range) -> list[int]:
        return [line for line in lines if line not in beside and not math.isnan(curve[line])][:2]

    def at(borders: list[int]) -> Seam | None:
        ratios = {}
        for border in borders:
            near = clear(range(border - grid, -1, -grid)) + clear(range(border + grid, len(curve), grid))
            if near and not math.isnan(curve[border]):
                ratios[border] = (curve[border] + STILL) / (curve[near].mean() + STILL)
        if not ratios:
            return None
        logs = np.log(list(ratios.values()))
        ratio = math.exp(logs.mean())
        error = ratio * logs.std(ddof=1) / math.sqrt(len(logs)) if len(logs) > 1 else math.inf
        place = max(ratios, key=ratios.get)
        return Seam(ratio, float(error), float(ratios[place]), place, len(logs))

    return max(filter(None, map(at, ends)), key=lambda found: found.ratio, default=None)


def segment_flicker(changes: np.ndarray, ends: Ends, grid: int) -> float | None:
    """Returns the median size of the changes of brightness at one end of the borders, the worse, over that of the others a
    multiple of grid away."""
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

    def line(name: str, found: Seam | None) -> str:
        if found is None:
            return f"{name}: not measured, no border"
        error = f" +- {found.error:.3f}" if found.count > 1 else ""
        return f"{name}: {found.ratio:.3f}{error} of what is nearby, {found.count} borders, worst {found.worst:.2f} at {found.place}"

    return "\n".join(
        (
            line("segment borders", seams.segments),
            line("tile borders along the width", seams.columns),
            line("tile borders along the height", seams.rows),
            "segment flicker: "
            + (
                "not measured, no border"
                if seams.segment_flicker is None
                else f"{seams.segment_flicker:.3f} times the change of other frames"
            ),
            "periodicity: "
            + ("not measured, shorter than two periods or still" if seams.periodicity is None else f"{seams.periodicity:+.3f}"),
            "Without seams these are 1, 1, 1, 1 and 0 within their errors; a seam that can be seen is above 1.05.",
        )
    )


@dataclass(frozen=True)
class MeasureSeams:
    """Measures seams and flicker at the borders of segments and tiles; prints them and draws the curves."""

    video: Path
    """A video file, or a latent in the sampler's .safetensors."""
    period: int = 0
    """Frames from one segment's start to the next's (latent frames for a latent): 4 x (segment - overlap); 0 is none."""
    tile: tuple[int, int] = (0, 0)
    """Pixels (cells of a latent) from one tile's start to the next's along width and height; 0 is none."""
    first: int | None = None
    """First frame of the second segment; by default period - 3, and period for a latent."""
    overlap: int = 0
    """Frames that segments share: 20 for the sampler's, 5 for a latent; 0 where they are cut hard."""
    tile_overlap: tuple[int, int] = (0, 0)
    """Pixels (cells of a latent) that tiles share along width and height: 144 192 for the sampler's, 18 24 for a latent."""
    out: Path = Path("seams.png")

    def run(self) -> Seams:
        """Returns the measurement after drawing it. Raises ValueError for a file or numbers of no use."""
        if self.video.suffix != ".safetensors" and self.video.suffix.lower() not in VIDEO_SUFFIXES:
            raise ValueError(f"--video is {self.video}, wanted {', '.join(sorted(VIDEO_SUFFIXES))} or a latent in .safetensors")
        is_latent = self.video.suffix == ".safetensors"
        frames = latent_frames(self.video) if is_latent else video_frames(self.video)
        seams, panels = measure(
            frames, Borders(self.period, self.tile, self.first, self.overlap, self.tile_overlap), LATENT if is_latent else VIDEO
        )
        with atomic_write(self.out) as partial:
            draw_panels(panels).save(partial)
        return seams


def video_frames(path: Path) -> Iterator[Tensor]:
    """Yields the frames (1, 3, H, W) of a video file."""
    for image in tqdm(read_frames(path), unit="frame", mininterval=5):
        yield rearrange(image, "H W C -> 1 C H W").float() / 255


def latent_frames(path: Path) -> Iterator[Tensor]:
    """Yields the frames (B, 16, H, W) of a latent in a file."""
    latent = LatentFile(path)
    for frame in range(latent.shape[2]):
        yield latent[frame : frame + 1][:, :, 0]


def main(arguments: Sequence[str]) -> dict:
    import tyro  # the node imports this file, and ComfyUI has no tyro

    seams = tyro.cli(MeasureSeams, prog="simplegvr seams", args=arguments).run()
    print(describe(seams))
    return asdict(seams)
