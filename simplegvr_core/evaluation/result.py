"""What metrics measure: the result of a method, and the clip that it was made of.

F frames; H, W pixels; h, w pixels of the low resolution; video: (1, 3, F, H, W) in [-1, 1]
"""

from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from torch import Tensor

from ..video.frames import resize_frames
from . import learned
from .motion import FlowPair, flow_pairs, video_curves
from .seams import VIDEO, Borders, Seams, find_seams

Value = TypeVar("Value")


def required(value: Value | None) -> Value:
    """Returns a value that `Metric.obstacle` has checked to be there."""
    assert value is not None
    return value


@dataclass(frozen=True, eq=False)
class EvaluationClip:
    """A clip that methods are compared on. Its optical flow is computed once for all of their results.

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
    def guide_flow(self) -> list[FlowPair]:
        """Optical flow of the original, or of the bicubically upscaled source where there is no original."""
        return flow_pairs(resize_frames(required(self.source), self.size, "bicubic") if self.original is None else self.original)


@dataclass(frozen=True, eq=False)
class Result:
    """The video that a method made of a clip.

    Attributes:
        video: (1, 3, F, H, W) in [-1, 1]; values outside are clamped by every metric.
        clip: What the method was given, and what its result is compared with.
        seconds: Time that the method took; None for a video that no method made.
    """

    video: Tensor
    clip: EvaluationClip
    seconds: float | None = None

    @property
    def original(self) -> Tensor:
        return required(self.clip.original)

    @property
    def source(self) -> Tensor:
        return required(self.clip.source)

    @cached_property
    def downscaled(self) -> Tensor:
        """The video at the size of the source, by area averaging, (1, 3, F, h, w)."""
        _, _, _, height, width = self.source.shape
        return resize_frames(self.video.clamp(-1, 1), (height, width), "area")

    @cached_property
    def dover(self) -> learned.DoverScores:
        return learned.dover(self.video, self.clip.rate)

    @cached_property
    def seams(self) -> Seams:
        return find_seams(video_curves(self.video), required(self.clip.borders), VIDEO)
