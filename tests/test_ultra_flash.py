"""Block-causal attention: the fast kernels against the plain one over the whole clip, and what each setting means."""

import math
from dataclasses import replace
from importlib.util import find_spec

import pytest
import torch
from conftest import random_weights

from simplegvr_core.networks import kernels
from simplegvr_core.networks.attention import attend
from simplegvr_core.networks.block_causal import attend_blocks, choose_blocks
from simplegvr_core.networks.block_causal_config import BlockCausalConfig, slabs_in_sight
from simplegvr_core.networks.block_selection import null_keys
from simplegvr_core.networks.dit import DiTConfig, SimpleGVRDiT
from simplegvr_core.networks.kernels import block_reference
from simplegvr_core.networks.windows import TokenLayout

pytestmark = pytest.mark.usefixtures("one_thread")
SMALL = BlockCausalConfig(window=(2, 3, 2), groups=(4,), memory=2, local_range=3, budget=9)
CASES = {
    "defaults": (replace(SMALL, groups=(6,), memory=3, local_range=9), (13, 5, 7)),
    "one frame": (SMALL, (1, 5, 7)),
    "nothing padded": (SMALL, (8, 6, 4)),
    "first group differs": (replace(SMALL, groups=(2, 4)), (11, 7, 5)),
    "odd groups": (replace(SMALL, groups=(3, 5)), (13, 4, 7)),
    "even range": (replace(SMALL, local_range=2), (7, 7, 9)),
    "chunks of two slabs": (replace(SMALL, chunk=2, groups=(8,)), (15, 5, 3)),
    "all of the past": (replace(SMALL, memory=None), (13, 5, 7)),
    "one block": (replace(SMALL, window=(2, 8, 8)), (5, 3, 5)),
    "pairs given": (replace(SMALL, top_k=3), (9, 7, 5)),
    "single frames": (replace(SMALL, window=(1, 3, 2), groups=(3,)), (7, 5, 5)),
}
KERNELS = ["sdpa"] + ["triton"] * (find_spec("triton") is not None)


def tensors(grid, batch=2, heads=3, dim=64, dtype=torch.float32, seed=0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, math.prod(grid), heads, dim, generator=generator, dtype=torch.float64).to(dtype) for _ in range(3)]


def full_mask(selection, keys: int) -> torch.Tensor:
    """Returns (B, n, Q, keys) whether a query block has selected a key block."""
    mask = torch.zeros(*selection.count.shape, keys, dtype=torch.bool)
    for place in torch.cartesian_prod(*(torch.arange(extent) for extent in mask.shape[:3])).tolist():
        start, count = (int(x[tuple(place)]) for x in (selection.start, selection.count))
        mask[tuple(place)][selection.block[start : start + count]] = True
    return mask


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("kernel", KERNELS)
def test_selected_blocks_are_those_of_the_mask_over_the_whole_clip(name, kernel):
    config, grid = CASES[name]
    q, k, _ = tensors(grid)
    _, layout, selection = choose_blocks(q, k, TokenLayout(grid), config, kernels.load_block(kernel))
    mask = block_reference.block_mask(*(block_reference.cut_blocks(x.double(), grid, config) for x in (q, k)), grid, config)
    assert torch.equal(full_mask(selection, layout.keys.num_windows), mask)
    assert (selection.count > 0).all()


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("kernel", KERNELS)
def test_error_is_at_most_twice_the_references(name, kernel, dtype=torch.float32, batch=1, heads=1):
    config, grid = CASES[name]
    q, k, v = tensors(grid, batch, heads, dtype=dtype)
    exact = block_reference.attention(q.double(), k.double(), v.double(), grid, config)
    plain = block_reference.attention(q, k, v, grid, config)
    ours = attend_blocks(q, k, v, TokenLayout(grid), config, kernel=kernels.load_block(kernel))
    assert ours.dtype == dtype
    assert (ours - exact).norm() <= 2 * (plain - exact).norm()


@pytest.mark.parametrize("kernel", KERNELS)
def test_halves_batches_and_heads_are_as_exact(kernel):
    test_error_is_at_most_twice_the_references("one block", kernel, torch.float16, batch=2, heads=3)
    test_error_is_at_most_twice_the_references("pairs given", kernel, torch.float16, batch=2, heads=3)


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_the_references(name):
    config, grid = CASES[name]
    runs = []
    for run, where in ((attend_blocks, TokenLayout(grid)), (block_reference.attention, grid)):
        inputs = [x.requires_grad_() for x in tensors(grid, dtype=torch.float64)]
        out = run(*inputs, where, config)
        runs.append((out, *torch.autograd.grad((out * torch.linspace(-1, 1, out.shape[-1])).sum(), inputs)))
    torch.testing.assert_close(*runs, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("name", CASES)
def test_ordered_tokens_give_what_raster_order_gives(name):
    config, grid = CASES[name]
    order = config.token_order(grid)
    inputs = tensors(grid, dtype=torch.float64)
    ordered = attend(*(x[:, order] for x in inputs), TokenLayout(grid, ordered=True), config, block=0)
    torch.testing.assert_close(ordered, attend(*inputs, TokenLayout(grid), config, block=1)[:, order], atol=1e-12, rtol=0)
    assert config.blocks(TokenLayout(grid, ordered=True)).queries.contiguous


def test_missing_tokens_of_selected_blocks_are_null_keys():
    config, grid = CASES["odd groups"]
    q, k, _ = tensors(grid)
    _, layout, selection = choose_blocks(q, k, TokenLayout(grid), config)
    missing = layout.keys.table.shape[1] - layout.keys.length
    expected = full_mask(selection, layout.keys.num_windows).long() @ missing
    assert torch.equal(null_keys(selection, layout.keys), expected)
    assert expected.any()


def test_a_later_token_changes_no_earlier_slab():
    config, grid = replace(SMALL, top_k=10_000), (8, 5, 5)
    q, k, v = tensors(grid)
    before = attend_blocks(q, k, v, TokenLayout(grid), config)
    for x in (k, v):
        x[:, 4 * 25 :] += 1
    after = attend_blocks(q, k, v, TokenLayout(grid), config)
    assert torch.equal(before[:, : 4 * 25], after[:, : 4 * 25])
    assert not torch.allclose(before[:, 4 * 25 :], after[:, 4 * 25 :])


def test_kept_pairs_are_the_budgets_share_of_a_frames():
    config = BlockCausalConfig()
    assert config.pairs_kept(60 * 104, 8 * 13, 3) == 2704
    assert config.pairs_kept(90 * 156, 12 * 20, 3) == 6400
    assert config.pairs_kept(10 * 14, 4, 3) == 47  # less than one pair is left out


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"unit": 5}, "neither unit nor radius"),
        ({"window": (2, 0, 8)}, "wanted window, groups, chunk and local_range >= 1"),
        ({"budget": 0.0}, "budget > 0"),
        ({"memory": 0}, "memory 0, wanted at least 1 slab"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        BlockCausalConfig(**changes)


def test_a_segment_begins_with_a_group():
    with pytest.raises(ValueError, match=r"begins with latent frame 4, wanted the first of a group: \[0, 6\]"):
        slabs_in_sight(BlockCausalConfig(), 4, 4)


def test_other_tokens_than_the_grids_are_refused():
    q, k, v = tensors((4, 3, 2))
    for layout in (TokenLayout((4, 3, 2), num_condition_tokens=1), TokenLayout((3, 3, 2))):
        with pytest.raises(ValueError, match="it takes no condition tokens"):
            attend_blocks(q, k, v, layout, SMALL)


def test_the_network_trains_with_it():
    config = replace(SMALL, window=(2, 2, 2))
    model = random_weights(SimpleGVRDiT(DiTConfig(dim=128, ffn_dim=160, num_heads=2, num_layers=2), config)).train()
    z, context = torch.randn(2, 32, 5, 6, 10), torch.randn(2, 4, 4096)
    model(z, torch.tensor([300.0, 900.0]), context).square().mean().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())
