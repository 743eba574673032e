"""Bytes that the networks need at any size: counted by running them on PyTorch's "meta" device.

A count has the tensors that are alive at once, without the weights. Sizes are latent pixels; B batch, T frames, H, W rows, columns.
"""

import math
from dataclasses import replace
from functools import lru_cache, partial

import torch
from torch import Tensor, nn

from ..latent_space import token_grid
from ..networks import kernels
from ..networks.attention import AttentionConfig, attend
from ..networks.block_causal_config import BlockCausalConfig, BlockLayout, slabs_in_sight
from ..networks.block_selection import BlockSelection, null_keys
from ..networks.dit import DiTConfig, SimpleGVRDiT
from ..networks.tiny_vae import TinyVAE, TinyVAEConfig
from ..networks.upsampler import AnyUpsamplerConfig, make_upsampler
from ..networks.video_decoder import VideoDecoder, VideoDecoderConfig
from ..networks.windows import TokenLayout, Windows
from .tensor_memory import fused_attention, peak_bytes

TEXT_TOKENS = 512  # Wan 2.1 pads every prompt to as many
COUNTED_BLOCKS = 2  # an even and an odd one: each takes the memory that the one before it gave back
meta = partial(torch.empty, device="meta")


@lru_cache(maxsize=4096)
def dit_bytes(dit: DiTConfig, attention: AttentionConfig, batch: int, box: tuple[int, int, int], dtype: torch.dtype, kernel: str) -> int:
    """Returns the bytes of one forward pass over a box. Dense attention is counted as a fused kernel, which stores no scores.

    Args:
        dit: Sizes of the network.
        attention: Its self-attention.
        batch: B.
        box: (T, H, W).
        dtype: Of the activations.
        kernel: Of window attention: "triton", or "sdpa", which gathers windows as on a GPU.

    A box of block-causal attention is counted with all of the past that it can look back on.
    """
    config = replace(dit, num_layers=min(COUNTED_BLOCKS, dit.num_layers))
    model = SimpleGVRDiT(config, attention, device="meta", dtype=dtype)
    timestep, context = meta(batch), meta(batch, TEXT_TOKENS, dit.text_dim, dtype=dtype)
    if isinstance(attention, BlockCausalConfig):
        counted = TritonShapes() if kernel == "triton" else kernels.load_block("sdpa")
        run = partial(run_with_past, model, attention, counted)
    else:
        counted = TritonShapes() if kernel == "triton" else kernels.load("sdpa")
        run = partial(model, self_attention=partial(attend, config=attention, kernel=counted), token_order=attention.token_order)
    return peak_bytes(lambda: run(meta(batch, dit.in_dim, *box, dtype=dtype), timestep, context), "meta")


def run_with_past(
    model: SimpleGVRDiT, config: BlockCausalConfig, kernel: kernels.BlockKernel, z: Tensor, timestep: Tensor, context: Tensor
) -> Tensor:
    """Returns the velocity of a box that looks back on as much as it can."""
    first_frame = settled_frame(config)

    def attend_with_past(q: Tensor, k: Tensor, v: Tensor, *, layout: TokenLayout, block: int) -> Tensor:
        past = config.blocks(layout, q.device).past_frames * layout.grid[1] * layout.grid[2]
        k, v = (torch.cat((x.new_empty(x.shape[0], past, *x.shape[2:]), x), dim=1) for x in (k, v))
        return attend(q, k, v, layout, config, block, kernel=kernel)

    order = partial(config.token_order, first_frame=first_frame)
    return model(z, timestep, context, attend_with_past, token_order=order, first_frame=first_frame)


def settled_frame(config: BlockCausalConfig) -> int:
    """Returns the first latent frame of a group that looks back on as much as it can; 0 where that has no end."""
    return 0 if config.memory is None else sum(config.groups) + config.groups[-1] * config.memory


def past_bytes(dit: DiTConfig, attention: AttentionConfig, batch: int, box: tuple[int, int, int], dtype: torch.dtype) -> int:
    """Returns the bytes of the keys and values in SlabMemory between two segments; 0 where attention is not causal.

    Args:
        dit: Sizes of the network.
        attention: Its self-attention.
        batch: B.
        box: (T, H, W) of a segment.
        dtype: Of keys and values.
    """
    if not isinstance(attention, BlockCausalConfig):
        return 0
    _, rows, columns = token_grid(box)
    frames = slabs_in_sight(attention, settled_frame(attention), 1).past_frames
    return 2 * dit.num_layers * batch * frames * rows * columns * dit.dim * dtype.itemsize


@lru_cache
def upsampler_bytes(
    upsampler: AnyUpsamplerConfig,
    batch: int,
    frames: int,
    source: tuple[int, int],
    size: tuple[int, int],
    tile: tuple[int, int] | None,
    dtype: torch.dtype,
) -> int:
    """Returns the bytes of an upsampler's stream.

    Args:
        upsampler: Widths of the network.
        batch: B.
        frames: Latent frames of a chunk.
        source: (h, w) of the low-resolution latent.
        size: (H, W), target size.
        tile: (H, W) of a tile; None is the whole frame.
        dtype: Of weights and activations.
    """
    model = make_upsampler(upsampler, device="meta", dtype=dtype)

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


@lru_cache
def video_decoder_bytes(decoder: VideoDecoderConfig, method: str, extent: tuple[int, int, int], dtype: torch.dtype) -> int:
    """Returns the bytes of VideoDecoder on a whole clip: those of its first latent frames, and the finished frames twice, which are joined.

    Args:
        decoder: Layout of the network.
        method: "encode" or "decode".
        extent: (T, H, W) of the latent.
        dtype: Of weights and activations.
    """
    frames, height, width = extent
    model, video = VideoDecoder(decoder, device="meta", dtype=dtype), (1, 3, 5, 8 * height, 8 * width)
    shape = video if method == "encode" else (1, 16, 2, height, width)
    first = peak_bytes(lambda: getattr(model, method)(meta(shape, dtype=dtype)), "meta")
    return first + 2 * max(0, 4 * frames - 5) * math.prod((3, *video[3:])) * dtype.itemsize


def fastest_kernel(dit: DiTConfig, attention: AttentionConfig, device: torch.device, dtype: torch.dtype) -> str:
    """Returns the name of the kernel of window attention that runs on a device, as kernels.fastest does."""
    T, H, W = (2 * side for side in attention.window)
    windows = attention.windows(TokenLayout((T, H, W), ordered=True), 0)
    case = kernels.KernelCase(device, dtype, dit.dim // dit.num_heads, windows.size, windows.contiguous)
    return kernels.fastest_block(case) if isinstance(attention, BlockCausalConfig) else kernels.fastest(case)


def weight_bytes(network: nn.Module) -> int:
    """Returns the bytes of a network's weights."""
    return sum(parameter.nbytes for parameter in network.parameters())


class TritonShapes(kernels.WindowKernel, kernels.BlockKernel):
    """What the Triton kernels allocate, which is their results only."""

    def window_mean(self, x: Tensor, windows: Windows) -> Tensor:
        batch, _, heads, head_dim = x.shape
        return x.new_empty(batch, windows.num_windows, heads, head_dim, dtype=torch.float32)

    def window_attention(self, q: Tensor, k: Tensor, v: Tensor, windows: Windows, selection: Tensor) -> Tensor:
        out, _ = fused_attention(*(x.transpose(1, 2) for x in (q, k, v)))
        return out.transpose(1, 2)

    def block_attention(self, q: Tensor, k: Tensor, v: Tensor, blocks: BlockLayout, selection: BlockSelection) -> Tensor:
        null_keys(selection, blocks.keys)
        return torch.empty_like(q)
