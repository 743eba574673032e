"""The figures that decide, from the file of a run: errors that are too large, ratios, targets and plans that do not hold."""

from typing import Any

KERNEL_MS, OPERATOR_MS, OVER_DENSE = 1.05, 1.7, 150.0  # targets of docs/benchmarks.md at the first grid, H200-class


def summary(contents: dict[str, Any]) -> dict[str, Any]:
    """Returns the decisive figures of a run; None is what was not measured.

    Args:
        contents: Of the file.
    """
    sections = contents["sections"]
    kernels, operator = sections["kernels"], sections["operator"]
    every = {f"{section}: {name}": result for section, items in sections.items() for name, result in items.items()}
    whole, alone = first(operator, "ours, k 1: triton"), first(operator, "kernel alone, k 1, windows random")
    dense = [result["ms"] for name, result in of_first_grid(operator) if name.startswith("dense: ") and "ms" in result]
    over_dense = min(dense) / whole if dense and whole else None
    return {
        "finished": contents["finished"],
        "kernels_passed": [sum(result.get("passed") is True for result in kernels.values()), sum("passed" in r for r in kernels.values())],
        "kernels_failed": [name for name, result in kernels.items() if result.get("passed") is False],
        "operator_ms": whole,
        "kernel_ms": alone,
        "dense_over_operator": over_dense,
        "targets_met": {
            "kernel": alone and alone <= KERNEL_MS,
            "operator": whole and whole <= OPERATOR_MS,
            "over_dense": over_dense and over_dense >= OVER_DENSE,
        },
        "plans_that_do_not_hold": [name for name, result in every.items() if result.get("plan_holds") is False],
        "errors": [name for name, result in every.items() if isinstance(result.get("error"), str)],
        "not_run": sum("not_run" in result for result in every.values()),
    }


def of_first_grid(operator: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Returns the operator's results at the grid of its first item."""
    grid = next((name.rsplit(", ", 1)[1] for name in operator), "")
    return [(name, result) for name, result in operator.items() if name.endswith(f", {grid}")]


def first(operator: dict[str, Any], beginning: str) -> float | None:
    """Returns the milliseconds of the first result at the first grid whose name begins so."""
    return next((result.get("ms") for name, result in of_first_grid(operator) if name.startswith(beginning)), None)
