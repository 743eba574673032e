"""Quality of a video without an original: NIQE (Mittal, Soundararajan and Bovik, Signal Processing Letters 2013).

The statistics of the pristine pictures are BasicSR's niqe_pris_params.npz (Apache-2.0,
Copyright BasicSR Authors), in niqe_pristine.npz beside this file. F frames, H, W pixels, N blocks
"""

from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

PRISTINE = Path(__file__).with_name("niqe_pristine.npz")
BLOCK = 96  # pixels a side, of the first scale
LUMA = (65.481, 128.553, 24.966)  # BT.601, limited range: 16 to 235
SHIFTS = ((0, 1), (1, 0), (1, 1), (1, -1))  # of the neighbours that a pixel is multiplied with
MARGIN = 8  # pixels mirrored around a frame before it is halved, as many as the filter is wide


def niqe(video: Tensor) -> Tensor:
    """Returns the natural image quality evaluator of each frame; lower is better, photographs have 2 to 4.

    Blocks of 96 x 96 pixels of luma are compared; the remainder at the right and at the bottom is not. Sharpening and grain lower it
    as far as natural pictures have them.

    Args:
        video: (1, 3, F, H, W) in [-1, 1], clamped; H, W at least 96, and at least two blocks in all.

    Returns:
        (F,); NaN for a frame that is constant.
    """
    return torch.stack([niqe_of_frame(frame) for frame in video[0].clamp(-1, 1).unbind(1)])


def niqe_of_frame(frame: Tensor) -> Tensor:
    """Returns NIQE of a frame (3, H, W) in [-1, 1]: the distance of the features of its blocks from those of pristine pictures.

    It is sqrt(d^T ((A + B) / 2)^-1 d), with d the difference of means and A, B the covariances.
    """
    pristine_mean, pristine_covariance = pristine()
    height, width = (extent // BLOCK * BLOCK for extent in frame.shape[1:])
    stored = (frame.double().cpu() * 127.5 + 127.5).round() / 255  # as a file of 8 bits has it
    brightness = torch.einsum("C, C H W -> H W", torch.tensor(LUMA).double(), stored) + 16
    image = brightness.round()[:height, :width]
    features = torch.cat((block_features(contrast(image), BLOCK), block_features(contrast(halved(image)), BLOCK // 2)), dim=1)
    features = features[features.isfinite().all(1)]
    if len(features) < 2:
        return torch.tensor(torch.nan)
    distance = pristine_mean - features.mean(0)
    return (distance @ torch.linalg.pinv((pristine_covariance + features.T.cov()) / 2) @ distance).sqrt().float()


@cache
def pristine() -> tuple[Tensor, Tensor]:
    """Returns mean (36,) and covariance (36, 36) of the features of pristine pictures."""
    with np.load(PRISTINE, allow_pickle=False) as file:
        return torch.from_numpy(file["mu_pris_param"])[0], torch.from_numpy(file["cov_pris_param"])


def contrast(image: Tensor) -> Tensor:
    """Returns image (H, W) less its local mean, over its local deviation + 1; Gaussian window of 7 x 7, sigma 7 / 6."""
    offsets = torch.arange(-3, 4, dtype=image.dtype)
    line = torch.exp(-(offsets**2) / (2 * (7 / 6) ** 2))
    line = (line / line.sum())[None, None, None]

    def blurred(x: Tensor) -> Tensor:
        return F.conv2d(F.conv2d(F.pad(x[None, None], (3, 3, 3, 3), mode="replicate"), line), line.mT)[0, 0]

    mean = blurred(image)
    deviation = (blurred(image.square()) - mean.square()).abs().sqrt()
    return (image - mean) / (deviation + 1)


def halved(image: Tensor) -> Tensor:
    """Returns an image (H, W), both even, at half its size: bicubic filtering with mirrored edges, as MATLAB's imresize."""
    for _ in range(2):
        image = torch.cat((image[:MARGIN].flip(0), image, image[-MARGIN:].flip(0))).T
    size = tuple(extent // 2 for extent in image.shape)
    small = F.interpolate(image[None, None], size, mode="bicubic", antialias=True)[0, 0]
    return small[MARGIN // 2 : -MARGIN // 2, MARGIN // 2 : -MARGIN // 2]


def block_features(image: Tensor, size: int) -> Tensor:
    """Returns the features of the blocks of an image (H, W), (N, 18).

    Shape and spread of the values, then of their products with neighbours along four directions, which wrap around at a block's edges.
    """
    blocks = rearrange(image, "(rows h) (columns w) -> (rows columns) h w", h=size, w=size)
    shape, left, right = asymmetric_gaussian(blocks)
    features = [shape, (left + right) / 2]
    for shift in SHIFTS:
        shape, left, right = asymmetric_gaussian(blocks * blocks.roll(shift, dims=(1, 2)))
        mean = (right - left) * torch.exp(torch.lgamma(2 / shape) - torch.lgamma(1 / shape))
        features += [shape, mean, left, right]
    return torch.stack(features, dim=1)


def asymmetric_gaussian(blocks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns shape, left and right scale, each (N,), of asymmetric generalised Gaussians fitted to blocks (N, h, w) by their moments.

    The method is that of Lasmar, Stitou and Berthoumieu, ICIP 2009.
    """
    shapes = torch.arange(0.2, 10.001, 0.001, dtype=blocks.dtype)
    ratios = torch.exp(2 * torch.lgamma(2 / shapes) - torch.lgamma(1 / shapes) - torch.lgamma(3 / shapes))  # rises with the shape
    values = blocks.flatten(1)
    square = values.square()
    left, right = ((square * side).sum(1).div(side.sum(1)).sqrt() for side in (values < 0, values > 0))
    skew = left / right
    ratio = values.abs().mean(1).square() / square.mean(1) * (skew**3 + 1) * (skew + 1) / (skew**2 + 1).square()
    nearest = (ratios[None] - ratio[:, None]).abs().argmin(1)
    shape = shapes[nearest]
    scale = torch.exp((torch.lgamma(1 / shape) - torch.lgamma(3 / shape)) / 2)
    return shape, left * scale, right * scale
