"""Sets an environment up and prints its seconds and bytes by package: `python3 scripts/weigh.py [EXTRA ...] [--home DIR]`.

Without an extra, the environment of the demo. In an empty --home, and with an empty UV_CACHE_DIR, it is a first set-up.
"""

import argparse
import sys
import time
from importlib.metadata import Distribution, distributions
from pathlib import Path

from comfyui import DEMO, EVERYTHING, HOME, SetupError, set_up

PYTORCH = ("torch", "triton", "nvidia-", "cuda-")  # PyTorch and its CUDA parts: names, and beginnings of names
LARGEST = 24  # packages with a row of their own


def main(arguments: argparse.Namespace) -> None:
    start = time.monotonic()
    arguments.home.mkdir(parents=True, exist_ok=True)
    python = set_up(arguments.home, arguments.extras or DEMO)
    print(f"set up for {', '.join(arguments.extras or DEMO)} in {time.monotonic() - start:.0f} s\n\n{table(weigh(python))}")


def weigh(python: Path) -> dict[str, int]:
    """Returns the bytes of each package's files in the environment of an interpreter, the largest first."""
    folders = [str(folder) for folder in python.parents[1].glob("[Ll]ib/**/site-packages")]
    sizes = {each.metadata["Name"]: size(each) for each in distributions(path=folders)}
    return dict(sorted(sizes.items(), key=lambda item: -item[1]))


def size(package: Distribution) -> int:
    files = (Path(str(file.locate())) for file in package.files or ())
    return sum(file.stat().st_size for file in files if file.is_file())


def is_pytorch(name: str) -> bool:
    return any(name == part or (part.endswith("-") and name.startswith(part)) for part in PYTORCH)


def table(sizes: dict[str, int]) -> str:
    """Returns the sizes by package and their sums as tables in Markdown."""
    pytorch, rest = ({name: size for name, size in sizes.items() if is_pytorch(name) is wanted} for wanted in (True, False))
    lines = ["| package | MB |", "|---|---|"]
    lines += [f"| {name} | {size / 1e6:.0f} |" for name, size in list(rest.items())[:LARGEST]]
    lines.append(f"| {max(0, len(rest) - LARGEST)} others | {sum(list(rest.values())[LARGEST:]) / 1e6:.0f} |")
    lines += [f"| **all but PyTorch** | **{sum(rest.values()) / 1e6:.0f}** |"]
    lines += [f"| PyTorch and its CUDA parts ({len(pytorch)} packages) | {sum(pytorch.values()) / 1e6:.0f} |"]
    return "\n".join([*lines, f"| **all** | **{sum(sizes.values()) / 1e6:.0f}** |"])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("extras", nargs="*", metavar="EXTRA", help=f"{', '.join([*DEMO, *EVERYTHING])} (default: core)")
    parser.add_argument("--home", type=Path, default=HOME, help="folder of the environment (default: .comfyui)")
    try:
        main(parser.parse_args())
    except SetupError as error:
        sys.exit(f"set-up failed: {error}")
