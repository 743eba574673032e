"""Runs a command of the core in the pack's environment: `python3 scripts/run.py COMMAND --help`; without one, lists them.

A Python file and Python's own -m and -c run there, too; so do the maintainers' tools: `python3 scripts/run.py tools/soak.py`.
"""

import os
import sys

from comfyui import HOME, MODULES, become, enter, find_comfyui

if __name__ == "__main__":
    enter()
    os.environ["PYTHONPATH"] = os.pathsep.join(map(str, MODULES))
    os.environ["COMFYUI_PATH"] = str(find_comfyui(HOME))  # for benchmarks against it
    first = sys.argv[1] if len(sys.argv) > 1 else ""
    is_python = first in ("-m", "-c") or first.endswith(".py")
    become([sys.executable, *([] if is_python else ["-m", "simplegvr_core"]), *sys.argv[1:]])
