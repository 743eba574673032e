"""Kernels of window attention against float64, forward and gradients: every kernel of the table, in both halves."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor

from ...networks import kernels
from ...networks.attention import AttentionConfig, select_windows
from ...networks.kernels import WindowKernel
from ...networks.windows import TokenLayout, Windows
from .items import Bench, Item, NotRun, Sizes

ALLOWED = 2  # times the reference's error in the same dtype
WHAT = ("out", "q_grad", "k_grad", "v_grad")


@dataclass(frozen=True)
class Case:
    """What a kernel is given.

    Attributes:
        config: The windows.
        layout: The tokens.
        head_dim: Features of a head.
        heads: Attention heads.
        batch: Samples.
        block: Of the network; odd ones shift the temporal units.
    """

    config: AttentionConfig
    layout: TokenLayout
    head_dim: int
    heads: int = 2
    batch: int = 1
    block: int = 0


def cases(sizes: Sizes) -> dict[str, Case]:
    """Returns the cases: the paper's windows first, then those that make a kernel take its other paths."""
    grid, t, h, w = sizes.checked_grid, *sizes.window
    paper = AttentionConfig(window=sizes.window)
    ordered, raster = TokenLayout(grid, ordered=True), TokenLayout(grid)
    return {
        "the paper's windows, window-major": Case(paper, ordered, sizes.head_dim),
        "raster order, k 3, shifted units": Case(replace(paper, top_k=3, unit=2), raster, 64, block=1),
        "windows of two frames, batch 2": Case(replace(paper, window=(2 * t, h, w), top_k=3), ordered, sizes.head_dim, batch=2),
        "large windows": Case(replace(paper, window=(3, 2 * h, w)), raster, 64),
        "condition tokens": Case(paper, TokenLayout(grid, num_condition_tokens=17), sizes.head_dim),
    }


def kernel_items(sizes: Sizes) -> Iterator[Item]:
    """Yields a comparison for each case, dtype and kernel of the table; the last of the table, Triton's, first."""
    names = [name for name in reversed(kernels.KERNELS) if name != "reference"]
    for what, case in cases(sizes).items():
        for name, dtype in product(names, (torch.bfloat16, torch.float16)):
            half = str(dtype).removeprefix("torch.")
            yield Item("kernels", f"{name}, {half}: {what}", 3.5 if name == "triton" else 1, partial(compare, name, case, dtype))


def compare(name: str, case: Case, dtype: torch.dtype, bench: Bench) -> dict[str, Any]:
    """Returns the relative errors (L2) of a kernel and of the plain reference in the same dtype, against the reference in float64."""
    if name == "triton" and not bench.is_gpu and dtype == torch.bfloat16:
        raise NotRun("Triton's interpreter, which takes the place of a GPU, computes bfloat16 wrongly")
    kernel, reference, layout = kernels.load(name), kernels.load("reference"), case.layout
    shape = case.batch, layout.num_grid_tokens + layout.num_condition_tokens, case.heads, case.head_dim
    generator = torch.Generator(bench.device).manual_seed(0)
    q, k, v, grad = (torch.randn(shape, generator=generator, device=bench.device).to(dtype) for _ in range(4))
    q, grad = q[:, : layout.num_grid_tokens], grad[:, : layout.num_grid_tokens]
    windows = case.config.windows(layout, case.block, bench.device)
    selection = select_windows(q, k, windows, case.config, reference)
    exact = attention_and_gradients(reference, (q, k, v), grad, windows, selection, torch.float64)
    plain, ours = (attention_and_gradients(each, (q, k, v), grad, windows, selection, dtype) for each in (reference, kernel))
    errors, allowed = ({what: error(x, y) for what, x, y in zip(WHAT, result, exact, strict=True)} for result in (ours, plain))
    return {
        "error": errors,
        "reference_error": allowed,
        "same_windows": torch.equal(select_windows(q, k, windows, case.config, kernel), selection),
        "passed": all(errors[what] <= ALLOWED * allowed[what] for what in WHAT),  # NaN does not pass
    }


def attention_and_gradients(
    kernel: WindowKernel, tensors: tuple[Tensor, ...], grad: Tensor, windows: Windows, selection: Tensor, dtype: torch.dtype
) -> tuple[Tensor, ...]:
    """Returns the attention and the gradients of q, k and v."""
    q, k, v = (x.to(dtype).requires_grad_() for x in tensors)
    out = kernel.window_attention(q, k, v, windows, selection)
    return out, *torch.autograd.grad(out, (q, k, v), grad.to(dtype))


def error(x: Tensor, exact: Tensor) -> float:
    return float((x.detach().double() - exact.detach()).norm() / exact.detach().norm())
