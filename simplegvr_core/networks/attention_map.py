"""Which windows one window attends to in one block: in numbers, in words and in pictures.

Boxes are tokens along T, H, W of the grid; a token is 16 x 16 pixels of one latent frame.
"""

import math
from collections import defaultdict
from dataclasses import dataclass
from typing import NamedTuple

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from ..latent_space import first_frame
from ..tiling import Box
from .attention import AttentionConfig, select
from .block_causal import choose_blocks, padded_mean
from .block_causal_config import BlockCausalConfig
from .layers import exact_float32
from .windows import TokenLayout, Windows

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
        others: number of windows that it could select: of its scope, or in sight of a causal block.
        scope: first latent frame of the windows it could select, and the one after their last.
        itself: share of the heads that attend to the window itself; below 1 only in block-causal attention.
    """

    box: Box
    selected: tuple[SelectedWindow, ...]
    heads: int
    others: int
    scope: tuple[int, int]
    itself: float = 1.0

    def describe(self, size: tuple[int, int]) -> str:
        """Returns it in words, a line for each window. size: height and width of the video in pixels."""
        own = f" in {round(self.itself * self.heads)} of {self.heads} heads" if self.itself < 1 else ""
        lines = [
            f"The window at {place(self.box, size)} attends to itself{own} and, of {self.others} others in latent frames "
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
        config: of kind "sparse_local" or "block_causal".
        block: number of the block, from 0.
        token: its place along T, H, W.
        head: the only one to ask, from 0. None asks all.
    """
    if isinstance(config, BlockCausalConfig):
        choices = block_choices(q, k, layout, config, token)
    else:
        choices = window_choices(q, k, layout, config, block, token)
    found = defaultdict(list)  # window -> (rank, score) in each head that selects it
    heads = range(q.shape[2]) if head is None else (head,)
    for asked in heads:
        others = [window for window in choices.selected[asked] if window != choices.chosen]
        for rank, window in enumerate(others, 1):
            found[window].append((rank, float(choices.scores[asked, window])))

    boxes = {window: box_of(choices.raster[window], layout.grid) for window in (choices.chosen, *found)}
    selected = []
    for window, ranked in found.items():
        ranks, scores = zip(*ranked, strict=True)
        selected.append(SelectedWindow(boxes[window], len(ranked) / len(heads), sum(ranks) / len(ranked), sum(scores) / len(ranked)))
    scope = box_of(choices.raster[choices.scope].flatten(), layout.grid)
    return AttentionMap(
        boxes[choices.chosen],
        tuple(sorted(selected, key=lambda window: (-window.share, -window.score))),
        len(heads),
        len(choices.scope) - 1,
        (scope.start[0], scope.stop[0]),
        sum(choices.chosen in choices.selected[asked] for asked in heads) / len(heads),
    )


class Choices(NamedTuple):
    """What the window around a token selects, in each head.

    Args:
        chosen: the window's number.
        raster: (windows, P) raster numbers of each window's tokens, -1 for none.
        selected: of each head, the windows it attends to, most similar first.
        scores: (n, windows) q k / sqrt(d) of means.
        scope: (windows,) numbers of the windows it could select, itself included.
    """

    chosen: int
    raster: Tensor
    selected: list[list[int]]
    scores: Tensor
    scope: Tensor


def window_choices(q: Tensor, k: Tensor, layout: TokenLayout, config: AttentionConfig, block: int, token: tuple[int, int, int]) -> Choices:
    """Returns what the window around a token selects in sparse local attention."""
    kernel, windows, selection = select(q, k, layout, config, block)
    raster = raster_numbers(windows, layout, config)
    chosen = window_of(raster, layout.grid, token)
    selected = [[window for window in row if 0 <= window < windows.num_windows] for row in selection[0, :, chosen].tolist()]
    scope = windows.scope[(windows.scope == chosen).any(1)][0]
    scores = scores_of(kernel.window_mean(q, windows)[0, chosen], kernel.window_mean(k, windows)[0])
    return Choices(chosen, raster, selected, scores, scope[scope >= 0])


def block_choices(q: Tensor, k: Tensor, layout: TokenLayout, config: BlockCausalConfig, token: tuple[int, int, int]) -> Choices:
    """Returns what the block around a token selects in block-causal attention of a whole clip."""
    kernel, blocks, selection = choose_blocks(q, k, layout, config)
    raster = raster_numbers(blocks.keys, layout, config)
    chosen = window_of(raster, layout.grid, token)
    scores = scores_of(padded_mean(q, blocks.queries, kernel)[0, chosen], padded_mean(k, blocks.keys, kernel)[0])
    selected = []
    for head, (start, count) in enumerate(zip(selection.start[0, :, chosen].tolist(), selection.count[0, :, chosen].tolist(), strict=True)):
        picked = selection.block[start : start + count]
        selected.append(picked[scores[head, picked].argsort(descending=True)].tolist())
    slab = chosen // blocks.blocks
    group, allowed = next(pair for pair in zip(blocks.groups, blocks.allowed, strict=True) if pair[0].start <= slab < pair[0].stop)
    scope = allowed[chosen - group.start * blocks.blocks].nonzero()[:, 0] + group.origin * blocks.blocks
    return Choices(chosen, raster, selected, scores, scope)


def raster_numbers(windows: Windows, layout: TokenLayout, config: AttentionConfig) -> Tensor:
    """Returns (num_windows, P) raster numbers of the windows' tokens, -1 for none."""
    table = windows.table[: windows.num_windows]
    order = config.token_order(layout.grid, table.device) if layout.ordered else None
    return table if order is None else torch.where(table >= 0, order[table.clamp(min=0)], -1)


def window_of(raster: Tensor, grid: tuple[int, int, int], token: tuple[int, int, int]) -> int:
    """Returns the number of the window that a token belongs to. token: its place along T, H, W."""
    number = (token[0] * grid[1] + token[1]) * grid[2] + token[2]
    return int((raster == number).any(1).nonzero())


def scores_of(q_mean: Tensor, k_mean: Tensor) -> Tensor:
    """Returns (n, windows) q k / sqrt(d). q_mean: (n, d); k_mean: (windows, n, d)."""
    with exact_float32(q_mean.device):
        return torch.einsum("n d, M n d -> n M", q_mean, k_mean) / math.sqrt(q_mean.shape[-1])


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
