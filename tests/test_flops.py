"""Counted operations equal those of a plain count, and those of the paper as far as it tells them."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from simplegvr_core.networks.attention import AttentionConfig, full_attention
from simplegvr_core.networks.dit import DiTConfig, SimpleGVRDiT
from simplegvr_core.networks.windows import TokenLayout
from simplegvr_core.planning.flops import attention_pairs, dit_flops, share_of_dense, table_2


@pytest.mark.parametrize("block", [0, 1])
@pytest.mark.parametrize(
    "config",
    [
        AttentionConfig(kind="full", unit=None),
        AttentionConfig(kind="full", unit=5),
        AttentionConfig(window=(1, 4, 3), top_k=0),
        AttentionConfig(window=(1, 4, 3), top_k=10_000),
        AttentionConfig(kind="swin", window=(2, 4, 3)),
    ],
    ids=str,
)
def test_pairs_equal_those_of_a_plain_count(config, block):
    grid, frame = (11, 5, 7), 35
    if config.kind == "full" or config.top_k > 100:
        lengths = [11] if config.unit is None else [5, 6] if block == 0 else [2, 5, 4]
        expected = sum((length * frame) ** 2 for length in lengths)
    else:
        expected = int((config.windows(TokenLayout(grid), block).length ** 2).sum())
    assert attention_pairs(config, grid, block) == expected


def test_selected_windows_count_with_their_mean_length():
    grid, config = (1, 3, 5), AttentionConfig(window=(1, 2, 2), top_k=1)  # windows of 4, 4, 2, 2, 2, 1 tokens
    assert attention_pairs(config, grid) == pytest.approx(2 * 4 * (4 + 11 / 5) + 3 * 2 * (2 + 13 / 5) + 1 * (1 + 14 / 5))


def test_share_at_1152p_is_the_share_of_the_windows_that_are_seen():
    assert share_of_dense(AttentionConfig(), (20, 72, 126)) == pytest.approx(2 / 1680)


def test_a_networks_operations_equal_pytorchs_count():
    """PyTorch counts the text features' part alike, and attention by the shapes it gets."""
    config, grid = DiTConfig(dim=256, ffn_dim=320, num_heads=2, num_layers=3), (3, 4, 6)
    attention = AttentionConfig(kind="full", unit=None)
    model = SimpleGVRDiT(config, attention, device="meta")
    with FlopCounterMode(display=False) as counter, torch.device("meta"):
        model(torch.randn(1, 32, 3, 8, 12), torch.tensor([500.0]), torch.randn(1, 7, 4096), cross_attention=full_attention)
    ours = dit_flops(config, attention, grid, text_tokens=7)
    time_embedding = 2 * 256 * (256 + 256 + 6 * 256)  # once per network, not per token: left out of our count
    assert counter.get_total_flops() - time_embedding == pytest.approx(ours.total, rel=1e-9)


def test_the_papers_ratios_follow_from_its_configuration():
    for name, row in table_2().items():
        assert row["full_over_this"] == pytest.approx(row["paper_full_over_this"], rel=0.005), name
