"""Timings of one machine in one run, beside its floors: the time at its best copy bandwidth and matrix rate."""

import json
import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.benchmark import Timer

from ..checks import check_folder
from ..evaluation.versions import versions
from ..files import atomic_write, write_text
from ..networks.layers import default_device

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LONG_S = 0.1  # a longer call of a GPU is timed three times
T = TypeVar("T")
Grid = tuple[int, int, int]


@dataclass(frozen=True)
class Work:
    """An operation to time.

    Attributes:
        name: Its row in the table.
        grid: Video tokens along time, height and width.
        flops: Useful floating-point operations of one call; 0 where they are not counted.
        bytes: Bytes that one call reads and writes at least.
    """

    name: str
    grid: Grid
    flops: float = 0
    bytes: float = 0


@dataclass(frozen=True)
class Row:
    """One timing.

    Attributes:
        name: What was timed.
        grid: Video tokens along time, height and width.
        ms: Milliseconds of one call, None where it did not run.
        floor_ms: The least milliseconds on this machine.
        tflops: Useful floating-point operations a second, in 1e12; None where they are not counted.
        gb: Memory above the inputs, in 1e9 bytes; None except on CUDA devices.
        error: Largest absolute error against float64, None where it is not measured.
        note: Why it did not run, or which kernel ran.
    """

    name: str
    grid: Grid
    ms: float | None
    floor_ms: float
    tflops: float | None
    gb: float | None = None
    error: float | None = None
    note: str = ""


class Machine:
    """A device with its measured copy bandwidth and matrix rate, from which floors follow."""

    def __init__(self, device: str, dtype: str, limit_s: float, timing_s: float = 2):
        """Measures the device.

        Args:
            device: PyTorch's name of a device.
            dtype: PyTorch's name of a floating-point type.
            limit_s: Work whose floor is longer, in seconds, is not run.
            timing_s: Seconds of repeated calls for one timing on a CPU. A call that takes longer is timed once.
        """
        self.device, self.dtype, self.limit_s, self.timing_s = torch.device(device), getattr(torch, dtype), limit_s, timing_s
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device.index or 0)  # Triton times the current one
        size = 8192 if self.device.type == "cuda" else 2048
        x = torch.randn(16 * size, size, device=self.device).to(self.dtype)
        y, square = torch.empty_like(x), x[:size]
        self.bytes_per_ms = 2 * x.numel() * x.element_size() / self.best_milliseconds(lambda: y.copy_(x))
        self.flops_per_ms = 2 * size**3 / self.best_milliseconds(lambda: square @ square)

    def best_milliseconds(self, run: Callable[[], Tensor]) -> float:
        """Returns the shortest of 30 calls."""
        return 1e3 * min(self.call(run)[0] for _ in range(30))

    def milliseconds(self, run: Callable[[], object], seconds: float | None = None) -> float:
        """Returns the median time of a call. On a GPU with Triton, each call starts with an empty L2 cache.

        Args:
            run: An operation that has run once before.
            seconds: Time of a call that compiled nothing, where it is known.
        """
        seconds = self.call(run)[0] if seconds is None else seconds
        if seconds > self.timing_s:
            return 1e3 * seconds
        if self.device.type == "cuda" and seconds > LONG_S:  # the cache no longer matters
            return 1e3 * float(np.median([self.call(run)[0] for _ in range(3)]))
        if self.device.type == "cuda" and find_spec("triton"):
            from triton.testing import do_bench

            return float(do_bench(run, rep=500, return_mode="median"))  # pyright: ignore[reportArgumentType]: one number in this mode
        timer = Timer("run()", globals={"run": run}, num_threads=torch.get_num_threads())
        return 1e3 * timer.blocked_autorange(min_run_time=self.timing_s).median

    def call(self, run: Callable[[], T]) -> tuple[float, T]:
        """Returns the seconds of one call and its result."""
        self.synchronize()
        start = perf_counter()
        out = run()
        self.synchronize()
        return perf_counter() - start, out

    def synchronize(self) -> None:
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)

    def floor(self, work: Work) -> float:
        """Returns the least milliseconds of one call: at the best matrix rate and at the best copy bandwidth, whichever is longer."""
        return max(work.flops / self.flops_per_ms, work.bytes / self.bytes_per_ms)

    def not_run(self, work: Work, reason: str) -> Row:
        """Returns the row of work that has no timing."""
        return Row(work.name, work.grid, None, self.floor(work), None, note=reason)

    def beyond_limit(self, work: Work) -> Row | None:
        """Returns the row of work whose floor is beyond the limit, None for other work."""
        floor = self.floor(work)
        return self.not_run(work, f"not run: at least {floor / 1e3:.0f} s") if floor > 1e3 * self.limit_s else None

    def row(self, work: Work, run: Callable[[], Tensor], error: Callable[[Tensor], float] | None = None, note: str = "") -> Row:
        """Returns the timing of an operation.

        Args:
            work: What one call does.
            run: The operation.
            error: Error of its result, where it is known.
            note: Note of the row.
        """
        if left_out := self.beyond_limit(work):
            return left_out
        try:
            seconds, gb, out = self.first_call(run)
            measured_error = error(out) if error else None
            del out
            ms = self.milliseconds(run, seconds if self.device.type == "cpu" else None)
        except torch.OutOfMemoryError:
            return self.not_run(work, "out of memory")
        return Row(work.name, work.grid, ms, self.floor(work), work.flops / ms / 1e9 if work.flops else None, gb, measured_error, note)

    def first_call(self, run: Callable[[], Tensor]) -> tuple[float, float | None, Tensor]:
        """Returns a call's seconds, compilation included, the GB that it allocates above what is allocated, and its result."""
        if self.device.type != "cuda":
            seconds, out = self.call(run)
            return seconds, None, out
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        seconds, out = self.call(run)
        return seconds, (torch.cuda.max_memory_allocated(self.device) - before) / 1e9, out

    def describe(self) -> dict[str, str | float]:
        """Returns the machine's name, data type, rates and the versions of what decides its speed."""
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
    """Options that all timings have in common."""

    device: str = default_device()
    """cpu, cuda, cuda:1, mps and so on."""
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16" if default_device() == "cuda" else "float32"
    out: Path = Path("out/benchmark")
    """Folder for NAME.json, NAME.md and NAME.png; files of an earlier run are replaced."""
    limit_s: float = 60
    """Work whose least possible time is longer, in seconds, is not run."""
    timing_s: float = 2
    """Seconds of repeated calls for one timing on a CPU."""

    def machine(self) -> Machine:
        """Returns where to measure. Raises OSError unless --out can be written."""
        check_folder(self.out)
        return Machine(self.device, self.dtype, self.limit_s, self.timing_s)


def report(path: Path, machine: Machine, rows: list[Row], summary: dict) -> dict:
    """Returns all that was measured, after writing path.json and a table in path.md and printing the table.

    Args:
        path: The files' folder and name, without a suffix.
        machine: Where it was measured.
        rows: The timings.
        summary: Results that are not timings, by name.
    """
    results = {**summary, **machine.describe(), "rows": [asdict(row) for row in rows]}
    described = ", ".join(
        f"{key} {value:.3g}" if isinstance(value, float) else f"{key} {value}" for key, value in machine.describe().items()
    )
    write_text(path.with_suffix(".json"), json.dumps(results, indent=1))
    write_text(path.with_suffix(".md"), f"{described}\n\n{table(rows)}\n")
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
    """Draws each timing as a bar, its floor as a mark; rows without a timing are left out."""
    figure, axes = new_figure(title)
    timed = [(row.name, row.ms, row.floor_ms) for row in rows if row.ms]
    axes.barh([name for name, _, _ in timed], [ms for _, ms, _ in timed])
    axes.plot([floor for _, _, floor in timed], range(len(timed)), "k|", markersize=12, label="floor")
    axes.invert_yaxis()
    axes.set(xscale="log", xlabel="milliseconds")
    save_figure(path, figure, axes)


def curves(path: Path, rows: list[Row], title: str) -> None:
    """Draws the timings of each name over the number of tokens, their floors dotted."""
    figure, axes = new_figure(title)
    for name in dict.fromkeys(row.name for row in rows if row.ms):
        own = [row for row in rows if row.name == name]
        tokens = [row.grid[0] * row.grid[1] * row.grid[2] for row in own]
        (line,) = axes.plot(tokens, [row.ms or float("nan") for row in own], "o-", label=name)
        axes.plot(tokens, [row.floor_ms for row in own], ":", color=line.get_color())
    axes.set(xscale="log", yscale="log", xlabel="tokens", ylabel="milliseconds (dotted: floor)")
    save_figure(path, figure, axes)


def new_figure(title: str) -> "tuple[Figure, Axes]":
    from matplotlib.figure import Figure  # slow to import

    figure = Figure(figsize=(10, 6), layout="constrained")
    axes = figure.add_subplot(title=title)
    axes.grid(alpha=0.3)
    return figure, axes


def save_figure(path: Path, figure: "Figure", axes: "Axes") -> None:
    axes.legend()
    with atomic_write(path) as partial:
        figure.savefig(partial, dpi=110)
