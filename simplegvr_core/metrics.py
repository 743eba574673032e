"""Quality of a video against its original.

B batch, F frames; video, original: (B, 3, F, H, W) in [-1, 1], one shape. Values of video outside are clamped.
"""

from collections.abc import Iterator
from functools import cache
from itertools import pairwise

import torch
import torch.nn.functional as F
import torchmetrics.functional.image as tm
from einops import rearrange
from torch import Tensor, nn

from .optical_flow import dis_optical_flow

SMALLEST = 32  # pixels a side, for st_lpips
CHUNK = 4  # frames at a time: keeps the memory of a metric at some hundred MB, whatever the clip's length


def psnr(video: Tensor, original: Tensor) -> float:
    """Returns the peak signal-to-noise ratio in dB over all frames and channels."""
    return tm.peak_signal_noise_ratio(video.clamp(-1, 1), original, data_range=(-1, 1)).item()


def ssim(video: Tensor, original: Tensor) -> float:
    """Returns the structural similarity, the mean over frames; 1 is equal. Gaussian window, sigma 1.5."""
    values = [tm.structural_similarity_index_measure(*frames, data_range=(-1, 1), reduction="none") for frames in chunks(video, original)]
    return torch.cat(values).mean().item()


def st_lpips(video: Tensor, original: Tensor) -> float:
    """Returns the shift-tolerant learned perceptual distance, the mean over frames; 0 is equal, lower is better.

    ST-LPIPS (Ghildyal and Liu, ECCV 2022), AlexNet, weights of its package; H, W at least SMALLEST.
    """
    network = st_lpips_network("alex", video.device)
    with torch.inference_mode():
        return torch.cat([network(*frames).flatten() for frames in chunks(video, original)]).mean().item()


def warping_error(video: Tensor, original: Tensor, motion: list | None = None) -> float:
    """Returns the temporal warping error x 1000, lower is better: 1.5 stands for 1.5e-3. F at least 2.

    E_warp (Lai et al., ECCV 2018): for each frame t > 0, the mean over visible pixels and channels of
    (video_t - warp(video_{t-1}))^2, video in [0, 1]; then the mean over frames. The warp is bilinear, along the optical
    flow of the original. A pixel is visible when it comes from inside the frame and the optical flow there leads
    back: |w + w'|^2 <= 0.01 (|w|^2 + |w'|^2) + 0.5, in pixels (Sundaram et al., ECCV 2010). A frame without any counts as 0.
    motion: visible_motions(original), which several videos of one original can share.
    """
    video = (video.clamp(-1, 1) + 1) / 2
    errors = []
    for clip, steps in zip(video, motion or visible_motions(original), strict=True):
        for t, (backward, visible) in enumerate(steps, 1):
            difference = clip[:, t] - warp(clip[:, t - 1], backward)
            errors.append((difference.square().mean(0) * visible).sum() / visible.sum().clamp(min=1))
    return 1000 * torch.stack(errors).mean().item()


METRICS = {metric.__name__: metric for metric in (psnr, ssim, st_lpips, warping_error)}


def chunks(video: Tensor, original: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields a few frames of both at a time, each (n, 3, H, W) in [-1, 1]."""
    frames = (rearrange(x, "B C F H W -> (B F) C H W").split(CHUNK) for x in (video.clamp(-1, 1), original))
    return zip(*frames, strict=True)


@cache
def st_lpips_network(trunk: str, device: torch.device | str) -> nn.Module:
    """Returns the network of ST-LPIPS: (n, 3, H, W) in [-1, 1] twice -> (n, 1, 1, 1). trunk: "alex" measures, "vgg" trains."""
    from stlpips_pytorch.stlpips import LPIPS  # imports IPython, which takes seconds

    return LPIPS(net=trunk, variant="shift_tolerant", pnet_rand=True, verbose=False).to(device).requires_grad_(False)


def visible_motions(original: Tensor) -> list[list[tuple[Tensor, Tensor]]]:
    """Returns the visible motion of each video of original from each frame to the next: B lists of F - 1."""
    return [[visible_motion(*frames) for frames in pairwise(clip.unbind(1))] for clip in original]


def visible_motion(previous: Tensor, current: Tensor) -> tuple[Tensor, Tensor]:
    """Returns where each pixel of current was in previous, as its offset (2, H, W), x first; and whether it was visible, (H, W).

    previous, current: (3, H, W) in [-1, 1]. The rule for visible is that of `warping_error`.
    """
    backward, forward = dis_optical_flow(current, previous), dis_optical_flow(previous, current)
    returned = warp(forward, backward)
    disagreement = (backward + returned).square().sum(0)
    tolerance = 0.01 * (backward.square().sum(0) + returned.square().sum(0)) + 0.5
    inside = warp(torch.ones_like(previous[:1]), backward)[0] > 0.999
    return backward, (disagreement <= tolerance) & inside


def warp(image: Tensor, offset: Tensor) -> Tensor:
    """Returns (C, H, W): image (C, H, W) sampled bilinearly at each pixel plus its offset (2, H, W), x first; 0 outside."""
    _, height, width = image.shape
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    position = torch.stack((columns, rows)).to(offset) + offset
    extent = torch.tensor([width, height]).to(offset)[:, None, None]
    grid = rearrange((2 * position + 1) / extent - 1, "C H W -> 1 H W C")
    return F.grid_sample(image[None], grid, align_corners=False)[0]
