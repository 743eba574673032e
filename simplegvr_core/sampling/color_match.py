"""Colour safety: the low spatial frequencies of a result are those of its source.

B batch, T latent frames, H, W cells or pixels
"""

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

# What each channel of a normalised latent adds to (R, G, B): as ComfyUI previews Wan 2.1's; TinyVAE's are rotated to agree with it
PREVIEW_FACTORS = (
    (-0.1299, -0.1692, 0.2932), (0.0671, 0.0406, 0.0442), (0.3568, 0.2548, 0.1747), (0.0372, 0.2344, 0.1420),
    (0.0313, 0.0189, -0.0328), (0.0296, -0.0956, -0.0665), (-0.3477, -0.4059, -0.2925), (0.0166, 0.1902, 0.1975),
    (-0.0412, 0.0267, -0.1364), (-0.1293, 0.0740, 0.1636), (0.0680, 0.3019, 0.1128), (0.0032, 0.0581, 0.0639),
    (-0.1251, 0.0927, 0.1699), (0.0060, -0.0633, 0.0005), (0.3477, 0.2275, 0.2950), (0.1984, 0.0913, 0.1861),
)  # fmt: skip
# and as a linear decoder trained on Wan 2.1's autoencoder makes the mean of a cell's pixels: `projections.2` of ComfyUI-VAE-Utils,
# (c) spacepxl, MIT, times the latent's standard deviations. The two estimates are 12 to 43 degrees apart.
DECODER_FACTORS = (
    (-0.0302, 0.0157, 0.2151), (-0.0208, -0.0138, -0.0063), (0.1288, 0.0647, 0.0387), (0.0703, 0.1914, 0.1113),
    (-0.0029, -0.0147, -0.0307), (0.0745, -0.0517, -0.0347), (-0.0579, -0.1254, -0.0967), (-0.0366, 0.0023, 0.0476),
    (-0.1330, -0.1493, -0.2103), (-0.0735, 0.0642, 0.1092), (-0.0697, 0.1040, 0.0573), (0.0131, 0.0497, 0.0193),
    (-0.0461, 0.0185, 0.0597), (0.0082, -0.0379, -0.0040), (0.1610, 0.0273, 0.0606), (0.0740, 0.0172, 0.0467),
)  # fmt: skip

COLOUR_FACTORS = {"wan": (PREVIEW_FACTORS, DECODER_FACTORS), "tiny_vae": (PREVIEW_FACTORS,)}


def match_colours(z: Tensor, reference: Tensor, latents: str, strength: float, width: tuple[float, float]) -> Tensor:
    """Returns z with the low spatial frequencies of its colours moved towards the reference's.

    z, reference: (B, 16, T, H, W) normalised, one shape; each latent frame alone. latents: whose, of COLOUR_FACTORS.
    strength: 0 leaves z as it is, 1 gives each frame the reference's mean colour exactly. width: see low_pass. z equal to the
    reference comes back bit for bit. What of z is no colour stays: a reference resized from larger cells has other detail in
    the same channels, which would come out as a grid.
    The reference to take is the bilinear resize of z_lr, at a width of 4 source cells: with gvr_tiny on five clips the mean
    of red, green or blue is at most 0.3 to 0.8 levels off in any frame, without it 0.8 to 1.6. More mends less, fewer cost detail.
    """
    directions = colour_directions(latents).to(z)
    difference = torch.einsum("B C T H W, C d -> B d T H W", reference - z, directions)
    return z + strength * torch.einsum("B d T H W, C d -> B C T H W", low_pass(difference, width), directions)


def colour_directions(latents: str) -> Tensor:
    """Returns (16, d) float64, orthonormal: all that changes a cell's mean colour, d = 3 for each table of COLOUR_FACTORS."""
    factors = torch.tensor(COLOUR_FACTORS[latents], dtype=torch.float64)
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
