"""The attention operator at its largest sizes: ours, dense and other block-sparse ones, in one run, beside the floor."""

from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from typing import Any

from torch import Tensor

from ...networks import kernels
from ...networks.attention import AttentionConfig, select_windows
from ...networks.kernels import reference
from ...networks.windows import TokenLayout
from .. import baselines
from ..attention import ATTENTIONS, CHECKED_WINDOWS, baseline_row, max_error, nbytes, selections
from ..machine import Grid, Row, Work
from .items import Bench, Item, NotRun, Sizes


def operator_items(sizes: Sizes) -> Iterator[Item]:
    """Yields the timings: at the first grid ours and dense, then the second, then more windows and other block-sparse kernels."""
    first, *others = sizes.grids
    dense = ("sdpa flash", "sdpa cudnn")
    yield item(first, "ours, k 1: triton", 5, partial(ours, 1, "triton"))
    for kind in ("random", "next frames", "all the same"):
        yield item(first, f"kernel alone, k 1, windows {kind}: triton", 1.5, partial(kernel_alone, 1, kind, "triton"))
    yield item(first, "finding windows: triton", 1, partial(finding, "triton"))
    for name in dense:
        yield item(first, f"dense: {name}", 4, partial(dense_whole, name))
    for name in dense:
        yield item(first, f"dense units: {name}", 2, partial(dense_units, name))
    yield item(first, "ours, k 1: sdpa", 3, partial(ours, 1, "sdpa"))
    for grid in others:
        yield item(grid, "ours, k 1: triton", 3, partial(ours, 1, "triton"))
        for name in dense:
            yield item(grid, f"dense: {name}", 3, partial(dense_whole, name))
    for top_k in (0, 3, 7):
        yield item(first, f"ours, k {top_k}: triton", 2, partial(ours, top_k, "triton"))
    yield item(first, "finding windows: sdpa", 1, partial(finding, "sdpa"))
    for name in ("flex, padded ahead", "flex", "cudnn block sparse"):
        yield item(first, f"{name}, k 1", 10 if name.startswith("flex") else 1, partial(block_sparse, name))
    for name in ("flash-attn 3", "flash-attn 4"):
        yield item(first, f"dense: {name}", 1, partial(dense_whole, name))


def item(grid: Grid, name: str, seconds: float, run: Any) -> Item:
    return Item("operator", f"{name}, {'x'.join(map(str, grid))}", seconds, partial(run, grid))


def ours(top_k: int, kernel: str, grid: Grid, bench: Bench) -> dict[str, Any]:
    """Returns the timing of the whole operator, which finds its windows too, and its error in some windows against float64."""
    require_gpu(kernel, bench)
    config, tokens = bench.operators.config(top_k), bench.tokens(grid)
    _, q, k, v = tokens
    windows = config.windows(TokenLayout(grid, ordered=True), 0, q.device)
    some = select_windows(q, k, windows, config, kernels.load("sdpa"))[:, :, :CHECKED_WINDOWS]
    exact = reference.window_attention(q.double(), k.double(), v.double(), windows, some)
    checked = windows.table[:CHECKED_WINDOWS].flatten()
    checked = checked[checked >= 0]

    def error(out: Tensor) -> float:
        return max_error(out[:, checked], exact[:, checked])

    return timed(bench.operators.operator(bench.machine, tokens, config, kernel, error))


def kernel_alone(top_k: int, kind: str, kernel: str, grid: Grid, bench: Bench) -> dict[str, Any]:
    """Returns the timing of attention alone, by one of the selections of attention.selections."""
    require_gpu(kernel, bench)
    config, tokens = bench.operators.config(top_k), bench.tokens(grid)
    _, q, k, v = tokens
    windows = config.windows(TokenLayout(grid, ordered=True), 0, q.device)
    chosen = selections(windows, select_windows(q, k, windows, config, kernels.load("sdpa")))[kind]
    work = bench.operators.work("", tokens, config)
    return timed(bench.machine.row(work, partial(kernels.load(kernel).window_attention, q, k, v, windows, chosen)))


def finding(kernel: str, grid: Grid, bench: Bench) -> dict[str, Any]:
    """Returns the timing of the selection of windows."""
    require_gpu(kernel, bench)
    config, (_, q, k, _) = bench.operators.config(1), bench.tokens(grid)
    windows = config.windows(TokenLayout(grid, ordered=True), 0, q.device)
    work = Work("", grid, bytes=2 * nbytes(q))
    return timed(bench.machine.row(work, partial(select_windows, q, k, windows, config, kernels.load(kernel))))


def dense_whole(name: str, grid: Grid, bench: Bench) -> dict[str, Any]:
    """Returns the timing of dense attention of the whole video."""
    tokens = bench.tokens(grid)
    _, q, k, v = tokens
    work = bench.operators.work("", tokens, ATTENTIONS["dense"])
    return timed(baseline_row(bench.machine, work, partial(baselines.DENSE[name], q, k, v)))


def dense_units(name: str, grid: Grid, bench: Bench) -> dict[str, Any]:
    """Returns the timing of dense attention inside temporal units of equal length, as a batch."""
    tokens, unit = bench.tokens(grid), bench.sizes.unit
    _, q, k, v = tokens
    units = (x.reshape(grid[0] // unit, -1, *x.shape[2:]) for x in (q, k, v))
    work = bench.operators.work("", tokens, AttentionConfig(kind="full", unit=unit))
    return timed(baseline_row(bench.machine, work, partial(baselines.DENSE[name], *units)))


def block_sparse(name: str, grid: Grid, bench: Bench) -> dict[str, Any]:
    """Returns the timing of another block-sparse kernel that is given our windows."""
    if not bench.is_gpu:
        raise NotRun("needs a GPU")
    config, tokens = bench.operators.config(1), bench.tokens(grid)
    _, q, k, v = tokens
    windows = config.windows(TokenLayout(grid, ordered=True), 0, q.device)
    selection = select_windows(q, k, windows, config, kernels.load("sdpa"))
    work = bench.operators.work("", tokens, config)
    return timed(baseline_row(bench.machine, work, partial(baselines.SPARSE[name], q, k, v, windows, selection)))


def require_gpu(kernel: str, bench: Bench) -> None:
    """Raises NotRun for Triton's kernel without a GPU: its interpreter's time means nothing."""
    if kernel == "triton" and not bench.is_gpu:
        raise NotRun("Triton needs a GPU")


def timed(row: Row) -> dict[str, Any]:
    """Returns a row's figures. Raises NotRun with its note when it has no timing."""
    if row.ms is None:
        raise NotRun(row.note.removeprefix("not run: "))
    return {name: value for name, value in asdict(row).items() if name not in ("name", "grid") and value not in (None, "")}
