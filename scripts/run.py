"""Runs a command of the core in the pack's environment: `python3 scripts/run.py COMMAND --help`; without one, lists them.

What only a command needs is installed when it first runs. A Python file and Python's own -m and -c run there, too, with everything
installed; so do the maintainers' tools: `python3 scripts/run.py tools/soak.py`.
"""

import os
import sys

from comfyui import DEMO, EVERYTHING, HOME, MODULES, PAGE, REPO, become, enter, find_comfyui


def extras(arguments: list[str]) -> tuple[str, ...]:
    """Returns what the command of these arguments needs installed."""
    sys.path.append(str(REPO))
    from simplegvr_core.__main__ import COMMANDS  # nothing is installed yet: this module imports no package

    first = arguments[0] if arguments else ""
    if first in COMMANDS:
        _, extra, _ = COMMANDS[first]
        cluster = ("ray",) if {"--workers", "--ray"} & set(arguments) else ()
        return (PAGE, *extra.split(","), *cluster)
    return EVERYTHING if runs_python(first) else DEMO


def runs_python(first: str) -> bool:
    return first in ("-m", "-c") or first.endswith(".py")


if __name__ == "__main__":
    enter(extras(sys.argv[1:]))
    os.environ["PYTHONPATH"] = os.pathsep.join(map(str, MODULES))
    os.environ["COMFYUI_PATH"] = str(find_comfyui(HOME))  # for benchmarks against it
    become([sys.executable, *([] if runs_python((*sys.argv, "")[1]) else ["-m", "simplegvr_core"]), *sys.argv[1:]])
