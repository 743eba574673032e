"""TinyVAE: a small causal video autoencoder with Wan 2.1's latent shape (4x8x8 pixels a latent pixel, 16 channels).

The encoder is linear: the principal components of 4x8x8 pixel blocks, half whitened, so that noise hides fine detail
before it hides color and shape. The decoder adds to its transpose what
residual blocks predict at the latent's resolution, at twice that, and on the finished pixels.

B batch, F frames, T latent frames, F = 4 (T - 1) + 1; z normalised latent (B, 16, T, H, W); video (B, 3, F, 8H, 8W) in [-1, 1]
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..latent_space import LATENT_CHANNELS, PREVIEW_FACTORS
from . import checkpoint
from .layers import CausalConv3d, CausalState, ResidualBlock3d, fast_products, name_convolutions

BLOCK = 3 * 4 * 8 * 8


@dataclass(frozen=True)
class TinyVAEConfig:
    """Sizes of TinyVAE's decoder.

    Args:
        latent_width: channels at the latent's resolution.
        latent_blocks: residual blocks there.
        fine_width: channels at twice that resolution.
        fine_blocks: residual blocks there.
        pixel_width: channels of the filter of the finished pixels.
    """

    latent_width: int = 128
    latent_blocks: int = 4
    fine_width: int = 64
    fine_blocks: int = 3
    pixel_width: int = 48


@dataclass(frozen=True)
class PreviewColors:
    """A latent's rough colors, R, G, B in [-1, 1]: z times factors plus bias.

    Args:
        factors: (16, 3).
        bias: (3,).
    """

    factors: tuple[tuple[float, float, float], ...]
    bias: tuple[float, float, float]


class TinyVAE(nn.Module):
    """Encodes video to normalised latents and back. `fit_encoder` sets the linear part; training does the rest.

    Args:
        config: sizes of the decoder.
        device, dtype: of the weights.
        operations: module of Conv2d and Conv3d; ComfyUI gives its own.

    Attributes:
        fast: whether what decoding adds to the linear decoder is computed in bfloat16 on a CPU that multiplies it fast. It
            changes 8-bit pixels by a level at most, about; chunks and tiles then agree to bfloat16's precision.
    """

    def __init__(self, config: TinyVAEConfig, device=None, dtype=None, operations: Any = nn):
        super().__init__()
        factory = {"device": device, "dtype": dtype, "operations": operations}
        conv2d = {"device": device, "dtype": dtype, "padding": 1, "padding_mode": "replicate"}
        width, fine, pixel = config.latent_width, config.fine_width, config.pixel_width
        self.encoder = operations.Conv3d(BLOCK, LATENT_CHANNELS, 1, device=device, dtype=dtype)
        self.linear_decoder = operations.Conv3d(LATENT_CHANNELS, BLOCK, 1, device=device, dtype=dtype)
        self.stem = CausalConv3d(LATENT_CHANNELS, width, **factory)
        self.latent_blocks = nn.ModuleList(ResidualBlock3d(width, **factory) for _ in range(config.latent_blocks))
        self.widen = operations.Conv3d(width, 4 * fine, 1, device=device, dtype=dtype)
        self.fine_blocks = nn.ModuleList(ResidualBlock3d(fine, **factory) for _ in range(config.fine_blocks))
        self.head = operations.Conv3d(fine, BLOCK // 4, 1, device=device, dtype=dtype)
        self.pixel_in = operations.Conv2d(12, pixel, 3, **conv2d)
        self.pixel_mid = operations.Conv2d(pixel, pixel, 3, **conv2d)
        self.pixel_out = operations.Conv2d(pixel, 12, 3, **conv2d)
        self.fast = False
        name_convolutions(self)

    def init_weights(self, generator: torch.Generator) -> None:
        """Samples the residual parts so that they start as zero: decoding starts as the linear decoder."""
        for name, parameter in self.named_parameters():
            if name.endswith("scale"):
                nn.init.ones_(parameter)
            elif parameter.ndim > 1:
                nn.init.kaiming_normal_(parameter, nonlinearity="linear", generator=generator)
            else:
                nn.init.zeros_(parameter)
        for layer in (self.head, self.pixel_out):
            nn.init.zeros_(layer.weight)

    @torch.no_grad()
    def fit_encoder(self, video: Tensor) -> None:
        """Sets encoder and linear decoder to the 16 principal components of video's blocks, (B, 3, F, 8H, 8W).

        A component of variance v gets variance proportional to sqrt(v) in the latent; the mean over channels is 1.
        """
        blocks = rearrange(to_blocks(video), "B C T H W -> (B T H W) C").double()
        mean = blocks.mean(0)
        variance, directions = torch.linalg.eigh(torch.cov((blocks - mean).T))
        variance, directions = variance[-LATENT_CHANNELS:], directions[:, -LATENT_CHANNELS:]
        spread = variance**0.25
        spread *= (LATENT_CHANNELS / spread.square().sum()).sqrt()
        decode = directions * variance.sqrt() / spread
        preview = torch.tensor(PREVIEW_FACTORS, dtype=torch.float64)  # the latent is rotated to agree: its previews show true colors
        color = rearrange(decode, "(c p) z -> c p z", c=3).mean(1)
        u, _, vh = torch.linalg.svd(preview @ color)
        rotation = u @ vh  # orthogonal Procrustes: rotated latents @ preview is closest to each block's mean color
        encode = rotation @ (directions * spread / variance.sqrt()).T
        self.encoder.weight.copy_(encode[..., None, None, None])
        self.encoder.bias.copy_(-encode @ mean)
        self.linear_decoder.weight.copy_((decode @ rotation.T)[..., None, None, None])
        self.linear_decoder.bias.copy_(mean)

    def encode(self, video: Tensor) -> Tensor:
        """Returns z (B, 16, T, H, W) of a video of any size: edges and last frame are repeated up to whole blocks."""
        return self.encoder(to_blocks(pad_to_blocks(video)))

    def preview_colors(self) -> PreviewColors:
        """Returns the colors of its latents: the mean of each latent pixel's pixels, by the linear decoder."""
        weight, bias = (x.detach().float().flatten(1) for x in (self.linear_decoder.weight, self.linear_decoder.bias[:, None]))
        factors, bias = (rearrange(x, "(c p) z -> z c p", c=3).mean(2).tolist() for x in (weight, bias))
        return PreviewColors(tuple(map(tuple, factors)), tuple(bias[0]))

    @staticmethod
    def latent_shape(video_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Returns (B, 16, T, H, W), the shape of the latent of a video (B, 3, F, height, width)."""
        batch, _, frames, height, width = video_shape
        return batch, LATENT_CHANNELS, -(-(frames - 1) // 4) + 1, -(-height // 8), -(-width // 8)

    def decode(self, z: Tensor) -> Tensor:
        """Returns the video (B, 3, 4 (T - 1) + 1, 8H, 8W) of z (B, 16, T, H, W)."""
        return self.decode_after(None, z)

    @torch.no_grad()
    def decode_stream(self, chunks: Iterable[Tensor], past: CausalState | None = None) -> Iterator[Tensor]:
        """Yields what decode gives for the whole clip, (B, 3, f, 8H, 8W) for each chunk, in order.

        f = 4t - 3 for the clip's first chunk and 4t for the others. Memory does not depend on the clip's length.

        Args:
            chunks: (B, 16, t, H, W), each the frames after those of the one before.
            past: the state that an earlier stream left, empty for the clip's beginning. Each chunk updates it.
        """
        past = {} if past is None else past
        for z in chunks:
            yield self.decode_after(past, z)

    @torch.no_grad()
    def decode_chunk(self, z: Tensor, past: CausalState) -> tuple[Tensor, CausalState]:
        """Returns the video of one chunk of a clip, and the state for the next chunk.

        Args:
            z: (B, 16, t, H, W).
            past: the state that the chunk before left, empty at the clip's beginning. It is not changed.
        """
        past = dict(past)
        return self.decode_after(past, z), past

    def decode_after(self, past: CausalState | None, z: Tensor) -> Tensor:
        """Returns the video of a whole clip z, past None, or of a chunk z, whose state takes past's place."""
        repeated = 3 if self.stem.starts_clip(past) else 0
        video = from_blocks(self.linear_decoder(z))[:, :, repeated:]
        with fast_products(self.fast, z.device):
            h = self.stem(z, past)
            for block in self.latent_blocks:
                h = block(h, past)
            h = rearrange(self.widen(h), "B (C h w) T H W -> B C T (H h) (W w)", h=2, w=2)
            for block in self.fine_blocks:
                h = block(h, past)
            return self.filter_pixels(video + from_blocks(self.head(h))[:, :, repeated:])

    def linear_decode(self, z: Tensor) -> Tensor:
        """Returns the video of z by the linear decoder alone, (B, 3, 4 (T - 1) + 1, 8H, 8W): cheap, for training losses."""
        return from_blocks(self.linear_decoder(z))[:, :, 3:]

    def filter_pixels(self, video: Tensor) -> Tensor:
        """Returns video plus a learned frame-by-frame correction at half resolution in space. (B, 3, F, 8H, 8W).

        A frame at a time: its activations would be the largest of all.
        """
        frames = rearrange(video, "B C F (H h) (W w) -> (B F) (C h w) H W", h=2, w=2)
        x = torch.cat([x + self.pixel_out(F.silu(self.pixel_mid(F.silu(self.pixel_in(x))))) for x in frames.split(1)])
        return rearrange(x, "(B F) (C h w) H W -> B C F (H h) (W w)", B=video.shape[0], h=2, w=2)


def pad_to_blocks(video: Tensor) -> Tensor:
    """Returns video with its edges and its last frame repeated up to whole blocks, (B, 3, 4 (T - 1) + 1, 8H, 8W)."""
    frames, height, width = video.shape[2:]
    return F.pad(video, (0, -width % 8, 0, -height % 8, 0, -(frames - 1) % 4), mode="replicate")


def to_blocks(video: Tensor) -> Tensor:
    """Returns (B, 768, T, H, W), in each latent pixel its 4x8x8 pixels. The first frame, repeated, is a block of its own.

    video: (B, 3, 4 (T - 1) + 1, 8H, 8W) in [-1, 1].
    """
    video = F.pad(video, (0, 0, 0, 0, 3, 0), mode="replicate")
    return rearrange(video, "B C (T t) (H h) (W w) -> B (C t h w) T H W", t=4, h=8, w=8)


def from_blocks(blocks: Tensor) -> Tensor:
    """Returns the video (B, 3, 4T, sH, sW) of blocks (B, 3 * 4 * s * s, T, H, W), in each latent pixel 4 x s x s pixels."""
    side = math.isqrt(blocks.shape[1] // 12)
    return rearrange(blocks, "B (C t h w) T H W -> B C (T t) (H h) (W w)", t=4, h=side, w=side)


def load_tiny_vae(path: Path) -> TinyVAE:
    """Returns the TinyVAE of a checkpoint, float32, on the CPU, not trainable. Raises what checkpoint.read raises."""
    state_dict, config = checkpoint.read(path, "tiny_vae")
    vae = checkpoint.load_fitted(partial(TinyVAE, checkpoint.parse_config(TinyVAEConfig, config, "model", path)), state_dict, path)
    return vae.eval().requires_grad_(False)
