"""Color safety: the low spatial frequencies of a result are those of its source.

B batch, T latent frames, H, W cells or pixels
"""

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from ..latent_space import COLOR_FACTORS


def match_color(z: Tensor, reference: Tensor, latents: str, strength: float, width: tuple[float, float]) -> Tensor:
    """Returns z with the low spatial frequencies of its colors moved towards the reference's.

    z, reference: (B, 16, T, H, W) normalised, one shape; each latent frame alone. latents: whose, of COLOR_FACTORS.
    strength: 0 leaves z as it is, 1 gives each frame the reference's mean color exactly. width: see low_pass. z equal to the
    reference comes back bit for bit. What of z is no color stays: a reference resized from larger cells has other detail in
    the same channels, which would come out as a grid.
    The reference to take is the bilinear resize of z_lr, at a width of 4 source cells: with gvr_tiny on five clips the mean
    of red, green or blue is at most 0.3 to 0.8 levels off in any frame, without it 0.8 to 1.6. More mends less, fewer cost detail.
    """
    directions = color_directions(latents).to(z)
    difference = torch.einsum("B C T H W, C d -> B d T H W", reference - z, directions)
    return z + strength * torch.einsum("B d T H W, C d -> B C T H W", low_pass(difference, width), directions)


def color_directions(latents: str) -> Tensor:
    """Returns (16, d) float64, orthonormal: all that changes a cell's mean color, d = 3 for each table of COLOR_FACTORS."""
    factors = torch.tensor(COLOR_FACTORS[latents], dtype=torch.float64)
    return torch.linalg.qr(rearrange(factors, "table C rgb -> C (table rgb)")).Q


def low_pass(x: Tensor, width: tuple[float, float]) -> Tensor:
    """Returns x (..., H, W) blurred by a Gaussian, mirrored at the edges, so that means are kept.

    width: its standard deviation along rows and columns, in cells.
    """
    rows, columns = (blur_matrix(*axis).to(x) for axis in zip(x.shape[-2:], width, strict=True))
    return rows @ x @ columns


def blur_matrix(extent: int, width: float) -> Tensor:
    """Returns the symmetric (extent, extent) matrix of that blur along one axis: a factor for each cosine of the DCT-II."""
    k = torch.arange(extent, dtype=torch.float64)
    cosines = torch.cos(math.pi / extent * torch.outer(k, k + 0.5)) * torch.where(k > 0, 2 / extent, 1 / extent).sqrt()[:, None]
    response = torch.exp(-((math.pi * width / extent * k) ** 2) / 2)
    return cosines.T @ (response[:, None] * cosines)


def match_frame(image: Tensor, reference: Tensor, strength: float, levels: int) -> Tensor:
    """Returns image (H, W, 3) in [0, 1] with what an a trous wavelet leaves after so many levels moved towards the reference's.

    reference: (h, w, 3) of any size, resized bilinearly; both as stored, not linear light, as scaling and autoencoders
    take them. strength: 0 to 1. An image equal to the reference comes back bit for bit.
    """
    target, source = (rearrange(each, "H W C -> 1 C H W").contiguous() for each in (image, reference))
    source = F.interpolate(source, target.shape[2:], mode="bilinear", antialias=True)
    difference = coarse(source - target, levels)
    return (image + strength * rearrange(difference, "1 C H W -> H W C")).clamp(0, 1)


def coarse(x: Tensor, levels: int) -> Tensor:
    """Returns x (B, C, H, W) less its details of 1, 2, 4 ... 2^(levels - 1) pixels: smoothed by (1, 2, 1) / 4 at each of these
    distances in turn, edges replicated. (Starck, Fadili and Murtagh, 2007, with the linear spline.)"""
    for level in range(levels):
        step = 2**level
        padded = F.pad(x, (0, 0, step, step), mode="replicate")
        x = x / 2 + (padded[:, :, : -2 * step] + padded[:, :, 2 * step :]) / 4
        padded = F.pad(x, (step, step, 0, 0), mode="replicate")
        x = x / 2 + (padded[..., : -2 * step] + padded[..., 2 * step :]) / 4
    return x
