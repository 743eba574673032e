"""The metrics as data: evaluation, reports, documents and nodes are driven by METRICS.

F frames; H, W pixels; video: (1, 3, F, H, W) in [-1, 1]
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from torch import Tensor

from ..latent_space import SPATIAL_FACTOR
from ..tiling import Tiling
from ..video.frames import resize_frames
from . import full_reference, learned
from . import niqe as no_reference
from .full_reference import mean_decibels
from .motion import FlowPair, flicker, motions, tof, video_curves, warping_error
from .seams import VIDEO, Borders, Seams, find_seams

SMALLEST = 32  # pixels a side, that most metrics take


@dataclass(frozen=True, eq=False)
class EvaluationClip:
    """A clip that methods are compared on. Optical flow along it is computed once for all of their results.

    Attributes:
        size: Height and width of a result in pixels.
        original: The ground truth, (1, 3, F, H, W) in [-1, 1]; None where there is none.
        source: The low-resolution video that was upscaled, (1, 3, F, h, w) in [-1, 1], pixels also where methods are given its latent.
        rate: Frames per second.
        borders: Borders of the boxes that gvr refines, in pixels and frames; None where it refines the clip in one box.
        z_lr: The source's normalised latent, (1, 16, T, h / 8, w / 8), where the clip came as a latent.
        files: Files that the clip was read from.
    """

    size: tuple[int, int]
    original: Tensor | None = None
    source: Tensor | None = None
    rate: Fraction = Fraction(25)
    borders: Borders | None = None
    z_lr: Tensor | None = None
    files: tuple[Path, ...] = ()

    @cached_property
    def guided(self) -> list[FlowPair]:
        """The motions of the original, or of the source enlarged by bicubic pixels."""
        guide = resize_frames(self.source, self.size, "bicubic") if self.original is None else self.original
        return motions(guide)


@dataclass(frozen=True, eq=False)
class Result:
    """A method's video of a clip. seconds: what it took, None for what no method made."""

    video: Tensor
    clip: EvaluationClip
    seconds: float | None = None

    @property
    def original(self) -> Tensor | None:
        return self.clip.original

    @property
    def guided(self) -> list[FlowPair]:
        return self.clip.guided

    @cached_property
    def small(self) -> Tensor:
        """The video made as small as the source by area averaging."""
        return resize_frames(self.video.clamp(-1, 1), tuple(self.clip.source.shape[3:]), "area")

    @cached_property
    def seams(self) -> Seams:
        return find_seams(video_curves(self.video), self.clip.borders, VIDEO)


def pixel_borders(tiling: Tiling) -> Borders:
    """Returns where the boxes of a latent meet in its video: no border along an axis that is not cut."""
    sizes, shares = (
        [scale * (cells or 0) for scale, cells in zip((4, SPATIAL_FACTOR, SPATIAL_FACTOR), each, strict=True)]
        for each in (tiling.size, tiling.overlap)
    )
    period, rows, columns = (max(0, size - shared) for size, shared in zip(sizes, shares, strict=True))
    return Borders(period, (columns, rows), None, shares[0], (shares[2], shares[1]))


def lr_consistency(result: Result) -> Tensor:
    """Returns the PSNR of each frame of the small video against the source, in dB, (F,): whether it is still the same picture."""
    return full_reference.psnr(result.small, result.clip.source)


def seconds_per_frame(result: Result) -> float | None:
    return result.seconds and result.seconds / result.video.shape[2]


def tile_seams(result: Result) -> float | None:
    """Returns the worse of the jumps at borders of tiles along the width and the height, over those nearby."""
    return max((seam.ratio for seam in (result.seams.columns, result.seams.rows) if seam), default=None)


def segment_seams(result: Result) -> float | None:
    """Returns the jump at borders of segments over that at other frames nearby."""
    return result.seams.segments and result.seams.segments.ratio


def iqa(name: str, result: Result) -> Tensor:
    return learned.iqa(name, result.video)


def vbench(dimension: str, result: Result) -> float:
    return learned.vbench(dimension, result.video, result.clip.rate)


def missing(*packages: str) -> Callable[[], str | None]:
    """Returns a function that says in a sentence which of these modules is not installed; packages: module or module:package."""

    def say() -> str | None:
        for module, _, package in (name.partition(":") for name in packages):
            if find_spec(module) is None:
                return f"{module} is not installed: python -m pip install {package or module}"
        return None

    return say


def mean(curve: Tensor) -> float:
    """Returns the mean over the frames that have a number."""
    return curve.nanmean().item()


Need = Literal["original", "source", "frames", "borders"]


@dataclass(frozen=True)
class Metric:
    """One measure of a video.

    better: which direction is, None for neither. needs: what it takes beside the video: the original, the source, several frames,
    borders of boxes. measure: returns one number per frame, NaN where one has none, or one number for the whole, None where there
    is none. pool: of the frames' numbers, that of the clip. smallest: pixels a side. absent: what it wants that is not on this
    machine, as a sentence. decimals: worth showing.
    """

    name: str
    label: str
    unit: str
    better: Literal["higher", "lower"] | None
    needs: tuple[Need, ...]
    measure: Callable[[Result], Tensor | float | None]
    decimals: int = 3
    pool: Callable[[Tensor], float] = mean
    smallest: int = SMALLEST
    absent: Callable[[], str | None] = lambda: None

    def obstacle(self, clip: EvaluationClip) -> str | None:
        """Returns why it cannot be measured on a clip, as a sentence, or None."""
        if "original" in self.needs and clip.original is None:
            return "it needs an original, which clips of this suite do not have"
        if "borders" in self.needs and clip.borders is None:
            return "gvr refined the clip in one piece: give --segment or --tile"
        if min(clip.size) < self.smallest:
            height, width = clip.size
            return f"it needs {self.smallest} pixels a side, and a clip has {width} x {height}"
        return self.absent()


@dataclass(frozen=True)
class Score:
    """value: of the clip. curve: of each frame, NaN where one has none; empty for what is measured as a whole."""

    value: float | None
    curve: tuple[float, ...] = ()


def measure(name: str, result: Result) -> Score:
    """Returns a metric of a result."""
    metric = METRICS[name]
    found = metric.measure(result)
    return Score(metric.pool(found), tuple(found.tolist())) if isinstance(found, Tensor) else Score(found)


def finite(number: float | None) -> float | None:
    """Returns the number, None when it is none: JSON has no NaN."""
    return number if number is not None and math.isfinite(number) else None


KORNIA, TORCHMETRICS, OPENCV = missing("kornia"), missing("torchmetrics"), missing("cv2:opencv-python-headless")
ST_LPIPS = missing("stlpips_pytorch:stlpips-pytorch", "IPython:ipython", "torchsummary")
FFMPEG = missing("ffmpeg_quality_metrics:ffmpeg-quality-metrics", "imageio_ffmpeg:imageio-ffmpeg")

ORIGINAL, FRAMES = ("original",), ("frames",)
ROWS = (
    Metric("psnr", "PSNR", "dB", "higher", ORIGINAL, lambda r: full_reference.psnr(r.video, r.original), 2, mean_decibels),
    Metric("ssim", "SSIM", "", "higher", ORIGINAL, lambda r: full_reference.ssim(r.video, r.original), absent=KORNIA),
    Metric("ms_ssim", "MS-SSIM", "", "higher", ORIGINAL, lambda r: full_reference.ms_ssim(r.video, r.original), 3, mean, 161, TORCHMETRICS),
    Metric("st_lpips", "ST-LPIPS", "", "lower", ORIGINAL, lambda r: full_reference.st_lpips(r.video, r.original), absent=ST_LPIPS),
    Metric("vmaf", "VMAF", "", "higher", ORIGINAL, lambda r: full_reference.vmaf(r.video, r.original, r.clip.rate), 1, absent=FFMPEG),
    Metric("niqe", "NIQE", "", "lower", (), lambda r: no_reference.niqe(r.video), 2, smallest=192),
    *(
        Metric(name, label, "", "higher", (), partial(iqa, name), digits, absent=partial(learned.iqa_absent, name))
        for name, label, digits in (("musiq", "MUSIQ", 1), ("clipiqa", "CLIP-IQA", 3), ("maniqa", "MANIQA", 3))
    ),
    Metric("dover", "DOVER", "", "higher", FRAMES, lambda r: learned.dover(r.video, r.clip.rate), 1, absent=learned.dover_absent),
    *(
        Metric(f"vbench_{name}", label, "", "higher", FRAMES, partial(vbench, name), absent=partial(learned.vbench_absent, name))
        for name, label in ((name, f"VBench {name.replace('_', ' ')}") for name in learned.VBENCH)
    ),
    Metric("warping_error", "warping error", "1e-3", "lower", FRAMES, lambda r: warping_error(r.video, r.guided), 2, absent=OPENCV),
    Metric("tof", "tOF", "pixels", "lower", FRAMES, lambda r: tof(r.video, r.guided), absent=OPENCV),
    Metric("flicker", "flicker", "levels", "lower", ("source", "frames"), lambda r: flicker(r.small, r.clip.source)),
    Metric("lr_consistency", "LR-consistency", "dB", "higher", ("source",), lr_consistency, 2, mean_decibels),
    Metric("segment_seams", "seams of segments", "", "lower", ("frames", "borders"), segment_seams),
    Metric("tile_seams", "seams of tiles", "", "lower", ("borders",), tile_seams),
    Metric("seconds_per_frame", "seconds a frame", "", "lower", (), seconds_per_frame, 2),
)
METRICS = {metric.name: metric for metric in ROWS}
MEANINGS = {
    "psnr": "Mean square difference from the original over all pixels and channels, in decibels.",
    "ssim": "Likeness with the original in brightness, contrast and structure, place by place; 1 is equal.",
    "ms_ssim": "SSIM over five scales; 1 is equal.",
    "st_lpips": "Difference from the original as a trained network sees it, hardly changed by a shift of a pixel; 0 is equal. Any texture "
    "counts as detail, even a grid.",
    "vmaf": "Netflix's forecast of what viewers would say beside the original, 0 to 100, from the brightness alone.",
    "niqe": "How far the statistics of the picture are from those of pristine photographs. Sharpening and grain lower it.",
    "musiq": "Quality as people rated photographs online, 0 to 100, learned (MUSIQ, KonIQ-10k).",
    "clipiqa": "How near CLIP finds the picture to a good photo rather than a bad one, 0 to 1.",
    "maniqa": "Quality as people rated photographs online, 0 to 1, learned (MANIQA, KonIQ-10k).",
    "dover": "Quality of the video as people rated it online, technical and aesthetic, learned (DOVER).",
    **{f"vbench_{name}": f"VBench's {name.replace('_', ' ')}, 0 to 1." for name in learned.VBENCH},
    "warping_error": "What differs from the frame before, moved along the optical flow of the original, or of the source where there is "
    "none. Blur lowers it: read it beside the original's own.",
    "tof": "How far the optical flow is from that of the original, or of the source where there is none.",
    "flicker": "How much the brightness of the whole frame changes by what the source's does not, in levels of 255.",
    "lr_consistency": "PSNR against the source, after the result is made as small: whether it is still the same picture.",
    "segment_seams": "Jumps from frame to frame where segments meet, over those nearby; 1 is none.",
    "tile_seams": "Jumps between pixels where tiles meet, over those nearby; 1 is none.",
    "seconds_per_frame": "Time of the method on this machine, loading left out.",
}
