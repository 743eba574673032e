"""The table of runs/toy_distillation.sh: means and spreads over its seeds.

`python3 scripts/run.py tools/toy_distillation_table.py OUT`. OUT/SEED/evaluated/NAME/results.json are those of `simplegvr evaluate`.
"""

import json
import sys
from pathlib import Path
from statistics import mean, stdev

ROWS = {
    "teacher": "teacher, 50 steps", "student_4": "student, 4 steps", "student_2": "student, 2 steps", "student_1": "student, 1 step",
    "ab2_8": "teacher, ab2, 8 steps", "ab2_4": "teacher, ab2, 4 steps",
    "euler_8": "teacher, Euler, 8 steps", "euler_4": "teacher, Euler, 4 steps",
}  # fmt: skip
COLUMNS = {
    "psnr": ("PSNR, dB", 2), "st_lpips": ("ST-LPIPS", 3), "niqe": ("NIQE", 2), "warping_error": ("warping error, 1e-3", 2),
    "lr_consistency": ("LR-consistency, dB", 2),
}  # fmt: skip


def table(out: Path) -> str:
    """Returns the table in Markdown; the last column is ST-LPIPS over the teacher's, the mean of the seeds' ratios."""
    seeds = sorted(path for path in out.iterdir() if path.name.isdigit())
    found = {name: [read(seed / "evaluated" / name / "results.json") for seed in seeds] for name in ROWS}
    lines = ["| model | " + " | ".join(label for label, _ in COLUMNS.values()) + " | ST-LPIPS over the teacher's |"]
    lines.append("|---" * (len(COLUMNS) + 2) + "|")
    for name, label in ROWS.items():
        cells = [spread([run[metric] for run in found[name]], decimals) for metric, (_, decimals) in COLUMNS.items()]
        ratios = [run["st_lpips"] / teacher["st_lpips"] for run, teacher in zip(found[name], found["teacher"], strict=True)]
        lines.append(f"| {label} | " + " | ".join([*cells, spread(ratios, 2)]) + " |")
    return "\n".join(lines)


def read(path: Path) -> dict[str, float]:
    """Returns gvr's metrics, means over the clips that have one."""
    return json.loads(path.read_text())["mean"]["gvr"]


def spread(values: list[float], decimals: int) -> str:
    """Returns the mean and the standard deviation over the seeds."""
    deviation = f" ± {stdev(values):.{decimals}f}" if len(values) > 1 else ""
    return f"{mean(values):.{decimals}f}{deviation}"


if __name__ == "__main__":
    print(table(Path(sys.argv[1])))
