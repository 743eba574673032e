"""`python3 scripts/run.py benchmark {attention,scaling,model,cascade,memory,seams,table-2,all} --help`.

Every ratio is of two timings of one run on one machine, and stands beside the floor: the time at the machine's best copy
bandwidth and matrix rate, measured in the same run. The last line is JSON; a table, the JSON and a plot go to --out, in
place of those of the run before. Weights and inputs are random, which changes no time but the choice of windows. What a
machine cannot run is listed with the reason.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import tyro

from ..planning import flops
from .attention import Attention, Scaling
from .machine import Options
from .memory import Memory
from .network import Cascade, Model
from .seams import SeamBenchmark


@dataclass(frozen=True)
class Table2:
    """The paper's table 2 beside what its configurations cost by our count; flops.table_2 says what of it fits."""

    def run(self) -> dict:
        return flops.table_2()


@dataclass(frozen=True)
class All(Options):
    """Every benchmark at its defaults, attention with 1, 0, 3 and 7 other windows: minutes on a large GPU."""

    limit_s: float = 10

    def run(self) -> dict:
        options = vars(self)
        benchmarks = (Attention(**options, top_k=(1, 0, 3, 7)), Scaling(**options), Model(**options), Cascade(**options), Table2())
        return {type(benchmark).__name__.lower(): benchmark.run() for benchmark in benchmarks}


COMMANDS = {
    "attention": Attention,
    "model": Model,
    "cascade": Cascade,
    "scaling": Scaling,
    "memory": Memory,
    "seams": SeamBenchmark,
    "table-2": Table2,
    "all": All,
}


def main(arguments: Sequence[str]) -> dict:
    return tyro.extras.subcommand_cli_from_dict(COMMANDS, prog="simplegvr benchmark", args=arguments).run()
