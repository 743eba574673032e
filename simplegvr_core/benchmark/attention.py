"""Time of one attention operator: dense, ours, and other block-sparse ones."""

from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ..networks import kernels
from ..networks.attention import AttentionConfig, attend, full_attention, select_windows
from ..networks.kernels import reference
from ..networks.windows import TokenLayout, Windows
from ..planning import flops
from . import baselines
from .machine import Machine, Options, Row, bars, curves, report

ATTENTIONS = {
    "dense": AttentionConfig(kind="full", unit=None),
    "dense units": AttentionConfig(kind="full", unit=5),
    "swin": AttentionConfig(kind="swin", window=(1, 36, 21), unit=5),
    "sparse local": AttentionConfig(),
}
CHECKED_WINDOWS, CHECKED_TOKENS = 64, 16  # compared with float64: the whole would take longer than the benchmark


@dataclass(frozen=True)
class Attention(Options):
    """One attention operator: dense ones, ours, and other block-sparse ones given the same windows."""

    grid: tuple[str, ...] = ("20,72,126",)
    """Tokens T,H,W, one or more times. The default is 77 frames of 1152 x 2016."""
    heads: int = 12
    """Attention heads; Wan 2.1 1.3B has 12, 14B 40."""
    head_dim: int = 128
    """Features of a head."""
    top_k: tuple[int, ...] = (1,)
    """How many other windows each window sees, one or more times."""
    window: tuple[int, int, int] = (1, 12, 9)
    """Tokens of a window along time, height, width."""
    unit: int = 5
    """Frames of a temporal unit; 0 is the whole video."""

    def run(self) -> dict:
        grids, configs = [parse_grid(text) for text in self.grid], [self.config(top_k) for top_k in self.top_k]
        machine, rows = self.machine(), []
        for grid in grids:
            q, k, v = self.inputs(machine, grid)
            rows += self.dense(machine, grid, q, k, v)
            for config in configs:
                rows += self.sparse(machine, grid, config, q, k, v)
        first = grids[0]
        dense = fastest(rows, first, "dense: ")
        sparse = fastest(rows, first, f"ours, k {self.top_k[0]}: ")
        units = fastest(rows, first, "dense units: ")
        if sparse is None:
            raise ValueError(f"--limit-s is {self.limit_s:g}, by which nothing of ours can run: raise it, or choose a smaller --grid")
        summary = {
            "fastest_dense": dense and dense.name,
            "fastest_sparse": sparse.name,
            "sparse_over_dense": dense and dense.ms / sparse.ms,
            "sparse_over_dense_units": units and units.ms / sparse.ms,
            "scaling_4x_tokens": self.scaling(machine, first, sparse.name.split(": ")[1]),
            "share_of_dense": flops.share_of_dense(configs[0], first),
        }
        bars(self.out / "attention.png", [row for row in rows if row.ms and row.grid == first], f"attention at {self.grid[0]} tokens")
        return report(self.out, "attention", machine, rows, summary)

    def scaling(self, machine: Machine, grid: tuple, implementation: str) -> float:
        """Returns our time at four times the frames over that at one, measured in turn: speed drifts on a shared machine."""
        config, grids = self.config(self.top_k[0]), (grid, (4 * grid[0], *grid[1:]))
        kernel = kernels.load(implementation)
        runs = [partial(attend, *self.inputs(machine, g), TokenLayout(g, ordered=True), config, 0, kernel=kernel) for g in grids]
        turns = [[machine.milliseconds(run) for run in runs] for _ in range(3)]
        one, four = np.median(turns, axis=0)
        return four / one

    def config(self, top_k: int) -> AttentionConfig:
        return AttentionConfig(window=self.window, top_k=top_k, unit=self.unit or None)

    def inputs(self, machine: Machine, grid: tuple) -> list[Tensor]:
        generator = torch.Generator(machine.device).manual_seed(0)
        shape = (1, grid[0] * grid[1] * grid[2], self.heads, self.head_dim)
        return [torch.randn(shape, generator=generator, device=machine.device).to(machine.dtype) for _ in range(3)]

    def dense(self, machine: Machine, grid: tuple, q: Tensor, k: Tensor, v: Tensor) -> list[Row]:
        """Returns timings of dense attention, over the whole video and, as a batch, inside temporal units of equal length."""
        some = torch.linspace(0, q.shape[1] - 1, CHECKED_TOKENS, device=q.device).long()
        exact = full_attention(q[:, some].double(), k.double(), v.double())
        count = flops.attention_flops(ATTENTIONS["dense"], grid, self.heads * self.head_dim)
        rows = [
            self.baseline(machine, f"dense: {name}", grid, factory, (q, k, v), count, lambda out: max_error(out[:, some], exact))
            for name, factory in tqdm(baselines.DENSE.items(), desc="dense", leave=False)
        ]
        num_units, rest = divmod(grid[0], self.unit or grid[0])
        if num_units > 1 and not rest:
            units = [x.reshape(num_units, -1, self.heads, self.head_dim) for x in (q, k, v)]
            for name, factory in tqdm(baselines.DENSE.items(), desc="dense units", leave=False):
                rows.append(self.baseline(machine, f"dense units: {name}", grid, factory, units, count / num_units))
        swin = replace(ATTENTIONS["swin"], unit=self.unit or None)
        count = flops.attention_flops(swin, grid, self.heads * self.head_dim)
        return [*rows, machine.row("swin", grid, lambda: attend(q, k, v, TokenLayout(grid), swin, 0), count, 4 * nbytes(q))]

    def baseline(self, machine: Machine, name: str, grid: tuple, factory, inputs, count: float, error=None) -> Row:
        """Returns the timing of a baseline, or why there is none."""
        must_move = 4 * nbytes(inputs[0])
        if left_out := machine.beyond_limit(name, grid, count, must_move):  # making it runs it once
            return left_out
        try:
            run = factory(*inputs)
        except baselines.Unavailable as reason:
            return Row(name, grid, None, machine.floor(count, must_move), None, note=f"not run: {reason}")
        return machine.row(name, grid, run, count, must_move, error, getattr(run, "label", ""))

    def sparse(self, machine: Machine, grid: tuple, config: AttentionConfig, q: Tensor, k: Tensor, v: Tensor) -> list[Row]:
        windows = config.windows(TokenLayout(grid, ordered=True), 0, q.device)
        selection = select_windows(q, k, windows, config, kernels.load("sdpa"))
        count, label = flops.attention_flops(config, grid, self.heads * self.head_dim), f"k {config.top_k}"
        exact = reference.window_attention(q.double(), k.double(), v.double(), windows, selection[:, :, :CHECKED_WINDOWS])
        tokens = windows.table[:CHECKED_WINDOWS].flatten()
        tokens = tokens[tokens >= 0]

        def error(out: Tensor) -> float:
            return max_error(out[:, tokens], exact[:, tokens])

        implementations = available(machine, self.head_dim, windows)
        rows = [self.operator(machine, grid, config, q, k, v, name, error) for name in implementations]
        for name in implementations:
            kernel = kernels.load(name)
            find = partial(select_windows, q, k, windows, config, kernel)
            rows.append(machine.row(f"ours, {label}, finding windows: {name}", grid, find, 0, 2 * nbytes(q)))
            for kind, chosen in selections(windows, selection).items():
                rows.append(
                    machine.row(
                        f"ours, {label}, windows given ({kind}): {name}",
                        grid,
                        lambda kernel=kernel, chosen=chosen: kernel.window_attention(q, k, v, windows, chosen),
                        count,
                        4 * nbytes(q),
                        error if chosen is selection else None,
                    )
                )
        for name, factory in baselines.SPARSE.items() if machine.device.type == "cuda" else ():
            rows.append(self.baseline(machine, f"{name}, {label}, windows given", grid, factory, (q, k, v, windows, selection), count))
        return rows

    def operator(self, machine: Machine, grid: tuple, config: AttentionConfig, q, k, v, implementation: str, error=None) -> Row:
        """Returns the timing of the whole operator, which finds its windows too. q, k, v: (1, L, n, d)."""
        count = flops.attention_flops(config, grid, self.heads * self.head_dim)
        run = partial(attend, q, k, v, TokenLayout(grid, ordered=True), config, 0, kernel=kernels.load(implementation))
        return machine.row(f"ours, k {config.top_k}: {implementation}", grid, run, count, 4 * nbytes(q), error)


def parse_grid(text: str) -> tuple[int, int, int]:
    """Returns T, H, W of a text such as 5,72,126. Raises ValueError when it is none."""
    parts = text.split(",")
    if len(parts) != 3 or not all(part.isdecimal() and int(part) for part in parts):
        raise ValueError(f"--grid is {text!r}, wanted tokens along time, height and width, such as 5,72,126")
    return tuple(map(int, parts))


def available(machine: Machine, head_dim: int, windows: Windows) -> list[str]:
    """Returns our implementations that run on the machine."""
    case = kernels.KernelCase(machine.device, machine.dtype, head_dim, windows.size, windows.contiguous)
    return list(dict.fromkeys(("sdpa", kernels.fastest(case))))


def selections(windows: Windows, selection: Tensor) -> dict[str, Tensor]:
    """Returns the selection of random inputs, and two that read memory otherwise: the same place one frame on, one window for all."""
    per_frame = (windows.place.amax(0) + 1).prod()
    later = (selection[..., :1] + per_frame * torch.arange(selection.shape[-1], device=selection.device)) % windows.num_windows
    return {
        "random": selection,
        "next frames": later,
        "all the same": torch.cat((selection[..., :1], later[:, :, :1, 1:].expand_as(later[..., 1:])), -1),
    }


@dataclass(frozen=True)
class Scaling(Options):
    """Time of the attention operator over the number of tokens, dense and ours."""

    frames: tuple[int, ...] = (5, 10, 20, 40, 80)
    """Latent frames."""
    height: int = 72
    width: int = 126
    """Tokens of a frame."""
    heads: int = 12

    def run(self) -> dict:
        machine, rows = self.machine(), []
        operators = Attention(device=self.device, dtype=self.dtype, heads=self.heads)
        for frames in tqdm(self.frames, leave=False):
            grid = (frames, self.height, self.width)
            q, k, v = operators.inputs(machine, grid)
            for name in ("dense", "dense units"):
                count = flops.attention_flops(ATTENTIONS[name], grid, self.heads * operators.head_dim)
                rows.append(machine.row(name, grid, partial(attend, q, k, v, TokenLayout(grid), ATTENTIONS[name], 0), count, 4 * nbytes(q)))
            windows = ATTENTIONS["sparse local"].windows(TokenLayout(grid, ordered=True), 0)
            for name in available(machine, operators.head_dim, windows):
                rows.append(operators.operator(machine, grid, ATTENTIONS["sparse local"], q, k, v, name))
        exponents = {name: exponent([row for row in rows if row.name == name]) for name in dict.fromkeys(row.name for row in rows)}
        curves(self.out / "scaling.png", rows, f"attention over tokens, frames of {self.height} x {self.width}")
        return report(self.out, "scaling", machine, rows, {"time_is_tokens_to_the_power": exponents})


def fastest(rows: list[Row], grid: tuple, prefix: str) -> Row | None:
    return min((row for row in rows if row.grid == grid and row.ms and row.name.startswith(prefix)), key=lambda row: row.ms, default=None)


def max_error(out: Tensor, exact: Tensor) -> float:
    return float((out.double() - exact).abs().max())


def nbytes(x: Tensor) -> int:
    return x.numel() * x.element_size()


def exponent(rows: list[Row]) -> float | None:
    """Returns p of time = c tokens^p, by least squares over the timings that there are."""
    points = [(np.log(np.prod(row.grid, dtype=float)), np.log(row.ms)) for row in rows if row.ms]
    return float(np.polyfit(*zip(*points, strict=True), 1)[0]) if len(points) > 1 else None
