"""Self-attention over a grid of video tokens: full, shifted windows, or the paper's sparse local attention.

B batch, L tokens, n heads, d head dim. q, k, v: (B, L, n, d), rotary positions already applied.
"""

from typing import NamedTuple, Protocol, cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from . import kernels
from .attention_config import AttentionConfig
from .block_causal import attend_blocks
from .block_causal_config import BlockCausalConfig
from .kernels import BlockKernel, KernelCase, WindowKernel
from .layers import exact_float32, uncompiled
from .windows import TokenLayout, Windows

SCORE_BYTES = 64 * 2**20  # of window scores alive at a time


class DenseAttention(Protocol):
    """Attention of every query to every key: (B, L, n, d) of q, and of k and v, which may have another L."""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor: ...


class Selection(NamedTuple):
    """What the windows of one block attend to.

    Args:
        kernel: that computes the attention.
        windows: of the block.
        rows: (B, n, num_windows, K) rows of windows.table that each window attends to, -1 for none.
    """

    kernel: WindowKernel
    windows: Windows
    rows: Tensor


def full_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Returns softmax(q k^T / sqrt(d)) v, (B, L, n, d); k and v may have another length than q."""
    q, k, v = (rearrange(x, "B L n d -> B n L d") for x in (q, k, v))
    return rearrange(F.scaled_dot_product_attention(q, k, v), "B n L d -> B L n d")


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layout: TokenLayout,
    config: AttentionConfig,
    block: int,
    *,
    kernel: WindowKernel | BlockKernel | None = None,
    dense: DenseAttention = full_attention,
) -> Tensor:
    """Returns the attention of one block, (B, L, n, d), with scores scaled by 1 / sqrt(d).

    Args:
        q, k, v: (B, L, n, d), the grid's tokens and then the condition tokens.
        layout: of the L tokens.
        config: which tokens attend to which.
        block: number of the block, from 0. Odd blocks shift the temporal units, and the windows of "swin".
        kernel: computes window attention; by default the one that kernels.fastest names. A BlockKernel where config is block-causal.
        dense: computes full attention, and the attention of the condition tokens.

    Raises:
        ValueError: L is not the number of tokens of the layout.
    """
    if isinstance(config, BlockCausalConfig):
        return attend_blocks(q, k, v, layout, config, kernel=cast("BlockKernel | None", kernel))
    length = layout.num_grid_tokens
    if q.shape[1] != length + layout.num_condition_tokens:
        raise ValueError(f"attention got {q.shape[1]} tokens, wanted those of {layout}")
    if config.kind == "full" and config.unit is None:
        return dense(q, k, v)
    if config.kind == "full":
        attended = attend_in_units(q[:, :length], k, v, layout, config, block, dense)
    else:
        attended = attend_in_windows(q[:, :length], k, v, layout, config, block, cast("WindowKernel | None", kernel))
    if layout.num_condition_tokens:
        attended = torch.cat((attended, dense(q[:, length:], k, v)), dim=1)
    return attended


def attend_in_windows(
    q: Tensor, k: Tensor, v: Tensor, layout: TokenLayout, config: AttentionConfig, block: int, kernel: WindowKernel | None
) -> Tensor:
    """Returns attention of the grid's tokens q to their selected windows and to the condition tokens."""
    q, k = q.to(v.dtype), k.to(v.dtype)  # mixed precision normalises q and k in float32
    selection = select(q, k, layout, config, block, kernel)
    return selection.kernel.window_attention(q, k, v, selection.windows, selection.rows)


def attend_in_units(
    q: Tensor, k: Tensor, v: Tensor, layout: TokenLayout, config: AttentionConfig, block: int, dense: DenseAttention
) -> Tensor:
    """Returns full attention of the grid's tokens q inside each temporal unit, and to the condition tokens."""
    frame, length = layout.grid[1] * layout.grid[2], q.shape[1]
    lengths = [frames * frame for frames in config.unit_lengths(layout.grid[0], block)]
    parts = zip(*(x[:, :length].split(lengths, dim=1) for x in (q, k, v)), strict=True)
    k, v = k[:, length:], v[:, length:]
    return torch.cat([dense(q_, torch.cat((k_, k), dim=1), torch.cat((v_, v), dim=1)) for q_, k_, v_ in parts], dim=1)


@uncompiled  # torch.compile would trace the cutting and the check anew for every block and size
def select(q: Tensor, k: Tensor, layout: TokenLayout, config: AttentionConfig, block: int, kernel: WindowKernel | None = None) -> Selection:
    """Returns what each window of a block attends to, and the kernel that computes it.

    Args:
        q: (B, T*H*W or more, n, d).
        k: (B, L, n, d) of the same dtype.
        layout, config, block: as of attend.
        kernel: by default the fastest that runs.
    """
    windows = config.windows(layout, block, q.device)
    training = torch.is_grad_enabled() and q.requires_grad
    case = KernelCase(q.device, q.dtype, q.shape[-1], windows.size, windows.contiguous, training)
    kernel = kernel or kernels.load(kernels.fastest(case))
    return Selection(kernel, windows, select_windows(q, k, windows, config, kernel))


@torch.no_grad()
def select_windows(q: Tensor, k: Tensor, windows: Windows, config: AttentionConfig, kernel: WindowKernel) -> Tensor:
    """Returns (B, n, num_windows, K) rows of windows.table that each window attends to, -1 for none.

    First itself, then its config.top_k most similar others, then all condition tokens. kernel: takes the windows' means.
    """
    batch, _, heads, _ = q.shape
    rows = torch.arange(len(windows.table), device=q.device)
    itself, condition = rows[: windows.num_windows, None], rows[windows.num_windows :].expand(windows.num_windows, -1)
    top_k = config.top_k if config.kind == "sparse_local" else 0
    shape = (batch, heads, -1, -1)
    chosen = [itself.expand(shape), condition.expand(shape)]
    if top_k:
        chosen.insert(1, most_similar(kernel.window_mean(q, windows), kernel.window_mean(k, windows), windows, top_k, config.radius))
    return torch.cat(chosen, dim=-1)


def most_similar(q_mean: Tensor, k_mean: Tensor, windows: Windows, top_k: int, radius: int | None = None) -> Tensor:
    """Returns (B, n, num_windows, top_k) windows of the same scope and at most radius away, most similar first, -1 for none.

    q_mean, k_mean: (B, num_windows, n, d) float32; similarity is their product. Fewer than top_k others: all of them.
    """
    scope = windows.scope
    num_scopes, size = scope.shape
    top_k = min(top_k, size - 1)
    per_row = 4 * q_mean.shape[0] * q_mean.shape[2] * num_scopes * size
    parts = []
    for rows in torch.arange(size, device=scope.device).split(max(1, SCORE_BYTES // per_row)):
        barred = (scope < 0)[:, None] | (scope[:, rows, None] == scope[:, None])
        if radius is not None:
            place = windows.place[scope]
            barred |= (place[:, rows, None] - place[:, None]).abs().amax(-1) > radius
        with exact_float32(q_mean.device):
            scores = torch.einsum("B S r n d, B S M n d -> B n S r M", q_mean[:, scope[:, rows]], k_mean[:, scope])
        scores.masked_fill_(barred, -torch.inf)
        best, index = scores.max(-1, keepdim=True) if top_k == 1 else scores.topk(top_k)
        window = scope[:, None, :].expand(-1, len(rows), -1).expand(*index.shape[:2], -1, -1, -1).gather(-1, index)
        parts.append(window.masked_fill(best.isneginf(), -1))
    return rearrange(torch.cat(parts, dim=3), "B n S M k -> B n (S M) k")[:, :, windows.slot]
