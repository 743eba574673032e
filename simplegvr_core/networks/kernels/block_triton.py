"""Block-causal attention as a Triton kernel, forward only: gradients are sdpa's, which training takes.

A program has a head and a block, or M tokens of a larger one, and walks over the block's own number of key blocks. Null keys
are not read: the running softmax begins with their sum. Programs with the most key blocks begin first.

In the kernel: M queries that a program owns, N keys that it walks over at a time, D head dim, P tokens of a full block.
"""

# pyright: reportGeneralTypeIssues=false, reportArgumentType=false

import math
import zlib

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..block_causal_config import BlockCausalConfig, BlockLayout
from ..block_selection import BlockSelection, null_keys, select_blocks
from ..windows import TokenLayout
from . import KernelCase, block_sdpa
from .sparse_local_triton import (
    LOG2_E,
    check_case,
    constants,
    fits_32_bits,
    load_tile,
    store_tile,
    strides,
    tile_size,
    unit_stride,
    window_mean,
    window_tokens,
)

__all__ = ["block_attention", "window_mean"]
OPERATORS = f"simplegvr_{zlib.crc32(__name__.encode()):x}"  # the core may be loaded twice, alone and inside the pack


@triton.jit
def block_kernel(
    q, k, v, out, q_table, q_length, k_table, k_length, order, block, start, count, nulls, scale, heads, num_queries,
    q_batch, q_token, q_head, k_batch, k_token, k_head, v_batch, v_token, v_head, out_batch, out_token, out_head,
    P: tl.constexpr, D: tl.constexpr, M: tl.constexpr, N: tl.constexpr, CONTIGUOUS: tl.constexpr,
):  # fmt: skip
    """out: (B, L, n, D). order: places (batch, head, query block), flattened, in which programs run."""
    TILES: tl.constexpr = (P + M - 1) // M
    STEPS: tl.constexpr = (P + N - 1) // N
    place = tl.load(order + tl.program_id(0) // TILES)
    window, batch_head = place % num_queries, place // num_queries
    head, batch = batch_head % heads, batch_head // heads
    first, index, live = window_tokens(q_table, q_length, window, tl.program_id(0) % TILES * M, P, M, CONTIGUOUS)
    queries = load_tile(q + batch * q_batch + head * q_head, first, index, live, q_token, D)
    block += tl.load(start + place)
    k += batch * k_batch + head * k_head
    v += batch * v_batch + head * v_head
    null = tl.load(nulls + place).to(tl.float32)
    largest = tl.zeros([M], tl.float32) + tl.where(null > 0, 0.0, -float("inf"))
    total = tl.zeros([M], tl.float32) + null
    attended = tl.zeros([M, D], tl.float32)
    for step in range(tl.load(count + place).to(tl.int32) * STEPS):
        row = tl.load(block + step // STEPS)
        k_first, k_index, there = window_tokens(k_table, k_length, row, step % STEPS * N, P, N, CONTIGUOUS)
        keys = load_tile(k, k_first, k_index, there, k_token, D)
        scores = tl.dot(queries, tl.trans(keys), input_precision="ieee") * scale
        scores = tl.where(there[None, :], scores, -1.0e30)  # finite: the first tile has a token
        before = largest
        largest = tl.maximum(before, tl.max(scores, 1))
        weights = tl.exp2(scores - largest[:, None])
        decay = tl.exp2(before - largest)
        total = total * decay + tl.sum(weights, 1)
        values = load_tile(v, k_first, k_index, there, v_token, D)
        attended = attended * decay[:, None] + tl.dot(weights.to(values.dtype), values, input_precision="ieee")
    store_tile(out + batch * out_batch + head * out_head, first, index, live, out_token, attended / total[:, None], D)


@torch.library.custom_op(f"{OPERATORS}::block_attention", mutates_args=())
def block_op(
    q: Tensor, k: Tensor, v: Tensor, q_table: Tensor, q_length: Tensor, k_table: Tensor, k_length: Tensor,
    block: Tensor, start: Tensor, count: Tensor, nulls: Tensor, contiguous: bool,
) -> Tensor:  # fmt: skip
    """Returns attention (B, L, n, d)."""
    q, k, v = (unit_stride(x) for x in (q, k, v))
    heads, head_dim = q.shape[2:]
    out, size = torch.empty(q.shape, dtype=q.dtype, device=q.device), k_table.shape[1]
    contiguous = contiguous and fits_32_bits(size, q, k, v, out)
    M, order = tile_size(size), count.flatten().argsort(descending=True)
    with torch.cuda.device_of(q):
        block_kernel[(len(order) * triton.cdiv(size, M),)](
            q, k, v, out, q_table, q_length, k_table, k_length, order, block, start.contiguous(), count.contiguous(), nulls.contiguous(),
            LOG2_E.value * head_dim**-0.5, heads, count.shape[2], *strides(q, k, v, out), M=M, **constants(size, head_dim, contiguous),
        )  # fmt: skip
    return out


@block_op.register_fake
def _(q, k, v, q_table, q_length, k_table, k_length, block, start, count, nulls, contiguous):
    return torch.empty(q.shape, dtype=q.dtype, device=q.device)


def block_attention(q: Tensor, k: Tensor, v: Tensor, blocks: BlockLayout, selection: BlockSelection) -> Tensor:
    """Returns (B, L, n, d): each block's queries attend, in one softmax, to its selected blocks and their null keys.

    Args:
        q: (B, L, n, d).
        k, v: (B, past and segment, n, d).
    """
    queries, keys = blocks.queries, blocks.keys
    return block_op(
        q, k, v, queries.table, queries.length, keys.table, keys.length,
        selection.block, selection.start, selection.count, null_keys(selection, keys), keys.contiguous,
    )  # fmt: skip


def check(case: KernelCase) -> None:
    """Raises unless the kernel runs on this GPU and agrees with sdpa, on three slabs that are padded along rows and columns.

    Raises:
        RuntimeError: the kernel is not for this case.
        AssertionError: it gives something else.
        Exception: whatever the compiler raises.
    """
    check_case(case)
    rows = math.gcd(case.window_size, 8)
    columns = case.window_size // rows
    generator, config = torch.Generator().manual_seed(0), BlockCausalConfig(window=(1, rows, columns), groups=(1,))
    layout = TokenLayout((3, rows + 1, columns + 1), ordered=case.contiguous)
    blocks = config.blocks(layout, case.device)
    q, k, v = (torch.randn(1, layout.num_grid_tokens, 2, case.head_dim, generator=generator).to(case.device, case.dtype) for _ in range(3))
    selection = select_blocks(window_mean(q, blocks.keys), window_mean(k, blocks.keys), blocks, config)
    torch.testing.assert_close(window_mean(q, blocks.keys), block_sdpa.window_mean(q, blocks.keys), atol=1e-4, rtol=1e-4)
    results = (attention(q, k, v, blocks, selection) for attention in (block_attention, block_sdpa.block_attention))
    torch.testing.assert_close(*results, atol=0.02, rtol=0.02)
