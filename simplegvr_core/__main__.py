"""The command line: `python -m simplegvr_core COMMAND --help`, or `simplegvr COMMAND` where the package is installed."""

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module

COMMANDS = {  # (module, the extra of pyproject.toml that it needs, summary); its main(arguments) returns what is printed as JSON
    "photos": ("training.photos", "train", "make video of photographs in motion"),
    "pairs": ("training.build_pairs", "train", "build shards of latent pairs from video"),
    "contexts": ("training.contexts", "train", "encode captions for training"),
    "train": ("training.command", "train", "train the transformer and the upsampler"),
    "train-upsampler": ("training.train_upsampler", "train", "train an upsampler alone"),
    "distil": ("training.distil", "train", "distil a trained model to few steps"),
    "train-vae": ("training.train_vae", "train", "train TinyVAE"),
    "curve": ("training.measure_curve", "train", "measure the noise levels where detail appears"),
    "export": ("training.export", "train", "write a folder ready for a model hub"),
    "evaluate": ("evaluation.evaluate", "evaluate", "compare methods on a folder of clips"),
    "report": ("evaluation.report", "evaluate", "write the report of an evaluation again"),
    "seams": ("evaluation.measure_seams", "core", "measure seams and flicker of a video or latent"),
    "attention-error": ("benchmark.attention_error", "benchmark", "measure what sparse attention changes in a dense model"),
    "baselines": ("evaluation.baselines", "evaluate", "fetch other people's super-resolution by name"),
    "convert": ("networks.convert", "core", "convert another model's weights to a SimpleGVR checkpoint"),
    "super-resolve": ("super_resolve_command", "core", "super-resolve latents, on one machine or a ray cluster"),
    "plan": ("planning.command", "core", "plan a run: segments, tiles, memory"),
    "benchmark": ("benchmark.command", "benchmark,train", "time attention, network and cascade"),
    "ablate": ("paper.ablate", "train,evaluate", "run the paper's ablations at toy scale"),
    "paper": ("paper.command", "train,evaluate", "make the paper's tables and figures for given weights"),
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
    module, extra, _ = COMMANDS[name]
    with plain_errors(extra):
        result = import_module(f".{module}", __package__).main(rest)
        if result is not None:
            print(json.dumps(result))


def usage() -> str:
    width = max(map(len, COMMANDS))
    return "usage: simplegvr COMMAND [options], --help after a command lists them\n\n" + "\n".join(
        f"  {name:{width}}  {summary}" for name, (_, _, summary) in COMMANDS.items()
    )


@contextmanager
def plain_errors(extra: str) -> Iterator[None]:
    """An error that the user can cure ends the process: its sentence on stderr, no traceback, exit status 1.

    Args:
        extra: The extra of pyproject.toml whose packages the block needs, for the cure where one is missing.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        sys.exit(f'{error.name} is not installed: run `python -m pip install ".[{extra}]"` in the repository')
    except (ValueError, OSError, ImportError, FloatingPointError) as error:
        sys.exit(str(error))
    except RuntimeError as error:
        from .tiling import OutOfMemory  # here, where the command has imported torch: without a command nothing needs it

        if not isinstance(error, OutOfMemory):
            raise
        sys.exit(str(error))


if __name__ == "__main__":
    main()
