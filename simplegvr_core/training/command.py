"""Training from the command line: `simplegvr train --preset stage1 --pairs DIR --init-dit FILE`.

Every option of a preset can be given anew.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import tyro
from accelerate import PartialState

from ..files import CLIPS
from .build_pairs import BuildPairs
from .presets import PRESETS
from .train import Train


@dataclass(frozen=True)
class Command:
    """What to train, and whether to train at all."""

    preset: Literal[tuple(PRESETS)] = "stage1"
    plan: bool = False
    """Print memory, tokens and time that the training would take, and stop."""


def main(arguments: Sequence[str]) -> dict | None:
    """Trains as the command line says. Returns None on every process but the first."""
    command, rest = tyro.cli(Command, prog="simplegvr train", args=arguments, return_unknown_args=True, add_help=False)
    description = f"{Train.__doc__} --preset: {', '.join(PRESETS)}; the options are shown with the values of {command.preset!r}. "
    description += "--plan: print memory, tokens and time that it would take, estimated, and stop."
    train = tyro.cli(Train, prog="simplegvr train", args=rest, default=PRESETS[command.preset], description=description)
    if command.plan:
        return train.plan()
    process = PartialState(cpu=train.loop.cpu)
    with process.main_process_first():
        if command.preset == "smoke" and not (train.pairs[0] / "pairs.json").exists():
            BuildPairs(CLIPS, train.vae, train.pairs[0], "area", num_frames=9, spacing=9, scales=(2,)).run()
    result = train.run()
    return result if process.is_main_process else None
