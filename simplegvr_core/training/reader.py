"""Reading of batches by PyTorch's DataLoader: its workers read, and the training process adds the noise on its device.

Where the device is the CPU, the workers add the noise, too.
"""

import time
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from .draws import Batch, Draws, Source


class Reader(Dataset):
    """The batches of a run by their number, of each the samples of one process."""

    def __init__(self, source: Source, device: torch.device, *, seed: int, accumulate: int, process: int, processes: int):
        """Stores what determines the samples.

        Args:
            source: What makes the batches.
            device: Training device.
            seed: Seed of the run.
            accumulate: Batches of a step.
            process: Number of this process.
            processes: Number of all.

        Raises:
            ValueError: A batch cannot be divided evenly among the processes.
        """
        if source.batch % processes:
            raise ValueError(f"a batch of {source.batch} cannot be divided among {processes} processes: choose a multiple of {processes}")
        self.source, self.device, self.seed, self.accumulate = source, device, seed, accumulate
        self.process, self.share = process, source.batch // processes

    def __getitem__(self, number: int) -> dict[str, Any]:
        read = self.source.read(self.draws(number))
        skipped = {"skipped": read.pop("skipped", [])}
        return skipped | (self.source.finish(read, self.draws(number)) if self.device.type == "cpu" else read)

    def draws(self, number: int) -> Draws:
        """Returns this process' samples of a batch."""
        step, batch = divmod(number, self.accumulate)
        first = batch * self.source.batch + self.process * self.share
        return Draws(self.seed, step, range(first, first + self.share), self.accumulate * self.source.batch)


class Batches:
    """Iterator over a run's batches on the device.

    Attributes:
        waited: Seconds that it waited for data.
        skipped: Names of pairs that were skipped, for the caller to clear.
    """

    def __init__(self, reader: Reader, steps: range, workers: int):
        """Starts the workers.

        Args:
            reader: The batches by their number.
            steps: Steps whose batches are read.
            workers: Processes that read ahead; 0 reads in this one.
        """
        self.reader, self.waited = reader, 0.0
        self.skipped: list[str] = []
        numbers = range(steps.start * reader.accumulate, steps.stop * reader.accumulate)
        factory = {"num_workers": workers, "pin_memory": reader.device.type == "cuda", "generator": torch.Generator()}
        self.loader = zip(numbers, DataLoader(reader, batch_size=None, sampler=numbers, **factory), strict=False)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        start = time.monotonic()
        number, read = next(self.loader)
        self.waited += time.monotonic() - start
        self.skipped += read.pop("skipped")
        if self.reader.device.type == "cpu":
            return read
        own = {name: tensor.to(self.reader.device, non_blocking=True) for name, tensor in read.items()}
        return self.reader.source.finish(own, self.reader.draws(number))
