"""The plan of a run: what is chosen fits, nothing better would, and what it says of memory is what the networks take."""

import math
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ATTENTION, DIT, REPO, UPSAMPLER
from PIL import Image

from simplegvr_core.latent_space import token_grid
from simplegvr_core.networks.attention import AttentionConfig
from simplegvr_core.networks.dit import DiTConfig, SimpleGVRDiT
from simplegvr_core.networks.tiny_vae import TinyVAE, TinyVAEConfig
from simplegvr_core.networks.upsampler import LatentUpsampler
from simplegvr_core.planning import command as plan_command
from simplegvr_core.planning.boxes import Machine, Networks, least_work, segment_bytes, sizes
from simplegvr_core.planning.command import PlanClip
from simplegvr_core.planning.flops import dit_flops
from simplegvr_core.planning.network_memory import TEXT_TOKENS, decode_bytes, dit_bytes, upsampler_bytes
from simplegvr_core.planning.picture import draw_plan
from simplegvr_core.planning.plan import Job, plan_sampling, trial
from simplegvr_core.planning.tensor_memory import peak_bytes
from simplegvr_core.sampling.refine import Refinement, TiledVelocity, refine
from simplegvr_core.sampling.super_resolve import SamplingConfig, match_source
from simplegvr_core.tiling import Tiling, spans

SHAPE, SIZE = (1, 21, 23, 31), (69, 93)
STOCK = replace(DIT, in_dim=16)
DENSE = AttentionConfig(kind="full", unit=None)


def plan(free_bytes, dit=DIT, attention=ATTENTION, shape=SHAPE, size=SIZE, sampling=SamplingConfig(steps=4), **options):  # noqa: B008
    return plan_sampling(Networks(dit, attention, UPSAMPLER), Job(shape, size, sampling), Machine(free_bytes, torch.float32, **options))


@pytest.mark.parametrize("attention", [ATTENTION, DENSE], ids=lambda a: a.kind)
def test_dit_bytes_are_those_of_a_real_run(attention):
    box = (5, 18, 26)
    model = SimpleGVRDiT(DIT, attention)
    timestep, context = torch.full((2,), 500.0), torch.zeros(2, TEXT_TOKENS, DIT.text_dim)

    def run() -> None:
        model(torch.zeros(2, 32, *box), timestep, context)

    run()  # cuts the windows, which the host's memory keeps
    assert {dit_bytes.__wrapped__(DIT, attention, 2, box, torch.float32, "sdpa") for _ in range(2)} == {peak_bytes(run)}


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
    extent, overlap, alignment = (21, 70, 94), (5, 16, 18), (5, 8, 6)

    def need(box: tuple[int, int, int]) -> int:
        return 100 + math.prod(box) // 100

    tiling, needed = least_work(extent, alignment, overlap, None, need, lambda box: budget)

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
        for cells, shared, step in zip(p.tiling.size, p.tiling.overlap, ATTENTION.alignment, strict=True):
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
    assert Networks(STOCK, DENSE).longest_segment == 21
    assert Networks(STOCK, ATTENTION).longest_segment is None
    assert Networks(DIT, DENSE).longest_segment is None
    long = plan(10**10, dit=STOCK, attention=DENSE, shape=(1, 43, 23, 31))
    assert long.counts == (3, 1, 1)  # 2 would do with 24 frames
    assert max(box.size[0] for box in long.boxes) <= 21
    assert plan(10**10, dit=STOCK, attention=DENSE).tiling.size == (None, None, None)


def test_what_the_plan_says():
    p = plan(60_000_000, sampling=SamplingConfig(steps=3, cfg=4.0), shape=(2, 21, 23, 31))
    p = replace(p, seconds_per_operation=1e-9)
    sizes_of_boxes = [box.size for box in p.boxes]
    assert p.tokens == sum(math.prod(token_grid(size)) for size in sizes_of_boxes)
    assert p.clip_tokens == 21 * 35 * 47
    assert p.forwards == 6
    assert p.disk_bytes == 5 * 2 * 16 * 21 * 69 * 93 * 4
    assert p.flops == pytest.approx(2 * 6 * sum(dit_flops(DIT, ATTENTION, token_grid(size)).total for size in sizes_of_boxes))
    assert p.seconds == pytest.approx(p.flops * 1e-9)
    assert plan(10**10, dit=STOCK, attention=DENSE).disk_bytes == 4 * 16 * 21 * 69 * 93 * 4
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
    networks, job = Networks(wan_14b, AttentionConfig(), UPSAMPLER), Job((1, 21, 60, 104), (135, 240), SamplingConfig())
    p = plan_sampling(networks, job, Machine(24 * 10**9, torch.bfloat16))
    assert 28e9 < p.weights_bytes < 30e9
    assert p.dit_bytes < 12e9


def test_picture_shows_every_tile_and_segment():
    p = plan(60_000_000, shape=(1, 41, 23, 31))
    picture = np.asarray(draw_plan(p)).astype(int)
    assert picture.shape == (720, 960, 3)
    assert min(p.counts) > 1
    along_clip, down_frame = picture[500], picture[75:398, 60]
    shades = [len(np.unique(pixels, axis=0)) for pixels in (along_clip, down_frame)]
    assert min(shades) >= 4  # outline, alone, shared, and what is around
    assert not np.array_equal(draw_plan(plan(10**9, shape=(1, 41, 23, 31))), picture)


@pytest.fixture(scope="module")
def models(comfy):
    """A SimpleGVR MODEL, a stock Wan one and an upsampler, of test size."""
    (gvr,) = comfy.run("SimpleGVRLoadModel", model_name="gvr_test.safetensors", weight_dtype="default")
    (wan,) = comfy.run("UNETLoader", unet_name="wan_test.safetensors", weight_dtype="default")
    (upsampler,) = comfy.run("SimpleGVRLoadUpsampler", model_name="upsampler_test.safetensors")
    return SimpleNamespace(gvr=gvr, wan=wan, upsampler=upsampler)


def plan_inputs(gigabytes: float, frames: int = 21, **inputs) -> dict:
    return {
        "latent": {"samples": torch.zeros(1, 16, frames, 23, 31)},
        "size": {"size": "scale", "scale": 3.0},
        "settings": {"settings": "recommended"},
        "memory": {"memory": "custom", "gigabytes": gigabytes},
        "trial": False,
        **inputs,
    }


def test_node_gives_what_the_sampler_takes(comfy, models):
    segment, width, height, report, picture = comfy.run(
        "SimpleGVRPlan", model=models.gvr, upsampler=models.upsampler, **plan_inputs(0.05, frames=41)
    )
    assert segment % 5 == 0 and 10 <= segment < 41
    assert width % 48 == 0 or width == 0
    assert height % 64 == 0 or height == 0
    assert f"of {segment} latent frames" in report
    assert picture.shape == (1, 720, 960, 3)
    whole = comfy.run("SimpleGVRPlan", model=models.gvr, **plan_inputs(10, frames=41))
    assert whole[:3] == (0, 0, 0)
    assert "Forecast" not in whole[3]
    with pytest.raises(ValueError, match=r"SimpleGVR Plan: the smallest box, .* smaller batch"):
        comfy.run("SimpleGVRPlan", model=models.gvr, **plan_inputs(0.005))


class Ones:
    """A latent of that shape, frame by frame."""

    def __init__(self, *shape):
        self.shape = shape

    def __getitem__(self, frames):
        return torch.ones(*self.shape[:2], frames.stop - frames.start, *self.shape[3:])


@pytest.mark.parametrize("size", [(36, 48), (35, 49)], ids=str)
@pytest.mark.parametrize("box", [(10, None, None), (10, 24, 24), (None, None, None)], ids=str)
def test_segment_bytes_are_what_refinement_keeps_on_the_host(size, box, tmp_path):
    tiling = Tiling(box, (5, 8, 8))
    upsampled, z_lr = Ones(1, 16, 20, *size), torch.ones(1, 16, 1, 12, 16)
    velocity = TiledVelocity(lambda z, condition, sigma: torch.zeros_like(z), tiling, (5, 8, 8))

    def finish(z: torch.Tensor, frame: int) -> torch.Tensor:
        return match_source(z, z_lr, "wan", 1.0)

    def run() -> None:
        refine(velocity, Refinement(upsampled, upsampled, torch.tensor([0.5, 0.0]), 0, tmp_path, finish))

    counted = segment_bytes((1, 20, *size), tiling.tile_size((20, *size))[0])
    assert 0.7 * counted < peak_bytes(run) <= counted


def test_on_the_host_a_segment_takes_of_the_same_memory():
    free = 70_000_000
    there, beside = plan(free, on_host=True), plan(free)
    usable = Machine(free, torch.float32).usable_bytes
    assert there.dit_bytes + there.host_bytes <= usable - there.resident_bytes < beside.dit_bytes + beside.host_bytes
    assert "The host's: " in there.text()
    with pytest.raises(ValueError, match="the smallest box"):
        plan(beside.weights_bytes + 30_000_000, on_host=True)


def test_the_samplers_auto_plans_the_boxes_and_no_more(comfy, models, monkeypatch):
    planning = sys.modules[f"{comfy.pack.__name__}.nodes.host.planning"]
    monkeypatch.setattr(planning, "free_memory", lambda model: model.model_size() + 60_000_000)
    job = Job(SHAPE, SIZE, SamplingConfig())
    tiling = planning.plan_run(models.gvr, None, job).tiling
    monkeypatch.delattr(sys.modules[planning.plan_sampling.__module__], "plan_upsampler")
    assert planning.run_tiling(models.gvr, job.target) == tiling != Tiling()


def test_node_counts_free_memory_and_times_a_box(comfy, models):
    inputs = plan_inputs(1, memory={"memory": "free"}, trial=True)
    for model in (models.gvr, models.wan):
        report = comfy.run("SimpleGVRPlan", model=model, **inputs)[3]
        assert "Forecast from a trial" in report


def test_node_reads_stock_models_and_what_a_node_put_on_them(comfy, models):
    planning = sys.modules[f"{comfy.pack.__name__}.nodes.host.planning"]
    networks = planning.describe_model(models.wan)
    dit, attention = networks.dit, networks.attention
    assert (dit.in_dim, dit.dim, dit.ffn_dim, dit.num_heads, dit.num_layers, dit.text_dim) == (16, 128, 160, 1, 3, 4096)
    assert (attention.kind, attention.unit) == ("full", None)
    assert networks.longest_segment == 21
    sparse, _ = comfy.run("SimpleGVRSparseAttention", model=models.wan, preset={"preset": "paper"})
    assert planning.describe_model(sparse).attention.window == (1, 12, 9)
    networks = planning.describe_model(models.gvr)
    assert (networks.dit.in_dim, networks.attention.window) == (32, (1, 4, 3))
    assert planning.free_memory(models.gvr) > models.gvr.model_size() > 1_000_000


def test_comfyui_is_told_the_counted_memory(comfy, models):
    shape = (2, 16, 5, 34, 46)
    told = models.gvr.model.memory_required(list(shape), cond_shapes={"c_crossattn": [(1, 1, 4096)]})
    counted = dit_bytes(DIT, ATTENTION, 2, shape[2:], torch.float32, "sdpa")
    assert counted < told < 1.2 * counted
    (vae,) = comfy.run("SimpleGVRLoadTinyVAE", vae_name="gvr_tiny_vae.safetensors")
    network, z, video = vae.first_stage_model.float(), (1, 16, 3, 8, 10), (1, 3, 9, 64, 80)  # with the input, which moves to the device
    network.fast = False  # products in bfloat16 need less
    assert vae.memory_used_decode(z, torch.float32) == pytest.approx(peak_bytes(lambda: network.decode(torch.zeros(z))), rel=0.01)
    assert vae.memory_used_encode(video, torch.float32) == pytest.approx(peak_bytes(lambda: network.encode(torch.zeros(video))), rel=0.01)


def test_command_plans_draws_and_times(tmp_path, capsys):
    model, upsampler = str(plan_command.GVR_TINY), plan_command.GVR_TINY_UPSAMPLER
    clip = PlanClip((160, 120), (480, 360), 11, model=model, upsampler=upsampler, dtype="float32", memory_gb=0.2, trial=True, device="cpu")
    p = replace(clip, out=tmp_path / "plan.png").run()
    assert p.extent == (11, 46, 60)
    assert p.forwards == 1  # gvr_tiny's own
    assert p.seconds > 0
    assert capsys.readouterr().out == p.text() + "\n"
    assert Image.open(tmp_path / "plan.png").size == (960, 720)
    with pytest.raises(ValueError, match=r"wan-1\.3b, a size without weights"):
        replace(clip, model="wan-1.3b", memory_gb=16).run()


def test_documented_table_is_what_the_command_counts():
    lines = (REPO / "docs" / "memory.md").read_text().splitlines()
    rows = [line.split(" | ") for line in lines if line.startswith("| 1920 x 1080 | 21 |")]
    models = [plan_command.describe(model) for model in ("wan-1.3b", str(plan_command.GVR_TINY))]
    assert len(rows) == len(models)
    size, source = plan_command.landscape(1080)
    for row, model in zip(rows, models, strict=True):
        for column, card in ((2, 8), (4, 16)):
            dit, attention, sampling = model
            job, machine = Job((1, 21, *source), size, sampling), Machine(card * 10**9, torch.bfloat16, "triton")
            p = plan_sampling(Networks(dit, attention, UPSAMPLER), job, machine)
            assert row[column] == plan_command.cell(p)
