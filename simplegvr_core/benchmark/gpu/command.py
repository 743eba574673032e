"""`simplegvr benchmark gpu --minutes 4`: what one GPU can show in minutes, on a machine that need not have ComfyUI.

It needs PyTorch, einops, numpy, safetensors and tqdm; Triton, accelerate and peft for their items. An item whose package is
missing says so in the file.
"""

import os
import platform
import sys
from argparse import ArgumentDefaultsHelpFormatter, ArgumentParser
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...evaluation.versions import versions
from ...networks.layers import default_device
from .summary import summary
from .supervisor import Record, run
from .worker import all_items, sizes_for


def main(arguments: Sequence[str]) -> dict[str, Any]:
    """Runs the benchmark of the command line; returns the file's path and the figures that decide."""
    parser = ArgumentParser("simplegvr benchmark gpu", description=__doc__, formatter_class=ArgumentDefaultsHelpFormatter)
    parser.add_argument("--minutes", type=float, default=4.0, help="for everything; each section has its part of it")
    parser.add_argument("--out", type=Path, default=Path("out/benchmark/gpu.json"), help="file, written anew after each result")
    parser.add_argument("--device", default=default_device(), help="cuda, or cpu: there sizes are those of a test")
    parser.add_argument("--commit", default=versions()["commit"], help="of the sources, for the file; where there is no git, tell it")
    options = parser.parse_args(arguments)
    if options.minutes <= 0:
        raise ValueError(f"--minutes is {options.minutes:g}, wanted more than 0, such as 4")
    if options.device == "cpu":
        os.environ.setdefault("TRITON_INTERPRET", "1")  # for the worker, before it imports Triton
    header = {
        "command": " ".join(["benchmark gpu", *arguments]),
        "commit": options.commit,
        "minutes": options.minutes,
        "device": options.device,
        "python": platform.python_version(),
        "system": f"{sys.platform} {platform.machine()}, {os.cpu_count()} CPU cores",
    }
    record = Record(options.out, header, all_items(sizes_for(options.device)))
    run(record, options.device, options.minutes)
    return {"file": str(options.out), **summary(record.contents())}
