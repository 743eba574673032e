"""Reading of batches by PyTorch's DataLoader: its workers read, and the training process adds the noise on its device.

Where the device is the CPU, the workers add the noise, too. Workers are forked from a clean process (forkserver), where the platform
has that: the training process has the threads of its collective operations and of its device, which a fork would leave half copied.
"""

import os
import threading
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import multiprocessing
from torch.utils.data import DataLoader, Dataset

from .draws import Batch, Draws, Source

START_METHOD = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
PRELOADED = [f"{__package__}.{name}" for name in ("batches", "loss")]  # in the clean process, once for all workers
UNREADABLE = ValueError, OSError  # that a source raises for its files: the training process raises them as they are


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
        try:
            read = self.source.read(self.draws(number))
            skipped = {"skipped": read.pop("skipped", [])}
            return skipped | (self.source.finish(read, self.draws(number)) if self.device.type == "cpu" else read)
        except UNREADABLE as error:
            return {"error": error}

    def draws(self, number: int) -> Draws:
        """Returns this process' samples of a batch."""
        step, batch = divmod(number, self.accumulate)
        first = batch * self.source.batch + self.process * self.share
        return Draws(self.seed, step, range(first, first + self.share), self.accumulate * self.source.batch)


class Batches:
    """Iterator over a run's batches on the device.

    Attributes:
        waited: Seconds that it waited for data.
    """

    def __init__(self, reader: Reader, steps: range, workers: int):
        """Starts the workers, to which the reader is pickled.

        Args:
            reader: The batches by their number.
            steps: Steps whose batches are read.
            workers: Processes that read ahead; 0 reads in this one.
        """
        self.reader, self.waited = reader, 0.0
        self.skipped: list[str] = []
        numbers = range(steps.start * reader.accumulate, steps.stop * reader.accumulate)
        factory = {"pin_memory": reader.device.type == "cuda", "generator": torch.Generator()}
        if workers:
            context = multiprocessing.get_context(START_METHOD)
            context.set_forkserver_preload(PRELOADED)
            factory |= {"num_workers": workers, "multiprocessing_context": context, "worker_init_fn": end_with_training}
        self.loader = zip(numbers, DataLoader(reader, batch_size=None, sampler=numbers, **factory), strict=False)

    def take_skipped(self) -> list[str]:
        """Returns the names of the pairs that were skipped since the last call."""
        skipped, self.skipped = self.skipped, []
        return skipped

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        """Returns the next batch. Raises what the source raises."""
        start = time.monotonic()
        number, read = next(self.loader)
        self.waited += time.monotonic() - start
        if "error" in read:
            raise read["error"]
        self.skipped += read.pop("skipped")
        if self.reader.device.type == "cpu":
            return read
        own = {name: tensor.to(self.reader.device, non_blocking=True) for name, tensor in read.items()}
        return self.reader.source.finish(own, self.reader.draws(number))


def end_with_training(_: int) -> None:
    """Ends this worker with the training process. A forkserver would outlive a killed one, since its workers do, and they since it does."""
    training = multiprocessing.parent_process()
    assert training is not None  # this is a worker

    def wait() -> None:
        training.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
