"""Runs Python inside the pack's environment: `python3 scripts/run.py -m simplegvr_core.train vae --help`."""

import subprocess
import sys

from comfyui import REPO, enter

if __name__ == "__main__":
    enter()
    sys.exit(subprocess.call([sys.executable, *sys.argv[1:]], cwd=REPO))
