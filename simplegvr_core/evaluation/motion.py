"""Temporal consistency of a video: its motion compared with that of a guide, the original or the upscaled source.

F frames; H, W pixels; video, guide: (1, 3, F, H, W) in [-1, 1], F at least 2. Values of video outside are clamped. Every metric
returns one number per frame, (F,), NaN for the first.
"""

from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from ..video.optical_flow import dis_optical_flow
from .seams import VIDEO, Curves, measure_curves

FIRST = torch.tensor([torch.nan])  # of the first frame, which has none before it


@dataclass(frozen=True)
class FlowPair:
    """Optical flow between two frames, both ways.

    Attributes:
        forward: (2, H, W) offset in pixels, x first, from each pixel of the former frame to its place in the latter.
        backward: (2, H, W) offset in pixels, x first, from each pixel of the latter frame to its place in the former.
        visible: (H, W) bool: whether a pixel of the latter frame is in the former, as `warping_error` defines it.
    """

    forward: Tensor
    backward: Tensor
    visible: Tensor


def flow_pairs(guide: Tensor) -> list[FlowPair]:
    """Returns the optical flow between each two neighbouring frames, F - 1 pairs.

    Args:
        guide: (1, 3, F, H, W) in [-1, 1].
    """
    return [flow_pair(previous, current) for previous, current in pairwise(guide[0].unbind(1))]


def flow_pair(previous: Tensor, current: Tensor) -> FlowPair:
    """Returns the optical flow between two frames by DIS.

    Args:
        previous: (3, H, W) in [-1, 1].
        current: (3, H, W) in [-1, 1], the frame after it.
    """
    forward, backward = dis_optical_flow(previous, current), dis_optical_flow(current, previous)
    returned = warp(forward, backward)
    disagreement = (backward + returned).square().sum(0)
    tolerance = 0.01 * (backward.square().sum(0) + returned.square().sum(0)) + 0.5
    inside = warp(torch.ones_like(previous[:1]), backward)[0] > 0.999
    return FlowPair(forward, backward, (disagreement <= tolerance) & inside)


def warping_error(video: Tensor, guide_flow: list[FlowPair]) -> Tensor:
    """Returns the temporal warping error times 1000; lower is better.

    E_warp (Lai et al., ECCV 2018): for each frame t > 0, the mean over visible pixels and channels of
    (video_t - warp(video_{t-1}))^2, video in [0, 1]. The warp is bilinear, along the optical flow of the guide. A pixel is visible
    when it comes from inside the frame and its optical flow is consistent: |w + w'|^2 <= 0.01 (|w|^2 + |w'|^2) + 0.5, in pixels
    (Sundaram et al., ECCV 2010). A frame without visible pixels counts as 0.

    Args:
        video: (1, 3, F, H, W) in [-1, 1].
        guide_flow: Optical flow of the guide, F - 1 pairs.

    Returns:
        (F,): 1.5 means 1.5e-3.
    """
    errors = []
    for (previous, current), step in zip(pairwise(frames_of(video)), guide_flow, strict=True):
        difference = current - warp(previous, step.backward)
        errors.append((difference.square().mean(0) * step.visible).sum() / step.visible.sum().clamp(min=1))
    return torch.cat((FIRST, 1000 * torch.stack(errors).cpu()))


def tof(video: Tensor, guide_flow: list[FlowPair]) -> Tensor:
    """Returns tOF (Chu et al., TecoGAN, 2020); 0 is equal, lower is better.

    The mean length of the difference between the optical flow of the video and that of the guide, from each frame to the next. DIS
    takes the place of Farneback's optical flow, and frames are not cropped.

    Args:
        video: (1, 3, F, H, W) in [-1, 1].
        guide_flow: Optical flow of the guide, F - 1 pairs.

    Returns:
        (F,) pixels.
    """
    frames = pairwise(video[0].clamp(-1, 1).unbind(1))
    errors = [
        torch.linalg.vector_norm(dis_optical_flow(*pair) - step.forward, dim=0).mean()
        for pair, step in zip(frames, guide_flow, strict=True)
    ]
    return torch.cat((FIRST, torch.stack(errors).cpu()))


def flicker(downscaled: Tensor, source: Tensor) -> Tensor:
    """Returns the change of global brightness from frame to frame that the source does not have; 0 is steady.

    A change is the median over blocks of 8 x 8 pixels of what a frame adds to the brightness (`seams.measure_curves`), which moving
    objects hardly affect. A constant difference of brightness from the source counts as 0.

    Args:
        downscaled: The video at the size of the source, (1, 3, F, h, w) in [-1, 1].
        source: (1, 3, F, h, w) in [-1, 1].

    Returns:
        (F,) levels of 255.
    """
    differences = ((a - b)[None] for a, b in zip(frames_of(downscaled), frames_of(source), strict=True))
    return torch.from_numpy(abs(measure_curves(differences, VIDEO).changes))


def video_curves(video: Tensor) -> Curves:
    """Returns the curves of brightness and jumps of a video, (1, 3, F, H, W) in [-1, 1]."""
    return measure_curves((frame[None] for frame in frames_of(video)), VIDEO)


def frames_of(video: Tensor) -> tuple[Tensor, ...]:
    """Returns the frames of a video, each (3, H, W) in [0, 1]."""
    return ((video[0].clamp(-1, 1) + 1) / 2).unbind(1)


def warp(image: Tensor, offset: Tensor) -> Tensor:
    """Returns an image sampled bilinearly at each pixel plus its offset; 0 outside.

    Args:
        image: (C, H, W).
        offset: (2, H, W) pixels, x first.

    Returns:
        (C, H, W).
    """
    _, height, width = image.shape
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    position = torch.stack((columns, rows)).to(offset) + offset
    extent = torch.tensor([width, height]).to(offset)[:, None, None]
    grid = rearrange((2 * position + 1) / extent - 1, "C H W -> 1 H W C")
    return F.grid_sample(image[None], grid, align_corners=False)[0]
