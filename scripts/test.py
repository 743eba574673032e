"""Runs the tests, after setting up what they need: `python3 scripts/test.py [pytest arguments]`."""

import subprocess
import sys

from comfyui import REPO, SetupError, enter

if __name__ == "__main__":
    enter()
    from browser import install_chromium

    try:
        install_chromium()
    except SetupError as error:
        sys.exit(f"set-up failed: {error}")
    sys.exit(subprocess.call([sys.executable, "-m", "pytest", *sys.argv[1:]], cwd=REPO))
