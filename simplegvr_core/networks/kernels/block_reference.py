"""Block-causal attention, written to be read, in any dtype.

`attention` is the definition: blocks padded by zeros, one mask over the whole clip. `block_attention` is the plain twin of the
kernels: a loop over batch, heads and blocks.

B batch, n heads, d head dim, W blocks of the clip, P tokens of a block.
"""

from itertools import accumulate

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from ..block_causal import BlockSelection
from ..block_causal_config import BlockCausalConfig, BlockLayout
from .reference import window_mean

__all__ = ["attention", "block_attention", "window_mean"]


def attention(q: Tensor, k: Tensor, v: Tensor, grid: tuple[int, int, int], config: BlockCausalConfig) -> Tensor:
    """Returns block-causal attention (B, L, n, d) of a whole clip, tokens in raster order."""
    q, k, v = (cut_blocks(x, grid, config) for x in (q, k, v))
    mask = block_mask(q, k, grid, config)
    out = torch.empty_like(q)
    for block in range(mask.shape[2]):
        scores = torch.einsum("B p n d, B W P n d -> B n p W P", q[:, block], k) / q.shape[-1] ** 0.5
        scores = scores.masked_fill(~mask[:, :, block, None, :, None], -torch.inf)
        weights = scores.flatten(3).softmax(-1).view_as(scores)
        out[:, block] = torch.einsum("B n p W P, B W P n d -> B p n d", weights, v)
    return join_blocks(out, grid, config)


def block_attention(q: Tensor, k: Tensor, v: Tensor, blocks: BlockLayout, selection: BlockSelection) -> Tensor:
    """Returns what BlockKernel.block_attention returns."""
    out = torch.empty_like(q)
    for batch, head, block in torch.cartesian_prod(*(torch.arange(extent) for extent in selection.count.shape)).tolist():
        start, count = (int(x[batch, head, block]) for x in (selection.start, selection.count))
        queries, keys = blocks.queries.table[block], blocks.keys.table[selection.block[start : start + count]].flatten()
        queries, live = queries[queries >= 0], (keys >= 0)[:, None]
        k_, v_ = (torch.where(live, x[batch, keys.clamp(min=0), head], 0) for x in (k, v))  # null keys, whose logits are 0
        scores = q[batch, queries, head] @ k_.T / q.shape[-1] ** 0.5
        out[batch, queries, head] = scores.softmax(-1) @ v_
    return out


def block_mask(q: Tensor, k: Tensor, grid: tuple[int, int, int], config: BlockCausalConfig) -> Tensor:
    """Returns (B, n, W, W) whether each query block attends to each key block. q, k: (B, W, P, n, d) padded by zeros."""
    rows, columns = (-(-extent // size) for extent, size in zip(grid[1:], config.window[1:], strict=True))
    N = rows * columns
    group_slabs = [len(slabs) for slabs in config.slab_lengths(grid[0])]
    borders = torch.tensor(list(accumulate(group_slabs, initial=0)))
    slab = torch.arange(q.shape[1]) // N
    row, column = torch.arange(q.shape[1]) % N // columns, torch.arange(q.shape[1]) % columns
    group = torch.bucketize(slab, borders, right=True) - 1
    origin = borders[group] - len(slab) if config.memory is None else (borders[group] - config.memory)
    origin = origin.clamp(min=0)[:, None]
    s, u = slab[:, None], slab[None]
    seen = (u >= origin) & (u < origin + ((s - origin) // config.chunk + 1) * config.chunk) & (u < borders[group + 1][:, None])
    back = config.local_range // 2
    for x in (row, column):
        seen &= (x - x[:, None] >= -back) & (x - x[:, None] < config.local_range - back)
    scores = torch.einsum("B q n d, B k n d -> B n q k", q.mean(2), k.mean(2)) / q.shape[-1] ** 0.5
    probability = scores.masked_fill(~seen, -torch.inf).softmax(-1)
    mask = torch.empty_like(probability, dtype=torch.bool)
    for first in range(0, q.shape[1], N):
        entries = probability[:, :, first : first + N].flatten(2)
        pairs = config.pairs_kept(grid[1] * grid[2], N, group_slabs[group[first]])
        threshold = entries.sort(dim=-1, descending=True).values[..., min(pairs, entries.shape[-1] - 1)]
        mask[:, :, first : first + N] = probability[:, :, first : first + N] >= threshold[..., None, None]
    mask &= seen
    first_seen = F.one_hot(seen.byte().argmax(1), len(slab)).bool()
    mask |= first_seen & ~mask.any(-1, keepdim=True)
    return mask | (torch.eye(len(slab), dtype=torch.bool) & (group == 0))


def cut_blocks(x: Tensor, grid: tuple[int, int, int], config: BlockCausalConfig) -> Tensor:
    """Returns (B, W, P, n, d) blocks of x (B, L, n, d), padded by zeros."""
    T, H, W = grid
    x = rearrange(x, "B (T H W) n d -> B n d T H W", T=T, H=H, W=W)
    t, h, w = config.window
    parts = []
    for part in x.split(config.group_lengths(T), dim=3):
        padded = F.pad(part, (0, -W % w, 0, -H % h, 0, -part.shape[3] % t))
        parts.append(rearrange(padded, "B n d (T t) (H h) (W w) -> B (T H W) (t h w) n d", t=t, h=h, w=w))
    return torch.cat(parts, dim=1)


def join_blocks(x: Tensor, grid: tuple[int, int, int], config: BlockCausalConfig) -> Tensor:
    """Returns (B, L, n, d) tokens of blocks (B, W, P, n, d), without the padding."""
    T, H, W = grid
    t, h, w = config.window
    rows, columns = -(-H // h), -(-W // w)
    lengths = config.group_lengths(T)
    parts = x.split([-(-frames // t) * rows * columns for frames in lengths], dim=1)
    shape = {"H": rows, "W": columns, "t": t, "h": h, "w": w}
    parts = [
        rearrange(part, "B (T H W) (t h w) n d -> B (T t) (H h) (W w) n d", **shape)[:, :frames, :H, :W]
        for part, frames in zip(parts, lengths, strict=True)
    ]
    return torch.cat(parts, dim=1).flatten(1, 3)
