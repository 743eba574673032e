"""What the items of `benchmark gpu` share: sizes, the device with its rates, the tensors and networks of several items."""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from time import perf_counter
from typing import Any

import torch

from ...networks.attention import AttentionConfig
from ...networks.dit import DiTConfig, SimpleGVRDiT
from ...networks.upsampler import UpsamplerConfig
from ...planning.boxes import UNCOUNTED
from ..attention import AttentionBenchmark, Tokens
from ..machine import Grid, Machine
from ..network import random_model

PLAN_TOLERANCE = 0.15  # by which a plan may exceed the measured peak


@dataclass(frozen=True)
class Sizes:
    """Sizes of everything that is measured. FULL is for a GPU, TOY for the CPU of a test.

    Attributes:
        name: "full" or "toy".
        grids: Video tokens (T, H, W) of attention, the most important first.
        heads: Attention heads of the operator.
        head_dim: Features of a head.
        window: Tokens of a window along T, H, W.
        unit: Latent frames of a temporal unit.
        checked_grid: Tokens (T, H, W) of the kernels' comparison with float64; windows at its edges are smaller.
        dit: Sizes of the network.
        upsampler: Sizes of the upsampler.
        low: (T, h, w) of the low-resolution latent.
        high: (T, H, W) of the target latent.
        ultra_low: (T, h, w) of the low-resolution latent of Ultra Flash, which enlarges it twice.
        steps: Sampling steps of the chain.
        crop: Latent (T, H, W) of a training sample with full attention.
        long_crop: The same with sparse local attention.
        lora_rank: Rank of the LoRA.
        compiler: torch.compile's backend.
    """

    name: str
    grids: tuple[Grid, ...]
    heads: int
    head_dim: int
    window: tuple[int, int, int]
    unit: int
    checked_grid: Grid
    dit: DiTConfig
    upsampler: UpsamplerConfig
    low: tuple[int, int, int]
    high: tuple[int, int, int]
    ultra_low: tuple[int, int, int]
    steps: int
    crop: tuple[int, int, int]
    long_crop: tuple[int, int, int]
    lora_rank: int = 16
    compiler: str = "inductor"

    @property
    def attention(self) -> AttentionConfig:
        """Returns the network's sparse local attention."""
        return AttentionConfig(window=self.window, unit=self.unit)


FULL = Sizes(
    name="full",
    grids=((20, 72, 126), (20, 68, 120)),
    heads=12,
    head_dim=128,
    window=(1, 12, 9),
    unit=5,
    checked_grid=(3, 29, 23),
    dit=DiTConfig(),
    upsampler=UpsamplerConfig(),
    low=(20, 64, 112),
    high=(20, 136, 240),
    ultra_low=(21, 60, 104),
    steps=4,
    crop=(5, 60, 104),
    long_crop=(20, 48, 72),
)
TOY = Sizes(
    name="toy",
    grids=((4, 8, 12), (4, 7, 10)),
    heads=2,
    head_dim=64,
    window=(1, 4, 3),
    unit=2,
    checked_grid=(3, 5, 7),
    dit=DiTConfig(dim=128, ffn_dim=160, num_heads=2, num_layers=2, text_dim=64),
    upsampler=UpsamplerConfig(width=16),
    low=(3, 4, 6),
    high=(3, 9, 13),
    ultra_low=(3, 4, 6),
    steps=2,
    crop=(2, 6, 8),
    long_crop=(3, 8, 12),
    lora_rank=2,
    compiler="aot_eager",
)


class Bench:
    """The device and what several items use. Its rates are measured when they are first asked for."""

    def __init__(self, device: str, sizes: Sizes):
        self.sizes, self.device = sizes, torch.device(device)
        self.dtype = torch.bfloat16 if self.is_gpu else torch.float32
        self.tokens = lru_cache(maxsize=1)(self._tokens)

    @property
    def is_gpu(self) -> bool:
        return self.device.type == "cuda"

    @cached_property
    def machine(self) -> Machine:
        return Machine(str(self.device), str(self.dtype).removeprefix("torch."), limit_s=60, timing_s=2 if self.is_gpu else 0.01)

    @cached_property
    def operators(self) -> AttentionBenchmark:
        sizes = self.sizes
        return AttentionBenchmark(heads=sizes.heads, head_dim=sizes.head_dim, window=sizes.window, unit=sizes.unit)

    def _tokens(self, grid: Grid) -> Tokens:
        return self.operators.tokens(self.machine, grid)

    @cached_property
    def dit(self) -> SimpleGVRDiT:
        """Returns the network with random weights. Its attention is exchanged by those who use it."""
        return random_model(self.sizes.dit, self.machine).eval()

    def noise(self, *shape: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        """Returns normal noise on the device, the same on every call."""
        generator = torch.Generator(self.device).manual_seed(0)
        return torch.randn(shape, generator=generator, device=self.device).to(dtype or self.dtype)

    @contextmanager
    def peak(self) -> Iterator[dict[str, float]]:
        """Yields a dictionary that has, after the block, its seconds and, on a GPU, the GB that it allocated above what was allocated.

        Reserved GB are those of the whole process, as other programs see them.
        """
        measured: dict[str, float] = {}
        machine, before = self.machine, 0
        if self.is_gpu:
            gc.collect()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)
            before = torch.cuda.memory_allocated(self.device)
        watch = Stopwatch(machine)
        yield measured
        measured["seconds"] = watch.lap()
        if self.is_gpu:
            measured["peak_gb"] = (torch.cuda.max_memory_allocated(self.device) - before) / 1e9
            measured["reserved_gb"] = torch.cuda.max_memory_reserved(self.device) / 1e9

    def release(self) -> None:
        """Frees what items share, for those that need the memory; it is made again when it is next asked for."""
        self.tokens.cache_clear()
        self.__dict__.pop("dit", None)
        gc.collect()
        if self.is_gpu:
            torch.cuda.empty_cache()


class Stopwatch:
    """Seconds of a device's finished work."""

    def __init__(self, machine: Machine):
        self.machine = machine
        machine.synchronize()
        self.last = perf_counter()

    def lap(self) -> float:
        """Returns the seconds since the last lap, or since the watch was made."""
        self.machine.synchronize()
        start, self.last = self.last, perf_counter()
        return self.last - start


def against_plan(measured: dict[str, float], counted: int, weights: int) -> dict[str, Any]:
    """Returns the figures of Bench.peak beside planning's.

    A plan asks for the weights and what is counted above them, and leaves a tenth of the memory uncounted. It holds where it
    asks for 1 to 1.15 times the measured peak.

    Args:
        measured: Seconds, and on a GPU the peak above the weights.
        counted: Bytes above the weights, as planning counts them.
        weights: Bytes of the weights.
    """
    planned = (weights + counted) / (1 - UNCOUNTED) / 1e9
    figures = {**measured, "weights_gb": weights / 1e9, "counted_gb": counted / 1e9, "planned_gb": planned}
    return figures | compare_with_peak(planned, measured["peak_gb"] + weights / 1e9) if "peak_gb" in measured else figures


def compare_with_peak(planned: float, peak: float) -> dict[str, Any]:
    """Returns the ratio of a plan to the measured peak, both in GB, and whether the plan holds."""
    ratio = planned / peak
    return {"planned_over_peak": ratio, "plan_holds": 1 <= ratio <= 1 + PLAN_TOLERANCE}


@dataclass(frozen=True)
class Item:
    """One measurement.

    Attributes:
        section: Of the file; a section's items share its part of the time.
        name: In its section.
        seconds: That it takes on an H100, about: its part of the time.
        run: Returns the figures, by name. An exception becomes the item's error.
    """

    section: str
    name: str
    seconds: float
    run: Callable[[Bench], dict[str, Any]]


class NotRun(Exception):
    """An item that this machine cannot run; the message gives the reason."""
