"""Pairs made on a ray cluster by ray.data: tasks on CPUs read the video, actors with the networks make the pairs.

Reading stops while clips wait for an actor. A process that dies is started again and repeats what it was given.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import torch

from ..sampling.cluster import cluster
from .clips import ClipReader
from .pair_maker import Made, PairMaker, Worker, timed

PART = 64  # clips of one video that a task reads
READER_CPUS, MAKER_CPUS = 0.25, 0.75  # a CPU has one of both


@dataclass(frozen=True)
class Reading:
    """Task that reads clips."""

    reader: ClipReader

    def __call__(self, batch: dict[str, np.ndarray]) -> Iterator[dict[str, np.ndarray]]:
        """Yields {"clip": one clip and the seconds of its reading}. batch: {"starts": one list of starts}."""
        torch.set_num_threads(1)
        (starts,) = batch["starts"]
        for clip in timed(self.reader.read(starts)):
            yield {"clip": column(clip)}


class Making:
    """Actor that makes pairs."""

    def __init__(self, maker: Any):
        """maker: ray's reference to a PairMaker."""
        import ray

        self.worker = Worker(ray.get(maker))

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns {"made": what became of one clip}. batch: {"clip"} as Reading yields it."""
        (clip,) = batch["clip"]
        return {"made": column(self.worker.make(*clip))}


def make_on_cluster(
    maker: PairMaker, reader: ClipReader, starts: list[tuple[str, int]], workers: int | None, address: str
) -> Iterator[Made]:
    """Yields what becomes of each clip, in order.

    Args:
        maker: Makes the pairs.
        reader: Reads the clips; every machine of the cluster has its folder.
        starts: Video and first frame of each clip.
        workers: Actors that make pairs; by default one for each CPU of the cluster, or each GPU where maker.device is one.
        address: Address of a running cluster, or "local" to start one on this machine.

    Raises:
        ImportError: ray or pyarrow is not installed.
    """
    with cluster(maker.device, workers, address) as actors:
        import ray
        import ray.data  # optional: only clusters need them

        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.execution_options.preserve_order = context.raise_original_map_exception = True
        share: dict[str, Any] = {"num_cpus": MAKER_CPUS} if maker.device == "cpu" else {"num_gpus": 1, "num_cpus": 0}
        rows = [{"starts": part} for part in parts(starts)]
        reading: Any = Reading(reader)
        clips = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(reading, batch_size=1, num_cpus=READER_CPUS)
        made = clips.map_batches(
            Making,
            batch_size=1,
            fn_constructor_args=(ray.put(maker),),
            compute=ray.data.ActorPoolStrategy(size=actors),
            **share,
        )
        for row in made.iter_rows():
            yield row["made"]


def parts(starts: list[tuple[str, int]]) -> Iterator[list[tuple[str, int]]]:
    """Yields the starts of at most PART clips of one video, in order."""
    for _, of_video in groupby(starts, key=lambda start: start[0]):
        clips = list(of_video)
        for first in range(0, len(clips), PART):
            yield clips[first : first + PART]


def column(value: Any) -> np.ndarray:
    """Returns a column of one row, an object."""
    one = np.empty(1, dtype=object)
    one[0] = value
    return one
