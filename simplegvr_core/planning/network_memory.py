"""Bytes that the networks need at any size: counted by running them on PyTorch's "meta" device.

A count has the tensors that are alive at once, without the weights. Sizes are latent pixels; B batch, T frames, H, W rows, columns.
"""

from dataclasses import replace
from functools import lru_cache, partial

import torch
from torch import Tensor, nn

from ..networks import kernels
from ..networks.attention import AttentionConfig, attend
from ..networks.dit import DiTConfig, SimpleGVRDiT
from ..networks.tiny_vae import TinyVAE, TinyVAEConfig
from ..networks.upsampler import LatentUpsampler, UpsamplerConfig
from ..networks.windows import TokenLayout, Windows
from .tensor_memory import fused_attention, peak_bytes

TEXT_TOKENS = 512  # Wan 2.1 pads every prompt to as many
COUNTED_BLOCKS = 2  # an even and an odd one: each takes the memory that the one before it gave back
meta = partial(torch.empty, device="meta")


@lru_cache(maxsize=4096)
def dit_bytes(
    dit: DiTConfig, attention: AttentionConfig, batch: int, box: tuple[int, int, int], dtype: torch.dtype, implementation: str
) -> int:
    """Returns the bytes of one forward pass over a box. Dense attention is counted as a fused kernel, which stores no scores.

    Args:
        dit: Sizes of the network.
        attention: Its self-attention.
        batch: B.
        box: (T, H, W).
        dtype: Of the activations.
        implementation: Of window attention: "triton", or "sdpa", which gathers windows as on a GPU.
    """
    config = replace(dit, num_layers=min(COUNTED_BLOCKS, dit.num_layers))
    model = SimpleGVRDiT(config, attention, device="meta", dtype=dtype)
    timestep, context = meta(batch), meta(batch, TEXT_TOKENS, dit.text_dim, dtype=dtype)
    kernel = TritonShapes() if implementation == "triton" else kernels.load("sdpa")
    self_attention = partial(attend, config=attention, kernel=kernel)
    return peak_bytes(
        lambda: model(meta(batch, dit.in_dim, *box, dtype=dtype), timestep, context, self_attention, token_order=attention.token_order),
        "meta",
    )


@lru_cache
def upsampler_bytes(
    upsampler: UpsamplerConfig,
    batch: int,
    frames: int,
    source: tuple[int, int],
    size: tuple[int, int],
    tile: tuple[int, int] | None,
    dtype: torch.dtype,
) -> int:
    """Returns the bytes of LatentUpsampler.stream.

    Args:
        upsampler: Widths of the network.
        batch: B.
        frames: Latent frames of a chunk.
        source: (h, w) of the low-resolution latent.
        size: (H, W), target size.
        tile: (H, W) of a tile; None is the whole frame.
        dtype: Of weights and activations.
    """
    model = LatentUpsampler(upsampler, device="meta", dtype=dtype)

    def run() -> None:
        for _ in model.stream((meta(batch, 16, frames, *source, dtype=dtype) for _ in range(3)), size, tile):
            pass

    return peak_bytes(run, "meta")


@lru_cache
def decode_bytes(vae: TinyVAEConfig, frames: int, size: tuple[int, int], dtype: torch.dtype) -> int:
    """Returns the bytes of TinyVAE.decode_stream.

    Args:
        vae: Widths of the network.
        frames: Latent frames of a chunk.
        size: (H, W) of the latent.
        dtype: Of weights and activations.
    """
    model = TinyVAE(vae, device="meta", dtype=dtype)

    def run() -> None:
        for _ in model.decode_stream(meta(1, 16, frames, *size, dtype=dtype) for _ in range(3)):
            pass

    return peak_bytes(run, "meta")


@lru_cache
def coding_bytes(vae: TinyVAEConfig, method: str, shape: tuple[int, ...], dtype: torch.dtype) -> int:
    """Returns the bytes of TinyVAE on a whole clip.

    Args:
        vae: Widths of the network.
        method: "encode" or "decode".
        shape: Of the video or the latent.
        dtype: Of weights and activations.
    """
    run = getattr(TinyVAE(vae, device="meta", dtype=dtype), method)
    return peak_bytes(lambda: run(meta(shape, dtype=dtype)), "meta")


def implementation(dit: DiTConfig, attention: AttentionConfig, device: torch.device, dtype: torch.dtype) -> str:
    """Returns the name of the implementation of window attention that runs on a device, as kernels.fastest does."""
    T, H, W = (2 * side for side in attention.window)
    windows = attention.windows(TokenLayout((T, H, W), ordered=True), 0)
    return kernels.fastest(kernels.KernelCase(device, dtype, dit.dim // dit.num_heads, windows.size, windows.contiguous))


def amount(count: float) -> str:
    """Returns a number of bytes in MB or GB, of 10^6 and 10^9, to three digits."""
    return f"{count / 1e9:.3g} GB" if count >= 0.9995e9 else f"{count / 1e6:.3g} MB"


def weight_bytes(network: nn.Module) -> int:
    """Returns the bytes of a network's weights."""
    return sum(parameter.nbytes for parameter in network.parameters())


class TritonShapes(kernels.WindowKernel):
    """What the Triton kernels allocate, which is their results only."""

    def window_mean(self, x: Tensor, windows: Windows) -> Tensor:
        batch, _, heads, head_dim = x.shape
        return x.new_empty(batch, windows.num_windows, heads, head_dim, dtype=torch.float32)

    def window_attention(self, q: Tensor, k: Tensor, v: Tensor, windows: Windows, selection: Tensor) -> Tensor:
        out, _ = fused_attention(*(x.transpose(1, 2) for x in (q, k, v)))
        return out.transpose(1, 2)
