"""What a measurement depends on: the commit and the versions of packages."""

import importlib.metadata
import subprocess
from shutil import which

from ..files import REPO


def versions() -> dict[str, str]:
    """Returns the commit and the versions of the installed packages that decide the speed; "unknown" for the commit outside a clone."""
    found = {str(d.metadata["Name"]).lower(): d.version for d in importlib.metadata.distributions()}  # None of a broken one
    describe = ["git", "describe", "--always", "--dirty"]
    is_clone = which("git") is not None and (REPO / ".git").exists()
    commit = subprocess.run(describe, cwd=REPO, capture_output=True, text=True, check=False).stdout.strip() if is_clone else ""
    names = ("torch", "triton", "triton-windows", "nvidia-cudnn-cu13", "nvidia-cudnn-frontend", "flash-attn-4")
    return {"commit": commit or "unknown"} | {name: found[name] for name in names if name in found}
