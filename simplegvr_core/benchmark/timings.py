"""The benchmarks of one question each, by name.

Every ratio is of two timings of one run on one machine, beside the floor: the time at the machine's best copy bandwidth and
matrix rate, measured in the same run. A table, the JSON and a plot are written to --out and replace those of an earlier run.
Weights and inputs are random, which changes no time but that of the choice of windows. For each operation that a machine
cannot run, the table gives the reason.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import tyro

from ..planning import flops
from .attention import AttentionBenchmark, ScalingBenchmark
from .chain import ChainBenchmark
from .machine import Options
from .memory import MemoryBenchmark
from .network import CascadeBenchmark, NetworkBenchmark
from .seams import SeamBenchmark
from .training import TrainingBenchmark


@dataclass(frozen=True)
class Table2:
    """Counts the operations of the paper's table 2 from its configurations, beside what the paper gives."""

    def run(self) -> dict:
        """Returns flops.table_2()."""
        return flops.table_2()


@dataclass(frozen=True)
class All(Options):
    """Runs every timing at its defaults, attention with 1, 0, 3 and 7 other windows: minutes on a large GPU."""

    limit_s: float = 10

    def run(self) -> dict:
        """Returns the results of each, by its name among the commands."""
        options = vars(self)
        benchmarks = {
            "attention": AttentionBenchmark(**options, top_k=(1, 0, 3, 7)),
            "scaling": ScalingBenchmark(**options),
            "model": NetworkBenchmark(**options),
            "cascade": CascadeBenchmark(**options),
            "table-2": Table2(),
        }
        return {name: benchmark.run() for name, benchmark in benchmarks.items()}


COMMANDS = {
    "attention": AttentionBenchmark,
    "model": NetworkBenchmark,
    "cascade": CascadeBenchmark,
    "chain": ChainBenchmark,
    "scaling": ScalingBenchmark,
    "memory": MemoryBenchmark,
    "seams": SeamBenchmark,
    "training": TrainingBenchmark,
    "table-2": Table2,
    "all": All,
}


def main(arguments: Sequence[str]) -> dict:
    """Runs one benchmark of the command line and returns its results."""
    description = "One benchmark. Another, `simplegvr benchmark gpu --help`, runs what one GPU can show in minutes."
    return tyro.extras.subcommand_cli_from_dict(COMMANDS, prog="simplegvr benchmark", description=description, args=arguments).run()
