"""Attention: implementations agree, limits are exact, temporal units and ragged windows are right."""

import pytest
import torch
from conftest import ATTENTION

from simplegvr_core.attention import AttentionConfig, attend, full_attention, select_windows, window_table
from simplegvr_core.kernels import sdpa
from simplegvr_core.temporal import segments

GRIDS = [(3, 5, 7), (5, 9, 13), (20, 12, 18)]


def qkv(grid, batch=2, heads=3, dim=8):
    generator = torch.Generator().manual_seed(0)
    length = grid[0] * grid[1] * grid[2]
    return [torch.randn(batch, length, heads, dim, generator=generator) for _ in range(3)]


def test_units_of_the_paper():
    assert segments(20, 5, shifted=False) == [5, 5, 5, 5]
    assert segments(20, 5, shifted=True) == [2, 5, 5, 5, 3]


@pytest.mark.parametrize("extent", range(1, 24))
@pytest.mark.parametrize("shifted", [False, True])
def test_segments_cover_the_extent(extent, shifted):
    lengths = segments(extent, 5, shifted)
    assert sum(lengths) == extent
    assert all(0 < length <= 5 for length in lengths)
    assert extent > 5 or lengths == [extent]


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("block", [0, 1])
@pytest.mark.parametrize(
    "config",
    [
        AttentionConfig(window=(1, 4, 3), top_k=0),
        AttentionConfig(window=(1, 4, 3), top_k=1),
        AttentionConfig(window=(2, 4, 5), top_k=3, unit=None),
        AttentionConfig(kind="swin", window=(2, 3, 4)),
    ],
)
def test_sdpa_equals_reference(grid, block, config):
    q, k, v = qkv(grid)
    expected = attend(q, k, v, grid, config, block, impl="reference")
    torch.testing.assert_close(attend(q, k, v, grid, config, block), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("grid", GRIDS)
def test_all_windows_selected_is_full_attention(grid):
    q, k, v = qkv(grid)
    config = AttentionConfig(window=(1, 4, 3), top_k=10_000, unit=None)
    torch.testing.assert_close(attend(q, k, v, grid, config, 0), full_attention(q, k, v), atol=1e-5, rtol=0)


def test_gathering_in_small_chunks_changes_nothing(monkeypatch):
    q, k, v = qkv((5, 9, 13))
    whole = attend(q, k, v, (5, 9, 13), ATTENTION, 0)
    monkeypatch.setattr(sdpa, "GATHER_BYTES", 1)
    torch.testing.assert_close(attend(q, k, v, (5, 9, 13), ATTENTION, 0), whole)


@pytest.mark.parametrize("block, lengths", [(0, [5, 5, 1]), (1, [2, 5, 4])])
def test_nothing_is_seen_outside_the_temporal_unit(block, lengths):
    grid, frame = (11, 3, 4), 12
    q, k, v = qkv(grid)
    config = AttentionConfig(kind="full", unit=5)
    before = attend(q, k, v, grid, config, block)
    v[:, : lengths[0] * frame] += 1
    change = (attend(q, k, v, grid, config, block) - before).abs().amax((0, 2, 3)).view(grid).amax((1, 2))
    assert (change > 0.5).tolist() == [True] * lengths[0] + [False] * (11 - lengths[0])


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("shifted", [False, True])
def test_every_token_is_in_one_window_and_windows_are_boxes(grid, shifted):
    table = window_table(grid, (2, 4, 3), shifted)
    tokens = table[table >= 0]
    assert torch.equal(tokens.sort().values, torch.arange(grid[0] * grid[1] * grid[2]))
    largest = [0, 0, 0]
    for row in table:
        t, h, w = torch.unravel_index(row[row >= 0], grid)
        spans = [int(axis.max() - axis.min()) + 1 for axis in (t, h, w)]
        assert spans[0] * spans[1] * spans[2] == len(t)
        assert all(span <= size for span, size in zip(spans, (2, 4, 3), strict=True))
        largest = list(map(max, largest, spans))
    assert shifted or largest == [2, 4, 3]


def test_selection_finds_the_most_similar_window_and_counts_live_tokens_only():
    grid = (1, 3, 5)  # windows of 2x2: the last row and column are ragged
    table = window_table(grid, (1, 2, 2), shifted=False)
    q, k = torch.zeros(1, 15, 1, 4), torch.zeros(1, 15, 1, 4)
    q[:, table[0]] = torch.tensor([1.0, 0, 0, 0])
    k[:, table[3][table[3] >= 0]] = torch.tensor([0.5, 0, 0, 0])  # two live tokens
    k[:, table[5][table[5] >= 0]] = torch.tensor([0.6, 0, 0, 0])  # one live token: the larger mean
    selection = select_windows(q, k, table, top_k=2)
    assert selection[0, 0, 0].tolist() == [0, 5, 3]


def test_no_window_selects_itself_twice():
    q, k, _ = qkv((3, 5, 7))
    selection = select_windows(q, k, window_table((3, 5, 7), (1, 4, 3), False), top_k=3)
    assert all(len(set(row.tolist())) == 4 for row in selection.flatten(0, 2))


def test_heads_and_batch_entries_select_for_themselves():
    q, k, v = qkv((5, 9, 13))
    together = attend(q, k, v, (5, 9, 13), ATTENTION, 0)
    alone = attend(q[1:, :, 2:], k[1:, :, 2:], v[1:, :, 2:], (5, 9, 13), ATTENTION, 0)
    torch.testing.assert_close(together[1:, :, 2:], alone, atol=1e-6, rtol=0)


def test_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="full, swin, sparse_local"):
        AttentionConfig(kind="dense")


def test_mixed_precision_training_selects_the_same_windows():
    q, k, _ = qkv((5, 9, 13))
    table = window_table((5, 9, 13), (1, 4, 3), False)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = select_windows(q, k, table, top_k=2)
    assert torch.equal(mixed, select_windows(q, k, table, top_k=2))
