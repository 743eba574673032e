"""Training from the command line: `simplegvr train --preset stage1 --pairs DIR --init-dit FILE`.

Every option of a preset can be given anew.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import tyro
from accelerate import PartialState

from ..files import CLIPS, GVR_TINY_VAE
from .build_pairs import BuildPairs
from .presets import PRESETS
from .train import Train


@dataclass(frozen=True)
class Command:
    """The options of `simplegvr train` that choose the others' defaults or replace the training."""

    preset: Literal[tuple(PRESETS)] = "stage1"  # pyright: ignore[reportInvalidTypeForm]: names from the table
    """Run whose values are the defaults of all other options."""
    plan: bool = False
    """Print the estimated memory, tokens and time of the training, and stop."""


def main(arguments: Sequence[str]) -> dict | None:
    """Trains as the command line asks and returns the result; None on every process but the first.

    The preset "smoke" builds its pairs first, from the bundled clips.
    """
    command, rest = tyro.cli(Command, prog="simplegvr train", args=arguments, return_unknown_args=True, add_help=False)
    description = f"{Train.__doc__} --preset: {', '.join(PRESETS)}; the defaults below are those of {command.preset!r}. "
    description += "--plan: print the estimated memory, tokens and time of the training, and stop."
    train = tyro.cli(Train, prog="simplegvr train", args=rest, default=PRESETS[command.preset], description=description)
    if command.plan:
        return train.plan()
    process = PartialState(cpu=train.loop.cpu)
    with process.main_process_first():
        if command.preset == "smoke" and not (train.pairs[0] / "pairs.json").exists():
            BuildPairs(CLIPS, train.vae or GVR_TINY_VAE, train.pairs[0], "area", num_frames=9, spacing=9, scales=(2,)).run()
    result = train.run()
    return result if process.is_main_process else None
