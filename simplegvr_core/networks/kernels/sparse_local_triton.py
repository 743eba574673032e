"""Window attention as Triton kernels: programs read the keys of a window's selected windows where they lie.

Nothing is gathered: a program has a head and a window, or M tokens of a larger one, walks over the selected windows in tiles
of keys and keeps one running softmax; halves are multiplied as they are and summed in float32. Gradients walk the same way:
those of q per window, those of k and v per window over all windows that selected it, so that no two programs add to one
place and a run repeats exactly.

In the kernels: M queries or keys that a program owns, N keys or queries that it walks over at a time, D head dim, P
tokens of the largest window.
"""

# Triton's language: kernels get other types than Python's when they are compiled.
# pyright: reportGeneralTypeIssues=false, reportCallIssue=false, reportArgumentType=false, reportOperatorIssue=false
# pyright: reportReturnType=false

import zlib

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..windows import Windows, cut_windows
from . import KernelCase, sdpa

LOG2_E = tl.constexpr(1.4426950408889634)  # the kernels raise 2, not e
OPERATORS = f"simplegvr_{zlib.crc32(__name__.encode()):x}"  # the core may be loaded twice, alone and inside the pack
HALVES = (torch.float16, torch.bfloat16)
HEAD_DIMS = (64, 128)
HOPPER_REGISTERS = 128  # of a thread
OLDEST = (8, 0)  # compute capability


@triton.jit
def window_tokens(table, length, row, first, P: tl.constexpr, SIZE: tl.constexpr, CONTIGUOUS: tl.constexpr):
    """Returns number of the first token, (SIZE,) distances from it of a row's tokens first .. first + SIZE, and which exist."""
    there = row >= 0
    row = tl.maximum(row, 0)
    index = first + tl.arange(0, SIZE)
    live = (index < tl.load(length + row)) & there
    if CONTIGUOUS:
        start, distance = tl.load(table + row * P), index
    else:
        start, distance = tl.cast(0, tl.int64), tl.load(table + row * P + index, mask=live, other=0)
    return start, distance, live


@triton.jit
def program(table, length, P: tl.constexpr, M: tl.constexpr, CONTIGUOUS: tl.constexpr):
    """Returns a program's row, the number of rows, its head, batch entry and number among both, and its tokens as window_tokens."""
    TILES: tl.constexpr = (P + M - 1) // M
    row, head, batch = tl.program_id(0) // TILES, tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    start, index, live = window_tokens(table, length, row, tl.program_id(0) % TILES * M, P, M, CONTIGUOUS)
    return row, tl.num_programs(0) // TILES, head, batch, batch * tl.num_programs(1) + head, start, index, live


@triton.jit
def load_tile(x, start, index, live, stride, D: tl.constexpr):
    """Returns (SIZE, D) rows of x, zeros where not live."""
    return tl.load(x + start * stride + index[:, None] * stride + tl.arange(0, D), mask=live[:, None], other=0.0)


@triton.jit
def store_tile(x, start, index, live, stride, tile, D: tl.constexpr):
    tl.store(x + start * stride + index[:, None] * stride + tl.arange(0, D), tile.to(x.dtype.element_ty), mask=live[:, None])


@triton.jit
def mean_kernel(
    x, mean, table, length, x_batch, x_token, x_head,
    P: tl.constexpr, D: tl.constexpr, N: tl.constexpr, CONTIGUOUS: tl.constexpr,
):  # fmt: skip
    """mean: (B, W, n, D) float32."""
    window, head, batch = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    total = tl.zeros([D], tl.float32)
    for first in range(0, P, N):
        start, index, live = window_tokens(table, length, window, first, P, N, CONTIGUOUS)
        tile = load_tile(x + batch * x_batch + head * x_head, start, index, live, x_token, D)
        total += tl.sum(tile.to(tl.float32), 0)
    place = ((batch * tl.num_programs(0) + window) * tl.num_programs(1) + head) * D
    tl.store(mean + place + tl.arange(0, D), total / tl.load(length + window))


@triton.jit
def attention_kernel(
    q, k, v, out, log_sum, table, length, selection, scale, K,
    q_batch, q_token, q_head, k_batch, k_token, k_head, v_batch, v_token, v_head, out_batch, out_token, out_head, tokens,
    P: tl.constexpr, D: tl.constexpr, M: tl.constexpr, N: tl.constexpr, CONTIGUOUS: tl.constexpr,
):  # fmt: skip
    """out: (B, L, n, D); log_sum: (B, n, L) base-2 logarithm of each query's sum of exponentials."""
    STEPS: tl.constexpr = (P + N - 1) // N
    window, num_windows, head, batch, batch_head, start, index, live = program(table, length, P, M, CONTIGUOUS)
    queries = load_tile(q + batch * q_batch + head * q_head, start, index, live, q_token, D)
    selection += (batch_head * num_windows + window) * K
    k += batch * k_batch + head * k_head
    v += batch * v_batch + head * v_head
    largest = tl.full([M], -float("inf"), tl.float32)
    total = tl.zeros([M], tl.float32)
    attended = tl.zeros([M, D], tl.float32)
    for step in range(K * STEPS):
        row = tl.load(selection + step // STEPS)
        k_start, k_index, there = window_tokens(table, length, row, step % STEPS * N, P, N, CONTIGUOUS)
        keys = load_tile(k, k_start, k_index, there, k_token, D)
        scores = tl.dot(queries, tl.trans(keys), input_precision="ieee") * scale
        scores = tl.where(there[None, :], scores, -1.0e30)  # finite: the first tile, of the window itself, is never empty
        before = largest
        largest = tl.maximum(before, tl.max(scores, 1))
        weights = tl.exp2(scores - largest[:, None])
        decay = tl.exp2(before - largest)
        total = total * decay + tl.sum(weights, 1)
        values = load_tile(v, k_start, k_index, there, v_token, D)
        attended = attended * decay[:, None] + tl.dot(weights.to(values.dtype), values, input_precision="ieee")
    store_tile(out + batch * out_batch + head * out_head, start, index, live, out_token, attended / total[:, None], D)
    tl.store(log_sum + batch_head * tokens + start + index, largest + tl.log2(total), mask=live)


@triton.jit
def q_grad_kernel(
    q, k, v, out, grad, q_grad, log_sum, delta, table, length, selection, scale, K,
    q_batch, q_token, q_head, k_batch, k_token, k_head, v_batch, v_token, v_head, out_batch, out_token, out_head, tokens,
    P: tl.constexpr, D: tl.constexpr, M: tl.constexpr, N: tl.constexpr, CONTIGUOUS: tl.constexpr,
):  # fmt: skip
    """q_grad: as out, and so is grad; delta: (B, n, L) sum over D of out grad, which the keys' gradients need too."""
    STEPS: tl.constexpr = (P + N - 1) // N
    window, num_windows, head, batch, batch_head, start, index, live = program(table, length, P, M, CONTIGUOUS)
    queries = load_tile(q + batch * q_batch + head * q_head, start, index, live, q_token, D)
    place = batch * out_batch + head * out_head
    grads = load_tile(grad + place, start, index, live, out_token, D)
    attended = load_tile(out + place, start, index, live, out_token, D)
    difference = tl.sum(attended.to(tl.float32) * grads.to(tl.float32), 1)
    tl.store(delta + batch_head * tokens + start + index, difference, mask=live)
    log_sums = tl.load(log_sum + batch_head * tokens + start + index, mask=live, other=0.0)
    selection += (batch_head * num_windows + window) * K
    k += batch * k_batch + head * k_head
    v += batch * v_batch + head * v_head
    result = tl.zeros([M, D], tl.float32)
    for step in range(K * STEPS):
        row = tl.load(selection + step // STEPS)
        k_start, k_index, there = window_tokens(table, length, row, step % STEPS * N, P, N, CONTIGUOUS)
        keys = load_tile(k, k_start, k_index, there, k_token, D)
        values = load_tile(v, k_start, k_index, there, v_token, D)
        scores = tl.dot(queries, tl.trans(keys), input_precision="ieee") * scale
        weights = tl.where(there[None, :], tl.exp2(scores - log_sums[:, None]), 0.0)
        weights_grad = tl.dot(grads, tl.trans(values), input_precision="ieee")
        scores_grad = weights * (weights_grad - difference[:, None])
        result += tl.dot(scores_grad.to(keys.dtype), keys, input_precision="ieee")
    store_tile(q_grad + place, start, index, live, out_token, result * (scale / LOG2_E), D)


@triton.jit
def kv_grad_kernel(
    q, k, v, grad, k_grad, v_grad, log_sum, delta, table, length, selectors, first_selector, scale, num_selectors,
    q_batch, q_token, q_head, k_batch, k_token, k_head, v_batch, v_token, v_head, out_batch, out_token, out_head,
    grad_batch, grad_token, grad_head, tokens,
    P: tl.constexpr, D: tl.constexpr, M: tl.constexpr, N: tl.constexpr, CONTIGUOUS: tl.constexpr,
):  # fmt: skip
    """selectors: (B, n, num_selectors) windows that selected row 0, then row 1, ...; first_selector: (B, n, rows + 1)."""
    STEPS: tl.constexpr = (P + N - 1) // N
    row, num_rows, head, batch, batch_head, start, index, live = program(table, length, P, M, CONTIGUOUS)
    keys = load_tile(k + batch * k_batch + head * k_head, start, index, live, k_token, D)
    values = load_tile(v + batch * v_batch + head * v_head, start, index, live, v_token, D)
    q += batch * q_batch + head * q_head
    grad += batch * out_batch + head * out_head
    first = tl.load(first_selector + batch_head * (num_rows + 1) + row)
    count = tl.load(first_selector + batch_head * (num_rows + 1) + row + 1) - first
    selectors += batch_head * num_selectors + first
    keys_grad = tl.zeros([M, D], tl.float32)
    values_grad = tl.zeros([M, D], tl.float32)
    for step in range(count.to(tl.int32) * STEPS):
        window = tl.load(selectors + step // STEPS)
        q_start, q_index, there = window_tokens(table, length, window, step % STEPS * N, P, N, CONTIGUOUS)
        queries = load_tile(q, q_start, q_index, there, q_token, D)
        grads = load_tile(grad, q_start, q_index, there, out_token, D)
        log_sums = tl.load(log_sum + batch_head * tokens + q_start + q_index, mask=there, other=0.0)
        difference = tl.load(delta + batch_head * tokens + q_start + q_index, mask=there, other=0.0)
        scores = tl.dot(keys, tl.trans(queries), input_precision="ieee") * scale
        weights = tl.where(there[None, :], tl.exp2(scores - log_sums[None, :]), 0.0)
        values_grad += tl.dot(weights.to(grads.dtype), grads, input_precision="ieee")
        weights_grad = tl.dot(values, tl.trans(grads), input_precision="ieee")
        scores_grad = weights * (weights_grad - difference[None, :])
        keys_grad += tl.dot(scores_grad.to(queries.dtype), queries, input_precision="ieee")
    place = batch * grad_batch + head * grad_head
    store_tile(k_grad + place, start, index, live, grad_token, keys_grad * (scale / LOG2_E), D)
    store_tile(v_grad + place, start, index, live, grad_token, values_grad, D)


@torch.library.custom_op(f"{OPERATORS}::window_attention", mutates_args=())
def attention_op(
    q: Tensor, k: Tensor, v: Tensor, table: Tensor, length: Tensor, selection: Tensor, contiguous: bool
) -> tuple[Tensor, Tensor]:
    """Returns attention (B, L, n, d) and (B, n, L) logarithms of the sums, which the gradients need."""
    q, k, v, selection = *(unit_stride(x) for x in (q, k, v)), selection.contiguous()
    batch, tokens, heads, head_dim = q.shape
    out, log_sum = torch.empty(q.shape, dtype=q.dtype, device=q.device), q.new_empty(batch, heads, tokens, dtype=torch.float32)
    size = table.shape[1]
    contiguous = contiguous and fits_32_bits(size, q, k, v, out)
    M, meta = tile_size(size), constants(size, head_dim, contiguous)
    with torch.cuda.device_of(q):
        attention_kernel[selection.shape[2] * triton.cdiv(size, M), heads, batch](
            q, k, v, out, log_sum, table, length, selection, LOG2_E.value * head_dim**-0.5, selection.shape[3],
            *strides(q, k, v, out), tokens, M=M, **meta, **occupancy(size, contiguous, capability(q.device)),
        )  # fmt: skip
    return out, log_sum


@attention_op.register_fake
def _(q, k, v, table, length, selection, contiguous):
    return torch.empty(q.shape, dtype=q.dtype, device=q.device), q.new_empty(q.shape[0], q.shape[2], q.shape[1], dtype=torch.float32)


@torch.library.custom_op(f"{OPERATORS}::window_attention_grad", mutates_args=())
def gradient_op(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, log_sum: Tensor, table: Tensor, length: Tensor, selection: Tensor,
    contiguous: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Returns the gradients of q, k and v, shaped as they are. grad: that of the attention, (B, L, n, d)."""
    q, k, v, selection, grad = *(unit_stride(x) for x in (q, k, v)), selection.contiguous(), grad.contiguous()
    batch, tokens, heads, head_dim = q.shape
    q_grad, k_grad, v_grad = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
    delta, scale, size = torch.empty_like(log_sum), LOG2_E.value * head_dim**-0.5, table.shape[1]
    contiguous = contiguous and fits_32_bits(size, q, k, v, grad)
    M, meta = tile_size(size), constants(size, head_dim, contiguous)
    tiles = triton.cdiv(size, M)
    order = selection.flatten(2).sort(dim=-1, stable=True)
    first_selector = torch.searchsorted(order.values, torch.arange(len(table) + 1, device=q.device).expand(batch, heads, -1).contiguous())
    selectors = order.indices // selection.shape[3]
    with torch.cuda.device_of(q):
        q_grad_kernel[selection.shape[2] * tiles, heads, batch](
            q, k, v, out, grad, q_grad, log_sum, delta, table, length, selection, scale, selection.shape[3],
            *strides(q, k, v, grad), tokens, M=M, **meta, **occupancy(size, contiguous, capability(q.device)),
        )  # fmt: skip
        kv_grad_kernel[len(table) * tiles, heads, batch](
            q, k, v, grad, k_grad, v_grad, log_sum, delta, table, length, selectors, first_selector, scale, selectors.shape[-1],
            *strides(q, k, v, grad, k_grad), tokens, M=M, **meta,
        )  # fmt: skip
    return q_grad, k_grad, v_grad


@gradient_op.register_fake
def _(grad, q, k, v, out, log_sum, table, length, selection, contiguous):
    return tuple(torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))


def save_for_gradient(ctx, inputs, output):
    *tensors, ctx.contiguous = inputs
    ctx.save_for_backward(*tensors[:3], *output, *tensors[3:])


def gradient(ctx, grad, _):
    return *gradient_op(grad, *ctx.saved_tensors, ctx.contiguous), None, None, None, None


attention_op.register_autograd(gradient, setup_context=save_for_gradient)


def window_mean(x: Tensor, windows: Windows) -> Tensor:
    """Returns (B, num_windows, n, d) float32 means over each window's tokens. x: (B, L, n, d)."""
    x = unit_stride(x)
    (batch, _, heads, head_dim), size = x.shape, windows.table.shape[1]
    mean = x.new_empty(batch, windows.num_windows, heads, head_dim, dtype=torch.float32)
    meta = constants(size, head_dim, windows.contiguous and fits_32_bits(size, x))
    with torch.cuda.device_of(x):
        mean_kernel[windows.num_windows, heads, batch](x, mean, windows.table, windows.length, *strides(x), **meta)
    return mean


def window_attention(q: Tensor, k: Tensor, v: Tensor, windows: Windows, selection: Tensor) -> Tensor:
    """Returns (B, L, n, d): each window's queries attend, in one softmax, to all tokens of its selected windows.

    q: (B, L, n, d); k, v: the same, or with condition tokens behind. selection: (B, n, num_windows, K) rows of
    windows.table, -1 for none. Scores are scaled by 1 / sqrt(d).
    """
    return attention_op(q, k, v, windows.table, windows.length, selection, windows.contiguous)[0]


def unit_stride(x: Tensor) -> Tensor:
    """Returns x, copied only if its last axis has a stride."""
    return x if x.stride(-1) == 1 else x.contiguous()


def strides(*tensors: Tensor) -> tuple[int, ...]:
    """Returns the strides of batch, token and head of each tensor (B, L, n, d)."""
    return tuple(stride for x in tensors for stride in x.stride()[:3])


def fits_32_bits(size: int, *tensors: Tensor) -> bool:
    """Returns whether kernels can count elements from a window's first token to its last in 32 bits; its table has 64."""
    return all(size * x.stride(1) < 2**31 for x in tensors)


def tile_size(size: int) -> int:
    """Returns M, of how many tokens of a window a program takes care. size: P."""
    return min(128, max(16, triton.next_power_of_2(size)))


def constants(size: int, head_dim: int, contiguous: bool) -> dict:
    """Returns what the kernels are compiled for, beside M. With these tiles attention spills on no compute capability, 8.0 to 12.0."""
    num_warps = 8 if tile_size(size) == 128 else 4
    return {"P": size, "D": head_dim, "N": 32, "CONTIGUOUS": contiguous, "num_warps": num_warps, "num_stages": 2}


def occupancy(size: int, contiguous: bool, capability: tuple[int, int] | None) -> dict:
    """Returns the limit of registers with which two programs share a multiprocessor, where it costs no spills: on Hopper."""
    costs_nothing = capability is not None and capability[0] == 9 and contiguous and tile_size(size) == 128
    return {"maxnreg": HOPPER_REGISTERS} if costs_nothing else {}


def capability(device: torch.device) -> tuple[int, int] | None:
    """Returns the compute capability of an NVIDIA GPU, None of anything else."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" and torch.version.hip is None else None


def check_case(case: KernelCase) -> None:
    """Raises RuntimeError for a GPU, a dtype or a head dim that the pack's Triton kernels are not for."""
    if (capability(case.device) or OLDEST) < OLDEST:
        raise RuntimeError("Triton needs compute capability 8.0 or newer")
    if case.dtype not in HALVES or case.head_dim not in HEAD_DIMS:
        raise RuntimeError(f"the kernels are for float16 or bfloat16 and head dims {HEAD_DIMS}, not {case.dtype} and {case.head_dim}")


def check(case: KernelCase) -> None:
    """Raises unless the kernels run on this GPU and agree with sdpa, with their gradients when training.

    A large window is tried with three tiles of tokens.

    Raises:
        RuntimeError: the kernels are not for this case.
        AssertionError: they give something else.
        Exception: whatever the compiler raises.
    """
    check_case(case)
    generator, size = torch.Generator().manual_seed(0), min(case.window_size, 3 * tile_size(case.window_size))
    # two windows of all tokens, two of fewer
    windows = cut_windows((1, 2 * size - size // 4, 2), (1, size, 1), (1,), window_major=case.contiguous).copy_to(case.device)
    shape = (1, int(windows.length.sum()), 2, case.head_dim)
    tensors = [torch.randn(shape, generator=generator).to(case.device, case.dtype).requires_grad_(case.training) for _ in range(3)]
    selection = torch.tensor([[0, 3], [1, -1], [2, 0], [3, 1]], device=case.device).expand(1, 2, 4, 2)
    torch.testing.assert_close(window_mean(tensors[0], windows), sdpa.window_mean(tensors[0], windows), atol=1e-4, rtol=1e-4)
    results = []
    for attend in (window_attention, sdpa.window_attention):
        out = attend(*tensors, windows, selection)
        results.append([out, *(torch.autograd.grad(out, tensors, torch.ones_like(out)) if case.training else ())])
    torch.testing.assert_close(*results, atol=0.02, rtol=0.02)
