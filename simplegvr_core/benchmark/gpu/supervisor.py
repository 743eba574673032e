"""The process that writes: it starts the worker, puts each result into the file as it comes, and outlives what kills the worker."""

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from time import monotonic
from typing import Any

from ...files import write_text
from .items import Item
from .worker import Message, work

START_S = 90  # for the worker to import its packages and to measure the device's rates
STUCK_S = 60  # an item that takes longer, and four times what it takes on an H100, is ended
GRACE_S = 20  # beyond the end, for the item that runs


@dataclass
class Record:
    """The file of a run: valid JSON after every result.

    Attributes:
        path: Of the file.
        header: What the file begins with: the command, the commit and the like.
        items: Every item.
        results: Of each item that is over, by its index.
        machine: The worker's description.
        running: Index of the item that runs; None between items.
        finished: Whether the run came to its end.
        start: When the run began, by time.monotonic.
    """

    path: Path
    header: dict[str, Any]
    items: list[Item]
    results: dict[int, dict[str, Any]] = field(default_factory=dict)
    machine: dict[str, Any] = field(default_factory=dict)
    running: int | None = None
    finished: bool = False
    start: float = field(default_factory=monotonic)

    def contents(self) -> dict[str, Any]:
        """Returns what the file has; items that are not over are left out of their sections."""
        sections: dict[str, dict[str, Any]] = {item.section: {} for item in self.items}
        for index, result in self.results.items():
            sections[self.items[index].section][self.items[index].name] = result
        running = None if self.running is None else f"{self.items[self.running].section}: {self.items[self.running].name}"
        state = {"finished": self.finished, "running": running, "elapsed_s": monotonic() - self.start}
        return {**self.header, **state, "machine": self.machine, "sections": sections}

    def write(self) -> None:
        write_text(self.path, json.dumps(self.contents(), indent=1))

    def take(self, message: Message) -> None:
        """Puts a message of the worker into the file."""
        if message.index < 0:
            self.machine = message.result or {}
        elif message.result is None:
            self.running = message.index
        else:
            self.end(message.index, message.result | {"item_s": round(message.seconds, 2)})
        self.write()

    def end(self, index: int, result: dict[str, Any]) -> None:
        self.results[index], self.running = result, None
        print(f"[{monotonic() - self.start:5.0f} s] {self.items[index].section}: {self.items[index].name}: {brief(result)}", flush=True)


def run(record: Record, device: str, minutes: float) -> None:
    """Runs the items that the time allows. The file is valid after each, and at the end.

    Args:
        record: The record of a run that begins.
        device: PyTorch's name of the device.
        minutes: For everything; an item that runs at the end may take GRACE_S longer.
    """
    end = record.start + 60 * minutes
    record.write()
    while len(record.results) < len(record.items) and monotonic() < end:
        before = len(record.results)
        for message in worker(record, device, end):
            record.take(message)
        if record.running is not None:
            record.end(record.running, {"error": "the process that measures it ended, or the item took too long and was ended"})
        elif len(record.results) == before:
            record.machine |= {"error": "the process that measures ended before its first item"}
            break
    record.finished = True
    record.write()


def worker(record: Record, device: str, end: float) -> Iterator[Message]:
    """Yields the messages of a fresh process that runs what is not over, until it ends or an item takes too long."""
    context, pending = get_context("spawn"), [index for index in range(len(record.items)) if index not in record.results]
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=work, args=(theirs, device, pending, end))
    process.start()
    theirs.close()
    try:
        with suppress(EOFError):  # the process has ended
            while ours.poll(seconds_left(record, end)):
                yield ours.recv()
    finally:
        process.kill()
        process.join()


def seconds_left(record: Record, end: float) -> float:
    """Returns how long to wait for the worker's next message."""
    if record.running is None:
        return START_S
    limit = max(STUCK_S, 4 * record.items[record.running].seconds)
    return max(1.0, min(limit, end + GRACE_S - monotonic()))


def brief(result: dict[str, Any]) -> str:
    """Returns a result's figures in one line."""

    def text(value: Any) -> str:
        if isinstance(value, dict):
            return "(" + " ".join(f"{name} {text(part)}" for name, part in value.items()) + ")"
        if isinstance(value, list):
            return "[" + " ".join(map(text, value)) + "]"
        return format(value, ".4g") if isinstance(value, float) else str(value)

    return ", ".join(f"{name} {text(value)}" for name, value in result.items() if name != "item_s")
