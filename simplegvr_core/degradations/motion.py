"""Motion of a clip: DIS optical flow between neighbouring frames, the mask of moving pixels, and a picture of the flow.

F frames, H, W pixels. Optical flow points from a pixel to its place in the frame before, in pixels (x, y).
"""

from dataclasses import dataclass

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from ..video.optical_flow import dis_optical_flow
from .opencv import opencv


@dataclass(frozen=True)
class MotionConfig:
    """A pixel moves where its optical flow is long enough and its surroundings change.

    Attributes:
        pixels: Length of the optical flow in pixels from which on a pixel moves.
        change: Difference from the frame before in any color, in levels of 255, from which on a pixel changes.
        gap_size: Gaps between changing pixels that count as changing, since an even surface looks the same while it moves. A fraction
            of the short side of the frame.
    """

    pixels: float = 1.0
    change: float = 1.5
    gap_size: float = 0.05


@dataclass(frozen=True)
class ClipMotion:
    """Motion of a clip; the first frame has none.

    Attributes:
        optical_flow: (F, H, W, 2) float32, pixels (x, y) to the frame before.
        moving: (F, H, W) bool.
    """

    optical_flow: np.ndarray
    moving: np.ndarray


def estimate_motion(video: Tensor, config: MotionConfig) -> ClipMotion:
    """Returns the motion of a video.

    Args:
        video: (1, 3, F, H, W) in [-1, 1].
        config: What counts as moving.
    """
    cv2 = opencv()
    frames = rearrange(video[0].float().cpu(), "C F H W -> F H W C").contiguous().numpy()
    optical_flow = np.zeros((*frames.shape[:3], 2), np.float32)
    moving = np.zeros(frames.shape[:3], bool)
    gap = max(1, round(config.gap_size * min(frames.shape[1:3])))
    window = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (gap, gap))
    for i in range(1, len(frames)):
        optical_flow[i] = rearrange(dis_optical_flow(video[0, :, i], video[0, :, i - 1]), "C H W -> H W C").cpu()
        changed = (np.abs(frames[i] - frames[i - 1]).max(axis=2) * 127.5 > config.change).astype(np.uint8)
        changed = cv2.morphologyEx(changed, cv2.MORPH_CLOSE, window).astype(bool)
        moving[i] = changed & (np.linalg.norm(optical_flow[i], axis=2) > config.pixels)
    return ClipMotion(optical_flow, moving)


def optical_flow_picture(optical_flow: np.ndarray) -> Tensor:
    """Returns pictures of optical flow: hue is the direction, brightness the length. The longest 1 % of the clip is brightest.

    Args:
        optical_flow: (F, H, W, 2) pixels.

    Returns:
        (F, H, W, 3) uint8 RGB.
    """
    cv2 = opencv()
    length = np.linalg.norm(optical_flow, axis=3)
    longest = max(np.quantile(length, 0.99), 1e-6)
    degrees = np.degrees(np.arctan2(optical_flow[..., 1], optical_flow[..., 0])) % 360
    wheel = np.stack([degrees, np.ones_like(length), (length / longest).clip(0, 1)], axis=3).astype(np.float32)
    images = np.stack([cv2.cvtColor(frame, cv2.COLOR_HSV2RGB) for frame in wheel])
    return torch.from_numpy((images * 255).round().astype(np.uint8))
