"""Colour safety: the low spatial frequencies of a result are those of its source.

B batch, T latent frames, H, W cells or pixels
"""

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor


def match_low_frequencies(z: Tensor, reference: Tensor, strength: float, width: tuple[float, float]) -> Tensor:
    """Returns z with its low spatial frequencies moved towards the reference's: z + strength low_pass(reference - z).

    z, reference: (B, 16, T, H, W) normalised, one shape; each latent frame alone. strength: 0 leaves z as it is, 1 gives each
    frame the reference's mean exactly. width: see low_pass. z equal to the reference comes back bit for bit.
    The reference to take is the bilinear resize of z_lr: with gvr_tiny on three clips it brings the mean brightness from
    0.2-1.2 levels off (5-7.5 sampled from pure noise) to below 0.1 and its flicker to the autoencoder's own; the latent
    upsampler's output leaves 0.4-0.6. That is at a width of 4 source cells; more mends less, fewer cost detail.
    """
    return z + strength * low_pass(reference - z, width)


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
