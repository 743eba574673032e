"""Runs the tests, after setting up what they need: `python3 scripts/test.py [pytest arguments]`."""

import os
import sys

from comfyui import REPO, SetupError, become, enter

TWO_AT_A_TIME = ("-n", "2", "--dist", "loadfile")  # each a ComfyUI and a server of its own, some 4 GB together

if __name__ == "__main__":
    enter()
    from browser import install_chromium

    try:
        install_chromium()
    except SetupError as error:
        sys.exit(f"set-up failed: {error}")
    os.chdir(REPO)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # more only wait for each other
    become([sys.executable, "-m", "pytest", *TWO_AT_A_TIME, *sys.argv[1:]])
