"""Removes the mesh that a transformer draws where it knows little: the same addition in each of its patches."""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

PATCH = 2  # latent pixels on each side


def without_repetition(x: Tensor, width: int) -> Tensor:
    """Returns x minus the mean, over the patches around each patch, of what is at the same position in a patch; each frame alone.

    What repeats from patch to patch vanishes, and with it changes that are slow against the filter: of stripes whose period is 30 latent
    pixels, width 5 leaves 4 % of the energy. Stripes of about its own width gain by up to 40 %. Noise loses 1 / width^2.

    Args:
        x: What a transformer adds to a latent, (B, C, T, H, W). Its first patch begins in the corner.
        width: Side in patches of the square around each patch, odd, at least 3. Parts outside the frame do not count.
    """
    height, columns = x.shape[3:]

    def square_sum(inside: Tensor) -> Tensor:
        patches = rearrange(even(inside), "B C T (h y) (w x) -> (B T) (C y x) h w", y=PATCH, x=PATCH)
        sums = F.avg_pool2d(patches, width, stride=1, padding=width // 2, divisor_override=1)
        return rearrange(sums, "(B T) (C y x) h w -> B C T (h y) (w x)", B=len(x), y=PATCH, x=PATCH)[..., :height, :columns]

    return x - square_sum(x) / square_sum(torch.ones_like(x[:, :1]))


def even(x: Tensor) -> Tensor:
    """Returns x (..., H, W) with zeros up to whole patches."""
    return F.pad(x, (0, x.shape[-1] % PATCH, 0, x.shape[-2] % PATCH))
