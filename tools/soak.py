"""Soaks SimpleGVR Sampler in a real ComfyUI: `python3 scripts/run.py tools/soak.py [--prompts 200] [--seed 0]`.

Prompts with random sources, targets, settings and tilings meet random faults: interrupts, simulated out-of-memory, killed
servers, damaged files, other servers, bad inputs. After each, the result's shape and values and the files left are checked;
every 20 prompts one and the same probe must give the same bits, and the server's memory is read. Ends with a table and a line
of JSON.
"""

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
import traceback
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from comfyui import SetupError, say

WINDOW = 20  # prompts between probes
WARM_UP = 3  # windows before memory is compared
MOST_GROWTH = 0.02
ENVIRONMENT = {  # what is freed is given back, and oneDNN keeps few of the convolutions that it compiles for each new shape
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "65536",
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "16",
}


@dataclass
class Tally:
    """What became of the prompts of one kind."""

    seconds: list[float] = field(default_factory=list)
    outcomes: dict[str, int] = field(default_factory=lambda: defaultdict(int))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=200, help="how many prompts to run (default: 200)")
    parser.add_argument("--seed", type=int, default=0, help="draws the prompts and their faults (default: 0)")
    arguments = parser.parse_args()
    if arguments.prompts < 1:
        parser.error(f"--prompts is {arguments.prompts}, wanted 1 or more")
    return arguments


def main(arguments: argparse.Namespace) -> int:
    """Returns the exit status: 1 when something is unexplained."""
    from soak_cases import PROBE, draw_case
    from soak_runs import Servers, run_probe

    os.environ |= ENVIRONMENT
    started, tallies, failures, probes, memory = time.monotonic(), defaultdict(Tally), [], [], []
    with tempfile.TemporaryDirectory() as folder:
        say("starting ComfyUI")
        servers = Servers(Path(folder))

        def probe() -> None:
            latent, mebibytes = run_probe(servers.steady, PROBE)
            probes.append(latent)
            memory.append(mebibytes)

        try:
            for index in range(arguments.prompts):
                if index % WINDOW == 0:
                    probe()
                    say(f"{index} of {arguments.prompts} prompts, {len(failures)} unexplained, server at {memory[-1]:.0f} MiB")
                case = draw_case(Random(f"{arguments.seed} {index}"))
                if failure := run_and_tally(servers, case, tallies[case.fault]):
                    failures.append(f"prompt {index}: {case}\n{failure}")
                    say(failures[-1])
            probe()
        finally:
            servers.stop()
    print_table(tallies, memory)
    growth = memory_growth(memory)
    identical = all(latent.equal(probes[0]) for latent in probes)
    passed = not failures and identical and (growth is None or growth < MOST_GROWTH)
    result = {"prompts": arguments.prompts, "seed": arguments.seed, "unexplained": len(failures)}
    result |= {"probes": len(probes), "probes_identical": identical, "rss_growth": growth}
    print(json.dumps({**result, "seconds": round(time.monotonic() - started), "passed": passed}))
    return 0 if passed else 1


def run_and_tally(servers, case, tally: Tally) -> str | None:
    """Returns what went wrong with a case, None if all is explained."""
    from client import WorkflowError
    from soak_runs import Unexplained, run_case

    started, failure = time.monotonic(), None
    try:
        outcome = run_case(servers, case)
    except (Unexplained, WorkflowError, TimeoutError, asyncio.TimeoutError):  # two classes on Python 3.10
        outcome, failure = "UNEXPLAINED", traceback.format_exc(limit=-2) + servers.last_words()
    tally.outcomes[outcome] += 1
    tally.seconds.append(time.monotonic() - started)
    return failure


def memory_growth(memory: list[float]) -> float | None:
    """Returns by which share memory grew from the first windows after warm-up to the last, by medians; None of too few."""
    after = memory[WARM_UP:]
    third = len(after) // 3
    return round(statistics.median(after[-third:]) / statistics.median(after[:third]) - 1, 4) if third else None


def print_table(tallies: dict[str, Tally], memory: list[float]) -> None:
    print("\n| prompts with | run | outcome | median s | longest s |\n|---|---|---|---|---|")
    for fault, tally in sorted(tallies.items()):
        outcomes = ", ".join(f"{count} {outcome}" for outcome, count in sorted(tally.outcomes.items()))
        print(f"| {fault} | {len(tally.seconds)} | {outcomes} | {statistics.median(tally.seconds):.1f} | {max(tally.seconds):.1f} |")
    print("\nmemory of the server after the probe, MiB: " + ", ".join(f"{reading:.0f}" for reading in memory))


if __name__ == "__main__":
    arguments = parse_arguments()
    try:
        sys.exit(main(arguments))
    except SetupError as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        say("stopped")
