"""Random numbers of training: those of a sample follow from the seed, the step and the number of the sample alone.

Neither the number of processes, of workers nor of accumulated batches changes them, and a run resumes from the number of its step.
The seeds come from Philox (Salmon et al., 2011), a counter-based generator: the run's seed is its key; field, sample and step are
the upper three quarters of its counter, as in flow.positional_noise. PyTorch's generator on a CPU uses 32 bits of them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

Batch = dict[str, Any]
"""A network's arguments by name: tensors (B, ...) of the samples, and Python numbers of the step, which the host knows."""

READING, LEVELS, ON_DEVICE, OF_STEP = range(4)  # fields: the numbers of each are independent


def philox(seed: int, field: int, sample: int, step: int) -> np.random.Generator:
    """Returns a generator at the start of a place of the counter."""
    return np.random.Generator(np.random.Philox(key=seed, counter=(0, field, sample, step)))


@dataclass(frozen=True)
class Draws:
    """The samples of a step that are made at once, and the source of their random numbers.

    Attributes:
        seed: Seed of the run, at least 0.
        step: Number of the step.
        samples: Numbers of the samples in the step.
        total: Samples of a step, over all processes and accumulated batches.
    """

    seed: int
    step: int
    samples: range
    total: int

    def generators(self, field: int, device: torch.device | str = "cpu") -> list[torch.Generator]:
        """Returns a generator for each sample.

        Args:
            field: One of the fields above; numbers of different fields are independent.
            device: Device of the generators.
        """
        return [self._generator(field, sample, device) for sample in self.samples]

    def of_step(self) -> torch.Generator:
        """Returns a generator, on the CPU, that is the same for all samples of the step."""
        return self._generator(OF_STEP, 0, "cpu")

    def _generator(self, field: int, sample: int, device: torch.device | str) -> torch.Generator:
        bits = philox(self.seed, field, sample, self.step).bit_generator.random_raw()
        return torch.Generator(device).manual_seed(int(bits) >> 1)

    def each(self, batch: Tensor, make: Callable[[Tensor, torch.Generator], Batch]) -> Batch:
        """Returns the joined results of make for each sample of a batch, made with the sample's own generator on the batch's device.

        Args:
            batch: (B, ...), whose samples are given to make as (1, ...).
            make: (sample, generator) -> tensors whose first axis is 1.
        """
        made = [make(sample, generator) for sample, generator in zip(batch.split(1), self.generators(ON_DEVICE, batch.device), strict=True)]
        return {name: torch.cat([tensors[name] for tensors in made]) for name in made[0]}


class Source(Protocol):
    """What a network is trained on."""

    @property
    def batch(self) -> int:
        """Samples of a batch, over all processes."""
        ...

    def read(self, draws: Draws) -> dict[str, Any]:
        """Returns tensors (B, ...) of the samples, on the CPU. Called in the workers of the DataLoader.

        Entries that are no tensors are not given to the network; "skipped" is a list of pairs that were not finite.
        """
        ...

    def finish(self, batch: Batch, draws: Draws) -> Batch:
        """Returns the network's arguments (B, ...), on the training device. Called in the workers where it is the CPU.

        Args:
            batch: Tensors of read, on the training device.
            draws: Those that read was called with.
        """
        ...
