"""Filters of training clips: too dark or bright, blurred, with a shot cut, or of low quality by a learned metric.

images: uint8 (F, H, W, 3). The paper drops clips with Laplacian variance below 30 (mean of 10 frames) or MUSIQ below 40, and
extremes of brightness, for which it gives no numbers.
"""

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn

from ..evaluation.learned import iqa_absent, iqa_network

JUDGED_FRAMES = 10


@dataclass(frozen=True)
class FilterConfig:
    """Limits that a clip must meet."""

    min_luma: float = 25
    """Lowest mean brightness, in [0, 255]."""
    max_luma: float = 230
    """Highest mean brightness, in [0, 255]."""
    min_laplacian: float = 30
    """Lowest variance of the Laplacian of 8-bit luma."""
    max_change: float = 27
    """Largest mean change of hue, saturation and brightness (0 to 255) between two frames; a larger one is a shot cut."""
    min_musiq: float = 40
    """Lowest score of MUSIQ, in [0, 100]; used where the package pyiqa and its weights are installed."""


@dataclass(frozen=True)
class Drop:
    """The reason why a clip is dropped or a file skipped.

    Attributes:
        reason: The kind of reason, the same for many clips.
        detail: The measured value and the limit, or the error.
    """

    reason: str
    detail: str


def judge(images: Tensor, config: FilterConfig, musiq: nn.Module | None) -> Drop | None:
    """Returns the reason to drop a clip, or None.

    Args:
        images: The clip; brightness, sharpness and MUSIQ are means of up to 10 of its frames.
        config: Limits.
        musiq: As of load_musiq.
    """
    picked = images.numpy()[np.unique(np.linspace(0, len(images) - 1, JUDGED_FRAMES).round().astype(int))]
    lumas = [cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) for image in picked]
    luma = np.mean([luma.mean() for luma in lumas])
    if not config.min_luma <= luma <= config.max_luma:
        bound = f"wanted {config.min_luma:g} to {config.max_luma:g}"
        return Drop("too dark" if luma < config.min_luma else "too bright", f"mean luma {luma:.1f}, {bound}")
    sharpness = np.mean([cv2.Laplacian(luma, cv2.CV_64F).var() for luma in lumas])
    if sharpness < config.min_laplacian:
        return Drop("blurred", f"Laplacian variance {sharpness:.1f}, wanted at least {config.min_laplacian:g}")
    if (frame := find_cut(images, config.max_change)) is not None:
        return Drop("shot cut", f"between its frames {frame - 1} and {frame}")
    if musiq is not None:
        with torch.inference_mode():
            score = musiq(rearrange(torch.from_numpy(picked), "F H W C -> F C H W").float() / 255).mean().item()
        if score < config.min_musiq:
            return Drop("low MUSIQ", f"score {score:.1f}, wanted at least {config.min_musiq:g}")
    return None


def find_cut(images: Tensor, max_change: float) -> int | None:
    """Returns the number of the first frame after a shot cut, or None. max_change: as of FilterConfig."""
    from scenedetect import ContentDetector, FrameTimecode  # slow to import; training imports this module and does not need it

    detector = ContentDetector(threshold=max_change, min_scene_len=1)
    for index, image in enumerate(images.numpy()):
        small = cv2.resize(image, (160, 90), interpolation=cv2.INTER_AREA)
        if detector.process_frame(FrameTimecode(index, 24.0), small[..., ::-1]):
            return index
    return None


def load_musiq() -> tuple[nn.Module | None, str]:
    """Returns MUSIQ and "applied", or None and the reason why it is not applied. Downloads nothing.

    MUSIQ takes images (N, 3, H, W) in [0, 1] and returns scores (N, 1) up to 100.
    """
    if why := iqa_absent("musiq"):
        return None, f"not applied: {why}"
    return iqa_network("musiq", "cpu"), "applied"
