"""Windows cover the grid once, keep inside their temporal units, and are neighbours in window-major order."""

import weakref
from dataclasses import replace

import pytest
import torch

from simplegvr_core.networks.attention import AttentionConfig
from simplegvr_core.networks.windows import TokenLayout, cut_lengths, cut_windows, token_order

GRIDS = [(3, 5, 7), (5, 9, 13), (20, 12, 18)]


UNITS = {  # latent frames -> units of even and of odd blocks; 20 are the paper's
    1: ("1", "1"),
    2: ("2", "2"),
    3: ("3", "3"),
    4: ("4", "4"),
    5: ("5", "5"),
    6: ("6", "2 4"),
    7: ("7", "2 5"),
    8: ("5 3", "2 6"),
    9: ("5 4", "2 7"),
    10: ("5 5", "2 5 3"),
    11: ("5 6", "2 5 4"),
    12: ("5 7", "2 5 5"),
    13: ("5 5 3", "2 5 6"),
    14: ("5 5 4", "2 5 7"),
    15: ("5 5 5", "2 5 5 3"),
    16: ("5 5 6", "2 5 5 4"),
    17: ("5 5 7", "2 5 5 5"),
    18: ("5 5 5 3", "2 5 5 6"),
    19: ("5 5 5 4", "2 5 5 7"),
    20: ("5 5 5 5", "2 5 5 5 3"),
    21: ("5 5 5 6", "2 5 5 5 4"),
    22: ("5 5 5 7", "2 5 5 5 5"),
    23: ("5 5 5 5 3", "2 5 5 5 6"),
    24: ("5 5 5 5 4", "2 5 5 5 7"),
    25: ("5 5 5 5 5", "2 5 5 5 5 3"),
    26: ("5 5 5 5 6", "2 5 5 5 5 4"),
    27: ("5 5 5 5 7", "2 5 5 5 5 5"),
    28: ("5 5 5 5 5 3", "2 5 5 5 5 6"),
    29: ("5 5 5 5 5 4", "2 5 5 5 5 7"),
    30: ("5 5 5 5 5 5", "2 5 5 5 5 5 3"),
    31: ("5 5 5 5 5 6", "2 5 5 5 5 5 4"),
    32: ("5 5 5 5 5 7", "2 5 5 5 5 5 5"),
    33: ("5 5 5 5 5 5 3", "2 5 5 5 5 5 6"),
    34: ("5 5 5 5 5 5 4", "2 5 5 5 5 5 7"),
    35: ("5 5 5 5 5 5 5", "2 5 5 5 5 5 5 3"),
    36: ("5 5 5 5 5 5 6", "2 5 5 5 5 5 5 4"),
    37: ("5 5 5 5 5 5 7", "2 5 5 5 5 5 5 5"),
    38: ("5 5 5 5 5 5 5 3", "2 5 5 5 5 5 5 6"),
    39: ("5 5 5 5 5 5 5 4", "2 5 5 5 5 5 5 7"),
    40: ("5 5 5 5 5 5 5 5", "2 5 5 5 5 5 5 5 3"),
    41: ("5 5 5 5 5 5 5 6", "2 5 5 5 5 5 5 5 4"),
    42: ("5 5 5 5 5 5 5 7", "2 5 5 5 5 5 5 5 5"),
    43: ("5 5 5 5 5 5 5 5 3", "2 5 5 5 5 5 5 5 6"),
    44: ("5 5 5 5 5 5 5 5 4", "2 5 5 5 5 5 5 5 7"),
    45: ("5 5 5 5 5 5 5 5 5", "2 5 5 5 5 5 5 5 5 3"),
}


@pytest.mark.parametrize("frames", UNITS)
def test_temporal_units_of_every_length(frames):
    even, odd = (AttentionConfig(unit=5).unit_lengths(frames, block) for block in (0, 1))
    assert (" ".join(map(str, even)), " ".join(map(str, odd))) == UNITS[frames]
    assert sum(even) == sum(odd) == frames
    assert frames <= 5 or min(even[-1], odd[-1]) >= 3  # no frame at the end sees one other frame or none


@pytest.mark.parametrize("unit", range(1, 9))
def test_only_the_last_unit_has_another_length_and_it_is_more_than_half_a_unit(unit):
    for frames in range(unit + 1, 40):
        for block in (0, 1):
            lengths = AttentionConfig(unit=unit).unit_lengths(frames, block)
            first = [unit // 2] * (block == 1 and unit > 1)
            assert lengths[: len(first)] == first and set(lengths[len(first) : -1]) <= {unit}
            assert unit // 2 < lengths[-1] <= unit + unit // 2 and sum(lengths) == frames


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
    for frames, unit in zip((2, 5, 4), windows.scope, strict=True):
        tokens = windows.table[unit[unit >= 0]]
        assert torch.equal(tokens[tokens >= 0].sort().values, torch.arange(first * 35, (first + frames) * 35))
        first += frames
    assert torch.equal(windows.scope.flatten()[windows.slot], torch.arange(windows.num_windows))


@pytest.mark.parametrize("grid", GRIDS)
def test_window_major_order_makes_windows_of_a_frame_contiguous_and_keeps_frames_apart(grid):
    frame = grid[1] * grid[2]
    order = token_order(grid, (1, 4, 3))
    assert torch.equal(order // frame, torch.arange(len(order)) // frame)
    assert cut_windows(grid, (1, 4, 3), (grid[0],), window_major=True).contiguous
    assert not cut_windows(grid, (1, 4, 3), (grid[0],)).contiguous
    assert not cut_windows(grid, (2, 4, 3), (grid[0],), window_major=True).contiguous


def test_the_scope_of_the_whole_video_has_every_window():
    config = AttentionConfig(window=(1, 4, 3), scope="video")
    windows = config.windows(TokenLayout((11, 5, 7)), 1)
    assert windows.scope.tolist() == [list(range(11 * 2 * 3))]
    assert torch.equal(windows.table, replace(config, scope="unit").windows(TokenLayout((11, 5, 7)), 1).table)


def test_condition_tokens_follow_the_windows_and_belong_to_no_unit():
    windows = cut_windows((2, 4, 6), (1, 4, 3), (2,), num_condition_tokens=17)
    assert windows.num_windows == 4
    assert windows.table[4:].tolist() == [list(range(48, 60)), [*range(60, 65), *[-1] * 7]]
    assert windows.length.tolist() == [12, 12, 12, 12, 12, 5]
    assert windows.scope.tolist() == [[0, 1, 2, 3]]


def test_blocks_share_the_windows_on_a_device_which_go_with_their_layout():
    config, layout, device = AttentionConfig(window=(1, 4, 3)), TokenLayout((11, 5, 7)), torch.device("meta")
    windows = config.windows(layout, 0, device)
    assert config.windows(layout, 2, device) is windows and config.windows(layout, 1, device) is not windows
    assert windows.table.is_meta and not config.windows(layout, 0).table.is_meta
    table = weakref.ref(windows.table)
    del windows, layout
    assert table() is None
