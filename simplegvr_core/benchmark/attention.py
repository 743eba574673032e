"""Time of one attention operator: dense, ours, and other block-sparse ones."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ..networks import kernels
from ..networks.attention import AttentionConfig, attend, full_attention, select_windows
from ..networks.block_causal import choose_blocks
from ..networks.block_causal_config import BlockCausalConfig
from ..networks.kernels import block_reference, reference
from ..networks.windows import TokenLayout, Windows
from ..planning import flops
from . import baselines
from .machine import Grid, Machine, Options, Row, Work, bars, curves, report

ATTENTIONS = {
    "dense": AttentionConfig(kind="full", unit=None),
    "dense units": AttentionConfig(kind="full", unit=5),
    "swin": AttentionConfig(kind="swin", window=(1, 36, 21), unit=5),
    "sparse local": AttentionConfig(),
}
BLOCK_CAUSAL = BlockCausalConfig()
CHECKED_WINDOWS, CHECKED_BLOCKS, CHECKED_TOKENS = 64, 4, 16  # compared with float64: the whole would take longer than the benchmark

Error = Callable[[Tensor], float]


class Tokens(NamedTuple):
    """What attention is given: q, k, v of shape (1, T*H*W, heads, head dim) in window-major order."""

    grid: Grid
    q: Tensor
    k: Tensor
    v: Tensor


@dataclass(frozen=True)
class AttentionBenchmark(Options):
    """Times one attention operator: dense ones, ours, and other block-sparse ones given the same windows."""

    grids: tuple[tuple[int, int, int], ...] = ((20, 72, 126),)
    """Video tokens along time, height and width, of one or more grids. The default is 77 frames of 1152 x 2016."""
    heads: int = 12
    """Attention heads; Wan 2.1 1.3B has 12, 14B 40."""
    head_dim: int = 128
    """Features of a head."""
    top_k: tuple[int, ...] = (1,)
    """Number of other windows that each window attends to; one or more."""
    window: tuple[int, int, int] = (1, 12, 9)
    """Tokens of a window along time, height and width."""
    unit: int = 5
    """Latent frames of a temporal unit; 0 is the whole video."""

    def run(self) -> dict:
        """Returns the timings and the ratios between them.

        Raises:
            ValueError: A grid is empty, or nothing of ours fits limit_s.
        """
        for grid in self.grids:
            if min(grid) < 1:
                raise ValueError(f"--grids has {' '.join(map(str, grid))}, wanted tokens along time, height and width, such as 5 72 126")
        configs = [self.config(top_k) for top_k in self.top_k]
        machine, rows = self.machine(), []
        for grid in self.grids:
            tokens = self.tokens(machine, grid)
            rows += self.dense(machine, tokens)
            for config in configs:
                rows += self.sparse(machine, tokens, config)
            rows += self.block_causal(machine, tokens)
        first = self.grids[0]
        dense = fastest(rows, first, "dense: ")
        sparse = fastest(rows, first, f"ours, k {self.top_k[0]}: ")
        units = fastest(rows, first, "dense units: ")
        causal = fastest(rows, first, "block causal: ")
        if sparse is None:
            raise ValueError(f"--limit-s is {self.limit_s:g}, by which nothing of ours can run: raise it, or choose a smaller grid")
        summary = {
            "fastest_dense": dense and dense[1],
            "fastest_sparse": sparse[1],
            "sparse_over_dense": dense and dense[0] / sparse[0],
            "sparse_over_dense_units": units and units[0] / sparse[0],
            "scaling_4x_tokens": self.scaling(machine, first, sparse[1].split(": ")[1]),
            "share_of_dense": flops.share_of_dense(configs[0], first),
            "block_causal_over_dense": dense and causal and dense[0] / causal[0],
            "block_causal_share_of_dense": flops.share_of_dense(BLOCK_CAUSAL, first),
        }
        bars(self.out / "attention.png", [row for row in rows if row.grid == first], f"attention at {' x '.join(map(str, first))} tokens")
        return report(self.out / "attention", machine, rows, summary)

    def scaling(self, machine: Machine, grid: Grid, kernel: str) -> float:
        """Returns our time at four times the frames over that at one, measured in turn: speed drifts on a shared machine."""
        grids = grid, (4 * grid[0], *grid[1:])
        runs = [ours(self.tokens(machine, each), self.config(self.top_k[0]), kernel) for each in grids]
        turns = [[machine.milliseconds(run) for run in runs] for _ in range(3)]
        one, four = np.median(turns, axis=0)
        return four / one

    def config(self, top_k: int) -> AttentionConfig:
        return AttentionConfig(window=self.window, top_k=top_k, unit=self.unit or None)

    def tokens(self, machine: Machine, grid: Grid) -> Tokens:
        """Returns normal noise, the same on every call for one grid and machine."""
        generator = torch.Generator(machine.device).manual_seed(0)
        shape = (1, grid[0] * grid[1] * grid[2], self.heads, self.head_dim)
        q, k, v = (torch.randn(shape, generator=generator, device=machine.device).to(machine.dtype) for _ in range(3))
        return Tokens(grid, q, k, v)

    def work(self, name: str, tokens: Tokens, config: AttentionConfig) -> Work:
        """Returns the work of attention: it reads q, k, v and writes as much as q."""
        return Work(name, tokens.grid, flops.attention_flops(config, tokens.grid, self.heads * self.head_dim), 4 * nbytes(tokens.q))

    def dense(self, machine: Machine, tokens: Tokens) -> list[Row]:
        """Returns timings of dense attention: of the whole video and, as a batch, inside temporal units of equal length; and of Swin."""
        grid, q, k, v = tokens
        some = torch.linspace(0, q.shape[1] - 1, CHECKED_TOKENS, device=q.device).long()
        exact = full_attention(q[:, some].double(), k.double(), v.double())
        rows = []
        for name, factory in tqdm(baselines.DENSE.items(), desc="dense", leave=False):
            work = self.work(f"dense: {name}", tokens, ATTENTIONS["dense"])
            rows.append(baseline_row(machine, work, partial(factory, q, k, v), lambda out: max_error(out[:, some], exact)))
        num_units, rest = divmod(grid[0], self.unit or grid[0])
        if num_units > 1 and not rest:
            units = [x.reshape(num_units, -1, self.heads, self.head_dim) for x in (q, k, v)]
            for name, factory in tqdm(baselines.DENSE.items(), desc="dense units", leave=False):
                work = self.work(f"dense units: {name}", tokens, replace(ATTENTIONS["dense units"], unit=self.unit))
                rows.append(baseline_row(machine, work, partial(factory, *units)))
        swin = replace(ATTENTIONS["swin"], unit=self.unit or None)
        return [*rows, machine.row(self.work("swin", tokens, swin), partial(attend, q, k, v, TokenLayout(grid), swin, 0))]

    def sparse(self, machine: Machine, tokens: Tokens, config: AttentionConfig) -> list[Row]:
        """Returns timings of sparse local attention: of ours, of ours in parts, and on CUDA of other kernels given our windows."""
        grid, q, k, v = tokens
        windows = config.windows(TokenLayout(grid, ordered=True), 0, q.device)
        selection = select_windows(q, k, windows, config, kernels.load("sdpa"))
        label = f"k {config.top_k}"
        exact = reference.window_attention(q.double(), k.double(), v.double(), windows, selection[:, :, :CHECKED_WINDOWS])
        checked = windows.table[:CHECKED_WINDOWS].flatten()
        checked = checked[checked >= 0]

        def error(out: Tensor) -> float:
            return max_error(out[:, checked], exact[:, checked])

        names = available(machine, self.head_dim, windows)
        rows = [self.operator(machine, tokens, config, name, error) for name in names]
        for name in names:
            kernel = kernels.load(name)
            finding = Work(f"ours, {label}, finding windows: {name}", grid, bytes=2 * nbytes(q))
            rows.append(machine.row(finding, partial(select_windows, q, k, windows, config, kernel)))
            for kind, chosen in selections(windows, selection).items():
                work = self.work(f"ours, {label}, windows given ({kind}): {name}", tokens, config)
                run = partial(kernel.window_attention, q, k, v, windows, chosen)
                rows.append(machine.row(work, run, error if chosen is selection else None))
        for name, factory in baselines.SPARSE.items() if machine.device.type == "cuda" else ():
            work = self.work(f"{name}, {label}, windows given", tokens, config)
            rows.append(baseline_row(machine, work, partial(factory, q, k, v, windows, selection)))
        return rows

    def block_causal(self, machine: Machine, tokens: Tokens) -> list[Row]:
        """Returns timings of block-causal attention of a clip: of the whole operator, and in parts."""
        grid, q, k, v = tokens
        layout = TokenLayout(grid, ordered=True)
        _, blocks, selection = choose_blocks(q, k, layout, BLOCK_CAUSAL, kernels.load_block("sdpa"))
        some = selection._replace(**{name: getattr(selection, name)[:, :, :CHECKED_BLOCKS] for name in ("start", "count")})
        exact = block_reference.block_attention(q.double(), k.double(), v.double(), blocks, some)
        checked = blocks.queries.table[:CHECKED_BLOCKS].flatten()
        checked = checked[checked >= 0]

        def error(out: Tensor) -> float:
            return max_error(out[:, checked], exact[:, checked])

        case = kernels.KernelCase(machine.device, machine.dtype, self.head_dim, blocks.keys.size, blocks.keys.contiguous)
        rows = []
        for name in dict.fromkeys(("sdpa", kernels.fastest_block(case))):
            kernel = kernels.load_block(name)
            whole = partial(attend, q, k, v, layout, BLOCK_CAUSAL, 0, kernel=kernel)
            finding = Work(f"block causal, finding blocks: {name}", grid, bytes=2 * nbytes(q))
            given = self.work(f"block causal, blocks given: {name}", tokens, BLOCK_CAUSAL)
            rows += [
                machine.row(self.work(f"block causal: {name}", tokens, BLOCK_CAUSAL), whole, error),
                machine.row(finding, lambda kernel=kernel: choose_blocks(q, k, layout, BLOCK_CAUSAL, kernel).selection.block),
                machine.row(given, partial(kernel.block_attention, q, k, v, blocks, selection), error),
            ]
        return rows

    def operator(self, machine: Machine, tokens: Tokens, config: AttentionConfig, kernel: str, error: Error | None = None) -> Row:
        """Returns the timing of our whole operator, which finds its windows too."""
        work = self.work(f"ours, k {config.top_k}: {kernel}", tokens, config)
        return machine.row(work, ours(tokens, config, kernel), error)


@dataclass(frozen=True)
class ScalingBenchmark(Options):
    """Times the attention operator over the number of tokens, dense and ours."""

    latent_frames: tuple[int, ...] = (5, 10, 20, 40, 80)
    """Lengths of the clip."""
    height: int = 72
    width: int = 126
    """Tokens of a frame."""
    heads: int = 12
    """Attention heads."""

    def run(self) -> dict:
        """Returns the timings, and for each operator the power of the tokens that its time follows."""
        machine, rows = self.machine(), []
        operators, sparse = AttentionBenchmark(heads=self.heads), ATTENTIONS["sparse local"]
        for frames in tqdm(self.latent_frames, leave=False):
            tokens = operators.tokens(machine, (frames, self.height, self.width))
            for name in ("dense", "dense units"):
                run = partial(attend, tokens.q, tokens.k, tokens.v, TokenLayout(tokens.grid), ATTENTIONS[name], 0)
                rows.append(machine.row(operators.work(name, tokens, ATTENTIONS[name]), run))
            for name in available(machine, operators.head_dim, sparse.windows(TokenLayout(tokens.grid, ordered=True), 0)):
                rows.append(operators.operator(machine, tokens, sparse, name))
        exponents = {name: exponent([row for row in rows if row.name == name]) for name in dict.fromkeys(row.name for row in rows)}
        curves(self.out / "scaling.png", rows, f"attention over tokens, frames of {self.height} x {self.width}")
        return report(self.out / "scaling", machine, rows, {"time_is_tokens_to_the_power": exponents})


def ours(tokens: Tokens, config: AttentionConfig, kernel: str) -> Callable[[], Tensor]:
    """Returns our operator on tokens, by one of our kernels."""
    grid, q, k, v = tokens
    return partial(attend, q, k, v, TokenLayout(grid, ordered=True), config, 0, kernel=kernels.load(kernel))


def baseline_row(machine: Machine, work: Work, make: Callable[[], Callable[[], Tensor]], error: Error | None = None) -> Row:
    """Returns the timing of a baseline, or why there is none.

    Args:
        machine: Where it runs.
        work: What one call does.
        make: Makes the baseline, which runs it once; not called where the work is beyond the machine's limit.
        error: Error of its result, where it is known.
    """
    if left_out := machine.beyond_limit(work):
        return left_out
    try:
        run = make()
    except baselines.Unavailable as reason:
        return machine.not_run(work, f"not run: {reason}")
    return machine.row(work, run, error, getattr(run, "label", ""))


def available(machine: Machine, head_dim: int, windows: Windows) -> list[str]:
    """Returns our kernels that run on the machine."""
    case = kernels.KernelCase(machine.device, machine.dtype, head_dim, windows.size, windows.contiguous)
    return list(dict.fromkeys(("sdpa", kernels.fastest(case))))


def selections(windows: Windows, selection: Tensor) -> dict[str, Tensor]:
    """Returns the selection of random inputs, and two that read memory otherwise: the same place one frame on, one window for all.

    Args:
        windows: The windows of the grid.
        selection: (1, heads, W, K) windows that each window attends to, itself first.
    """
    per_frame = (windows.place.amax(0) + 1).prod()
    later = (selection[..., :1] + per_frame * torch.arange(selection.shape[-1], device=selection.device)) % windows.num_windows
    return {
        "random": selection,
        "next frames": later,
        "all the same": torch.cat((selection[..., :1], later[:, :, :1, 1:].expand_as(later[..., 1:])), -1),
    }


def fastest(rows: list[Row], grid: Grid, prefix: str) -> tuple[float, str] | None:
    """Returns milliseconds and name of a grid's fastest row whose name begins with prefix, None where there is none."""
    return min(((row.ms, row.name) for row in rows if row.grid == grid and row.ms and row.name.startswith(prefix)), default=None)


def max_error(out: Tensor, exact: Tensor) -> float:
    return float((out.double() - exact).abs().max())


def nbytes(x: Tensor) -> int:
    return x.numel() * x.element_size()


def exponent(rows: list[Row]) -> float | None:
    """Returns p of time = c tokens^p, by least squares over the timings that there are; None for fewer than two."""
    points = np.log([(np.prod(row.grid, dtype=float), row.ms) for row in rows if row.ms])
    return float(np.polyfit(points[:, 0], points[:, 1], 1)[0]) if len(points) > 1 else None
