"""Colour safety: the low spatial frequencies of a result are those of its source.

B batch, C channels, T latent frames, H, W cells or pixels
"""

import math

import torch
from torch import Tensor


def match_low_frequencies(z: Tensor, reference: Tensor, strength: float, width: int = 12) -> Tensor:
    """Returns z with its low spatial frequencies moved towards the reference's, z + strength low_pass(reference - z).

    z, reference: (B, 16, T, H, W) normalised, one shape; each latent frame alone. strength: 0 leaves z as it is, 1 replaces them.
    width: of low_pass, in cells. z equal to the reference comes back bit for bit.
    """
    return z + strength * low_pass(reference - z, width)


def low_pass(x: Tensor, width: float) -> Tensor:
    """Returns x (..., H, W) blurred by a Gaussian of standard deviation width, mirrored at the edges: means are kept."""
    rows, columns = (blur_matrix(extent, width).to(x) for extent in x.shape[-2:])
    return rows @ x @ columns


def blur_matrix(extent: int, width: float) -> Tensor:
    """Returns the symmetric (extent, extent) matrix of that blur along one axis: a product in the space of cosines (DCT-II)."""
    k = torch.arange(extent, dtype=torch.float64)
    cosines = torch.cos(math.pi / extent * torch.outer(k, k + 0.5)) * torch.where(k > 0, 2 / extent, 1 / extent).sqrt()[:, None]
    response = torch.exp(-((math.pi * width / extent * k) ** 2) / 2)
    return cosines.T @ (response[:, None] * cosines)
