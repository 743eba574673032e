"""Random parameters: numbers, choices, and numbers that drift from frame to frame. A generator on the CPU is the source of all."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

Option = TypeVar("Option")


@dataclass(frozen=True)
class Drift:
    """A parameter that is uniform in [low, high] at the first frame and performs a random walk from frame to frame.

    Attributes:
        low: Smallest value.
        high: Largest value.
        step: Largest change from frame to frame.
    """

    low: float
    high: float
    step: float = 0.0

    def values(self, num_frames: int, generator: torch.Generator, start: float | None = None) -> Iterator[float]:
        """Yields the value of each frame, in [low, high].

        Args:
            num_frames: Number of values.
            generator: Source of randomness, on the CPU.
            start: First value; None samples it.
        """
        value = uniform(self.low, self.high, generator) if start is None else start
        for _ in range(num_frames):
            yield value
            value = min(max(value + uniform(-self.step, self.step, generator), self.low), self.high)


def uniform(low: float, high: float, generator: torch.Generator) -> float:
    """Returns a uniform sample of [low, high)."""
    return low + (high - low) * float(torch.rand((), generator=generator, dtype=torch.float64))


def happens(probability: float, generator: torch.Generator) -> bool:
    """Returns True with the given probability."""
    return uniform(0, 1, generator) < probability


def choose(options: Sequence[Option], generator: torch.Generator, weights: tuple[float, ...] | None = None) -> Option:
    """Returns a random option.

    Args:
        options: What to choose from.
        generator: Source of randomness, on the CPU.
        weights: Probability of each option, up to a factor; None is equal probability.
    """
    probabilities = torch.tensor(weights or (1.0,) * len(options), dtype=torch.float64)
    return options[int(torch.multinomial(probabilities, 1, generator=generator))]
