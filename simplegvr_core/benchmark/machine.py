"""Timings of one machine in one run, beside its floors: the time at its best copy bandwidth and matrix rate."""

import json
import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter
from typing import Literal

import torch
from torch.utils.benchmark import Timer

from ..evaluation.versions import versions
from ..files import write_text

SLOW_S = 2


@dataclass(frozen=True)
class Row:
    """One timing. ms: milliseconds of one call, None if it could not run; note says why, or what ran. gb: memory that it
    takes above its inputs (GPUs only). floor_ms: the least time. tflops: useful ones, per second. error: largest, against
    float64."""

    name: str
    grid: tuple[int, int, int]
    ms: float | None
    floor_ms: float
    tflops: float | None
    gb: float | None = None
    error: float | None = None
    note: str = ""


class Machine:
    """Where the benchmark runs: its name, and its measured copy bandwidth and matrix rate, from which floors follow."""

    def __init__(self, device: str, dtype: str, limit_s: float):
        """limit_s: what would take longer by its floor is not run."""
        self.device, self.dtype, self.limit_s = torch.device(device), getattr(torch, dtype), limit_s
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)  # Triton times the current one
        size = 8192 if self.device.type == "cuda" else 2048
        x = torch.randn(16 * size, size, device=self.device).to(self.dtype)
        y, square = torch.empty_like(x), x[:size]
        self.bytes_per_ms = 2 * x.numel() * x.element_size() / self.best_milliseconds(lambda: y.copy_(x))
        self.flops_per_ms = 2 * size**3 / self.best_milliseconds(lambda: square @ square)

    def best_milliseconds(self, run: Callable) -> float:
        return 1e3 * min(self.call(run)[0] for _ in range(30))

    def milliseconds(self, run: Callable, seconds: float | None = None) -> float:
        """Returns the median time of a call. On a GPU with Triton, each starts with an empty L2 cache.

        run must have run before. seconds: of a call that compiled nothing, if there was one. A call longer than SLOW_S is timed once.
        """
        seconds = self.call(run)[0] if seconds is None else seconds
        if seconds > SLOW_S:
            return 1e3 * seconds
        if self.device.type == "cuda" and find_spec("triton"):
            from triton.testing import do_bench

            return do_bench(run, rep=500, return_mode="median")
        timer = Timer("run()", globals={"run": run}, num_threads=torch.get_num_threads())
        return 1e3 * timer.blocked_autorange(min_run_time=SLOW_S).median

    def call(self, run: Callable) -> tuple[float, torch.Tensor]:
        """Returns the seconds of one call and its result."""
        self.synchronize()
        start = perf_counter()
        out = run()
        self.synchronize()
        return perf_counter() - start, out

    def synchronize(self) -> None:
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)

    def floor(self, flops: float, bytes_: float = 0) -> float:
        """Returns the least milliseconds for so many operations and bytes."""
        return max(flops / self.flops_per_ms, bytes_ / self.bytes_per_ms)

    def beyond_limit(self, name: str, grid: tuple, flops: float, bytes_: float = 0) -> Row | None:
        """Returns the row of what is not run, as its floor is beyond the limit; None for what is."""
        floor = self.floor(flops, bytes_)
        return Row(name, grid, None, floor, None, note=f"not run: at least {floor / 1e3:.0f} s") if floor > 1e3 * self.limit_s else None

    def row(self, name: str, grid: tuple, run: Callable, flops: float, bytes_: float = 0, error: Callable | None = None, note="") -> Row:
        """Returns the timing of run. flops: useful ones of a call; bytes_: what it must read and write; error: of its result."""
        if left_out := self.beyond_limit(name, grid, flops, bytes_):
            return left_out
        floor = self.floor(flops, bytes_)
        try:
            seconds, gb, out = self.first_call(run)
            wrong = error(out) if error else None
            del out
            ms = self.milliseconds(run, seconds if self.device.type == "cpu" else None)
        except torch.OutOfMemoryError:
            return Row(name, grid, None, floor, None, note="out of memory")
        return Row(name, grid, ms, floor, flops / ms / 1e9 if flops else None, gb, wrong, note)

    def first_call(self, run: Callable) -> tuple[float, float | None, torch.Tensor]:
        """Returns a call's seconds, what it compiles included, the GB that it takes above what is there, and its result."""
        if self.device.type != "cuda":
            seconds, out = self.call(run)
            return seconds, None, out
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        seconds, out = self.call(run)
        return seconds, (torch.cuda.max_memory_allocated(self.device) - before) / 1e9, out

    def describe(self) -> dict:
        gpu = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else None
        return {
            "machine": gpu or f"{platform.machine()} CPU, {torch.get_num_threads()} threads",
            "dtype": str(self.dtype).removeprefix("torch."),
            "copy_gb_per_s": self.bytes_per_ms / 1e6,
            "matrix_tflops": self.flops_per_ms / 1e9,
            **versions(),
        }


@dataclass(frozen=True)
class Options:
    """What all benchmarks have in common."""

    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    """cpu, cuda, cuda:1, mps and so on."""
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16" if torch.cuda.is_available() else "float32"
    out: Path = Path("out/benchmark")
    """Folder for NAME.json, NAME.md and NAME.png of the last run."""
    limit_s: float = 60
    """What would take longer than this by its floor is not run."""

    def machine(self) -> Machine:
        return Machine(self.device, self.dtype, self.limit_s)


def report(folder: Path, name: str, machine: Machine, rows: list[Row], summary: dict) -> dict:
    """Returns all that was measured, after writing it to name.json and, as a table, to name.md in folder and to the terminal."""
    results = {**summary, **machine.describe(), "rows": [asdict(row) for row in rows]}
    described = ", ".join(
        f"{key} {value:.3g}" if isinstance(value, float) else f"{key} {value}" for key, value in machine.describe().items()
    )
    write_text(folder / f"{name}.json", json.dumps(results, indent=1))
    write_text(folder / f"{name}.md", f"{described}\n\n{table(rows)}\n")
    print(f"{described}\n\n{table(rows)}\n")
    return results


def table(rows: list[Row]) -> str:
    """Returns the rows as a table in Markdown; a dash is what was not measured."""

    def cell(value: float | None, form: str) -> str:
        return "-" if value is None else format(value, form)

    lines = ["| | tokens | ms | floor ms | TFLOP/s | extra GB | error | |", "|---|---|---|---|---|---|---|---|"]
    for row in rows:
        numbers = ((row.ms, ".4g"), (row.floor_ms, ".3g"), (row.tflops, ".3g"), (row.gb, ".2f"), (row.error, ".1e"))
        grid = "x".join(map(str, row.grid))
        lines.append(f"| {row.name} | {grid} | {' | '.join(cell(*number) for number in numbers)} | {row.note} |")
    return "\n".join(lines)


def bars(path: Path, rows: list[Row], title: str) -> None:
    """Draws each timing as a bar, its floor as a mark."""
    figure, axes = new_figure(title)
    axes.barh([row.name for row in rows], [row.ms for row in rows])
    axes.plot([row.floor_ms for row in rows], range(len(rows)), "k|", markersize=12, label="floor")
    axes.invert_yaxis()
    axes.set(xscale="log", xlabel="milliseconds")
    save_figure(path, figure, axes)


def curves(path: Path, rows: list[Row], title: str) -> None:
    """Draws the timings of each name over the number of tokens, their floors dotted."""
    figure, axes = new_figure(title)
    for name in dict.fromkeys(row.name for row in rows if row.ms):
        own = [row for row in rows if row.name == name]
        tokens = [row.grid[0] * row.grid[1] * row.grid[2] for row in own]
        (line,) = axes.plot(tokens, [row.ms for row in own], "o-", label=name)
        axes.plot(tokens, [row.floor_ms for row in own], ":", color=line.get_color())
    axes.set(xscale="log", yscale="log", xlabel="tokens", ylabel="milliseconds (dotted: floor)")
    save_figure(path, figure, axes)


def new_figure(title: str):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 6), layout="constrained")
    axes = figure.add_subplot(title=title)
    axes.grid(alpha=0.3)
    return figure, axes


def save_figure(path: Path, figure, axes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    axes.legend()
    figure.savefig(path, dpi=110)
