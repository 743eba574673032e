"""What planning, counting and the attention map know of block-causal attention and of Ultra Flash's upsampler."""

import math
from dataclasses import replace

import pytest
import torch
from conftest import random_weights

from simplegvr_core.networks import kernels
from simplegvr_core.networks.attention import attend
from simplegvr_core.networks.attention_map import map_attention
from simplegvr_core.networks.block_causal import choose_blocks, padded_mean
from simplegvr_core.networks.block_causal_config import BlockCausalConfig
from simplegvr_core.networks.dit import DiTConfig, SimpleGVRDiT
from simplegvr_core.networks.kernels import block_sdpa
from simplegvr_core.networks.slab_memory import SlabMemory
from simplegvr_core.networks.ultra_upsampler import UltraUpsampler, UltraUpsamplerConfig
from simplegvr_core.networks.windows import TokenLayout
from simplegvr_core.planning.boxes import Machine, Networks, segment_bytes
from simplegvr_core.planning.flops import attention_pairs, share_of_dense
from simplegvr_core.planning.network_memory import dit_bytes, fastest_kernel, past_bytes, upsampler_bytes
from simplegvr_core.planning.plan import Job, plan_sampling
from simplegvr_core.planning.tensor_memory import peak_bytes
from simplegvr_core.sampling.super_resolve import SamplingConfig

pytestmark = pytest.mark.usefixtures("one_thread")
SMALL = BlockCausalConfig(window=(2, 3, 2), groups=(4,), memory=2, local_range=3, budget=9)
RELEASED, DIT = BlockCausalConfig(), DiTConfig(exact_time=True)
UPSAMPLER = UltraUpsamplerConfig()


@pytest.mark.parametrize("changes, error", [({"budget": 1e9}, 1e-9), ({"budget": 60}, 0.1), ({"groups": (3, 5), "top_k": 700}, 0.1)])
@pytest.mark.parametrize("grid", [(8, 24, 16), (9, 23, 15)])
def test_counted_pairs_are_those_of_a_run(changes, error, grid):
    """Exactly where all allowed pairs are kept; else within 10 %, as the smaller blocks at the edges are kept more often."""
    config, heads = replace(SMALL, **changes), 8
    q, k = (torch.randn(1, math.prod(grid), heads, 16, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
    _, blocks, selection = choose_blocks(q, k, TokenLayout(grid), config)
    length = torch.cat((torch.zeros(1), blocks.keys.length[selection.block].cumsum(0)))
    keys = length[selection.start + selection.count] - length[selection.start]
    pairs = float((blocks.queries.length * keys).sum()) / heads
    assert attention_pairs(config, grid) == pytest.approx(pairs, rel=error)


def test_the_released_attention_keeps_a_few_percent():
    """A group of 6 frames after its memory: 4.2 % and 1.9 % of the dense pairs of its 6 query and 12 key frames."""
    for (rows, columns), share in (((60, 104), 0.042), ((90, 156), 0.019)):
        grid = (60, rows, columns)
        steady = attention_pairs(RELEASED, grid) / 10 / (6 * rows * columns * 12 * rows * columns)
        assert steady == pytest.approx(share, rel=0.1)
        assert share_of_dense(RELEASED, (21, rows, columns)) < 0.03


def test_counted_memory_is_that_of_a_run(monkeypatch):
    """The last of three segments, with all that it attends to before it."""
    monkeypatch.setattr(block_sdpa, "gather_bytes", lambda x: 4 * 2**20)  # else the CPU has smaller chunks
    dit = DiTConfig(dim=128, ffn_dim=160, num_heads=2, num_layers=2, text_dim=64)
    model, box = random_weights(SimpleGVRDiT(dit, RELEASED)), (6, 34, 38)
    counted = dit_bytes(dit, RELEASED, 1, box, torch.float32, "sdpa")
    memory, z, text = SlabMemory(RELEASED, 19), torch.randn(1, 32, *box), torch.zeros(1, 512, 64)
    for first in (0, 6, 12):
        with memory.segment(first), torch.inference_mode():

            def run(first=first):
                model(z, torch.ones(1), text, memory.attend, token_order=memory.token_order, first_frame=first)

            peak = peak_bytes(run)
    kept = past_bytes(dit, RELEASED, 1, box, torch.float32)
    assert kept == sum(x.nbytes for past in memory.kept.values() for x in (past.k, past.v))
    assert counted == pytest.approx(peak - kept, rel=0.1)
    assert dit_bytes(dit, RELEASED, 1, box, torch.float32, "triton") < counted


def test_the_memory_of_an_upsampler_is_that_of_a_run():
    config = UltraUpsamplerConfig(width=8, blocks=2, factors=(3,))
    model = UltraUpsampler(config)

    def run() -> None:
        for _ in model.stream((torch.zeros(1, 16, 2, 20, 24) for _ in range(3)), (60, 72)):
            pass

    whole, tiled = (upsampler_bytes(config, 1, 2, (20, 24), (60, 72), tile, torch.float32) for tile in (None, (16, 20)))
    assert whole == peak_bytes(run)
    assert tiled < whole  # what tiles keep between chunks is on the CPU


def test_a_plan_cuts_a_clip_into_whole_groups():
    sampling = SamplingConfig(steps=1, noise_augmentation=0.0)
    job = Job((1, 21, 60, 104), (120, 208), sampling)
    networks = Networks(DIT, RELEASED, UPSAMPLER)
    large = plan_sampling(networks, job, Machine(48 * 10**9, torch.bfloat16, "triton"))
    assert large.tiling.size == (None, None, None) and large.forwards == 1 and large.overhead == 1
    assert large.host_bytes == segment_bytes(job.target, 21)
    small = plan_sampling(networks, job, Machine(7 * 10**9, torch.bfloat16, "triton"))
    assert small.tiling.size[0] in (6, 12, 18) and small.tiling.overlap[0] == 0
    assert small.overhead == 1
    past = 2 * 30 * 6 * 60 * 104 * 1536 * 2
    assert small.host_bytes == segment_bytes(job.target, small.tiling.size[0]) + 2 * past  # the old one and the one that replaces it
    assert "each attends to keys and values kept of those before" in small.text()


def test_a_plan_of_another_scale_names_the_size_that_fits():
    job = Job((1, 21, 60, 104), (180, 312), SamplingConfig(steps=1))
    with pytest.raises(ValueError, match="enlarges 2 times: it makes 1664 x 960 pixels of 832 x 480, not 2496 x 1440"):
        plan_sampling(Networks(DIT, RELEASED, UPSAMPLER), job, Machine(48 * 10**9, torch.bfloat16, "triton"))


def test_the_kernel_on_a_cpu_is_pytorchs():
    assert fastest_kernel(DIT, RELEASED, torch.device("cpu"), torch.bfloat16) == "sdpa"


@pytest.mark.parametrize("ordered", [True, False])
def test_the_attention_map_shows_what_a_block_selects(ordered):
    grid, token, layout = (9, 5, 7), (7, 4, 3), TokenLayout((9, 5, 7), ordered=ordered)
    q, k = (torch.randn(1, math.prod(grid), 3, 16, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
    found = map_attention(q, k, layout, SMALL, 0, token=token)
    assert found.box.start == (6, 3, 2) and found.box.stop == (8, 5, 4)
    assert found.scope == (0, 8)  # two slabs of memory, and the group's up to its own
    kernel, blocks, selection = choose_blocks(q, k, layout, SMALL)
    block = 3 * 8 + 1 * 4 + 1
    kept = [
        set(selection.block[start : start + count].tolist())
        for start, count in zip(selection.start[0, :, block], selection.count[0, :, block], strict=True)
    ]
    assert found.itself == sum(block in head for head in kept) / 3
    assert len(found.selected) == len(set.union(*kept) - {block})
    assert sum(round(3 * window.share) for window in found.selected) == sum(len(head - {block}) for head in kept)
    assert found.others == int(blocks.allowed[1][block - 16].sum()) - 1
    scores = torch.einsum("n d, M n d -> n M", padded_mean(q, blocks.queries, kernel)[0, block], padded_mean(k, blocks.keys, kernel)[0]) / 4
    one = map_attention(q, k, layout, SMALL, 0, token=token, head=2)
    assert [window.score for window in one.selected] == pytest.approx(
        sorted((float(scores[2, i]) for i in kept[2] - {block}), reverse=True)
    )
    assert "attends to itself" in found.describe((80, 112))


def test_attention_with_a_kernel_of_blocks_is_the_same():
    grid = (5, 5, 7)
    q, k, v = (torch.randn(1, math.prod(grid), 2, 16, dtype=torch.float64) for _ in range(3))
    plain = attend(q, k, v, TokenLayout(grid), SMALL, 0, kernel=kernels.load_block("reference"))
    torch.testing.assert_close(attend(q, k, v, TokenLayout(grid), SMALL, 0), plain, atol=1e-12, rtol=0)
