"""Random parameters: numbers, choices, and numbers that drift from frame to frame. One generator, on the CPU, draws all."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Drift:
    """A parameter drawn evenly from [low, high], which then moves by at most step from a frame to the next."""

    low: float
    high: float
    step: float = 0.0

    def values(self, num_frames: int, generator: torch.Generator, start: float | None = None) -> Iterator[float]:
        """Yields the value of each frame; it stays in [low, high]. start: the first, in place of a drawn one."""
        value = uniform(self.low, self.high, generator) if start is None else start
        for _ in range(num_frames):
            yield value
            value = min(max(value + uniform(-self.step, self.step, generator), self.low), self.high)


def uniform(low: float, high: float, generator: torch.Generator) -> float:
    """Returns a number drawn evenly from [low, high)."""
    return low + (high - low) * float(torch.rand((), generator=generator, dtype=torch.float64))


def happens(probability: float, generator: torch.Generator) -> bool:
    """Returns True with the given probability."""
    return uniform(0, 1, generator) < probability


def choose(options: tuple, generator: torch.Generator, weights: tuple[float, ...] | None = None):
    """Returns one of the options, each as likely as its weight says, all alike by default."""
    weights = torch.tensor(weights or (1.0,) * len(options), dtype=torch.float64)
    return options[int(torch.multinomial(weights, 1, generator=generator))]
