"""Runs Python inside the pack's environment: `python3 scripts/run.py -m simplegvr_core.training.train vae --help`."""

import os
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "tools"))
from comfyui import HOME, REPO, become, enter, find_comfyui

if __name__ == "__main__":
    enter()
    os.environ["PYTHONPATH"] = str(REPO)
    os.environ["COMFYUI_PATH"] = str(find_comfyui(HOME))  # for benchmarks against it
    become([sys.executable, *sys.argv[1:]])
