"""What a run writes down of its steps, one JSON object a line: losses.jsonl, and skipped.jsonl where pairs were not finite."""

import json
from pathlib import Path

import numpy as np

from ..files import atomic_write, write_text


def append_line(path: Path, record: dict) -> None:
    """Appends a record, whose "step" is the number of its step, to a file of one JSON object a line. Raises OSError with the cure."""
    try:
        with path.open("a") as file:
            file.write(json.dumps(record) + "\n")
    except OSError as error:
        cure = "free space there, and run the same command again; the last saved state is kept"
        raise OSError(f"{path} cannot be written ({error.strerror}): {cure}") from error


def keep_steps(path: Path, steps: int) -> None:
    """Cuts a file, which may be missing, to the lines of the first steps. The last line of a killed run may be half written."""
    if path.exists():
        lines = path.read_text().splitlines(keepends=True)
        write_text(path, "".join(line for line in lines if line.endswith("\n") and json.loads(line)["step"] < steps))


def read_losses(path: Path) -> list[float]:
    """Returns the loss of every step so far."""
    return [json.loads(line)["loss"] for line in path.read_text().splitlines()]


def summarize_losses(folder: Path) -> dict[str, float]:
    """Returns {"loss_first", "loss_last": means over the first and last tenth of a run, "steps", "skipped": pairs that were not finite}."""
    losses, skipped = read_losses(folder / "losses.jsonl"), folder / "skipped.jsonl"
    tenth = max(1, len(losses) // 10)
    means = {"loss_first": sum(losses[:tenth]) / tenth, "loss_last": sum(losses[-tenth:]) / tenth}
    return means | {"steps": len(losses), "skipped": len(skipped.read_text().splitlines()) if skipped.exists() else 0}


def plot_losses(losses_path: Path, path: Path) -> None:
    """Plots the losses and their moving average over a twentieth of the run."""
    from matplotlib.figure import Figure  # slow to import, and only the main process plots

    losses = read_losses(losses_path)
    width = max(1, len(losses) // 20)
    total, number = np.cumsum([0.0, *losses]), np.arange(1, len(losses) + 1)
    start = np.maximum(0, number - 1 - width)
    smooth = (total[number] - total[start]) / (number - start)
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot(xlabel="step", ylabel="loss", yscale="log")
    axes.plot(losses, color="0.8", linewidth=0.8)
    axes.plot(smooth, color="tab:blue")
    with atomic_write(path) as partial:
        figure.savefig(partial, dpi=120)
