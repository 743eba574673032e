"""Steadiness of a video: how it moves beside a guide that is known to move rightly, the original or the enlarged source.

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
from .seams import VIDEO, Curves, draw_curves

NONE = torch.tensor([torch.nan])


@dataclass(frozen=True)
class FlowPair:
    """How a guide moves from a frame to the next. forward, backward: the offset (2, H, W), x first, of each pixel of the former to
    its place in the latter, and back; visible (H, W): whether a pixel of the latter is in the former, see `warping_error`."""

    forward: Tensor
    backward: Tensor
    visible: Tensor


def motions(guide: Tensor) -> list[FlowPair]:
    """Returns the F - 1 motions of a guide, which all results of one clip are measured by."""
    return [motion(*frames) for frames in pairwise(guide[0].unbind(1))]


def motion(previous: Tensor, current: Tensor) -> FlowPair:
    """Returns the motion between two frames (3, H, W) in [-1, 1], by DIS."""
    forward, backward = dis_optical_flow(previous, current), dis_optical_flow(current, previous)
    returned = warp(forward, backward)
    disagreement = (backward + returned).square().sum(0)
    tolerance = 0.01 * (backward.square().sum(0) + returned.square().sum(0)) + 0.5
    inside = warp(torch.ones_like(previous[:1]), backward)[0] > 0.999
    return FlowPair(forward, backward, (disagreement <= tolerance) & inside)


def warping_error(video: Tensor, guided: list[FlowPair]) -> Tensor:
    """Returns the temporal warping error x 1000, lower is better: 1.5 stands for 1.5e-3.

    E_warp (Lai et al., ECCV 2018): for each frame t > 0, the mean over visible pixels and channels of
    (video_t - warp(video_{t-1}))^2, video in [0, 1]. The warp is bilinear, along the optical flow of the guide.
    A pixel is visible when it comes from inside the frame and the optical flow there leads
    back: |w + w'|^2 <= 0.01 (|w|^2 + |w'|^2) + 0.5, in pixels (Sundaram et al., ECCV 2010). A frame without any counts as 0.
    """
    errors = []
    for (previous, current), step in zip(pairwise(levels(video)), guided, strict=True):
        difference = current - warp(previous, step.backward)
        errors.append((difference.square().mean(0) * step.visible).sum() / step.visible.sum().clamp(min=1))
    return torch.cat((NONE, 1000 * torch.stack(errors).cpu()))


def tof(video: Tensor, guided: list[FlowPair]) -> Tensor:
    """Returns tOF (Chu et al., TecoGAN, 2020): the mean length, in pixels, of the difference of the video's optical flow from
    the guide's, from each frame to the next; 0 is equal, lower is better. DIS takes the place of Farneback's optical flow, and
    frames are not cropped."""
    frames = pairwise(video[0].clamp(-1, 1).unbind(1))
    errors = [
        torch.linalg.vector_norm(dis_optical_flow(*pair) - step.forward, dim=0).mean() for pair, step in zip(frames, guided, strict=True)
    ]
    return torch.cat((NONE, torch.stack(errors).cpu()))


def flicker(small: Tensor, source: Tensor) -> Tensor:
    """Returns how much the brightness of each frame changes everywhere where the source's does not, in levels of 255; 0 is steady.

    small: the video made as small as source, which may be dim or bright all the time. A change is the median over blocks of
    8 x 8 pixels of what a frame adds to the brightness (seams.draw_curves), which things that move hardly touch.
    """
    differences = ((a - b)[None] for a, b in zip(levels(small), levels(source), strict=True))
    return torch.from_numpy(abs(draw_curves(differences, VIDEO).changes))


def video_curves(video: Tensor) -> Curves:
    """Returns the curves of brightness and jumps of a video."""
    return draw_curves((frame[None] for frame in levels(video)), VIDEO)


def levels(video: Tensor) -> tuple[Tensor, ...]:
    """Returns the frames (3, H, W) of a video in [0, 1]."""
    return ((video[0].clamp(-1, 1) + 1) / 2).unbind(1)


def warp(image: Tensor, offset: Tensor) -> Tensor:
    """Returns (C, H, W): image (C, H, W) sampled bilinearly at each pixel plus its offset (2, H, W), x first; 0 outside."""
    _, height, width = image.shape
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    position = torch.stack((columns, rows)).to(offset) + offset
    extent = torch.tensor([width, height]).to(offset)[:, None, None]
    grid = rearrange((2 * position + 1) / extent - 1, "C H W -> 1 H W C")
    return F.grid_sample(image[None], grid, align_corners=False)[0]
