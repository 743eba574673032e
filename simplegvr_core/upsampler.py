"""The latent upsampler: low-resolution latent -> latent of the target size, any ratio, without pixels in between.

B batch, C channels, T latent frames, h, w low-resolution cells, H, W target cells
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from . import checkpoint
from .layers import LATENT_CHANNELS, CausalConv3d, ChannelNorm, Past, name_convolutions


@dataclass(frozen=True)
class UpsamplerConfig:
    """width: channels between the blocks. expand_time: T -> 4 (T - 1) + 1 before resizing, so that every latent frame
    stands for one video frame. blocks: residual blocks before and after resizing; 0 is plain bilinear."""

    width: int = 128
    expand_time: bool = True
    blocks: int = 2


VARIANTS = {
    "simplegvr": UpsamplerConfig(),
    "channel_expansion": UpsamplerConfig(expand_time=False),
    "cnn": UpsamplerConfig(expand_time=False, blocks=1),
    "bilinear": UpsamplerConfig(blocks=0),
}


class ResampleBlock(nn.Module):
    """A residual block that may change channels and double (T -> 2T - 1) or halve (2T - 1 -> T) the frames, causally.

    Only the first chunk of a clip has the odd frame: later ones go from T to 2T and back.
    """

    def __init__(self, in_channels: int, out_channels: int, time: str, device=None, dtype=None, operations=nn):
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

    def forward(self, x: Tensor, past: Past | None = None) -> Tensor:
        odd = int(self.conv1.starts_clip(past))
        if self.time == "halve":
            x = rearrange(F.pad(x, (0, 0, 0, 0, odd, 0), mode="replicate"), "B C (T t) H W -> B (C t) T H W", t=2)
        h, skip = self.conv1(F.silu(self.norm1(x)), past), self.skip(x)
        if self.time == "double":
            h, skip = (rearrange(y, "B (C t) T H W -> B C (T t) H W", t=2)[:, :, odd:] for y in (h, skip))
        return skip + self.conv2(F.silu(self.norm2(h)), past)


class LatentUpsampler(nn.Module):
    """Residual blocks, a bilinear resize, residual blocks, added to the plain bilinear resize. Untrained, it is bilinear."""

    def __init__(self, config: UpsamplerConfig, device=None, dtype=None, operations=nn):
        super().__init__()
        self.config, self.dtype = config, dtype or torch.float32
        factory = {"device": device, "dtype": dtype, "operations": operations}
        width = config.width
        double, halve = ("double", "halve") if config.expand_time else ("keep", "keep")
        widths_in = [LATENT_CHANNELS] + [width] * (config.blocks - 1)
        widths_out = [width + 4] + [width] * (config.blocks - 1)
        self.before = nn.ModuleList(ResampleBlock(c, width, double, **factory) for c in widths_in[: config.blocks])
        self.after = nn.ModuleList(ResampleBlock(c, width, halve, **factory) for c in widths_out[: config.blocks])
        if config.blocks:
            self.stem = operations.Conv3d(LATENT_CHANNELS, LATENT_CHANNELS, 1, device=device, dtype=dtype)
            self.norm = ChannelNorm(width, device, dtype)
            self.out = CausalConv3d(width, LATENT_CHANNELS, **factory)
        name_convolutions(self)

    def get_dtype(self) -> torch.dtype:
        """Returns the dtype to run in, which ComfyUI asks for."""
        return self.dtype

    def init_weights(self, generator: torch.Generator) -> None:
        """Draws fresh weights for training; the last layer is zero."""
        for name, parameter in self.named_parameters():
            if name.endswith("scale"):
                nn.init.ones_(parameter)
            elif parameter.ndim > 1:
                nn.init.kaiming_normal_(parameter, nonlinearity="linear", generator=generator)
            else:
                nn.init.zeros_(parameter)
        if self.config.blocks:
            nn.init.zeros_(self.out.conv.weight)

    def forward(self, z_lr: Tensor, size: tuple[int, int]) -> Tensor:
        """Returns the upsampled latent (B, 16, T, *size). z_lr: (B, 16, T, h, w) normalised; size: (H, W) in cells."""
        return self.upsample(z_lr, size, None)

    def stream(self, chunks: Iterable[Tensor], size: tuple[int, int]) -> Iterator[Tensor]:
        """Yields what forward gives for the whole clip, (B, 16, t, *size) for each chunk (B, 16, t, h, w), in order.

        Memory does not depend on the clip's length: between chunks only the last frames of each convolution are kept.
        """
        past = {}
        for z_lr in chunks:
            yield self.upsample(z_lr, size, past)

    def upsample(self, z_lr: Tensor, size: tuple[int, int], past: Past | None) -> Tensor:
        """Returns the upsampled latent (B, 16, t, *size) of a whole clip, past None, or of the chunk that comes after past."""
        bilinear = resize(z_lr, size)
        if not self.config.blocks:
            return bilinear
        h = self.stem(z_lr)
        for block in self.before:
            h = block(h, past)
        h = torch.cat((resize(h, size), sampling_position(h, size)), dim=1)
        for block in self.after:
            h = block(h, past)
        return bilinear + self.out(F.silu(self.norm(h)), past)


def resize(z: Tensor, size: tuple[int, int]) -> Tensor:
    """Returns z (B, C, T, *size), each frame resized alone, bilinear."""
    frames = rearrange(z, "B C T h w -> (B T) C h w")
    return rearrange(F.interpolate(frames, size, mode="bilinear"), "(B T) C H W -> B C T H W", B=z.shape[0])


def sampling_position(z: Tensor, size: tuple[int, int]) -> Tensor:
    """Returns (B, 4, T, *size): where in its low-resolution cell each target cell lies, in [-1, 1], and the cells' ratio.

    A latent cell holds 8x8 pixels in order, so what it becomes depends on which part of it is asked for.
    """
    batch, _, frames, *source = z.shape
    channels = []
    for axis, (small, large) in enumerate(zip(source, size, strict=True)):
        position = (torch.arange(large, device=z.device, dtype=torch.float32) + 0.5) * (small / large)
        position = 2 * (position - position.floor()) - 1
        position = position.view((-1, 1) if axis == 0 else (1, -1)).expand(size)
        channels += [position, torch.full_like(position, small / large)]
    return torch.stack(channels).to(z.dtype)[None, :, None].expand(batch, -1, frames, -1, -1)


def load_upsampler(path: Path) -> LatentUpsampler:
    """Returns the upsampler of a checkpoint, float32, on the CPU. Raises what checkpoint.read and load_strict raise."""
    state_dict, config = checkpoint.read(path, "upsampler")
    upsampler = LatentUpsampler(checkpoint.parse_config(UpsamplerConfig, config, "model", path))
    checkpoint.load_strict(upsampler, state_dict, path)
    return upsampler.eval()
