"""Windows cover the grid once, keep inside their temporal units, and are neighbours in window-major order."""

import weakref

import pytest
import torch

from simplegvr_core.networks.attention import AttentionConfig
from simplegvr_core.networks.windows import TokenLayout, cut_lengths, cut_windows, token_order

GRIDS = [(3, 5, 7), (5, 9, 13), (20, 12, 18)]


def test_units_of_the_paper():
    assert cut_lengths(20, 5, shifted=False) == [5, 5, 5, 5]
    assert cut_lengths(20, 5, shifted=True) == [2, 5, 5, 5, 3]


@pytest.mark.parametrize("extent", range(1, 24))
@pytest.mark.parametrize("shifted", [False, True])
def test_lengths_cover_the_extent(extent, shifted):
    lengths = cut_lengths(extent, 5, shifted)
    assert sum(lengths) == extent
    assert all(0 < length <= 5 for length in lengths)
    assert extent > 5 or lengths == [extent]


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("window_major", [False, True])
def test_every_token_is_in_one_window_and_windows_are_boxes(grid, shifted, window_major):
    windows = cut_windows(grid, (2, 4, 3), (grid[0],), shifted=shifted, window_major=window_major)
    tokens = windows.table[windows.table >= 0]
    assert torch.equal(tokens.sort().values, torch.arange(grid[0] * grid[1] * grid[2]))
    assert torch.equal((windows.table >= 0).sum(1), windows.length)
    order = token_order(grid, (2, 4, 3)) if window_major else torch.arange(len(tokens))
    largest = [0, 0, 0]
    for row in windows.table:
        t, h, w = torch.unravel_index(order[row[row >= 0]], grid)
        spans = [int(axis.max() - axis.min()) + 1 for axis in (t, h, w)]
        assert spans[0] * spans[1] * spans[2] == len(t)
        assert all(span <= size for span, size in zip(spans, (2, 4, 3), strict=True))
        largest = list(map(max, largest, spans))
    assert shifted or largest == [2, 4, 3]


def test_windows_stay_inside_their_unit_and_know_it():
    grid = (11, 5, 7)
    windows = cut_windows(grid, (2, 4, 3), (2, 5, 4))
    first = 0
    for frames, unit in zip((2, 5, 4), windows.unit, strict=True):
        tokens = windows.table[unit[unit >= 0]]
        assert torch.equal(tokens[tokens >= 0].sort().values, torch.arange(first * 35, (first + frames) * 35))
        first += frames
    assert torch.equal(windows.unit.flatten()[windows.slot], torch.arange(windows.num_windows))


@pytest.mark.parametrize("grid", GRIDS)
def test_window_major_order_makes_windows_of_a_frame_contiguous_and_keeps_frames_apart(grid):
    frame = grid[1] * grid[2]
    order = token_order(grid, (1, 4, 3))
    assert torch.equal(order // frame, torch.arange(len(order)) // frame)
    assert cut_windows(grid, (1, 4, 3), (grid[0],), window_major=True).contiguous
    assert not cut_windows(grid, (1, 4, 3), (grid[0],)).contiguous
    assert not cut_windows(grid, (2, 4, 3), (grid[0],), window_major=True).contiguous


def test_condition_tokens_follow_the_windows_and_belong_to_no_unit():
    windows = cut_windows((2, 4, 6), (1, 4, 3), (2,), num_condition_tokens=17)
    assert windows.num_windows == 4
    assert windows.table[4:].tolist() == [list(range(48, 60)), [*range(60, 65), *[-1] * 7]]
    assert windows.length.tolist() == [12, 12, 12, 12, 12, 5]
    assert windows.unit.tolist() == [[0, 1, 2, 3]]


def test_blocks_share_the_windows_on_a_device_which_go_with_their_layout():
    config, layout, device = AttentionConfig(window=(1, 4, 3)), TokenLayout((11, 5, 7)), torch.device("meta")
    windows = config.windows(layout, 0, device)
    assert config.windows(layout, 2, device) is windows and config.windows(layout, 1, device) is not windows
    assert windows.table.is_meta and not config.windows(layout, 0).table.is_meta
    table = weakref.ref(windows.table)
    del windows, layout
    assert table() is None
