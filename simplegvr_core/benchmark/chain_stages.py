"""What `benchmark chain` measures a stage by: seconds, memory, and how its time grows with the size and the length of a clip.

T latent frames, h, w low-resolution latent pixels, H, W those of the target
"""

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter, process_time
from typing import TypeVar

import torch

from ..latent_space import SPATIAL_FACTOR, latent_frames, token_grid, video_frames
from ..networks.attention import AttentionConfig
from ..networks.dit import DiTConfig
from ..planning.flops import dit_flops
from .memory import peak_resident

T = TypeVar("T")
Grid = tuple[int, int, int]


@dataclass(frozen=True)
class Scene:
    """What is made of what.

    Attributes:
        low: (T, h, w) of the latent that every route but text-to-video begins with.
        high: (T, H, W) of the target.
    """

    low: Grid
    high: Grid

    def __str__(self) -> str:
        (frames, *low), (_, *high) = self.low, self.high
        sizes = (f"{SPATIAL_FACTOR * width} x {SPATIAL_FACTOR * height}" for height, width in (low, high))
        return f"{' to '.join(sizes)}, {video_frames(frames)} frames"


@dataclass(frozen=True)
class Stage:
    """One stage of a route.

    Attributes:
        name: What it does.
        seconds: Of what was run.
        cpu_s: The process's processor seconds in them, which other programs change less.
        whole_s: Seconds of the whole stage; a forecast where it is not what was run.
        peak_gb: Most memory of the process (CPU) or of its tensors (CUDA) while it ran, in 1e9 bytes; None where it is not known.
    """

    name: str
    seconds: float
    cpu_s: float
    whole_s: float
    peak_gb: float | None


Growth = Callable[[Scene, Scene], float]  # (what was run, what is wanted) -> how many times as much work it is


def by_frames(measured: Scene, wanted: Scene) -> float:
    """Returns the ratio of the targets' sizes times video frames, to which a decoder's time is proportional."""
    (t, *size), (t_wanted, *size_wanted) = measured.high, wanted.high
    return video_frames(t_wanted) * math.prod(size_wanted) / (video_frames(t) * math.prod(size))


def by_latent(measured: Scene, wanted: Scene) -> float:
    """Returns the ratio of the targets' latent pixels."""
    return math.prod(wanted.high) / math.prod(measured.high)


def by_flops(dit: DiTConfig, attention: AttentionConfig, low: bool = False) -> Growth:
    """Returns the growth of a transformer: the ratio of its operations at the target's size, or at the low resolution."""

    def growth(measured: Scene, wanted: Scene) -> float:
        first, second = (dit_flops(dit, attention, token_grid(scene.low if low else scene.high)).total for scene in (measured, wanted))
        return second / first

    return growth


@dataclass(frozen=True)
class Meter:
    """Runs stages and collects their seconds and peaks.

    Attributes:
        device: Where they run.
        measured: What is run.
        wanted: What the seconds are forecast for.
        stages: Filled.
    """

    device: torch.device
    measured: Scene
    wanted: Scene
    stages: list[Stage] = field(default_factory=list)

    def __call__(self, name: str, run: Callable[[], T], growth: Growth = by_frames, repeats: float = 1) -> T:
        """Returns the result of a stage.

        Args:
            name: What it does.
            run: The stage, or a part of it.
            growth: How its time grows.
            repeats: How many times as much the whole stage is, at the size that is run.
        """
        self.reset_peak()
        start, cpu = perf_counter(), process_time()
        out = run()
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)
        seconds, cpu = perf_counter() - start, process_time() - cpu
        self.stages.append(Stage(name, seconds, cpu, seconds * repeats * growth(self.measured, self.wanted), self.peak_gb()))
        return out

    def reset_peak(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        elif sys.platform == "linux":
            Path("/proc/self/clear_refs").write_text("5")  # the kernel's peak of this process begins again

    def peak_gb(self) -> float | None:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 1e9
        return peak_resident() / 1e9 if sys.platform == "linux" and self.device.type == "cpu" else None


def scene(size: tuple[int, int], scale: float, frames: int) -> Scene:
    """Returns the scene of a target of (height, width) pixels, rounded up to latent pixels, and of so many video frames."""
    extent, sides = latent_frames(frames), [-(-side // SPATIAL_FACTOR) for side in size]
    low = [max(2, round(side / SPATIAL_FACTOR / scale)) for side in size]
    return Scene((extent, low[0], low[1]), (extent, sides[0], sides[1]))
