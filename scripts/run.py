"""Runs Python inside the pack's environment: `python3 scripts/run.py -m simplegvr_core.train vae --help`."""

import os
import sys

from comfyui import REPO, become, enter

if __name__ == "__main__":
    enter()
    os.environ["PYTHONPATH"] = str(REPO)
    become([sys.executable, *sys.argv[1:]])
