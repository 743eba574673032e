"""Runs the tests, after setting up what they need: `python3 scripts/test.py [pytest arguments]`."""

import os
import sys

from comfyui import REPO, SetupError, become, enter

if __name__ == "__main__":
    enter()
    from browser import install_chromium

    try:
        install_chromium()
    except SetupError as error:
        sys.exit(f"set-up failed: {error}")
    os.chdir(REPO)
    become([sys.executable, "-m", "pytest", *sys.argv[1:]])
