"""The windows of a grid of video tokens, and the window-major order in which a window's tokens are neighbours.

A token grid has T, H, W tokens along time, height and width; in raster order its tokens are numbered in that nesting.
Window-major order keeps frames outermost, so that temporal units stay contiguous slices, and inside a frame runs
through one spatial window after the other.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from .temporal import segments

CACHED = 24  # boxes of up to 8 sizes in a run, for even and odd blocks; a table has 8 bytes for each token


@dataclass(frozen=True)
class Windows:
    """Num_windows windows of at most P tokens, in units of at most M windows.

    table: (rows, P) numbers of each window's tokens, ascending; -1 where it has fewer than P. Rows after the last window
    hold the tokens after the grid, the references. length: tokens of each row. place: (num_windows, 2) row
    and column among the windows of a frame. unit: (U, M) windows of each temporal unit, -1 where it has fewer than M.
    slot: (num_windows,) place of each window in the flattened unit. contiguous: tokens of each row are successive numbers.
    ragged: some row has fewer than P.
    """

    table: Tensor
    length: Tensor
    place: Tensor
    unit: Tensor
    slot: Tensor
    contiguous: bool
    ragged: bool

    @property
    def num_windows(self) -> int:
        return len(self.place)


@lru_cache(maxsize=CACHED)
@torch.inference_mode(False)  # the first caller may infer, a later one train
def cut_windows(
    grid: tuple[int, int, int],
    window: tuple[int, int, int],
    units: tuple[int, ...],
    shifted: bool = False,
    window_major: bool = False,
    num_references: int = 0,
    device: torch.device | None = None,
) -> Windows:
    """Returns the windows of a grid, numbered along time, height, width; none reaches across two temporal units.

    window: tokens along T, H, W. units: frames of each temporal unit. shifted: windows begin half a window earlier.
    Windows at the far edges are smaller. num_references: tokens after the grid's, which belong to no unit.
    """
    slabs = [segments(frames, window[0], shifted) for frames in units]
    rows, columns = segments(grid[1], window[1], shifted), segments(grid[2], window[2], shifted)
    window_of = number_cells([length for unit in slabs for length in unit], rows, columns).flatten()
    token = torch.arange(len(window_of))
    number = torch.empty_like(token).index_copy_(0, token_order(grid, window), token) if window_major else token
    table, length = tabulate(window_of, number)
    if num_references:
        behind, size = torch.arange(num_references), table.shape[1]
        more, more_length = tabulate(behind // size, len(token) + behind)
        table = torch.cat((table, F.pad(more, (0, size - more.shape[1]), value=-1)))
        length = torch.cat((length, more_length))
    per_slab = len(rows) * len(columns)
    window_number = torch.arange(len(table) - -(-num_references // table.shape[1]))
    unit_of = torch.repeat_interleave(torch.arange(len(units)), torch.tensor([per_slab * len(unit) for unit in slabs]))
    unit, _ = tabulate(unit_of, window_number)
    within = window_number % per_slab
    return Windows(
        table=table.to(device),
        length=length.to(device),
        place=torch.stack((within // len(columns), within % len(columns)), dim=1).to(device),
        unit=unit.to(device),
        slot=(unit.flatten() >= 0).nonzero()[:, 0].to(device),
        contiguous=bool((table.amax(1) - table[:, 0] == length - 1).all()),
        ragged=bool((length < table.shape[1]).any()),
    )


@lru_cache(maxsize=CACHED)
@torch.inference_mode(False)
def token_order(grid: tuple[int, int, int], window: tuple[int, int, int], device: torch.device | None = None) -> Tensor:
    """Returns (T*H*W,) raster numbers of the tokens in window-major order."""
    rows, columns = segments(grid[1], window[1], False), segments(grid[2], window[2], False)
    return number_cells([1] * grid[0], rows, columns).flatten().argsort(stable=True).to(device)


def number_cells(slabs: list[int], rows: list[int], columns: list[int]) -> Tensor:
    """Returns (T, H, W) numbers of the cell that each token lies in, along time, height, width, by the cells' lengths."""
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
