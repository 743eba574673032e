"""The settings of block-causal sparse attention (Ultra Flash, arXiv 2606.09150), and the blocks of a clip.

A block has (2, 8, 8) tokens along time, height and width. A slab is the blocks of the same frames. Slabs come in groups of a few
frames; a slab attends to its group's slabs up to itself and to the last slabs before its group. Blocks at the far edges are
padded to full size by zero keys and values, which take part in the softmax: null keys.

N blocks of a slab, Q query blocks, K key blocks.
"""

import math
import sys
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import accumulate, chain, pairwise, repeat
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..tiling import Tiling, round_up
from .attention_config import AttentionConfig
from .layers import uncompiled
from .windows import CACHED, TokenLayout, Windows, cut_lengths, number_windows, tabulate


@dataclass(frozen=True)
class BlockCausalConfig(AttentionConfig):
    """Settings of block-causal attention; the defaults are those of Ultra Flash's released weights.

    Args:
        window: tokens of a block along T, H, W.
        top_k: pairs of blocks beyond the first that a slab keeps in each head; 0 derives them from budget.
        groups: latent frames of each group of the clip; the last number repeats.
        memory: slabs before its group that a slab attends to; None is all.
        chunk: slabs that attend to each other, counted from the first slab in sight.
        local_range: blocks along height and along width that a block attends to, itself in the middle.
        budget: tokens of a frame whose pairs of blocks would all be kept; a frame of more tokens keeps that share.
    """

    kind: str = "block_causal"
    window: tuple[int, int, int] = (2, 8, 8)
    top_k: int = 0
    unit: int | None = None
    groups: tuple[int, ...] = (6,)
    memory: int | None = 3
    chunk: int = 1
    local_range: int = 9
    budget: float = 1560.0

    def __post_init__(self):
        if self.kind != "block_causal" or self.unit is not None or self.radius is not None:
            raise ValueError(
                f"attention has kind {self.kind!r}, unit {self.unit}, radius {self.radius}: block_causal has neither unit nor radius"
            )
        if min(*self.window, *self.groups, self.chunk, self.local_range) < 1 or self.top_k < 0 or self.budget <= 0:
            raise ValueError(f"{self}: wanted window, groups, chunk and local_range >= 1, top_k >= 0, budget > 0")
        if self.memory is not None and self.memory < 1:
            raise ValueError(f"attention has memory {self.memory}, wanted at least 1 slab, or None for all")

    @property
    def alignment(self) -> tuple[int, int, int]:
        """Latent pixels along T, H, W at whose multiples a tile begins, so that its groups and blocks are the whole latent's.

        With groups of unequal length no multiple begins a group each time: the clip is not cut along T.
        """
        return self.groups[-1] if self.has_equal_groups else sys.maxsize, 2 * self.window[1], 2 * self.window[2]

    @property
    def has_equal_groups(self) -> bool:
        return len(set(self.groups)) == 1

    def tiling(self, wanted: tuple[int | None, int | None, int | None]) -> Tiling:
        """Returns the tiling as AttentionConfig.tiling does; its segments follow each other without an overlap, see SlabMemory.

        Raises:
            ValueError: Segments are wanted of groups of unequal length.
        """
        frames, height, width = wanted
        if frames is not None and not self.has_equal_groups:
            raise ValueError(f"segments of {frames} latent frames, but the attention's groups are {self.groups} frames: choose whole clips")
        spatial = super().tiling((None, height, width))
        whole_groups = None if frames is None else round_up(max(2, frames), self.groups[-1])
        return Tiling((whole_groups, *spatial.size[1:]), (0, *spatial.overlap[1:]))

    @uncompiled
    def token_order(self, grid: tuple[int, int, int], device: torch.device | None = None, first_frame: int = 0) -> Tensor | None:
        """Returns (L,) raster numbers of the tokens, one block after the other. first_frame: the grid's in the clip."""
        sight = slabs_in_sight(self, first_frame, grid[0])
        return number_windows(list(sight.slabs[sight.past :]), *self.sides(grid[1:])).flatten().argsort(stable=True).to(device)

    def windows(self, layout: TokenLayout, block: int, device: torch.device | None = None) -> Windows:
        """Returns the blocks of the layout's grid, the same in every transformer block."""
        return self.blocks(layout, device).queries

    def blocks(self, layout: TokenLayout, device: torch.device | None = None) -> "BlockLayout":
        """Returns the blocks of a segment and of the past in its sight. Raises what slabs_in_sight raises."""
        sight = slabs_in_sight(self, layout.first_frame, layout.grid[0])
        return layout.on_device(block_layout(self, layout.grid[1:], sight, layout.ordered), device)

    def sides(self, frame: tuple[int, int]) -> tuple[list[int], list[int]]:
        """Returns the tokens of each row and of each column of blocks. frame: tokens along H, W."""
        height, width = frame
        return cut_lengths(height, self.window[1], False), cut_lengths(width, self.window[2], False)

    def slab_lengths(self, frames: int) -> list[list[int]]:
        """Returns the latent frames of each slab of each group of a clip."""
        return [cut_lengths(length, self.window[0], False) for length in self.group_lengths(frames)]

    def group_lengths(self, frames: int) -> list[int]:
        """Returns the latent frames of each group of a clip; the last group may be cut short."""
        lengths: list[int] = []
        for length in chain(self.groups, repeat(self.groups[-1])):
            if frames <= 0:
                return lengths
            lengths.append(min(length, frames))
            frames -= length
        raise AssertionError("repeat does not end")

    def pairs_kept(self, frame_tokens: int, blocks: int, slabs: int) -> int:
        """Returns k: a slab keeps the k + 1 most probable pairs of blocks in each head.

        Args:
            frame_tokens: tokens of a frame, without padding.
            blocks: N, blocks of a slab.
            slabs: slabs of the group.
        """
        if self.top_k:
            return self.top_k
        share = self.budget / frame_tokens
        return min(max(int(blocks * blocks * share), 1), max(blocks * blocks * slabs - 1, 1))


class Group(NamedTuple):
    """A group of slabs and the slabs it attends to. Slabs are counted from the layout's first key slab.

    Args:
        origin: first slab in sight.
        start: first slab of the group.
        stop: slab after the group's last.
        first: whether the clip begins with it.
    """

    origin: int
    start: int
    stop: int
    first: bool


class Sight(NamedTuple):
    """What a segment attends to.

    Args:
        slabs: latent frames of each slab in sight: of the past, then of the segment.
        past: how many of them are past.
        groups: the segment's groups.
    """

    slabs: tuple[int, ...]
    past: int
    groups: tuple[Group, ...]

    @property
    def past_frames(self) -> int:
        """Latent frames of the past in sight."""
        return sum(self.slabs[: self.past])


@dataclass(frozen=True, eq=False)
class BlockLayout:
    """Blocks of a segment of a clip.

    Args:
        queries: blocks of the segment's tokens.
        keys: blocks of the past's tokens in sight, then of the segment's; without a past they are queries.
        past_frames: latent frames of the past in sight.
        frame_tokens: tokens of a frame, without padding.
        groups: the segment's groups.
        allowed: of each group, (Q, K) whether a query block may attend to a key block in its sight.
        kept: of each slab of the segment, the pairs of blocks that a head keeps; equal probabilities aside.
        blocks: N, blocks of a slab.
    """

    queries: Windows
    keys: Windows
    past_frames: int
    frame_tokens: int
    groups: tuple[Group, ...]
    allowed: tuple[Tensor, ...]
    kept: tuple[int, ...]
    blocks: int

    def copy_to(self, device: torch.device | None) -> "BlockLayout":
        """Returns a copy on a device."""
        keys = self.keys.copy_to(device)
        queries = keys if self.queries is self.keys else self.queries.copy_to(device)
        return replace(self, queries=queries, keys=keys, allowed=tuple(x.to(device) for x in self.allowed))


def slabs_in_sight(config: BlockCausalConfig, first_frame: int, frames: int) -> Sight:
    """Returns what a segment of so many latent frames attends to. first_frame: its first one in the clip.

    Raises:
        ValueError: the segment does not begin with a group.
    """
    slabs = config.slab_lengths(first_frame + frames)
    starts = list(accumulate(map(sum, slabs), initial=0))
    if first_frame not in starts[:-1]:
        raise ValueError(f"a segment begins with latent frame {first_frame}, wanted the first of a group: {starts[:-1]}")
    borders = list(accumulate(map(len, slabs), initial=0))
    new = starts.index(first_frame)
    reach = borders[-1] if config.memory is None else config.memory
    origin = max(0, borders[new] - reach)
    groups = tuple(
        Group(max(0, start - reach) - origin, start - origin, stop - origin, start == 0) for start, stop in pairwise(borders[new:])
    )
    return Sight(tuple(chain.from_iterable(slabs))[origin:], borders[new] - origin, groups)


@lru_cache(maxsize=CACHED)
@torch.inference_mode(False)  # the first caller may infer, a later one train
def block_layout(config: BlockCausalConfig, frame: tuple[int, int], sight: Sight, ordered: bool) -> BlockLayout:
    """Returns the blocks of a segment of a clip, on the CPU.

    Args:
        config: of the attention.
        frame: tokens along H, W.
        sight: of the segment.
        ordered: whether tokens come in config.token_order, else in raster order.
    """
    rows, columns = config.sides(frame)
    frame_tokens, N = frame[0] * frame[1], len(rows) * len(columns)
    block_of = number_windows(list(sight.slabs), rows, columns).flatten()
    number = torch.arange(len(block_of))
    if ordered:
        number = torch.empty_like(number).index_copy_(0, block_of.argsort(stable=True), number)
    table, length = tabulate(block_of, number)
    table = F.pad(table, (0, math.prod(config.window) - table.shape[1]), value=-1)
    keys = queries = as_windows(table, length, len(rows), len(columns))
    if sight.past:
        table, length = table[sight.past * N :], length[sight.past * N :]
        queries = as_windows(torch.where(table < 0, -1, table - sight.past_frames * frame_tokens), length, len(rows), len(columns))
    allowed = tuple(allowed_pairs(config, group, len(rows), len(columns)) for group in sight.groups)
    kept = []
    for group, mask in zip(sight.groups, allowed, strict=True):
        pairs = config.pairs_kept(frame_tokens, N, group.stop - group.start) + 1
        kept += [max(N, min(pairs, int(slab.sum()))) for slab in mask.split(N)]
    return BlockLayout(queries, keys, sight.past_frames, frame_tokens, sight.groups, allowed, tuple(kept), N)


def as_windows(table: Tensor, length: Tensor, rows: int, columns: int) -> Windows:
    """Returns blocks as the windows that kernels take, all of one scope."""
    number = torch.arange(len(table))
    within = number % (rows * columns)
    return Windows(
        table=table,
        length=length,
        place=torch.stack((within // columns, within % columns), dim=1),
        scope=number[None],
        slot=number,
        contiguous=bool((table.amax(1) - table[:, 0] == length - 1).all()),
        ragged=bool((length < table.shape[1]).any()),
    )


def allowed_pairs(config: BlockCausalConfig, group: Group, rows: int, columns: int) -> Tensor:
    """Returns (Q, K) whether a group's query block may attend to a key block in its sight: near enough, and not later."""
    extents = group.stop - group.origin, rows, columns
    slab, row, column = torch.cartesian_prod(*(torch.arange(extent) for extent in extents)).unbind(1)
    queries = slice((group.start - group.origin) * rows * columns, None)
    allowed = slab < (slab[queries, None] // config.chunk + 1) * config.chunk
    for x in (row, column):
        distance = x - x[queries, None]
        allowed &= (distance >= -(config.local_range // 2)) & (distance < (config.local_range + 1) // 2)
    return allowed
