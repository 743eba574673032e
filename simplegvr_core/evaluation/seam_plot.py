"""Plots of seams: curves over frames, columns and rows with the borders marked."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

WIDTH, HEIGHT, LEFT, TOP, BOTTOM, RIGHT = 1100, 210, 90, 34, 30, 24  # pixels of a panel and its margins
LINE, BORDER, GREY, FONT = "#2171b5", "#d62728", "#999999", 15


@dataclass(frozen=True)
class Panel:
    """A plot of one curve.

    Attributes:
        title: Text above the plot.
        curve: Value of each frame, column or row; NaN is a gap.
        borders: Indices of the values where borders are.
    """

    title: str
    curve: np.ndarray
    borders: Sequence[int]


def draw_panels(panels: Sequence[Panel]) -> Image.Image:
    """Returns the panels below each other. Curves are blue, borders thin red lines with a dot on the curve."""
    picture = Image.new("RGB", (WIDTH, HEIGHT * len(panels)), "white")
    for number, panel in enumerate(panels):
        draw_panel(ImageDraw.Draw(picture), number * HEIGHT, panel)
    return picture


def draw_panel(draw: ImageDraw.ImageDraw, offset: int, panel: Panel) -> None:
    """Draws a panel whose top is offset pixels below that of the picture."""
    top, bottom, right = offset + TOP, offset + HEIGHT - BOTTOM, WIDTH - RIGHT
    places = np.flatnonzero(np.isfinite(panel.curve))
    values = panel.curve[places]
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 0.0)
    margin = 0.06 * (high - low) or 0.5
    low, high, last = low - margin, high + margin, max(len(panel.curve) - 1, 1)

    def point(place: float, value: float) -> tuple[float, float]:
        return LEFT + (right - LEFT) * place / last, bottom - (bottom - top) * (value - low) / (high - low)

    for border in panel.borders:
        draw.line((point(border, low), point(border, high)), fill=BORDER)
    draw.line([point(*each) for each in zip(places, values, strict=True)], fill=LINE, width=2, joint="curve")
    for border in set(panel.borders) & set(places.tolist()):
        x, y = point(border, panel.curve[border])
        draw.ellipse((x - 4, y - 4, x + 4, y + 4), fill=BORDER)
    draw.rectangle((LEFT, top, right, bottom), outline="black")
    draw.text((LEFT, top - 6), panel.title, fill="black", anchor="lb", font_size=FONT)
    for value in np.linspace(low + margin, high - margin, 3):
        draw.text((LEFT - 8, point(0, value)[1]), f"{value:.4g}", fill=GREY, anchor="rm", font_size=FONT)
    for place in sorted({0, last // 4, last // 2, 3 * last // 4, last}):
        draw.text((point(place, low)[0], bottom + 5), str(place), fill=GREY, anchor="mt", font_size=FONT)
