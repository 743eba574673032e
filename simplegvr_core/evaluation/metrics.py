"""The metrics as one table: evaluation, reports, documents and the node SimpleGVR Evaluate are driven by METRICS.

F frames; H, W pixels
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Literal

from torch import Tensor

from . import full_reference, learned
from . import niqe as no_reference
from .full_reference import mean_decibels
from .motion import flicker, tof, warping_error
from .result import EvaluationClip, Result

SMALLEST = 32  # pixels a side, that most metrics take

Need = Literal["original", "source", "guide", "frames", "borders"]
Group = Literal["quality", "learned", "steadiness", "seams", "time"]


def missing(*packages: str) -> Callable[[], str | None]:
    """Returns a function that names the first module that is not installed, in a sentence with the cure, or None.

    Args:
        packages: Each "module", or "module:package" where pip knows it by another name.
    """

    def sentence() -> str | None:
        for module, _, package in (name.partition(":") for name in packages):
            if find_spec(module) is None:
                return f"{module} is not installed: python -m pip install {package or module}"
        return None

    return sentence


def mean(curve: Tensor) -> float:
    """Returns the mean over the frames that have a number."""
    return curve.nanmean().item()


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One measure of a video.

    Attributes:
        name: Key in files and on the command line.
        label: Name in tables.
        unit: Unit of the number; empty where it has none.
        better: The better direction.
        group: What kind of measure it is.
        meaning: What the number says, for readers of a report.
        measure: Returns one number per frame, (F,), NaN where a frame has none; or one number for the whole clip, None where there is none.
        needs: What is measured beside the video: the original, the source, a guide of the motion (either of the two), several frames,
            borders of boxes.
        quick: Whether it is one of the few that take little time.
        whole_clip: Whether the numbers of frames depend on all frames, so that a clip cannot be measured in parts.
        decimals: Decimals that are worth showing.
        pool: Maps the numbers of the frames to that of the clip.
        smallest: Pixels that each side must have.
        absent: Returns in a sentence what is missing on this machine, or None.
    """

    name: str
    label: str
    unit: str = ""
    better: Literal["higher", "lower"]
    group: Group
    meaning: str
    measure: Callable[[Result], Tensor | float | None]
    needs: tuple[Need, ...] = ()
    quick: bool = False
    whole_clip: bool = False
    decimals: int = 3
    pool: Callable[[Tensor], float] = mean
    smallest: int = SMALLEST
    absent: Callable[[], str | None] = lambda: None

    def obstacle(self, clip: EvaluationClip) -> str | None:
        """Returns in a sentence why the metric cannot be measured on a clip, or None."""
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
    """A metric of a result.

    Attributes:
        value: Number of the clip.
        curve: Number of each frame, NaN where it has none; empty where the clip is measured as a whole.
    """

    value: float | None
    curve: tuple[float, ...] = ()


def measure(name: str, result: Result) -> Score:
    """Returns a metric of a result.

    Args:
        name: A key of METRICS, for which `Metric.obstacle` found none.
        result: The video to measure.
    """
    metric = METRICS[name]
    found = metric.measure(result)
    return Score(metric.pool(found), tuple(found.tolist())) if isinstance(found, Tensor) else Score(found)


def finite(number: float | None) -> float | None:
    """Returns the number; None where it is not finite, since JSON has no NaN."""
    return number if number is not None and math.isfinite(number) else None


def lr_consistency(result: Result) -> Tensor:
    """Returns the PSNR of each frame of the downscaled result against the source in dB, (F,)."""
    return full_reference.psnr(result.downscaled, result.source)


def seconds_per_frame(result: Result) -> float | None:
    return result.seconds and result.seconds / result.video.shape[2]


def tile_seams(result: Result) -> float | None:
    """Returns the jumps at tile borders over the jumps nearby: along the width or the height, where it is larger."""
    return max((seam.ratio for seam in (result.seams.columns, result.seams.rows) if seam), default=None)


def segment_seams(result: Result) -> float | None:
    """Returns the jumps at segment borders over the jumps between other frames nearby."""
    return result.seams.segments and result.seams.segments.ratio


def image_quality(name: str, result: Result) -> Tensor:
    return learned.iqa(name, result.video)


def video_quality(dimension: str, result: Result) -> float:
    return learned.vbench(dimension, result.video, result.clip.rate)


TABLE = (
    Metric(
        name="psnr",
        label="PSNR",
        unit="dB",
        better="higher",
        group="quality",
        needs=("original",),
        quick=True,
        measure=lambda result: full_reference.psnr(result.video, result.original),
        pool=mean_decibels,
        decimals=2,
        meaning="Mean square difference from the original over all pixels and channels, in decibels.",
    ),
    Metric(
        name="ssim",
        label="SSIM",
        better="higher",
        group="quality",
        needs=("original",),
        quick=True,
        measure=lambda result: full_reference.ssim(result.video, result.original),
        absent=missing("kornia"),
        meaning="Likeness with the original in brightness, contrast and structure, place by place; 1 is equal.",
    ),
    Metric(
        name="ms_ssim",
        label="MS-SSIM",
        better="higher",
        group="quality",
        needs=("original",),
        measure=lambda result: full_reference.ms_ssim(result.video, result.original),
        smallest=161,
        absent=missing("torchmetrics"),
        meaning="SSIM over five scales; 1 is equal.",
    ),
    Metric(
        name="st_lpips",
        label="ST-LPIPS",
        better="lower",
        group="quality",
        needs=("original",),
        measure=lambda result: full_reference.st_lpips(result.video, result.original),
        absent=missing("stlpips_pytorch:stlpips-pytorch", "IPython:ipython", "torchsummary"),
        meaning="Difference from the original as a trained network sees it, hardly changed by a shift of a pixel; 0 is equal. Any texture "
        "counts as detail, even a grid.",
    ),
    Metric(
        name="flat_noise",
        label="flat noise",
        unit="levels",
        better="lower",
        group="quality",
        needs=("original",),
        measure=lambda result: full_reference.flat_noise(result.video, result.original),
        decimals=2,
        meaning="Noise where the original is flat, in levels of 255. The method vae has that of the autoencoder alone.",
    ),
    Metric(
        name="vmaf",
        label="VMAF",
        better="higher",
        group="quality",
        needs=("original",),
        whole_clip=True,
        measure=lambda result: full_reference.vmaf(result.video, result.original, result.clip.rate),
        decimals=1,
        absent=missing("ffmpeg_quality_metrics:ffmpeg-quality-metrics", "imageio_ffmpeg:imageio-ffmpeg"),
        meaning="Netflix's forecast of what viewers would say beside the original, 0 to 100, from the brightness alone.",
    ),
    Metric(
        name="niqe",
        label="NIQE",
        better="lower",
        group="quality",
        measure=lambda result: no_reference.niqe(result.video),
        decimals=2,
        smallest=192,
        meaning="How far the statistics of the picture are from those of pristine photographs. Sharpening and grain lower it.",
    ),
    *(
        Metric(
            name=name,
            label=label,
            better="higher",
            group="learned",
            measure=partial(image_quality, name),
            decimals=decimals,
            absent=partial(learned.iqa_absent, name),
            meaning=meaning,
        )
        for name, label, decimals, meaning in (
            ("musiq", "MUSIQ", 1, "Quality as people rated photographs online, 0 to 100, learned (MUSIQ, KonIQ-10k)."),
            ("clipiqa", "CLIP-IQA", 3, "How near CLIP finds the picture to a good photo rather than a bad one, 0 to 1."),
            ("maniqa", "MANIQA", 3, "Quality as people rated photographs online, 0 to 1, learned (MANIQA, KonIQ-10k)."),
        )
    ),
    *(
        Metric(
            name=name,
            label=label,
            better="higher",
            group="learned",
            needs=("frames",),
            whole_clip=True,
            measure=lambda result, quality=quality: getattr(result.dover, quality),
            decimals=1,
            absent=learned.dover_absent,
            meaning=f"{meaning}, as people rated it online, 0 to 100, learned (DOVER).",
        )
        for name, label, quality, meaning in (
            ("dover_technical", "DOVER technical", "technical", "Sharpness, noise and artifacts of the video"),
            ("dover_aesthetic", "DOVER aesthetic", "aesthetic", "Content and composition of the video"),
            ("dover", "DOVER overall", "overall", "Quality of the video, technical and aesthetic together"),
        )
    ),
    *(
        Metric(
            name=f"vbench_{dimension}",
            label=f"VBench {dimension.replace('_', ' ')}",
            better="higher",
            group="learned",
            needs=("frames",),
            whole_clip=True,
            measure=partial(video_quality, dimension),
            absent=partial(learned.vbench_absent, dimension),
            meaning=f"VBench's {dimension.replace('_', ' ')}, 0 to 1.",
        )
        for dimension in learned.VBENCH
    ),
    Metric(
        name="warping_error",
        label="warping error",
        unit="1e-3",
        better="lower",
        group="steadiness",
        needs=("guide", "frames"),
        measure=lambda result: warping_error(result.video, result.clip.guide_flow),
        decimals=2,
        absent=missing("cv2:opencv-python-headless"),
        meaning="What differs from the frame before, moved along the optical flow of the original, or of the source where there is none. "
        "Blur lowers it: read it beside the original's own.",
    ),
    Metric(
        name="tof",
        label="tOF",
        unit="pixels",
        better="lower",
        group="steadiness",
        needs=("guide", "frames"),
        measure=lambda result: tof(result.video, result.clip.guide_flow),
        absent=missing("cv2:opencv-python-headless"),
        meaning="How far the optical flow is from that of the original, or of the source where there is none.",
    ),
    Metric(
        name="flicker",
        label="flicker",
        unit="levels",
        better="lower",
        group="steadiness",
        needs=("source", "frames"),
        quick=True,
        measure=lambda result: flicker(result.downscaled, result.source),
        meaning="How much the brightness of the whole frame changes by what the source's does not, in levels of 255.",
    ),
    Metric(
        name="lr_consistency",
        label="LR-consistency",
        unit="dB",
        better="higher",
        group="quality",
        needs=("source",),
        quick=True,
        measure=lr_consistency,
        pool=mean_decibels,
        decimals=2,
        meaning="PSNR against the source, after the result is made as small: whether it is still the same picture.",
    ),
    Metric(
        name="segment_seams",
        label="seams of segments",
        better="lower",
        group="seams",
        needs=("frames", "borders"),
        whole_clip=True,
        measure=segment_seams,
        meaning="Jumps from frame to frame where segments meet, over those nearby; 1 is none.",
    ),
    Metric(
        name="tile_seams",
        label="seams of tiles",
        better="lower",
        group="seams",
        needs=("borders",),
        whole_clip=True,
        measure=tile_seams,
        meaning="Jumps between pixels where tiles meet, over those nearby; 1 is none.",
    ),
    Metric(
        name="seconds_per_frame",
        label="seconds a frame",
        better="lower",
        group="time",
        measure=seconds_per_frame,
        decimals=2,
        meaning="Time of the method on this machine, loading left out.",
    ),
)
METRICS = {metric.name: metric for metric in TABLE}
