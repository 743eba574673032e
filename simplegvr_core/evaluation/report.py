"""The report of an evaluation, which evaluation writes at its end: `python3 scripts/run.py report DIR` writes it again.

It consists of report.html and results.md in DIR, made from the results.json and the videos there. The page needs no network.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import tyro

from ..files import read_json, write_text
from ..sampling.super_resolve import SamplingConfig
from .report_page import Page

HOW = {
    "pairs": "Each clip is an original. Its low resolution is made by area averaging, unless the clip came with one. Every method makes a "
    "video of the original's size from the low resolution. vae and vae_linear are the original itself, encoded and decoded: a method in "
    "those latents can hardly exceed them. The learned baselines (basicvsr, animesr, span, animevideo) get the pixels, not the latent, and "
    "are made for x4: their result is area-averaged to the size wanted.",
    "aigc": "Each clip was made by a text-to-video model, as a latent or as a video of low resolution. It has no original. Metrics measure "
    "how natural and how steady a result is, and whether it is still the picture of its source.",
}


@dataclass(frozen=True)
class Report:
    """Writes report.html and results.md again from the results.json and the videos of an evaluation."""

    folder: tyro.conf.Positional[Path]

    def run(self) -> Path:
        """Returns the path of report.html. Raises ValueError where the folder contains no results.json."""
        if not (self.folder / "results.json").is_file():
            raise ValueError(f"{self.folder} contains no results.json: give the --out of `simplegvr evaluate`")
        return write(self.folder)


def write(folder: Path) -> Path:
    """Returns the path of report.html after writing it and results.md.

    Args:
        folder: Folder with the results.json and the videos of an evaluation, see evaluate.py.

    Raises:
        ValueError: results.json was written by an older version.
    """
    results = read_json(folder / "results.json", "run the evaluation again")
    if "reconstructions" not in results:
        raise ValueError(f"{folder / 'results.json'} is from an older version: run the evaluation again")
    write_text(folder / "results.md", markdown(results))
    write_text(folder / "report.html", Page(folder, results).html(HOW[results["suite"]]))
    return folder / "report.html"


def markdown(results: dict) -> str:
    """Returns the results as markdown: tables of the means, of every clip, and of how often gvr is better than each other method."""
    clips, mean, metrics = results["clips"], results["mean"], results["metrics"]
    headings = {name: f"{metric['label']}, {metric['unit']}" if metric["unit"] else metric["label"] for name, metric in metrics.items()}
    direction = {name: f" ({metric['better']} is better)" if metric["better"] else "" for name, metric in metrics.items()}

    def number(metric: str, values: dict) -> str:
        value = values.get(metric)
        return "-" if value is None else f"{value:.{metrics[metric]['decimals']}f}"

    lines = ["# Results", "", HOW[results["suite"]], "", describe(results["run"]), "", f"## Mean of {len(clips)} clips", ""]
    lines += table(
        ["method", *(headings[metric] + direction[metric] for metric in metrics)],
        [[method, *(number(metric, values) for metric in metrics)] for method, values in mean.items()],
    )
    for metric in (name for name in metrics if name != "seconds_per_frame"):
        truth = results["original"] if any(metric in values for values in results["original"].values()) else {}
        lines += ["", f"## {headings[metric]} of each clip{direction[metric]}", ""]
        lines += table(
            ["clip", *mean, *(["original"] if truth else [])],
            [
                [name, *(number(metric, clip[method]) for method in mean), *([number(metric, truth[name])] if truth else [])]
                for name, clip in clips.items()
            ],
        )
    if others := [method for method in mean if method != "gvr" and "gvr" in mean]:
        lines += ["", "## Clips on which gvr is better", ""]
        quality = [name for name, metric in metrics.items() if metric["better"] and name != "seconds_per_frame"]
        lines += table(
            ["than", *(headings[metric] for metric in quality)],
            [[method, *(wins(clips, method, metric, metrics[metric]["better"]) for metric in quality)] for method in others],
        )
    if results["skipped"]:
        lines += ["", "## Not measured", "", *(f"- {metric}: {plain(why)}." for metric, why in results["skipped"].items())]
    return "\n".join(lines) + "\n"


def describe(run: dict) -> str:
    """Returns the command, and the options that decide about the results, in words."""
    frames = f"the first {run['num_frames']} frames of each clip, at most {run['height']} lines"
    sampling = SamplingConfig(**run["sampling"])  # older results lack some, which had the defaults
    steps = f"{sampling.steps} steps" + ("" if sampling.solver == "euler" else f" of solver {sampling.solver}") + sampling.weighing
    return f"```\n{run['command']}\n```\nHere: {frames}, seed {run['seed']}, {steps}, on {run['device']}."


def table(header: list[str], rows: list[list[str]]) -> list[str]:
    """Returns the lines of a markdown table."""
    return ["| " + " | ".join(map(plain, row)) + " |" for row in [header, ["---"] * len(header), *rows]]


def plain(text: str) -> str:
    """Returns text, such as the name of a clip, that markdown shows as it is: without HTML, in one cell of a table."""
    return escape(text, quote=False).replace("|", "\\|").replace("\n", " ")


def wins(clips: dict[str, dict], method: str, metric: str, better: str) -> str:
    """Returns "N of M": on N of the M clips where both have a value gvr is better than method."""
    sign = 1 if better == "higher" else -1
    both = [(clip["gvr"].get(metric), clip[method].get(metric)) for clip in clips.values()]
    both = [(ours, theirs) for ours, theirs in both if ours is not None and theirs is not None]
    return f"{sum(sign * ours > sign * theirs for ours, theirs in both)} of {len(both)}"


def main(arguments: Sequence[str]) -> dict:
    return {"report": str(tyro.cli(Report, prog="simplegvr report", args=arguments).run())}
