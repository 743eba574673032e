"""The command line: `python -m simplegvr_core COMMAND --help`, or `simplegvr COMMAND` where the package is installed."""

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module

COMMANDS = {  # each module has main(arguments), which returns what the last line prints as JSON
    "photos": ("training.photos", "make video of photographs in motion"),
    "pairs": ("training.build_pairs", "build shards of latent pairs from video"),
    "train": ("training.command", "train the transformer and the upsampler"),
    "train-vae": ("training.train_vae", "train TinyVAE"),
    "curve": ("training.measure_curve", "measure the noise levels where detail appears"),
    "evaluate": ("evaluation.evaluate", "compare methods on a folder of clips"),
    "report": ("evaluation.report", "write the report of an evaluation again"),
    "seams": ("evaluation.measure_seams", "measure seams and flicker of a video or latent"),
    "baselines": ("evaluation.baselines", "fetch other people's super-resolution by name"),
    "plan": ("planning.command", "plan a run: segments, tiles, memory"),
    "benchmark": ("benchmark.command", "time attention, network and cascade"),
    "ablate": ("paper.ablate", "run the paper's ablations at toy scale"),
    "paper": ("paper.command", "make the paper's tables and figures for given weights"),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs one command; its last line is JSON.

    Args:
        arguments: Name of the command, then its own; by default the process's.
    """
    name, *rest = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if name not in COMMANDS:
        is_help = name in ("-h", "--help")
        print(usage() if is_help else f"no command {name!r}\n\n{usage()}", file=sys.stdout if is_help else sys.stderr)
        sys.exit(0 if is_help else 2)
    with plain_errors():
        result = import_module(f".{COMMANDS[name][0]}", __package__).main(rest)
        if result is not None:
            print(json.dumps(result))


def usage() -> str:
    width = max(map(len, COMMANDS))
    return "usage: simplegvr COMMAND [options], --help after a command lists them\n\n" + "\n".join(
        f"  {name:{width}}  {summary}" for name, (_, summary) in COMMANDS.items()
    )


@contextmanager
def plain_errors() -> Iterator[None]:
    """An error that the user can cure ends the process: its sentence on stderr, no traceback, exit status 1."""
    try:
        yield
    except (ValueError, OSError, ImportError, FloatingPointError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
