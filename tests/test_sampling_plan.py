"""The plan of a run: what is chosen fits, nothing better would, and what it says of memory is what the networks take."""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from conftest import ATTENTION, DIT, UPSAMPLER

from simplegvr_core.attention import AttentionConfig
from simplegvr_core.flops import dit_flops
from simplegvr_core.memory import peak_bytes
from simplegvr_core.model import DiTConfig, SimpleGVRDiT
from simplegvr_core.network_memory import TEXT_TOKENS, decode_bytes, dit_bytes, upsampler_bytes
from simplegvr_core.sampling import SamplingConfig
from simplegvr_core.sampling_plan import grid, least_work, longest_segment, plan_sampling, sizes, trial
from simplegvr_core.tiling import Tiling, alignment, spans
from simplegvr_core.upsampler import LatentUpsampler
from simplegvr_core.vae import TinyVAE, TinyVAEConfig

SHAPE, SIZE = (1, 21, 23, 31), (69, 93)
STOCK = replace(DIT, in_dim=16)
DENSE = AttentionConfig(kind="full", unit=None)


def plan(free_bytes, dit=DIT, attention=ATTENTION, shape=SHAPE, size=SIZE, sampling=SamplingConfig(steps=4), **options):  # noqa: B008
    return plan_sampling(dit, attention, UPSAMPLER, shape, size, sampling, free_bytes, torch.float32, **options)


@pytest.mark.parametrize("attention", [ATTENTION, DENSE], ids=lambda a: a.kind)
def test_dit_bytes_are_those_of_a_real_run(attention):
    box = (5, 18, 26)
    model = SimpleGVRDiT(DIT, attention)
    timestep, context = torch.full((2,), 500.0), torch.zeros(2, TEXT_TOKENS, DIT.text_dim)

    def run() -> None:
        model(torch.zeros(2, 32, *box), timestep, context)

    count = partial(dit_bytes.__wrapped__, DIT, attention, 2, box, torch.float32, "sdpa")
    peak_bytes(run), count()  # cut the windows, which stay
    assert count() == peak_bytes(run)


def test_triton_keeps_less_than_gathering():
    box = 5, 48, 36
    wide = AttentionConfig(window=(1, 12, 9), top_k=7)
    narrow_feed_forward = replace(DIT, ffn_dim=128)
    counts = [dit_bytes(narrow_feed_forward, wide, 1, box, torch.bfloat16, name) for name in ("triton", "sdpa")]
    assert counts[0] < 0.7 * counts[1]


def test_streams_take_what_they_take_on_a_real_device():
    upsampler, vae = LatentUpsampler(UPSAMPLER), TinyVAE(TinyVAEConfig())
    source, size = (5, 7), (15, 22)

    def upsample() -> None:
        for _ in upsampler.stream((torch.zeros(1, 16, 2, *source) for _ in range(3)), size):
            pass

    def decode() -> None:
        for _ in vae.decode_stream(torch.zeros(1, 16, 2, *source) for _ in range(3)):
            pass

    assert upsampler_bytes(UPSAMPLER, 1, 2, source, size, None, torch.float32) == peak_bytes(upsample)
    assert decode_bytes(TinyVAEConfig(), 2, source, torch.float32) == peak_bytes(decode)


def test_sizes_are_the_smallest_for_each_number_of_boxes():
    found = list(sizes(69, 16, 8, None))
    assert found[0] is None
    assert found[1:] == sorted(found[1:], reverse=True)
    counts = [len(spans(69, size, 16)) for size in found]
    assert counts == sorted(set(counts))
    for size, count in zip(found[1:], counts[1:], strict=True):
        assert size % 8 == 0
        assert size == 32 or len(spans(69, size - 8, 16)) > count


@pytest.mark.parametrize("budget", [800, 3000, 20_000, 10**9])
def test_no_tiling_that_fits_computes_fewer_cells(budget):
    extent, overlap, align = (21, 70, 94), (5, 16, 18), (5, 8, 6)

    def need(box: tuple[int, int, int]) -> int:
        return 100 + math.prod(box) // 100

    if need((10, 32, 36)) > budget:
        pytest.skip("nothing fits")
    tiling, needed = least_work(extent, overlap, align, None, need, budget)

    def cells(tiling: Tiling) -> int:
        return sum(math.prod(box.size) for box in tiling.boxes(extent))

    assert needed == max(need(box.size) for box in tiling.boxes(extent)) <= budget
    everything = [
        Tiling((t, h, w), overlap) for t in (*range(10, 21, 5), None) for h in (*range(32, 70, 8), None) for w in (*range(36, 94, 6), None)
    ]
    fitting = [other for other in everything if all(need(box.size) <= budget for box in other.boxes(extent))]
    assert cells(tiling) == min(map(cells, fitting))
    fewest = min(len(other.boxes(extent)) for other in fitting if cells(other) == cells(tiling))
    assert len(tiling.boxes(extent)) == fewest


def test_the_less_memory_the_more_work_down_to_an_error_with_a_cure():
    plans = [plan(free) for free in (2_000_000_000, 120_000_000, 60_000_000, 40_000_000)]
    assert plans[0].tiling.size == (None, None, None)
    assert plans[0].overhead == 1
    overheads = [p.overhead for p in plans]
    assert overheads == sorted(overheads)
    assert overheads[-1] > 1.2
    for p in plans:
        assert p.resident_bytes + p.dit_bytes <= 0.9 * p.free_bytes
        for cells, shared, step in zip(p.tiling.size, p.tiling.overlap, alignment(ATTENTION), strict=True):
            assert shared % step == 0
            assert cells is None or cells % step == 0
    with pytest.raises(ValueError, match=r"smallest box, 10 latent frames of .* smaller batch"):
        plan(20_000_000)


def test_weights_leave_half_of_the_memory_to_boxes():
    large = replace(DIT, num_layers=300)
    small_memory = plan(120_000_000, dit=large)
    assert small_memory.weights_bytes > 120_000_000
    assert small_memory.resident_bytes == 54_000_000
    assert "come and go" in small_memory.text()
    assert "come and go" not in plan(120_000_000).text()


def test_stock_models_stay_within_the_frames_they_were_trained_on():
    assert longest_segment(STOCK, DENSE) == 21
    assert longest_segment(STOCK, ATTENTION) is None
    assert longest_segment(DIT, DENSE) is None
    long = plan(10**10, dit=STOCK, attention=DENSE, shape=(1, 43, 23, 31), max_frames=21)
    assert long.counts == (3, 1, 1)  # 2 would do with 24 frames
    assert max(box.size[0] for box in long.boxes) <= 21
    assert plan(10**10, dit=STOCK, attention=DENSE, max_frames=21).tiling.size == (None, None, None)


def test_what_the_plan_says():
    p = plan(60_000_000, sampling=SamplingConfig(steps=3, cfg=4.0), shape=(2, 21, 23, 31), seconds_per_token=0.001)
    sizes_of_boxes = [box.size for box in p.boxes]
    assert p.tokens == sum(math.prod(grid(size)) for size in sizes_of_boxes)
    assert p.clip_tokens == 21 * 35 * 47
    assert p.forwards == 6
    assert p.disk_bytes == 3 * 2 * 16 * 21 * 69 * 93 * 4
    assert p.flops == pytest.approx(2 * 6 * sum(dit_flops(DIT, ATTENTION, grid(size)).total for size in sizes_of_boxes))
    assert p.seconds == pytest.approx(2 * 6 * p.tokens * 0.001)
    text = p.text()
    for part in ("248 x 184 -> 744 x 552 pixels, 21 latent frames (81 frames), batch 2", "in each of 6 passes", "Forecast", "not measured"):
        assert part in text
    assert "Forecast" not in plan(60_000_000).text()


def test_upsampler_is_tiled_where_a_frame_does_not_fit():
    whole = plan(10**9, shape=(1, 3, 80, 120), size=(160, 240), dit=replace(DIT, num_layers=1))
    tight = plan(80_000_000, shape=(1, 3, 80, 120), size=(160, 240), dit=replace(DIT, num_layers=1))
    assert whole.upsampler_tile is None
    assert max(tight.upsampler_tile) < 240
    assert tight.upsampler_bytes < min(80_000_000, whole.upsampler_bytes)


def test_trial_times_the_second_call():
    calls = []

    def forward() -> None:
        calls.append(len(calls))
        if len(calls) == 1:
            sum(range(3_000_000))

    assert trial(forward, 10) < 0.001
    assert len(calls) == 2


def test_large_models_are_counted_without_being_built():
    wan_14b = DiTConfig(dim=5120, ffn_dim=13824, num_heads=40, num_layers=40)
    p = plan_sampling(wan_14b, AttentionConfig(), UPSAMPLER, (1, 21, 60, 104), (135, 240), SamplingConfig(), 24 * 10**9, torch.bfloat16)
    assert 28e9 < p.weights_bytes < 30e9
    assert p.dit_bytes < 12e9
