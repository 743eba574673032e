"""Frames side by side, each pixel of their most telling place enlarged.

H, W pixels; image uint8 (H, W, 3), all of one size; box: top, left, height, width.
"""

import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

Box = tuple[int, int, int, int]
ZOOM = 3  # of the crops, which are at most 1 / ZOOM of the frame's sides
LONGEST = 640  # pixels of a tile's longer side
LABEL = 36  # height of a label in pixels
MARK = "#ffff00"


def side_by_side(images: dict[str, Tensor], box: Box | None = None) -> Image.Image:
    """Returns labelled images, cut to box, every pixel ZOOM times as large. The first of them whole, with that place marked, comes first.

    box: by default where the first image has most detail.
    """
    first = next(iter(images.values()))
    box = box or most_detailed(first)
    tile = (box[3] * ZOOM, box[2] * ZOOM)
    tiles = {"the whole frame": marked(first, box).resize(tile, Image.Resampling.BOX)}
    tiles |= {label: cut(image, box).resize(tile, Image.Resampling.NEAREST) for label, image in images.items()}
    columns = 2 if len(tiles) in (2, 4) else 3
    rows = -(-len(tiles) // columns)
    picture = Image.new("RGB", (columns * tile[0], rows * (LABEL + tile[1])), "white")
    for index, (label, image) in enumerate(tiles.items()):
        x, y = index % columns * tile[0], index // columns * (LABEL + tile[1])
        picture.paste(image, (x, y + LABEL))
        write_label(ImageDraw.Draw(picture), label, x, y, tile[0])
    return picture


def cut(image: Tensor, box: Box) -> Image.Image:
    """Returns the image inside a box."""
    top, left, height, width = box
    return Image.fromarray(image[top : top + height, left : left + width].numpy())


def marked(image: Tensor, box: Box) -> Image.Image:
    """Returns the whole image with a line around a box."""
    top, left, height, width = box
    picture = Image.fromarray(image.numpy())
    ImageDraw.Draw(picture).rectangle((left, top, left + width - 1, top + height - 1), outline=MARK, width=max(2, image.shape[1] // 300))
    return picture


def most_detailed(image: Tensor) -> Box:
    """Returns the crop with the largest squared differences between neighbours."""
    grey = image.float().mean(2)
    return busiest(grey.diff(dim=0)[:, 1:].square() + grey.diff(dim=1)[1:].square(), tuple(image.shape[:2]))


def most_different(image: Tensor, original: Tensor) -> Box:
    """Returns the crop with the largest squared differences from the original."""
    return busiest((image.float() - original.float()).square().mean(2), tuple(image.shape[:2]))


def busiest(energy: Tensor, size: tuple[int, int]) -> Box:
    """Returns the crop for a frame of size (H, W) with the most energy (about H, W)."""
    factor = max(ZOOM, ZOOM * max(size) / LONGEST)
    height, width = (max(1, int(extent / factor)) for extent in size)
    pooled = F.avg_pool2d(F.avg_pool2d(energy[None, None], (height, 1), stride=1), (1, width), stride=1)[0, 0]
    top, left = divmod(int(pooled.argmax()), pooled.shape[1])
    return top, left, height, width


def write_label(draw: ImageDraw.ImageDraw, text: str, x: int, y: int, width: int) -> None:
    """Writes text in the strip above a tile, small enough for its width."""
    size = 22.0
    while size > 8 and draw.textlength(text, font_size=size) > width - 12:
        size -= 1
    draw.text((x + 6, y + LABEL / 2), text, fill="black", anchor="lm", font_size=size)
