"""The latent upsampler: low-resolution latent -> latent of the target size, any ratio, without pixels in between.

B batch, C channels, T latent frames, h, w low-resolution latent pixels, H, W target latent pixels
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recompute

from ..latent_space import LATENT_CHANNELS, SPATIAL_FACTOR
from . import checkpoint
from .axis import Axis, Tile
from .foreign import read_any
from .layers import CausalConv3d, CausalState, ChannelNorm, exact_float32, fast_products, name_convolutions
from .pixel_grid import TAPS, FrameBlock, PixelGrid
from .ultra_upsampler import UltraUpsampler, UltraUpsamplerConfig

LEAST_TILE = 32  # latent pixels a side


@dataclass(frozen=True)
class UpsamplerConfig:
    """Sizes of the upsampler.

    Args:
        width: channels between the blocks.
        expand_time: T -> 4 (T - 1) + 1 before resizing, so that every latent frame is one video frame.
        blocks: residual blocks before and after resizing; 0 is plain bilinear.
        latents: autoencoder of the latents, a key of latent_space.COLOR_FACTORS.
        resize: what is resized. "latent_pixels": latent pixels and features, bilinear. "pixels": the pixels of the autoencoder's
            linear closed form, bicubic (PixelGrid); the blocks after it see one frame each.

    Raises:
        ValueError: The settings exclude each other.
    """

    width: int = 128
    expand_time: bool = True
    blocks: int = 2
    latents: Literal["wan", "tiny_vae"] = "wan"
    resize: Literal["latent_pixels", "pixels"] = "latent_pixels"

    def __post_init__(self):
        if self.resize == "pixels" and (self.latents != "tiny_vae" or self.expand_time or not self.blocks):
            raise ValueError(
                f"the upsampler has resize 'pixels' with latents {self.latents!r}, expand_time {self.expand_time}, blocks {self.blocks}: "
                "wanted latents 'tiny_vae', whose closed form is known, no expand_time, and at least one block"
            )

    scale: ClassVar[None] = None  # any

    def check_size(self, source: tuple[int, int], size: tuple[int, int]) -> None:
        """Accepts every size; UltraUpsamplerConfig's does not."""


VARIANTS = {
    "simplegvr": UpsamplerConfig(),
    "channel_expansion": UpsamplerConfig(expand_time=False),
    "cnn": UpsamplerConfig(expand_time=False, blocks=1),
    "bilinear": UpsamplerConfig(blocks=0),
    "pixels": UpsamplerConfig(expand_time=False, blocks=4, latents="tiny_vae", resize="pixels"),
}


class ResampleBlock(nn.Module):
    """A residual block that may change channels and double (T -> 2T - 1) or halve (2T - 1 -> T) the frames, causally.

    Only the first chunk of a clip has the odd frame: later ones go from T to 2T and back.
    """

    def __init__(self, in_channels: int, out_channels: int, time: str, device=None, dtype=None, operations: Any = nn):
        super().__init__()
        factory = {"device": device, "dtype": dtype, "operations": operations}
        self.time = time
        folded_in = in_channels * (2 if time == "halve" else 1)
        folded_out = out_channels * (2 if time == "double" else 1)
        self.norm1 = ChannelNorm(folded_in, device, dtype)
        self.conv1 = CausalConv3d(folded_in, folded_out, **factory)
        self.norm2 = ChannelNorm(out_channels, device, dtype)
        self.conv2 = CausalConv3d(out_channels, out_channels, **factory)
        self.skip = operations.Conv3d(folded_in, folded_out, 1, device=device, dtype=dtype)

    def forward(self, x: Tensor, past: CausalState | None = None) -> Tensor:
        odd = int(self.conv1.starts_clip(past))
        if self.time == "halve":
            x = rearrange(F.pad(x, (0, 0, 0, 0, odd, 0), mode="replicate"), "B C (T t) H W -> B (C t) T H W", t=2)
        h, skip = self.conv1(F.silu(self.norm1(x)), past), self.skip(x)
        if self.time == "double":
            h, skip = (rearrange(y, "B (C t) T H W -> B C (T t) H W", t=2)[:, :, odd:] for y in (h, skip))
        return skip + self.conv2(F.silu(self.norm2(h)), past)


class LatentUpsampler(nn.Module):
    """Residual blocks, a resize, residual blocks, added to the plain resize. Untrained, it is the plain resize.

    Args:
        config: sizes.
        device, dtype: of the weights.
        operations: module of Conv3d; ComfyUI gives its own.

    Attributes:
        fast: whether the blocks multiply in bfloat16 on a CPU that does it fast. The plain resize stays float32.
    """

    def __init__(self, config: UpsamplerConfig, device=None, dtype=None, operations: Any = nn):
        super().__init__()
        self.config, self.dtype = config, dtype or torch.float32
        self.fast = self.gradient_checkpointing = False
        factory = {"device": device, "dtype": dtype, "operations": operations}
        width = config.width
        double, halve = ("double", "halve") if config.expand_time else ("keep", "keep")
        widths_in = [LATENT_CHANNELS] + [width] * (config.blocks - 1)
        self.before = nn.ModuleList(ResampleBlock(c, width, double, **factory) for c in widths_in[: config.blocks])
        self.grid = PixelGrid(width, **factory) if config.resize == "pixels" else None
        if self.grid:
            self.after = nn.ModuleList(FrameBlock(width, **factory) for _ in range(config.blocks))
        else:
            widths_out = [width + 4] + [width] * (config.blocks - 1)
            self.after = nn.ModuleList(ResampleBlock(c, width, halve, **factory) for c in widths_out[: config.blocks])
        if config.blocks:
            self.stem = operations.Conv3d(LATENT_CHANNELS, LATENT_CHANNELS, 1, device=device, dtype=dtype)
            self.norm = ChannelNorm(width, device, dtype)
            self.out = CausalConv3d(width, LATENT_CHANNELS, **factory)
        name_convolutions(self)

    def get_dtype(self) -> torch.dtype:
        """Returns the dtype to run in. ComfyUI calls it."""
        return self.dtype

    def init_weights(self, generator: torch.Generator) -> None:
        """Samples fresh weights for training; the last layer is zero. The fixed maps of a PixelGrid are set by its copy_closed_form."""
        for name, parameter in self.named_parameters():
            if name.endswith("scale"):
                nn.init.ones_(parameter)
            elif parameter.ndim > 1:
                nn.init.kaiming_normal_(parameter, nonlinearity="linear", generator=generator)
            else:
                nn.init.zeros_(parameter)
        if self.config.blocks:
            nn.init.zeros_(self.out.conv.weight)
        if self.grid:
            nn.init.zeros_(self.grid.add.weight)

    def forward(self, z_lr: Tensor, size: tuple[int, int]) -> Tensor:
        """Returns the upsampled latent (B, 16, T, *size).

        Args:
            z_lr: (B, 16, T, h, w) normalised.
            size: (H, W) in latent pixels.
        """
        return self.upsample(z_lr, whole_frame(z_lr.shape[3:], size), None)

    @torch.no_grad()
    def stream(self, chunks: Iterable[Tensor], size: tuple[int, int], tile: tuple[int, int] | None = None) -> Iterator[Tensor]:
        """Yields what forward gives for the whole clip, (B, 16, t, *size) for each chunk (B, 16, t, h, w), in order.

        Memory does not depend on the clip's length: between chunks only the last frames of each convolution remain.

        Args:
            chunks: (B, 16, t, h, w), each the frames after those of the one before.
            size: (H, W) in latent pixels.
            tile: most rows and columns of the target to compute at once, all by default. With tiles, the frames between
                chunks are on the CPU.
        """
        pasts = defaultdict(dict)
        for z_lr in chunks:
            source = z_lr.shape[3:]
            axes = (tile_axes(*axis, self.config) for axis in zip(source, size, tile or size, strict=True))
            z = z_lr.new_empty(*z_lr.shape[:3], *size)
            for rows, columns in product(*axes):
                past = pasts[rows.kept, columns.kept]
                z[..., slice(*rows.kept), slice(*columns.kept)] = self.upsample(z_lr, (rows, columns), past)
                if tile:
                    past.update({name: frames.cpu() for name, frames in past.items()})
            yield z

    def upsample(self, z_lr: Tensor, tile: Tile, past: CausalState | None) -> Tensor:
        """Returns what the tile keeps of the upsampled frames of a whole clip, past None, or of a chunk, whose state takes past's place."""
        rows, columns = tile
        z_lr = z_lr[..., slice(*rows.source), slice(*columns.source)]
        if self.config.blocks:
            with fast_products(self.fast, z_lr.device):
                z = self.resize_and_add_detail(z_lr, tile, past)
        else:
            z = resize_tile(z_lr, tile)
        return z[..., slice(*rows.inner), slice(*columns.inner)]

    def resize_and_add_detail(self, z_lr: Tensor, tile: Tile, past: CausalState | None) -> Tensor:
        """Returns the tile's target, resized, plus what the blocks make of it."""
        run = self.recomputed if self.gradient_checkpointing and torch.is_grad_enabled() else call
        h = self.stem(z_lr)
        for block in self.before:
            h = run(block, h, past)
        z, h = self.resize(z_lr, h, tile)
        for block in self.after:
            h = run(block, h, past)
        return z + run(self.last, h, past)

    def last(self, h: Tensor, past: CausalState | None) -> Tensor:
        """Returns the last layer's latent (B, 16, T, H, W) of features (B, C, T, H, W)."""
        return self.out(F.silu(self.norm(h)), past)

    def recomputed(self, layer: Callable[..., Tensor], h: Tensor, past: CausalState | None) -> Tensor:
        """Returns layer(h, past), whose activations are computed again for the gradient. Raises ValueError for a chunk of a clip."""
        if past is not None:
            raise ValueError("a chunk's activations cannot be computed again, as its state changes: upsample whole clips")
        return cast("Tensor", recompute(layer, h, None, use_reentrant=False))

    def resize(self, z_lr: Tensor, h: Tensor, tile: Tile) -> tuple[Tensor, Tensor]:
        """Returns the tile's target of the latent, (B, 16, T, H, W), and of the features, (B, C, T, H, W)."""
        if self.grid:
            z, h = self.grid(z_lr, h, tile)
            return z.to(z_lr), h
        return resize_tile(z_lr, tile), torch.cat((resize_tile(h, tile), sampling_position(h, tile)), dim=1)


def call(layer: Callable[..., Tensor], h: Tensor, past: CausalState | None) -> Tensor:
    return layer(h, past)


Upsampler = LatentUpsampler | UltraUpsampler
AnyUpsamplerConfig = UpsamplerConfig | UltraUpsamplerConfig


def tile_axes(small: int, large: int, most: int, config: UpsamplerConfig) -> list[Axis]:
    """Returns the axes of tiles that keep at most so many target latent pixels each, and together all.

    A tile reads what its kept latent pixels see: each convolution one further, resizing what lies around their positions.

    Args:
        small: extent of the low-resolution frame.
        large: extent of the target frame.
        most: target latent pixels of a tile.
        config: of the upsampler.
    """
    before, after = 2 * config.blocks, 2 * config.blocks + bool(config.blocks)  # convolutions; those after resizing end with one more
    axes = []
    for start in range(0, large, most):
        kept = start, min(start + most, large)
        target = max(0, kept[0] - after), min(large, kept[1] + after)
        first, last = resized_from(small, large, target, config)
        source = max(0, first - before), min(small, last + 1 + before)
        axes.append(Axis(small, large, source, target, kept))
    return axes


def resized_from(small: int, large: int, target: tuple[int, int], config: UpsamplerConfig) -> tuple[int, int]:
    """Returns the first and the last source latent pixel that resizing reads for a range of the target, beyond the edge, too."""
    side, taps = (SPATIAL_FACTOR, TAPS) if config.resize == "pixels" else (1, (0, 1))
    ends = side * target[0], side * target[1] - 1
    first, last = ((((2 * pixel + 1) * small - large) // (2 * large) + tap) // side for pixel, tap in zip(ends, taps, strict=True))
    return first, last


def smaller_tiles(size: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """Yields tiles for LatentUpsampler.stream, the whole frame of (H, W) latent pixels first, then each with half the longer side."""
    yield size
    while max(size) > LEAST_TILE:
        H, W = (-(-side // 2) if side == max(size) else side for side in size)
        size = H, W
        yield size


def whole_frame(source: Sequence[int], size: tuple[int, int]) -> Tile:
    """Returns the tile that is the whole frame: source, (h, w) latent pixels, made size, (H, W)."""
    rows, columns = (Axis(small, large, (0, small), (0, large), (0, large)) for small, large in zip(source, size, strict=True))
    return rows, columns


def resize(z: Tensor, size: tuple[int, int]) -> Tensor:
    """Returns z (B, C, T, *size), each frame resized alone, bilinear."""
    return resize_tile(z, whole_frame(z.shape[3:], size))


def resize_tile(z: Tensor, tile: Tile) -> Tensor:
    """Returns the tile's target (B, C, T, H, W) from its source (B, C, T, h, w), bilinear by where they lie in the frame."""
    rows, columns = (interpolation(axis).to(z.device) for axis in tile)
    with exact_float32(z.device):
        return torch.einsum("H h, B C T h w, W w -> B C T H W", rows, z.float(), columns).to(z.dtype)


def interpolation(axis: Axis) -> Tensor:
    """Returns (target, source) float32 weights of each source latent pixel in each target latent pixel."""
    position = (axis.centres - 0.5).clamp(0, axis.small - 1)
    return (1 - (position[:, None] - torch.arange(*axis.source)).abs()).clamp(min=0).float()


def sampling_position(z: Tensor, tile: Tile) -> Tensor:
    """Returns (B, 4, T, H, W): where in its low-resolution latent pixel each target latent pixel lies, in [-1, 1], and the
    ratio of their sizes.

    A latent pixel encodes 8x8 pixels in order, so what it becomes depends on which part of it is asked for.
    """
    channels = []
    for axis, shape in zip(tile, ((-1, 1), (1, -1)), strict=True):
        position = (2 * (axis.centres % 1) - 1).view(shape)
        channels += [position, torch.full_like(position, axis.small / axis.large)]
    channels = torch.stack(torch.broadcast_tensors(*channels)).to(z)
    return channels[None, :, None].expand(len(z), -1, z.shape[2], -1, -1)


def load_upsampler(path: Path, family: str = "auto") -> Upsampler:
    """Returns the upsampler of a checkpoint, float32, on the CPU. Raises what foreign.read_any and load_strict raise."""
    state_dict, config = read_any(path, "upsampler", family)
    upsampler = checkpoint.load_fitted(partial(make_upsampler, parse_upsampler_config(config, path)), state_dict, path)
    return upsampler.eval()


def make_upsampler(config: AnyUpsamplerConfig, **factory) -> Upsampler:
    """Returns the network of a configuration. factory: device, dtype, operations."""
    return UltraUpsampler(config, **factory) if isinstance(config, UltraUpsamplerConfig) else LatentUpsampler(config, **factory)


def parse_upsampler_config(config: dict, path: Path) -> AnyUpsamplerConfig:
    """Returns the sizes in a checkpoint's configuration. Raises what parse_config raises."""
    model = config.get("model")
    is_ultra = isinstance(model, dict) and model.get("kind") == "ultra_flash"
    return checkpoint.parse_config(UltraUpsamplerConfig if is_ultra else UpsamplerConfig, config, "model", path)
