"""Plots of a report, as SVG that takes the text color of the page around it, light or dark."""

import io
from collections.abc import Sequence
from typing import Any, cast

import matplotlib
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

COLORS = tuple(map(to_hex, matplotlib.color_sequences["petroff10"]))
INK = "#010203"  # replaced by the page's text color; plots use it for nothing else
STYLE: dict[Any, Any] = {"svg.fonttype": "none", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
STYLE |= {f"{part}color": INK for part in ("axes.edge", "axes.label", "axes.title", "xtick.", "ytick.", "text.", "grid.")}


def bars(values: dict[str, float | None], colors: dict[str, str], decimals: int) -> str:
    """Returns an SVG element with a bar and its number for each method.

    Args:
        values: Number by method; methods without a number have no bar.
        colors: Color by method.
        decimals: Decimals of the numbers.
    """
    lengths = {name: value for name, value in values.items() if value is not None}
    names = list(lengths)
    with matplotlib.rc_context(STYLE):
        figure, axes = new_figure(0.4 + 0.24 * len(names))
        bar = axes.barh(names, list(lengths.values()), color=[colors[name] for name in names], height=0.7)
        axes.bar_label(bar, [f"{length:.{decimals}f}" for length in lengths.values()], padding=3)
        axes.invert_yaxis()
        axes.margins(x=0.15)
        axes.tick_params(axis="y", length=0)
        return svg(figure)


def curves(values: dict[str, Sequence[float | None]], colors: dict[str, str], dashed: Sequence[str]) -> str:
    """Returns an SVG element with a line over the frames for each method.

    Args:
        values: Number of each frame by method; None is a gap.
        colors: Color by method.
        dashed: Methods whose line is dashed.
    """
    with matplotlib.rc_context(STYLE):
        figure, axes = new_figure(2.2)
        for name, numbers in values.items():
            line = [float("nan") if number is None else number for number in numbers]
            axes.plot(line, color=colors[name], linewidth=1.6, linestyle="--" if name in dashed else "-")
        axes.set_xlabel("frame")
        cast(MaxNLocator, axes.xaxis.get_major_locator()).set_params(integer=True)
        axes.grid(alpha=0.2)
        return svg(figure)


def new_figure(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(4.4, height), layout="constrained")
    return figure, figure.add_subplot()


def svg(figure: Figure) -> str:
    """Returns the svg element of a figure without the file's header."""
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    text = file.getvalue().replace(INK, "currentColor")
    return text[text.index("<svg") :]
