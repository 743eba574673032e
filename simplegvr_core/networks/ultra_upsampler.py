"""Ultra Flash's latent upsampler (arXiv 2606.09150): 2D convolutions with one frame of memory, for one integer scale.

B batch, C channels, T latent frames, h, w low-resolution cells, H, W target cells
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recompute

from ..latent_space import LATENT_CHANNELS, pixels

Memory = dict[int, Tensor]  # block -> its input of the frame before, (B, 1, C, H, W)


@dataclass(frozen=True)
class UltraUpsamplerConfig:
    """Sizes of the network; the defaults are those of the released x2 weights.

    Args:
        kind: tells its checkpoints from those of LatentUpsampler.
        width: channels between the blocks.
        blocks: memory blocks.
        factors: of the pixel shuffles in their order; the scale is their product.
        latents: whose autoencoder's they are (latent_space.COLOR_FACTORS).
    """

    kind: Literal["ultra_flash"] = "ultra_flash"
    width: int = 128
    blocks: int = 8
    factors: tuple[int, ...] = (2,)
    latents: Literal["wan"] = "wan"

    @property
    def scale(self) -> int:
        """Returns the target's cells for each source cell along height and along width."""
        return math.prod(self.factors)

    def check_size(self, source: tuple[int, int], size: tuple[int, int]) -> None:
        """Raises ValueError that names the size that fits unless size, (H, W), is scale times source, (h, w), in cells."""
        fits = self.scale * source[0], self.scale * source[1]
        if tuple(size) != fits:
            raise ValueError(
                f"this upsampler enlarges {self.scale} times: it makes {pixels(fits)} pixels of {pixels(source)}, not {pixels(size)}. "
                f"Ask for scale {self.scale} or {pixels(fits)} pixels, or load an upsampler for another scale"
            )


@dataclass(frozen=True)
class Span:
    """One axis of a tile, in cells of the whole frame, (start, stop): what it reads of the source and keeps of the target."""

    source: tuple[int, int]
    kept: tuple[int, int]


class MemoryBlock(nn.Module):
    """A residual block that sees each frame and the one before it."""

    def __init__(self, width: int, device=None, dtype=None, operations=nn):
        super().__init__()
        conv = [operations.Conv2d(channels, width, 3, padding=1, device=device, dtype=dtype) for channels in (2 * width, width, width)]
        self.conv = nn.Sequential(conv[0], nn.ReLU(), conv[1], nn.ReLU(), conv[2])

    def forward(self, x: Tensor, past: Tensor) -> Tensor:
        """Returns (B, C, H, W). x: the frame; past: this block's input of the frame before."""
        return F.relu(self.conv(torch.cat((x, past), dim=1)) + x)


class UltraUpsampler(nn.Module):
    """Enlarges each latent frame by pixel shuffles, then refines it by blocks that remember the frame before."""

    def __init__(self, config: UltraUpsamplerConfig, device=None, dtype=None, operations=nn):
        super().__init__()
        self.config, self.dtype = config, dtype or torch.float32
        self.gradient_checkpointing = False
        factory = {"device": device, "dtype": dtype}
        width = config.width
        shuffle: list[nn.Module] = []
        for index, factor in enumerate(config.factors):
            channels = width if index else LATENT_CHANNELS
            shuffle += [operations.Conv2d(channels, width * factor**2, 3, padding=1, **factory), nn.PixelShuffle(factor)]
        self.pre_shuffle = nn.Sequential(*shuffle, nn.ReLU())
        self.blocks = nn.ModuleList(MemoryBlock(width, **factory, operations=operations) for _ in range(config.blocks))
        self.final = operations.Conv2d(width, LATENT_CHANNELS, 3, padding=1, **factory)

    def get_dtype(self) -> torch.dtype:
        """Returns the dtype to run in, which ComfyUI asks for."""
        return self.dtype

    def forward(self, z_lr: Tensor, size: tuple[int, int]) -> Tensor:
        """Returns the upsampled latent (B, 16, T, *size).

        Args:
            z_lr: (B, 16, T, h, w), normalised.
            size: (H, W) in cells, scale times (h, w).

        Raises:
            ValueError: size is another.
        """
        self.config.check_size((z_lr.shape[3], z_lr.shape[4]), size)
        return self.upsample(z_lr, {})

    @torch.no_grad()
    def stream(self, chunks: Iterable[Tensor], size: tuple[int, int], tile: tuple[int, int] | None = None) -> Iterator[Tensor]:
        """Yields what forward gives for the whole clip, (B, 16, t, *size) for each chunk (B, 16, t, h, w), in order.

        Memory does not depend on the clip's length: between chunks only each block's last frame is kept.

        Args:
            tile: most rows and columns of target cells to compute at once, all by default; what tiles keep lies on the CPU.

        Raises:
            ValueError: size is not scale times the chunks' (h, w).
        """
        memories: defaultdict[tuple[Span, Span], Memory] = defaultdict(dict)
        for z_lr in chunks:
            source = z_lr.shape[3], z_lr.shape[4]
            self.config.check_size(source, size)
            spans = (tile_spans(*axis, self.config) for axis in zip(source, tile or size, strict=True))
            z = z_lr.new_empty(*z_lr.shape[:3], *size)
            for rows, columns in product(*spans):
                memory = memories[rows, columns]
                part = self.upsample(z_lr[..., slice(*rows.source), slice(*columns.source)], memory)
                height, width = (slice(*(cell - self.config.scale * span.source[0] for cell in span.kept)) for span in (rows, columns))
                z[..., slice(*rows.kept), slice(*columns.kept)] = part[..., height, width]
                if tile:
                    memory.update({block: frame.cpu() for block, frame in memory.items()})
            yield z

    def upsample(self, z_lr: Tensor, memory: Memory) -> Tensor:
        """Returns the upsampled chunk (B, 16, t, H, W). memory: what the chunk before left, empty before the first; it is renewed."""
        recomputes = self.gradient_checkpointing and torch.is_grad_enabled()
        frames = []
        for frame in z_lr.unbind(2):
            h = self.pre_shuffle(frame)
            for index, block in enumerate(self.blocks):
                past = memory.get(index, h)
                memory[index] = h
                inputs = h, past.to(h)
                h = cast("Tensor", recompute(block, *inputs, use_reentrant=False)) if recomputes else block(*inputs)
            frames.append(self.final(h))
        return torch.stack(frames, dim=2)


def tile_spans(extent: int, most: int, config: UltraUpsamplerConfig) -> list[Span]:
    """Returns one axis of the tiles of a frame of extent source cells: each keeps at most so many target cells, together all.

    Each convolution sees one cell further: three in a block and the last one of target cells, those of the shuffles of source cells.
    """
    large, sees = config.scale * extent, 3 * config.blocks + 1
    spans = []
    for start in range(0, large, most):
        kept = start, min(start + most, large)
        first, last = (kept[0] - sees) // config.scale, -(-(kept[1] + sees) // config.scale)
        spans.append(Span((max(0, first - len(config.factors)), min(extent, last + len(config.factors))), kept))
    return spans
