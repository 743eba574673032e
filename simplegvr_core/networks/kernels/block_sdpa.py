"""Block-causal attention by gathering and PyTorch's scaled_dot_product_attention. Runs on every device, with gradients."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from ..block_causal_config import BlockLayout
from ..block_selection import BlockSelection
from .sdpa import MAX_BATCH, gather_bytes, window_mean

__all__ = ["block_attention", "window_mean"]
QKV = tuple[Tensor, Tensor, Tensor]


def block_attention(q: Tensor, k: Tensor, v: Tensor, blocks: BlockLayout, selection: BlockSelection) -> Tensor:
    """Returns (B, L, n, d): each block's queries attend, in one softmax, to its selected blocks and their null keys.

    Gradients gather once more, so that training keeps no gathered keys.

    Args:
        q: (B, L, n, d).
        k, v: (B, past and segment, n, d).
    """
    return BlockAttention.apply(q, k, v, blocks, selection)


class BlockAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor, v: Tensor, blocks: BlockLayout, selection: BlockSelection) -> Tensor:
        ctx.save_for_backward(q, k, v)
        ctx.blocks, ctx.selection = blocks, selection
        rows = as_rows(q), as_rows(k), as_rows(v)
        out = torch.empty_like(rows[0])
        for queries, keys in chunks(q, k, blocks, selection):
            out[queries] = attend(*gather(rows, queries, keys)).to(out.dtype)  # which autocast may change
        return from_rows(out, q)

    @staticmethod
    def backward(ctx, grad: Tensor):
        tensors = ctx.saved_tensors
        rows, grad = (as_rows(tensors[0]), as_rows(tensors[1]), as_rows(tensors[2])), as_rows(grad)
        grads = [torch.zeros_like(x) for x in rows]
        for queries, keys in chunks(tensors[0], tensors[1], ctx.blocks, ctx.selection):
            parts = gather(rows, queries, keys)
            for x in parts:
                x.requires_grad_()
            with torch.enable_grad():
                attended = attend(*parts)
            q_grad, k_grad, v_grad = torch.autograd.grad(attended, parts, grad[queries].to(attended.dtype))
            grads[0][queries] = q_grad
            grads[1].index_add_(0, keys.flatten(), k_grad.flatten(0, 1))
            grads[2].index_add_(0, keys.flatten(), v_grad.flatten(0, 1))
        return *(from_rows(x, like) for x, like in zip(grads, tensors, strict=True)), None, None


def chunks(q: Tensor, k: Tensor, blocks: BlockLayout, selection: BlockSelection) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields (R, P) queries and (R, P count) keys of R query blocks, by their place in as_rows of q and k.

    Query blocks with equally many key blocks share a chunk, so that no score is masked. Tokens that are missing in a block
    point to the last row, a null key.
    """
    size = blocks.keys.size
    starts = selection.start.flatten()
    for count, rows in equal_counts(selection):
        bytes_each = 2 * count * size * q.shape[-1] * k.element_size()
        for some in rows.split(max(1, min(gather_bytes(q) // bytes_each, MAX_BATCH))):
            batch_head, block = some // selection.count.shape[2], some % selection.count.shape[2]
            picked = selection.block[starts[some, None] + torch.arange(count, device=q.device)]
            yield places(blocks.queries.table[block], batch_head, q), places(blocks.keys.table[picked].flatten(1), batch_head, k)


def equal_counts(selection: BlockSelection) -> list[tuple[int, Tensor]]:
    """Returns each number of key blocks and the query blocks, as places in start, that have so many.

    On "meta", where memory is counted, there are no values: all have the mean.
    """
    count = selection.count.flatten()
    order = count.argsort()
    if count.is_meta:
        return [(-(-len(selection.block) // len(count)), order)]
    counts, numbers = count[order].unique_consecutive(return_counts=True)
    return list(zip(counts.tolist(), order.split(numbers.tolist()), strict=True))


def places(tokens: Tensor, batch_head: Tensor, x: Tensor) -> Tensor:
    """Returns where tokens (R, ...) of each batch entry and head lie in as_rows(x), the last row for -1."""
    batch, length, heads, _ = x.shape
    batch_index, head = batch_head[:, None] // heads, batch_head[:, None] % heads
    return torch.where(tokens < 0, batch * length * heads, (batch_index * length + tokens) * heads + head)


def as_rows(x: Tensor) -> Tensor:
    """Returns (B L n + 1, d), x's (B, L, n, d) and a null key behind."""
    return F.pad(x.flatten(0, 2), (0, 0, 0, 1))


def from_rows(rows: Tensor, like: Tensor) -> Tensor:
    return rows[:-1].view(like.shape)


def gather(rows: QKV, queries: Tensor, keys: Tensor) -> QKV:
    return rows[0][queries], rows[1][keys], rows[2][keys]


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Returns (R, P, d) attention of q (R, P, d) to k and v (R, P count, d)."""
    return F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0]
