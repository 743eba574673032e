"""The process that measures: runs items in their order and sends each result as it comes."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from time import monotonic
from typing import Any

import torch

from .chain import chain_items
from .items import FULL, TOY, Bench, Item, NotRun, Sizes
from .kernels import kernel_items
from .network import network_items
from .operator import operator_items
from .options import option_items
from .training import training_items
from .ultra_flash import block_kernel_items, block_operator_items, ultra_flash_items

SECTIONS = (  # what matters most, first
    kernel_items,
    block_kernel_items,
    operator_items,
    block_operator_items,
    network_items,
    chain_items,
    ultra_flash_items,
    training_items,
    option_items,
)


def sizes_for(device: str) -> Sizes:
    """Returns FULL for a GPU, TOY for a CPU."""
    return FULL if device.startswith("cuda") else TOY


def all_items(sizes: Sizes) -> list[Item]:
    """Returns every item in the order in which they run."""
    return [item for section in SECTIONS for item in section(sizes)]


@dataclass(frozen=True)
class Message:
    """What the worker sends.

    Attributes:
        index: Of the item in all_items; -1 for the machine's description.
        result: Figures, "error" or "not_run"; None when the item begins.
        seconds: That the item took.
    """

    index: int
    result: dict[str, Any] | None = None
    seconds: float = 0.0


def work(connection: Connection, device: str, pending: list[int], end: float) -> None:
    """Runs items; ends after one whose failure has left the device unusable.

    Args:
        connection: Where messages go. When nobody reads them any more, the process ends.
        device: PyTorch's name of the device.
        pending: Indices of the items to run, in their order.
        end: Of the whole run, by time.monotonic.
    """
    bench = Bench(device, sizes_for(device))
    try:
        connection.send(Message(-1, describe(bench)))
        for message in messages(bench, pending, end):
            connection.send(message)
    except (BrokenPipeError, KeyboardInterrupt, Unusable):
        os._exit(1)  # at once: threads of compilers would go on


def messages(bench: Bench, pending: list[int], end: float) -> Iterator[Message]:
    """Yields two messages for each item, one where it begins and one with its result.

    Items that a section's part of the time leaves out run after all sections, where time is left.
    """
    items = all_items(bench.sizes)
    ends = deadlines(items, pending, end)
    left_out = []
    for index in pending:
        if monotonic() < ends[items[index].section]:
            yield from run(index, items[index], bench)
        else:
            left_out.append(index)
    for index in left_out:
        yield from run(index, items[index], bench) if monotonic() < end else [Message(index, {"not_run": "the time was over"})]


def run(index: int, item: Item, bench: Bench) -> Iterator[Message]:
    """Yields an item's two messages. Raises Unusable after the second where the item's failure has left the device so."""
    yield Message(index)
    start = monotonic()
    result = measure(item, bench)
    yield Message(index, result, monotonic() - start)
    if "error" in result and not usable(bench):
        raise Unusable


def deadlines(items: list[Item], pending: list[int], end: float) -> dict[str, float]:
    """Returns when each section's part of the time ends: what is left is divided as the items need it on an H100, in their order.

    Args:
        items: Every item.
        pending: Indices of those that are to run.
        end: Of the whole run, by time.monotonic.
    """
    start, total, needed, ends = monotonic(), sum(items[index].seconds for index in pending), 0.0, {}
    for index in pending:
        needed += items[index].seconds
        ends[items[index].section] = start + (end - start) * needed / total
    return ends


class Unusable(Exception):
    """The device does not work any more in this process."""


def measure(item: Item, bench: Bench) -> dict[str, Any]:
    """Returns an item's figures, or its error, or why it cannot run here."""
    try:
        return item.run(bench)
    except NotRun as reason:
        return {"not_run": str(reason)}
    except Exception as error:  # whatever a kernel, a compiler or a package raises: the next item runs
        return {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:600]}"}


def usable(bench: Bench) -> bool:
    """Returns whether the device still works: an illegal access of one kernel breaks all later ones of its process."""
    try:
        bench.release()
        torch.ones(1, device=bench.device).sum().item()
    except RuntimeError:
        return False
    return True


def describe(bench: Bench) -> dict[str, Any]:
    """Returns the machine's description; a GPU's memory in GB."""
    properties = torch.cuda.get_device_properties(bench.device) if bench.is_gpu else None
    gpu = {"gpu_memory_gb": properties.total_memory / 1e9, "capability": f"{properties.major}.{properties.minor}"} if properties else {}
    return {**bench.machine.describe(), **gpu, "sizes": bench.sizes.name, "cuda": torch.version.cuda or ""}
