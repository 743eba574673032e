"""Block-causal sparse attention (Ultra Flash, arXiv 2606.09150): each head of each slab keeps its most probable pairs of blocks.

B batch, n heads, d head dim, P tokens of a block, N blocks of a slab, Q query blocks, K key blocks.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from . import kernels
from .block_causal_config import BlockCausalConfig, BlockLayout
from .block_selection import BlockSelection, select_blocks
from .kernels import BlockKernel, KernelCase
from .layers import uncompiled
from .windows import TokenLayout, Windows


class BlockChoice(NamedTuple):
    """What the blocks of one attention attend to, and the kernel that computes it."""

    kernel: BlockKernel
    blocks: BlockLayout
    selection: BlockSelection


def attend_blocks(
    q: Tensor, k: Tensor, v: Tensor, layout: TokenLayout, config: BlockCausalConfig, *, kernel: BlockKernel | None = None
) -> Tensor:
    """Returns block-causal attention (B, L, n, d) of a clip, or of a segment of it that begins with a group.

    Args:
        q: (B, L, n, d), rotary positions applied.
        k, v: the same; of a later segment the tokens of BlockLayout.past_frames before its own.
        layout: of the L tokens.
        kernel: by default the fastest of kernels.BLOCK_KERNELS.

    Raises:
        ValueError: there are other tokens than these, or the segment does not begin with a group.
    """
    q, k = q.to(v.dtype), k.to(v.dtype)  # mixed precision normalises q and k in float32
    choice = choose_blocks(q, k, layout, config, kernel)
    return choice.kernel.block_attention(q, k, v, choice.blocks, choice.selection)


@uncompiled  # as attention.select
def choose_blocks(q: Tensor, k: Tensor, layout: TokenLayout, config: BlockCausalConfig, kernel: BlockKernel | None = None) -> BlockChoice:
    """Returns what the blocks attend to. Arguments and errors are those of attend_blocks."""
    blocks = config.blocks(layout, q.device)
    past, others = blocks.past_frames * blocks.frame_tokens, layout.num_condition_tokens
    if others or (q.shape[1], k.shape[1]) != (layout.num_grid_tokens, past + layout.num_grid_tokens):
        raise ValueError(
            f"block-causal attention got {q.shape[1]} queries and {k.shape[1]} keys, wanted those of {layout} and {past} of the past: "
            "it takes no condition tokens"
        )
    training = torch.is_grad_enabled() and q.requires_grad
    case = KernelCase(q.device, q.dtype, q.shape[-1], blocks.keys.size, blocks.keys.contiguous, training)
    kernel = kernel or kernels.load_block(kernels.fastest_block(case))
    q_mean, k_mean = padded_mean(q, blocks.queries, kernel), padded_mean(k, blocks.keys, kernel)
    return BlockChoice(kernel, blocks, select_blocks(q_mean, k_mean, blocks, config))


@torch.no_grad()
def padded_mean(x: Tensor, windows: Windows, kernel: BlockKernel) -> Tensor:
    """Returns (B, W, n, d) float32 means over the P positions of each block, zeros where it has fewer tokens."""
    return kernel.window_mean(x, windows) * (windows.length / windows.size)[:, None, None]
