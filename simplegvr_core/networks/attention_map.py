"""Which windows one window attends to in one block: in numbers, in words and in pictures.

Boxes are tokens along T, H, W of the grid; a token is 16 x 16 pixels of one latent frame.
"""

import math
from collections import defaultdict
from dataclasses import dataclass

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from ..latent_space import first_frame
from ..tiling import Box
from .attention import AttentionConfig, select
from .layers import exact_float32
from .windows import TokenLayout

TOKEN = 16  # pixels
CHOSEN, SELECTED = (255, 255, 255), (255, 140, 0)


@dataclass(frozen=True)
class SelectedWindow:
    """A window that another attends to.

    Args:
        box: its tokens.
        share: of the heads that attend to it, in (0, 1].
        rank: its mean place among their choices, from 1.
        score: mean over these heads of q k / sqrt(d), q the mean query of the other window, k the mean key of this one.
    """

    box: Box
    share: float
    rank: float
    score: float


@dataclass(frozen=True)
class AttentionMap:
    """What one window attends to beside itself.

    Args:
        box: its tokens.
        selected: windows it attends to, those that most heads select first.
        heads: number of heads asked.
        others: number of windows of its temporal unit that it could select.
        scope: the unit's first latent frame, and the one after its last.
    """

    box: Box
    selected: tuple[SelectedWindow, ...]
    heads: int
    others: int
    scope: tuple[int, int]

    def describe(self, size: tuple[int, int]) -> str:
        """Returns it in words, a line for each window. size: height and width of the video in pixels."""
        lines = [
            f"The window at {place(self.box, size)} attends to itself and, of {self.others} others in latent frames "
            f"{self.scope[0]} to {self.scope[1] - 1}, to:"
        ]
        for number, window in enumerate(self.selected, 1):
            heads = round(window.share * self.heads)
            lines.append(
                f"{number}. {place(window.box, size)}: {heads} of {self.heads} heads, rank {window.rank:.1f}, score {window.score:.2f}"
            )
        return "\n".join(lines if self.selected else [*lines, "none."])


def map_attention(
    q: Tensor,
    k: Tensor,
    layout: TokenLayout,
    config: AttentionConfig,
    block: int,
    *,
    token: tuple[int, int, int],
    head: int | None = None,
) -> AttentionMap:
    """Returns which windows the window around a token selects, in the first video of a batch.

    Args:
        q, k: (B, L, n, d) of the same dtype.
        layout: of the L tokens.
        config: of kind "sparse_local".
        block: number of the block, from 0.
        token: its place along T, H, W.
        head: the only one to ask, from 0. None asks all.
    """
    kernel, windows, selection = select(q, k, layout, config, block)
    grid, raster = layout.grid, windows.table[: windows.num_windows]
    order = config.token_order(grid, q.device) if layout.ordered else None
    if order is not None:
        raster = torch.where(raster >= 0, order[raster.clamp(min=0)], -1)
    number = (token[0] * grid[1] + token[1]) * grid[2] + token[2]
    chosen = int((raster == number).any(1).nonzero())
    q_mean, k_mean = (kernel.window_mean(x, windows)[0] for x in (q, k))
    with exact_float32(q.device):
        scores = torch.einsum("n d, M n d -> n M", q_mean[chosen], k_mean) / math.sqrt(q.shape[-1])

    choices = defaultdict(list)  # window -> (rank, score) in each head that selects it
    heads = range(q.shape[2]) if head is None else (head,)
    for asked in heads:
        others = [window for window in selection[0, asked, chosen, 1:].tolist() if 0 <= window < windows.num_windows]
        for rank, window in enumerate(others, 1):
            choices[window].append((rank, float(scores[asked, window])))

    boxes = {window: box_of(raster[window], grid) for window in (chosen, *choices)}
    selected = [
        SelectedWindow(boxes[window], len(found) / len(heads), *(sum(values) / len(found) for values in zip(*found, strict=True)))
        for window, found in choices.items()
    ]
    unit = windows.unit[(windows.unit == chosen).any(1)][0]
    unit = unit[unit >= 0]
    scope = box_of(raster[unit].flatten(), grid)
    return AttentionMap(
        boxes[chosen],
        tuple(sorted(selected, key=lambda window: (-window.share, -window.score))),
        len(heads),
        len(unit) - 1,
        (scope.start[0], scope.stop[0]),
    )


def box_of(tokens: Tensor, grid: tuple[int, int, int]) -> Box:
    """Returns the box of tokens that fill one. tokens: raster numbers, -1 for none."""
    places = torch.stack(torch.unravel_index(tokens[tokens >= 0], grid))
    return Box(tuple(places.amin(1).tolist()), tuple((places.amax(1) + 1).tolist()))


def place(box: Box, size: tuple[int, int]) -> str:
    """Returns in words where a box is, in frames and pixels of a video of that height and width."""
    (t, top, left), (t_stop, bottom, right) = box.start, box.stop
    first, last = first_frame(t), first_frame(t_stop) - 1
    frames = f"frame {first}" if first == last else f"frames {first} to {last}"
    right, bottom = min(TOKEN * right, size[1]), min(TOKEN * bottom, size[0])  # the last tokens of an odd latent reach beyond
    return f"{frames}, x {TOKEN * left} to {right}, y {TOKEN * top} to {bottom}"


def draw_map(attention_map: AttentionMap, picture: Image.Image, frame: int, token: tuple[float, float]) -> Image.Image:
    """Returns a picture with the windows in one latent frame: the chosen one outlined, those it selects tinted and numbered.

    Args:
        attention_map: its windows. The more heads select a window the stronger its tint; numbers are those of describe.
        picture: of the frame, at any size.
        frame: number of the latent frame, from 0.
        token: height and width of a token in pixels of the picture.
    """
    picture = picture.convert("RGB")
    draw = ImageDraw.Draw(picture, "RGBA")
    width = max(1, round(min(token) / 6))

    def corners(box: Box, inset: float = 0) -> tuple[float, float, float, float]:
        left, top = box.start[2] * token[1], box.start[1] * token[0]
        right, bottom = max(left, box.stop[2] * token[1] - 1), max(top, box.stop[1] * token[0] - 1)  # tokens may be less than a pixel
        x, y = min(inset, (right - left) / 2), min(inset, (bottom - top) / 2)
        return left + x, top + y, right - x, bottom - y

    for number, window in enumerate(attention_map.selected, 1):
        if window.box.start[0] <= frame < window.box.stop[0]:
            left, top, *rest = corners(window.box)
            draw.rectangle((left, top, *rest), fill=(*SELECTED, round(40 + 120 * window.share)), outline=SELECTED, width=width)
            size = max(8, 2 * min(token))
            draw.text((left + 2 * width, top + width), str(number), CHOSEN, font_size=size, stroke_width=width, stroke_fill=(0, 0, 0))
    if attention_map.box.start[0] <= frame < attention_map.box.stop[0]:
        draw.rectangle(corners(attention_map.box), outline=(0, 0, 0), width=3 * width)
        draw.rectangle(corners(attention_map.box, width), outline=CHOSEN, width=width)
    return picture
