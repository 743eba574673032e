"""The windows of a grid of video tokens, and the window-major order in which a window's tokens are neighbours.

A token grid has T, H, W tokens along time, height and width; in raster order its tokens are numbered in that nesting.
Window-major order keeps frames outermost, so that temporal units stay contiguous slices, and inside a frame runs
through one spatial window after the other.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from .temporal import segments


@dataclass(frozen=True)
class Windows:
    """Num_windows windows of at most P tokens, in units of at most M windows.

    table: (num_windows + num_references, P) numbers of each window's tokens, ascending; -1 where it has fewer than P.
    The last num_references rows hold the tokens after the grid. length: tokens of each row. place: (num_windows, 2) row
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


@lru_cache(maxsize=64)
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
    tokens = token_order(grid, window).argsort() if window_major else torch.arange(grid[0] * grid[1] * grid[2])
    cells, places, members = [], [], []
    for unit in tokens.view(grid).split(units):
        first = len(cells)
        for place, cell in boxes(unit, window, shifted):
            cells.append(cell.sort().values)
            places.append(place)
        members.append(torch.arange(first, len(cells)))
    size = max(len(cell) for cell in cells)
    cells += (len(tokens) + torch.arange(num_references)).split(size) if num_references else ()
    unit = torch.nn.utils.rnn.pad_sequence(members, batch_first=True, padding_value=-1)
    return Windows(
        table=torch.nn.utils.rnn.pad_sequence(cells, batch_first=True, padding_value=-1).to(device),
        length=torch.tensor([len(cell) for cell in cells], device=device),
        place=torch.tensor(places, device=device),
        unit=unit.to(device),
        slot=(unit.flatten() >= 0).nonzero()[:, 0].to(device),
        contiguous=all(cell[-1] - cell[0] == len(cell) - 1 for cell in cells),
        ragged=any(len(cell) < size for cell in cells),
    )


@lru_cache(maxsize=64)
@torch.inference_mode(False)
def token_order(grid: tuple[int, int, int], window: tuple[int, int, int], device: torch.device | None = None) -> Tensor:
    """Returns (T*H*W,) raster numbers of the tokens in window-major order."""
    tokens = torch.arange(grid[0] * grid[1] * grid[2]).view(grid)
    return torch.cat([cell for _, cell in boxes(tokens, (1, *window[1:]), shifted=False)]).to(device)


def boxes(tokens: Tensor, window: tuple[int, int, int], shifted: bool) -> Iterator[tuple[tuple[int, int], Tensor]]:
    """Yields row, column and tokens of each box of at most window tokens. tokens: (T, H, W)."""
    T, H, W = (segments(extent, size, shifted) for extent, size in zip(tokens.shape, window, strict=True))
    for slab in tokens.split(T):
        for y, row in enumerate(slab.split(H, dim=1)):
            for x, cell in enumerate(row.split(W, dim=2)):
                yield (y, x), cell.flatten()
