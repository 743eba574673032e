"""Pictures that compare frames: a crop of each, enlarged, side by side.

H, W pixels; image uint8 (H, W, 3), all of one size; crop: top, left, height, width in pixels
"""

import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

Crop = tuple[int, int, int, int]
ZOOM = 3  # of the crops, which are at most 1 / ZOOM of the frame's sides
LONGEST = 640  # pixels of a tile's longer side
LABEL = 36  # height of a label in pixels
MARK = "#ffff00"


def side_by_side(images: dict[str, Tensor], crop: Crop | None = None) -> Image.Image:
    """Returns crops of images, enlarged by ZOOM and labelled, after the first image as a whole with the crop marked.

    Args:
        images: (H, W, 3) uint8 by label, all of one size.
        crop: Part to show; None is where the first image has most detail.
    """
    first = next(iter(images.values()))
    crop = crop or most_detailed(first)
    tile = (crop[3] * ZOOM, crop[2] * ZOOM)
    tiles = {"the whole frame": marked(first, crop).resize(tile, Image.Resampling.BOX)}
    tiles |= {label: cut(image, crop).resize(tile, Image.Resampling.NEAREST) for label, image in images.items()}
    columns = 2 if len(tiles) in (2, 4) else 3
    rows = -(-len(tiles) // columns)
    picture = Image.new("RGB", (columns * tile[0], rows * (LABEL + tile[1])), "white")
    for index, (label, image) in enumerate(tiles.items()):
        x, y = index % columns * tile[0], index // columns * (LABEL + tile[1])
        picture.paste(image, (x, y + LABEL))
        write_label(ImageDraw.Draw(picture), label, (x, y), tile[0])
    return picture


def cut(image: Tensor, crop: Crop) -> Image.Image:
    """Returns a crop of an image."""
    top, left, height, width = crop
    return Image.fromarray(image[top : top + height, left : left + width].numpy())


def marked(image: Tensor, crop: Crop) -> Image.Image:
    """Returns an image with the outline of a crop."""
    top, left, height, width = crop
    picture = Image.fromarray(image.numpy())
    ImageDraw.Draw(picture).rectangle((left, top, left + width - 1, top + height - 1), outline=MARK, width=max(2, image.shape[1] // 300))
    return picture


def most_detailed(image: Tensor) -> Crop:
    """Returns the crop with the largest squared differences between neighbours."""
    grey = image.float().mean(2)
    return busiest(grey.diff(dim=0)[:, 1:].square() + grey.diff(dim=1)[1:].square(), (image.shape[0], image.shape[1]))


def most_different(image: Tensor, original: Tensor) -> Crop:
    """Returns the crop with the largest squared differences from the original."""
    return busiest((image.float() - original.float()).square().mean(2), (image.shape[0], image.shape[1]))


def busiest(energy: Tensor, size: tuple[int, int]) -> Crop:
    """Returns the crop with the most energy.

    Args:
        energy: (about H, about W).
        size: Height and width of the frame in pixels.
    """
    factor = max(ZOOM, ZOOM * max(size) / LONGEST)
    height, width = (max(1, int(side / factor)) for side in size)
    pooled = F.avg_pool2d(F.avg_pool2d(energy[None, None], (height, 1), stride=1), (1, width), stride=1)[0, 0]
    top, left = divmod(int(pooled.argmax()), pooled.shape[1])
    return top, left, height, width


def write_label(draw: ImageDraw.ImageDraw, text: str, corner: tuple[int, int], width: int) -> None:
    """Writes text in the strip of LABEL pixels below a corner (x, y), small enough for a width in pixels."""
    size = 22.0
    while size > 8 and draw.textlength(text, font_size=size) > width - 12:
        size -= 1
    x, y = corner
    draw.text((x + 6, y + LABEL / 2), text, fill="black", anchor="lm", font_size=size)
