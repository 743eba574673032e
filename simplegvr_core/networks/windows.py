"""The windows of a grid of video tokens, and the window-major order in which a window's tokens are neighbours.

A token grid has T, H, W tokens along time, height and width; in raster order its tokens are numbered in that nesting.
Window-major order keeps frames outermost, so that temporal units stay contiguous slices, and inside a frame runs
through one spatial window after the other.
"""

import math
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Protocol, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor

CACHED = 24  # in host memory, 8 bytes a token: boxes of up to 8 sizes in a run, for even and odd blocks


@dataclass(frozen=True, eq=False)
class Windows:
    """num_windows windows of at most P tokens, in S scopes of at most M windows: windows of one scope may attend to each other.

    Args:
        table: (rows, P) numbers of each window's tokens, ascending; -1 where it has fewer than P. Rows after the last
            window list the condition tokens.
        length: (rows,) tokens of each row.
        place: (num_windows, 2) row and column among the windows of a frame.
        scope: (S, M) windows of each scope, a temporal unit or the whole grid; -1 where it has fewer than M.
        slot: (num_windows,) place of each window in the flattened scope.
        contiguous: tokens of each row are successive numbers.
        ragged: some row has fewer than P tokens.
    """

    table: Tensor
    length: Tensor
    place: Tensor
    scope: Tensor
    slot: Tensor
    contiguous: bool
    ragged: bool

    @property
    def num_windows(self) -> int:
        return len(self.place)

    @property
    def size(self) -> int:
        """P, tokens of the largest row."""
        return self.table.shape[1]

    def copy_to(self, device: torch.device | None) -> "Windows":
        """Returns a copy on a device."""
        tensors = (x.to(device, copy=True) for x in (self.table, self.length, self.place, self.scope, self.slot))
        return Windows(*tensors, contiguous=self.contiguous, ragged=self.ragged)


class Copied(Protocol):
    """What is copied to a device for one forward pass: windows, or blocks."""

    def copy_to(self, device: torch.device | None) -> "Copied": ...


C = TypeVar("C", bound=Copied)


@dataclass(frozen=True)
class TokenLayout:
    """Which tokens a sequence consists of, and in which order.

    One layout serves all blocks of a forward pass: their windows are copied to the device once, and freed with the layout.

    Args:
        grid: T, H, W tokens along time, height and width.
        ordered: whether the grid's tokens are in the order of AttentionConfig.token_order; otherwise they are in raster order.
        num_condition_tokens: tokens after the grid's. All tokens attend to them, and they attend to all.
        first_frame: number of the grid's first latent frame in its clip.
    """

    grid: tuple[int, int, int]
    ordered: bool = False
    num_condition_tokens: int = 0
    first_frame: int = 0
    copies: dict[tuple[Copied, torch.device | None], Copied] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def num_grid_tokens(self) -> int:
        return math.prod(self.grid)

    def on_device(self, windows: C, device: torch.device | None) -> C:
        """Returns this layout's copy of windows on a device."""
        if (windows, device) not in self.copies:
            self.copies[windows, device] = windows.copy_to(device)
        return cast(C, self.copies[windows, device])


def cut_lengths(extent: int, size: int, shifted: bool) -> list[int]:
    """Returns lengths that sum to extent: size each, the last one shorter; shifted, the first is size // 2.

    An extent of at most size is one length. There is no wrap-around.
    """
    if extent <= size:
        return [extent]
    first = [size // 2] if shifted and size > 1 else []
    whole, rest = divmod(extent - sum(first), size)
    return first + [size] * whole + [rest] * (rest > 0)


def unit_lengths(frames: int, unit: int, shifted: bool) -> list[int]:
    """Returns the frames of each temporal unit: those of cut_lengths, except that a last one of at most half a unit joins the one before.

    20 frames in units of 5 are the paper's 5-5-5-5 and, shifted, 2-5-5-5-3. The paper has no other length. 21 frames, 81 of video, are
    5-5-5-6: a unit of the last frame alone would leave it without any other frame in every even block.
    """
    *before, last = cut_lengths(frames, unit, shifted)
    if before and last <= unit // 2:
        return [*before[:-1], before[-1] + last]
    return [*before, last]


@lru_cache(maxsize=CACHED)
@torch.inference_mode(False)  # the first caller may infer, a later one train
def cut_windows(
    grid: tuple[int, int, int],
    window: tuple[int, int, int],
    units: tuple[int, ...],
    *,
    shifted: bool = False,
    window_major: bool = False,
    whole_scope: bool = False,
    num_condition_tokens: int = 0,
) -> Windows:
    """Returns the windows of a grid on the CPU, numbered along time, height, width; none reaches across two temporal units.

    Args:
        grid: T, H, W tokens along time, height and width.
        window: tokens of a window along T, H, W; windows at the far edges are smaller.
        units: frames of each temporal unit.
        shifted: whether windows begin half a window earlier.
        window_major: whether tokens are numbered in token_order; otherwise in raster order.
        whole_scope: whether all windows are one scope; otherwise each temporal unit is one.
        num_condition_tokens: tokens after the grid's, which belong to no scope.
    """
    slabs = [cut_lengths(frames, window[0], shifted) for frames in units]
    rows, columns = cut_lengths(grid[1], window[1], shifted), cut_lengths(grid[2], window[2], shifted)
    window_of = number_windows([length for unit in slabs for length in unit], rows, columns).flatten()
    token = torch.arange(len(window_of))
    number = torch.empty_like(token).index_copy_(0, token_order(grid, window), token) if window_major else token
    table, length = tabulate(window_of, number)
    if num_condition_tokens:
        behind, size = torch.arange(num_condition_tokens), table.shape[1]
        more, more_length = tabulate(behind // size, len(token) + behind)
        table = torch.cat((table, F.pad(more, (0, size - more.shape[1]), value=-1)))
        length = torch.cat((length, more_length))
    per_slab = len(rows) * len(columns)
    window_number = torch.arange(len(table) - -(-num_condition_tokens // table.shape[1]))
    unit_of = torch.repeat_interleave(torch.arange(len(units)), torch.tensor([per_slab * len(unit) for unit in slabs]))
    scope, _ = tabulate(torch.zeros_like(unit_of) if whole_scope else unit_of, window_number)
    within = window_number % per_slab
    return Windows(
        table=table,
        length=length,
        place=torch.stack((within // len(columns), within % len(columns)), dim=1),
        scope=scope,
        slot=(scope.flatten() >= 0).nonzero()[:, 0],
        contiguous=bool((table.amax(1) - table[:, 0] == length - 1).all()),
        ragged=bool((length < table.shape[1]).any()),
    )


@lru_cache(maxsize=CACHED)
@torch.inference_mode(False)
def token_order(grid: tuple[int, int, int], window: tuple[int, int, int]) -> Tensor:
    """Returns (T*H*W,) raster numbers of the tokens in window-major order, on the CPU."""
    rows, columns = cut_lengths(grid[1], window[1], False), cut_lengths(grid[2], window[2], False)
    return number_windows([1] * grid[0], rows, columns).flatten().argsort(stable=True)


def number_windows(slabs: list[int], rows: list[int], columns: list[int]) -> Tensor:
    """Returns (T, H, W) the number of each token's window, along time, height, width. slabs, rows, columns: sides of the windows."""
    t, h, w = (torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)) for lengths in (slabs, rows, columns))
    return (t[:, None, None] * len(rows) + h[:, None]) * len(columns) + w


def tabulate(group: Tensor, number: Tensor) -> tuple[Tensor, Tensor]:
    """Returns (groups, largest) the numbers of each group's members, ascending, -1 behind the last; and how many there are."""
    length = group.bincount()
    order = (group * (number.max() + 1) + number).argsort()
    place = torch.arange(len(group)) - (length.cumsum(0) - length).repeat_interleave(length)
    table = torch.full((len(length), int(length.max())), -1)
    table[group[order], place] = number[order]
    return table, length
