"""Time and memory from a low-resolution latent to a saved video: our chain against the other ways to the same size."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
from tqdm import tqdm

from ..evaluation.versions import versions
from ..files import write_text
from ..networks.layers import default_device
from .chain_routes import ROUTES, Run
from .chain_stages import scene
from .machine import new_figure, save_figure
from .memory import measure_apart

OURS, PIXELS = list(ROUTES)[:2]


@dataclass(frozen=True)
class ChainBenchmark:
    """Times the ways from a low-resolution latent to a saved video of the target's size, stage by stage, each in its own process.

    With gvr_tiny, and with networks of Wan's sizes and random weights, of which a part is run and the whole is forecast.
    """

    size: tuple[int, int] = (540, 960)
    """Height and width in pixels of the result."""
    scale: float = 3.0
    """Width and height of the result over those of the low resolution."""
    num_frames: int = 17
    """Video frames with gvr_tiny, at most the bundled clip's."""
    wan_size: tuple[int, int] = (272, 480)
    """Height and width in pixels of what is run with Wan's sizes."""
    wan_frames: int = 5
    """Video frames of what is run with Wan's sizes."""
    wan_forecast: int = 77
    """Video frames that the seconds of Wan's sizes are forecast for, at the size of the result."""
    stacks: tuple[Literal["gvr_tiny", "wan"], ...] = ("gvr_tiny", "wan")
    """Networks: gvr_tiny, and those of Wan's sizes."""
    device: str = default_device()
    """cpu, cuda, cuda:1 and so on."""
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16" if default_device() == "cuda" else "float32"
    out: Path = Path("out/benchmark")
    """Folder for chain.json, chain.md and chain.png; files of an earlier run are replaced."""

    def run(self) -> dict:
        """Returns the seconds of our chain and of the pixel route, their ratio, and of each stack all routes by stage."""
        results = {stack: self.stack(stack) for stack in self.stacks}
        first = results[self.stacks[0]]
        summary = {
            **{key: first[key] for key in ("ours_s", "pixel_route_s", "ratio", "cpu_ratio")},
            **results,
            "device": torch.cuda.get_device_name(self.device) if self.device.startswith("cuda") else self.device,
            "threads": torch.get_num_threads(),
            "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
            **versions(),
        }
        text = "\n\n".join(table(name, result) for name, result in results.items())
        write_text(self.out / "chain.json", json.dumps(summary, indent=1))
        write_text(self.out / "chain.md", f"{text}\n")
        print(f"{text}\n")
        self.draw(results)
        return summary

    def stack(self, stack: str) -> dict:
        """Returns the seconds of the routes of one stack."""
        if stack == "gvr_tiny":
            measured = wanted = scene(self.size, self.scale, self.num_frames)
        else:
            measured, wanted = scene(self.wan_size, self.scale, self.wan_frames), scene(self.size, self.scale, self.wan_forecast)
        routes = {}
        for route in tqdm(ROUTES, desc=stack, leave=False):
            outcome = measure_apart(Run(stack, route, measured, wanted, self.device, self.dtype))
            stages = [asdict(stage) for stage in outcome["stages"]]
            peaks = [stage["peak_gb"] for stage in stages if stage["peak_gb"] is not None]
            total = sum(stage["whole_s"] for stage in stages) if stages else None
            cpu = sum(stage["cpu_s"] * stage["whole_s"] / stage["seconds"] for stage in stages) if stages else None
            routes[route] = {
                "seconds": total,
                "cpu_s": cpu,
                "peak_gb": max(peaks, default=None),
                "stages": stages,
                "not_run": outcome["not_run"],
            }
        ours, pixels = routes[OURS], routes[PIXELS]
        return {
            "ours_s": ours["seconds"],
            "pixel_route_s": pixels["seconds"],
            "ratio": ours["seconds"] and ours["seconds"] / pixels["seconds"],
            "cpu_ratio": ours["cpu_s"] and ours["cpu_s"] / pixels["cpu_s"],
            "run": str(measured),
            "is_forecast": measured != wanted,
            "result": str(wanted),
            "routes": routes,
        }

    def draw(self, results: dict) -> None:
        """Draws each route's seconds."""
        figure, axes = new_figure("seconds from a low-resolution latent to a saved video; text-to-video before it is not in them")
        names, seconds = [], []
        for stack, result in results.items():
            for route, row in result["routes"].items():
                if row["seconds"]:
                    names.append(f"{stack}: {route.split(':')[0]}")
                    seconds.append(row["seconds"])
        axes.barh(names, seconds, label="forecast where a part was run, see chain.md")
        axes.invert_yaxis()
        axes.set(xscale="log", xlabel="seconds")
        save_figure(self.out / "chain.png", figure, axes)


def table(name: str, result: dict) -> str:
    """Returns the routes of one stack with their stages as a table in Markdown."""
    what = f"run {result['run']}, forecast for {result['result']}" if result["is_forecast"] else result["result"]
    lines = [f"{name}: {what}", "", "| | run s | of them CPU s | whole s | whole CPU s | over ours (CPU) | peak GB | |"]
    lines.append("|" + 8 * "---|")
    for route, row in result["routes"].items():
        if row["seconds"] is None:
            lines.append(f"| **{route}** | - | - | - | - | - | - | not run: {row['not_run']} |")
            continue
        over = f"{row['cpu_s'] / result['routes'][OURS]['cpu_s']:.3g}" if result["ours_s"] else "-"
        peak = gigabytes(row["peak_gb"])
        lines.append(f"| **{route}** | | | **{row['seconds']:.4g}** | **{row['cpu_s']:.4g}** | {over} | {peak} | |")
        for stage in row["stages"]:
            mark = "forecast" if stage["whole_s"] != stage["seconds"] else ""
            numbers = f"{stage['seconds']:.3g} | {stage['cpu_s']:.3g} | {stage['whole_s']:.4g}"
            lines.append(f"| {stage['name']} | {numbers} | | | {gigabytes(stage['peak_gb'])} | {mark} |")
    return "\n".join(lines)


def gigabytes(peak: float | None) -> str:
    return "-" if peak is None else f"{peak:.2f}"
