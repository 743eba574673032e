"""Benchmarks: `simplegvr benchmark {attention,scaling,model,cascade,chain,memory,seams,training,table-2,all,gpu} --help`."""

from collections.abc import Sequence


def main(arguments: Sequence[str]) -> dict:
    """Runs one benchmark of the command line and returns its results. That of a GPU needs none of the others' packages."""
    if arguments[:1] == ["gpu"]:
        from .gpu.command import main as benchmark_gpu

        return benchmark_gpu(arguments[1:])
    from .timings import main as benchmark

    return benchmark(arguments)
