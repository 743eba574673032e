"""Resizing of a latent on the grid of its pixels, for an autoencoder with a linear closed form.

A latent pixel encodes 8 x 8 pixels in order, so features that are resized between latent pixels mix up that order. Here every
latent pixel becomes its 4 x 8 x 8 pixels by one linear map, these are resized by bicubic interpolation at any ratio, and one linear
map makes latent pixels of them again. B batch, C channels, T latent frames, h, w latent pixels before and H, W after
"""

from typing import Any, cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..latent_space import LATENT_CHANNELS, SPATIAL_FACTOR
from .axis import Axis, Tile
from .layers import CausalState, ChannelNorm, exact_float32
from .tiny_vae import BLOCK, TinyVAE

TAPS = (-1, 2)  # of bicubic interpolation, about the pixel before a position
KEYS = -0.75  # the parameter of Keys' kernel, as in PyTorch's bicubic interpolation


class PixelGrid(nn.Module):
    """The autoencoder's linear decoder, a bicubic resize, its linear encoder; features are added before and read after the resize.

    The two linear maps are fixed. They are float32 whatever the dtype of the rest: the result's errors would be theirs.
    """

    def __init__(self, width: int, device=None, dtype=None, operations: Any = nn):
        """Builds the maps.

        Args:
            width: Channels of the features.
            device, dtype: Of the weights.
            operations: Module of Conv3d; ComfyUI gives its own.
        """
        super().__init__()
        fixed = {"device": device, "dtype": torch.float32}
        self.decoder = nn.Parameter(torch.empty(BLOCK, LATENT_CHANNELS, **fixed), requires_grad=False)
        self.mean = nn.Parameter(torch.empty(BLOCK, **fixed), requires_grad=False)
        self.encoder = nn.Parameter(torch.empty(LATENT_CHANNELS, BLOCK, **fixed), requires_grad=False)
        self.offset = nn.Parameter(torch.empty(LATENT_CHANNELS, **fixed), requires_grad=False)
        self.add = operations.Conv3d(width, BLOCK, 1, device=device, dtype=dtype)
        self.read = operations.Conv3d(BLOCK, width, 1, device=device, dtype=dtype)

    @torch.no_grad()
    def copy_closed_form(self, vae: TinyVAE) -> None:
        """Sets the fixed maps to the linear decoder and encoder of a trained autoencoder."""
        self.decoder.copy_(vae.linear_decoder.weight.flatten(1))
        self.mean.copy_(cast(Tensor, vae.linear_decoder.bias))
        self.encoder.copy_(vae.encoder.weight.flatten(1))
        self.offset.copy_(cast(Tensor, vae.encoder.bias))

    def forward(self, z_lr: Tensor, h: Tensor, tile: Tile) -> tuple[Tensor, Tensor]:
        """Returns the resized latent (B, 16, T, H, W), float32, and the features read after the resize, (B, C, T, H, W).

        Args:
            z_lr: The tile's source (B, 16, T, h, w).
            h: Features (B, C, T, h, w).
            tile: Rows and columns.
        """
        frames = [self.resize_frame(z, features, tile) for z, features in zip(z_lr.split(1, 2), h.split(1, 2), strict=True)]
        z, h = (torch.cat(parts, dim=2) for parts in zip(*frames, strict=True))
        return z, h

    def resize_frame(self, z_lr: Tensor, h: Tensor, tile: Tile) -> tuple[Tensor, Tensor]:
        """Returns what forward does of one latent frame: the pixels of all frames would be its largest tensors."""
        added = self.add(h).float()
        maps = (self.decoder, self.mean[:, None, None, None], self.encoder, self.offset[:, None, None, None])
        decoder, mean, encoder, offset = (x.to(z_lr.device, torch.float32) for x in maps)
        with exact_float32(z_lr.device):
            blocks = torch.einsum("p C, B C T h w -> B p T h w", decoder, z_lr.float()) + mean + added
            pixels = resize_pixels(F.pixel_shuffle(blocks[:, :, 0], SPATIAL_FACTOR), tile)
            blocks = F.pixel_unshuffle(pixels, SPATIAL_FACTOR)[:, :, None]
            z = torch.einsum("C p, B p T H W -> B C T H W", encoder, blocks) + offset
        return z, self.read(blocks.to(h))


class FrameBlock(nn.Module):
    """x + f(x), f two 3x3 convolutions of each frame alone, with norm and SiLU. x: (B, C, T, H, W)."""

    def __init__(self, channels: int, device=None, dtype=None, operations: Any = nn):
        super().__init__()
        conv = {"padding": 1, "padding_mode": "replicate", "device": device, "dtype": dtype}
        self.norm1 = ChannelNorm(channels, device, dtype)
        self.conv1 = operations.Conv2d(channels, channels, 3, **conv)
        self.norm2 = ChannelNorm(channels, device, dtype)
        self.conv2 = operations.Conv2d(channels, channels, 3, **conv)

    def forward(self, x: Tensor, past: CausalState | None = None) -> Tensor:
        """Returns the result. past is not used: nothing is carried from frame to frame."""
        h = rearrange(x, "B C T H W -> (B T) C H W")
        h = self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(h))))))
        return x + rearrange(h, "(B T) C H W -> B C T H W", B=len(x))


def resize_pixels(pixels: Tensor, tile: Tile) -> Tensor:
    """Returns the pixels of a tile's target, (B, C, 8H, 8W), by bicubic interpolation without antialiasing, as PyTorch's.

    Args:
        pixels: Those of the tile's source, (B, C, 8h, 8w), float32.
        tile: Rows and columns of latent pixels.
    """
    add_taps = add_taps_in_one_pass if pixels.device.type in ("cpu", "cuda", "meta") else add_taps_one_by_one
    for axis, dim in zip(tile, (2, 3), strict=True):
        index, weight = cubic_taps(axis)
        lines = pixels.movedim(dim, 0)
        pixels = add_taps(lines.flatten(1), index.to(pixels.device), weight.to(pixels)).unflatten(1, lines.shape[1:]).movedim(0, dim)
    return pixels


def add_taps_in_one_pass(lines: Tensor, index: Tensor, weight: Tensor) -> Tensor:
    """Returns the weighted sums (target, n) of lines (source, n), whose index and weight are (4, target)."""
    return F.embedding_bag(index.mT.contiguous(), lines, mode="sum", per_sample_weights=weight.mT.contiguous())


def add_taps_one_by_one(lines: Tensor, index: Tensor, weight: Tensor) -> Tensor:
    """The plain twin of add_taps_in_one_pass, for devices that have no weighted bags."""
    parts = [lines.index_select(0, index[tap]) * weight[tap, :, None] for tap in range(4)]
    return (parts[0] + parts[1]) + (parts[2] + parts[3])


def cubic_taps(axis: Axis) -> tuple[Tensor, Tensor]:
    """Returns which source pixels each target pixel is made of: their index in the source and their weight, (4, pixels) each.

    Pixels beyond the frame's edge are the edge's.
    """
    start, stop = (SPATIAL_FACTOR * edge for edge in axis.target)
    position = (torch.arange(start, stop, dtype=torch.float64) + 0.5) * axis.small / axis.large - 0.5
    tap = position.floor() + torch.arange(TAPS[0], TAPS[1] + 1, dtype=torch.float64)[:, None]
    index = tap.clamp(0, SPATIAL_FACTOR * axis.small - 1) - SPATIAL_FACTOR * axis.source[0]
    return index.long(), cubic_kernel(position - tap).float()


def cubic_kernel(x: Tensor) -> Tensor:
    """Returns the cubic convolution kernel (Keys, 1981) at distances |x| <= 2."""
    x = x.abs()
    near = ((KEYS + 2) * x - (KEYS + 3)) * x.square() + 1
    far = ((KEYS * x - 5 * KEYS) * x + 8 * KEYS) * x - 4 * KEYS
    return torch.where(x <= 1, near, far)
