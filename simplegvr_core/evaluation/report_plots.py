"""Plots of a report, as SVG that takes the text color of the page around it, light or dark."""

import io
from collections.abc import Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

COLORS = tuple(map(to_hex, matplotlib.color_sequences["petroff10"]))
INK = "#010203"  # stands for the page's text color; no plot uses it for anything else
STYLE = {"svg.fonttype": "none", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
STYLE |= {f"{part}color": INK for part in ("axes.edge", "axes.label", "axes.title", "xtick.", "ytick.", "text.", "grid.")}


def bars(values: dict[str, float | None], colors: dict[str, str], decimals: int) -> str:
    """Returns a bar for each method, with its number."""
    names = [name for name in values if values[name] is not None]
    with matplotlib.rc_context(STYLE):
        figure, axes = new_figure(0.4 + 0.24 * len(names))
        bar = axes.barh(names, [values[name] for name in names], color=[colors[name] for name in names], height=0.7)
        axes.bar_label(bar, [f"{values[name]:.{decimals}f}" for name in names], padding=3)
        axes.invert_yaxis()
        axes.margins(x=0.15)
        axes.tick_params(axis="y", length=0)
        return svg(figure)


def curves(values: dict[str, Sequence[float | None]], colors: dict[str, str], dashed: Sequence[str]) -> str:
    """Returns a line over the frames for each method; None: a frame has no value."""
    with matplotlib.rc_context(STYLE):
        figure, axes = new_figure(2.2)
        for name, numbers in values.items():
            line = [float("nan") if number is None else number for number in numbers]
            axes.plot(line, color=colors[name], linewidth=1.6, linestyle="--" if name in dashed else "-")
        axes.set_xlabel("frame")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.2)
        return svg(figure)


def new_figure(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(4.4, height), layout="constrained")
    return figure, figure.add_subplot()


def svg(figure: Figure) -> str:
    """Returns the element alone, as wide as what it is put in, without the file's header."""
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    text = file.getvalue().replace(INK, "currentColor")
    return text[text.index("<svg") :]
