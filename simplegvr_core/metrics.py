"""Quality of a video against its original.

video, original: (B, 3, F, H, W) in [-1, 1], one shape.
"""

import torchmetrics.functional.image as tm
from einops import rearrange
from torch import Tensor


def psnr(video: Tensor, original: Tensor) -> float:
    """Returns the peak signal-to-noise ratio in dB over all frames and channels."""
    return tm.peak_signal_noise_ratio(video.clamp(-1, 1), original, data_range=(-1, 1)).item()


def ssim(video: Tensor, original: Tensor) -> float:
    """Returns the structural similarity, the mean over frames; 1 is equal. Gaussian window, sigma 1.5."""
    frames = (rearrange(x.clamp(-1, 1), "B C F H W -> (B F) C H W") for x in (video, original))
    return tm.structural_similarity_index_measure(*frames, data_range=(-1, 1)).item()
