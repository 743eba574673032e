"""The page of a report: what the template beside this file shows.

results: as results.json has them, see evaluate.py.
"""

from functools import cached_property
from itertools import cycle
from pathlib import Path
from typing import NamedTuple

import jinja2
import numpy as np
import torch
from markupsafe import Markup
from PIL import Image
from torch import Tensor

from ..files import atomic_write
from ..video.pictures import cut, marked, most_detailed, most_different
from ..video.read import read_frames
from . import report_plots

JUDGES = ("st_lpips", "psnr", "niqe", "lr_consistency")  # a frame is worst or best by the first of them that was measured
TEMPLATE = Path(__file__).with_name("report.html.jinja")


class Extreme(NamedTuple):
    """The worst or the best frame of a clip, and its value."""

    kind: str
    frame: int
    value: float


class Page:
    """What the template asks for. folder: where the videos are that results name."""

    def __init__(self, folder: Path, results: dict):
        self.folder, self.results = folder, results
        self.metrics, self.clips, self.methods = results["metrics"], results["clips"], list(results["mean"])
        self.colors = dict(zip(self.methods, cycle(report_plots.COLORS)))

    def html(self, how: str) -> str:
        """Returns the page, after writing the crops that it shows. how: what the clips and methods are, in words."""
        environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
        return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(self.results, page=self, how=how)

    @cached_property
    def reconstructions(self) -> list[str]:
        return [method for method in self.methods if method in self.results["reconstructions"]]

    @cached_property
    def judged(self) -> str:
        """The method whose worst and best frames are shown: the first that was not given the original."""
        return next((method for method in self.methods if method not in self.reconstructions), self.methods[0])

    @cached_property
    def judge(self) -> str | None:
        return next((name for name in JUDGES if name in self.metrics), None)

    def direction(self, metric: str) -> str:
        """Returns a metric's unit and which direction is better, in words."""
        better = self.metrics[metric]["better"]
        return ", ".join(filter(None, (self.metrics[metric]["unit"], better and f"{better} is better")))

    def number(self, value: float | None, metric: str) -> str:
        return "-" if value is None else f"{value:.{self.metrics[metric]['decimals']}f}"

    def best(self, rows: dict[str, dict], metric: str) -> list[str]:
        """Returns the methods whose number, as it is shown, is the best of the rows; none where all are alike."""
        better = self.metrics[metric]["better"]
        contest = {method: row[metric] for method, row in rows.items() if method not in self.reconstructions}
        shown = {method: float(self.number(value, metric)) for method, value in contest.items() if value is not None}
        if better is None or len(set(shown.values())) < 2:
            return []
        goal = max(shown.values()) if better == "higher" else min(shown.values())
        return [method for method, value in shown.items() if value == goal]

    def bars(self, metric: str) -> Markup:
        values = {method: row[metric] for method, row in self.results["mean"].items()}
        return Markup(report_plots.bars(values, self.colors, self.metrics[metric]["decimals"]))

    def curves(self, clip: str) -> dict[str, Markup]:
        """Returns the plots of a clip's frames, {metric: plot}."""
        curves = self.results["curves"][clip]
        lines = {metric: {method: curves[method][metric] for method in self.methods if metric in curves[method]} for metric in self.metrics}
        return {metric: Markup(report_plots.curves(each, self.colors, self.reconstructions)) for metric, each in lines.items() if each}

    def videos(self, clip: str) -> list[tuple[str, str]]:
        """Returns the name and the path of each video of a clip."""
        files = self.results["files"][clip]
        return [(name, files[name]) for name in ("source", "original", *self.methods) if name in files]

    def extremes(self, clip: str) -> tuple[Extreme, ...]:
        """Returns the worst and the best frame of the judged method's video of a clip; none where no frame has a value."""
        curve = self.results["curves"][clip][self.judged].get(self.judge, [])
        values = sorted((value, frame) for frame, value in enumerate(curve) if value is not None)
        if not values:
            return ()
        worst, best = (values[0], values[-1]) if self.metrics[self.judge]["better"] == "higher" else (values[-1], values[0])
        return Extreme("worst", worst[1], worst[0]), Extreme("best", best[1], best[0])

    def crops(self, clip: str, extreme: Extreme) -> dict[str, str]:
        """Returns the paths of the crops of a frame by what they are of, the whole frame's first, after writing them.

        They are of where the judged method is farthest from the original, or has most detail where there is none.
        """
        frames = {name: frame_of(self.folder / path, extreme.frame) for name, path in self.videos(clip)}
        judged, source = frames[self.judged], frames.pop("source")
        box = most_different(judged, frames["original"]) if "original" in frames else most_detailed(judged)
        enlarged = Image.fromarray(source.numpy()).resize((judged.shape[1], judged.shape[0]), Image.Resampling.NEAREST)
        frames = {"source": torch.from_numpy(np.array(enlarged)), **frames}
        images = {"the whole frame": marked(judged, box)} | {name: cut(frame, box) for name, frame in frames.items()}
        return {name: self.write_image(clip, f"{extreme.kind}_{name.replace(' ', '_')}", image) for name, image in images.items()}

    def write_image(self, clip: str, name: str, image: Image.Image) -> str:
        path = f"{clip}/frames/{name}.png"
        with atomic_write(self.folder / path) as partial:
            image.save(partial)
        return path

    def note(self, clip: str, method: str, frame: int) -> str:
        """Returns a method's value in a frame by the judge, in words; empty for what is no method."""
        judge, curves = self.judge, self.results["curves"][clip].get(method, {})
        return f"{self.metrics[judge]['label']} {self.number(curves[judge][frame], judge)}" if judge and judge in curves else ""


def frame_of(path: Path, number: int) -> Tensor:
    """Returns a frame of a video file, uint8 (H, W, 3)."""
    return next(read_frames(path, lambda index: index == number))
