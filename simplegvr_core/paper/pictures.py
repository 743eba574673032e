"""Pictures of the paper's page: images in rows, and temporal units.

H, W pixels; image uint8 (H, W, 3); box: top, left, height, width
"""

from pathlib import Path

import matplotlib
from matplotlib.figure import Figure
from torch import Tensor

from ..files import atomic_write
from ..video.pictures import Crop

COLUMNS = 3  # of a grid
WIDTH = 3.0  # inches of an image in it
DPI = 100


def picture_grid(path: Path, rows: list[dict[str, Tensor]]) -> None:
    """Writes a JPEG of rows of images under their titles, all of one width.

    Args:
        path: File to write.
        rows: Images (H, W, 3) uint8 of each row, by title.
    """
    columns = max(map(len, rows))
    ratio = max(image.shape[0] / image.shape[1] for row in rows for image in row.values())
    figure = Figure(figsize=(WIDTH * columns, (WIDTH * ratio + 0.25) * len(rows)), layout="constrained")
    for line, images in zip(figure.subplots(len(rows), columns, squeeze=False), rows, strict=True):
        for axes in line:
            axes.set_axis_off()
        for axes, (title, image) in zip(line, images.items(), strict=False):
            axes.imshow(image.numpy(), interpolation="nearest")
            axes.set_title(title, fontsize=8)
    with atomic_write(path) as partial:
        figure.savefig(partial, dpi=DPI, pil_kwargs={"quality": 85})


def in_rows(images: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """Returns images in rows of COLUMNS, the argument of picture_grid."""
    items = list(images.items())
    return [dict(items[start : start + COLUMNS]) for start in range(0, len(items), COLUMNS)]


def draw_units(path: Path, layers: dict[str, list[int]]) -> None:
    """Writes a PNG of temporal units.

    Args:
        path: File to write.
        layers: Lengths in latent frames of the units of each kind of layer.
    """
    colors = matplotlib.color_sequences["tab10"]
    figure = Figure(figsize=(8, 0.6 + 0.5 * len(layers)), layout="constrained")
    axes = figure.subplots()
    for label, lengths in layers.items():
        start = 0
        for number, length in enumerate(lengths):
            for frame in range(start, start + length):
                axes.barh(label, 0.9, left=frame + 0.05, color=colors[number % len(colors)])
            start += length
    axes.invert_yaxis()
    axes.set(xlabel="latent frame", xlim=(0, sum(lengths)), xticks=range(0, sum(lengths) + 1, 5))
    with atomic_write(path) as partial:
        figure.savefig(partial, dpi=DPI)


def part(image: Tensor, box: Crop) -> Tensor:
    """Returns the image inside a box."""
    top, left, height, width = box
    return image[top : top + height, left : left + width]
