"""Boxes, noise by position, latents in files, and refinement that streams: what is cut gives what the whole gives."""

from functools import partial
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from conftest import random_weights

from simplegvr_core.flow import positional_noise
from simplegvr_core.networks.attention import AttentionConfig
from simplegvr_core.networks.dit import DiTConfig, SimpleGVRDiT
from simplegvr_core.networks.upsampler import VARIANTS, LatentUpsampler, UpsamplerConfig
from simplegvr_core.sampling.latent_file import LatentFile, TensorFrames, write_latent
from simplegvr_core.sampling.refine import TiledVelocity
from simplegvr_core.sampling.super_resolve import SamplingConfig, super_resolve
from simplegvr_core.sampling.super_resolve_to_file import super_resolve_to_file, torch_runtime
from simplegvr_core.tiling import OutOfMemory, Tiling, aligned_tiling, blend_weights, is_out_of_memory, spans, with_less_memory

ATTENTION = AttentionConfig(window=(1, 3, 2), top_k=1, unit=2)
SMALL = Tiling((4, 12, 8), (2, 6, 4))
UPSAMPLER = LatentUpsampler(VARIANTS["bilinear"])
Z_LR = torch.randn(1, 16, 7, 7, 9, generator=torch.Generator().manual_seed(0))
SIZE = (15, 21)


@pytest.fixture(scope="module")
def model():
    return random_weights(SimpleGVRDiT(DiTConfig(dim=128, ffn_dim=64, num_heads=2, num_layers=2), ATTENTION))


def resolve(model, folder=None, tiling=SMALL, steps=3, z_lr=Z_LR, **options):
    """Returns super_resolve_to_file's latent; the folder is one for this run alone unless it is given."""
    with TemporaryDirectory() as own:
        runtime = torch_runtime(model, UPSAMPLER, like=z_lr, tiling=tiling, **options)
        sampling = SamplingConfig(steps=steps, denoise=0.7)
        run = {"sampling": sampling, "seed": 3, "noise_seed": 4}
        return super_resolve_to_file(folder or Path(own), TensorFrames(z_lr), SIZE, runtime, **run)[:]


UPSAMPLERS = {"bilinear": UPSAMPLER, "simplegvr": random_weights(LatentUpsampler(UpsamplerConfig(width=8)))}


@pytest.mark.parametrize(
    "settings",
    [{}, {"cfg": 3.0}, {"solver": "ab2"}, {"strength": 1.5, "patch_filter": 3}],
    ids=lambda settings: "-".join(settings) or "plain",
)
@pytest.mark.parametrize("tiling", [None, SMALL, Tiling((4, None, None), (2, 6, 4)), Tiling((None, 12, 8), (2, 6, 4))], ids=str)
@pytest.mark.parametrize("upsampler", UPSAMPLERS)
def test_the_streamed_twin_gives_what_super_resolve_gives_in_memory(model, upsampler, tiling, settings, tmp_path):
    networks = model, UPSAMPLERS[upsampler]
    generator = torch.Generator().manual_seed(5)
    prompts = {name: torch.randn(2, 3, 4096, generator=generator) for name in ("context", "negative_context")}
    z_lr, sampling = torch.cat((Z_LR, Z_LR.flip(2))), SamplingConfig(steps=3, denoise=0.7, **settings)
    common = {"sampling": sampling, "seed": 3, "noise_seed": 4, "color_match": 0.5}
    expected = super_resolve(*networks, z_lr, SIZE, tiling=tiling, **prompts, **common)
    runtime = torch_runtime(*networks, like=z_lr, sampling=sampling, tiling=tiling, **prompts)
    streamed = super_resolve_to_file(tmp_path, TensorFrames(z_lr), SIZE, runtime, **common)
    assert streamed.shape == expected.shape == (2, 16, 7, *SIZE)
    torch.testing.assert_close(streamed[:], expected, atol=1e-6 * expected.abs().max().item(), rtol=0)


@pytest.mark.parametrize("order", ["after_upsampler", "before_upsampler"])
def test_the_condition_is_noised_on_the_side_of_the_upsampler_that_is_asked_for(model, order, tmp_path):
    """arXiv version 1: the condition is the upsampled latent, noised. ICLR: it is the noised latent, upsampled."""
    upsampler = UPSAMPLERS["simplegvr"]
    z_up, noise, noise_up = upsampler(Z_LR, SIZE), *(positional_noise((*Z_LR.shape[:3], *size), 4, 0, 1) for size in ((7, 9), SIZE))
    formulas = {"after_upsampler": 0.6 * z_up + 0.4 * noise_up, "before_upsampler": upsampler(0.6 * Z_LR + 0.4 * noise, SIZE)}
    assert (formulas["after_upsampler"] - formulas["before_upsampler"]).std() > 0.1
    sampling, conditions = SamplingConfig(steps=1, noise_augmentation=0.4, noise_order=order), []
    hook = model.register_forward_pre_hook(lambda module, inputs: conditions.append(inputs[0][:, 16:, :, : SIZE[0], : SIZE[1]]))
    try:
        whole = super_resolve(model, upsampler, Z_LR, SIZE, sampling=sampling, seed=3, noise_seed=4)
        runtime = torch_runtime(model, upsampler, like=Z_LR, sampling=sampling)
        streamed = super_resolve_to_file(tmp_path, TensorFrames(Z_LR), SIZE, runtime, sampling=sampling, seed=3, noise_seed=4)[:]
    finally:
        hook.remove()
    assert len(conditions) == 2
    for condition in conditions:
        torch.testing.assert_close(condition, formulas[order], atol=1e-5, rtol=0)
    torch.testing.assert_close(streamed, whole, atol=1e-5, rtol=0)


def test_no_prompt_is_the_null_prompt(model):
    null = torch.zeros(1, 1, 4096)
    guided = {"sampling": SamplingConfig(steps=1, cfg=2.0)}
    prompt = torch.ones(1, 3, 4096)
    expected = super_resolve(model, UPSAMPLER, Z_LR, SIZE, context=prompt, negative_context=null, **guided)
    assert torch.equal(super_resolve(model, UPSAMPLER, Z_LR, SIZE, context=prompt, **guided), expected)
    assert not torch.equal(super_resolve(model, UPSAMPLER, Z_LR, SIZE, context=prompt, negative_context=prompt, **guided), expected)
    assert torch.equal(
        super_resolve(model, UPSAMPLER, Z_LR, SIZE, **guided),
        super_resolve(model, UPSAMPLER, Z_LR, SIZE, context=null, negative_context=null, **guided),
    )


@pytest.mark.parametrize("extent", [1, 2, 5, 9, 10, 11, 21, 34, 135])
@pytest.mark.parametrize(("size", "overlap"), [(10, 5), (12, 3), (4, 1), (7, 0), (None, 5)])
def test_spans_cover_an_axis_and_share_what_they_should(extent, size, overlap):
    cut = spans(extent, size, overlap)
    assert cut[0][0] == 0
    assert cut[-1][1] == extent
    assert all(stop - start <= (size or extent) for start, stop in cut)
    assert all(before[1] - after[0] == overlap for before, after in pairwise(cut))


def test_shares_of_all_boxes_add_up_to_one():
    extent, tiling, total = (11, 31, 22), Tiling((4, 12, 8), (2, 3, 4)), torch.zeros(11, 31, 22)
    for box in tiling.boxes(extent):
        total[box.slices] += blend_weights(box, extent, tiling.overlap)
    torch.testing.assert_close(total, torch.ones(extent))


def test_boxes_begin_where_units_and_windows_do():
    tiling = aligned_tiling((9, 70, 80), AttentionConfig().alignment)
    assert AttentionConfig().alignment == (5, 24, 18)
    assert tiling == Tiling((10, 72, 90), (5, 24, 18))
    starts = [box.start for box in tiling.boxes((41, 135, 240))]
    assert all(t % 5 == 0 and h % 24 == 0 and w % 18 == 0 for t, h, w in starts)
    assert AttentionConfig(window=(4, 2, 3), unit=None).alignment == (4, 4, 6)


def test_boxes_that_are_halved_stay_where_units_and_windows_begin():
    tiling, extent, attention = aligned_tiling((None, None, None), AttentionConfig().alignment), (41, 136, 240), AttentionConfig()
    for _ in range(6):
        tiling = tiling.halved(tuple(side or whole for side, whole in zip(tiling.size, extent, strict=True)), attention.alignment)
        assert all(t % 5 == 0 and h % 24 == 0 and w % 18 == 0 for t, h, w in (box.start for box in tiling.boxes(extent)))
    assert tiling.halved((10, 48, 36), attention.alignment) is None


def test_a_box_that_is_less_than_twice_its_overlap_is_refused():
    with pytest.raises(ValueError, match="at least twice the overlap"):
        Tiling((9, None, None), (5, 24, 18))


def test_noise_depends_on_the_position_alone():
    whole = positional_noise((2, 16, 7, 5, 3), 2**64 - 1)
    assert torch.equal(positional_noise((1, 16, 3, 5, 3), 2**64 - 1, first_frame=2), whole[:1, :, 2:5])
    assert abs(whole.mean()) < 0.05
    assert abs(whole.std() - 1) < 0.05
    others = positional_noise(whole.shape, 1)[0, :, 0], positional_noise(whole.shape, 2**64 - 1, field=1)[0, :, 0]
    values = [whole[0, :, 0], whole[0, :, 1], whole[1, :, 0], *others]
    pairs = [(a, b) for i, a in enumerate(values) for b in values[:i]]
    assert all(abs(torch.corrcoef(torch.stack((a.flatten(), b.flatten())))[0, 1]) < 0.2 for a, b in pairs)


def test_a_latent_file_gives_back_what_was_written(tmp_path):
    z = torch.randn(2, 16, 7, 5, 3)
    with write_latent(tmp_path / "z.safetensors", z.shape, {"step": "3"}) as append:
        for part in z.split((1, 4, 2), dim=2):
            append(part)
    latent = LatentFile(tmp_path / "z.safetensors")
    assert latent.shape == z.shape
    assert latent.metadata["step"] == "3"
    assert torch.equal(latent[2:6], z[:, :, 2:6])
    assert torch.equal(latent[:], z)


def test_an_unfinished_latent_file_leaves_nothing_and_keeps_the_one_before(tmp_path):
    path, z = tmp_path / "z.safetensors", torch.randn(1, 16, 3, 5, 7)
    with write_latent(path, z.shape, {}) as append:
        append(z)
    with pytest.raises(ValueError, match="bytes of the latent were not written"), write_latent(path, z.shape, {}) as append:
        append(z[:, :, :2])
    assert torch.equal(LatentFile(path)[:], z)
    assert list(tmp_path.iterdir()) == [path]


def test_a_network_that_sees_single_cells_gives_the_same_in_any_boxes(tmp_path):
    """Then only cutting, blending, padding and streaming could make a difference."""

    class Pointwise(torch.nn.Module):
        config, attention = DiTConfig(), ATTENTION

        def forward(self, z, timestep, context):
            return torch.sin(3 * z[:, :16] + z[:, 16:]) * timestep / 1000

    whole = resolve(Pointwise(), tiling=Tiling())
    for tiling in (SMALL, Tiling((4, None, None), (2, 6, 4)), Tiling((None, 12, None), (0, 6, 0))):
        torch.testing.assert_close(resolve(Pointwise(), tiling=tiling), whole, atol=1e-5, rtol=0)


def test_boxes_of_a_real_network_stay_close_to_the_whole(model):
    whole = resolve(model, tiling=Tiling())
    boxed = resolve(model)
    assert not torch.equal(boxed, whole)
    assert (boxed - whole).square().mean() < 0.1 * whole.square().mean()


def test_attention_in_units_sees_the_same_in_a_segment_as_in_the_whole():
    """Where nothing looks across units, all but a segment's border blocks is exact: with one block, all of it."""
    network = random_weights(SimpleGVRDiT(DiTConfig(dim=128, ffn_dim=64, num_heads=2, num_layers=1), ATTENTION))
    z_lr = Z_LR[:, :, :6]  # whole units: a rest would be part of the last one
    whole = resolve(network, z_lr=z_lr, tiling=Tiling(), steps=1)
    segments = resolve(network, z_lr=z_lr, tiling=Tiling((4, None, None), (2, 6, 4)), steps=1)
    torch.testing.assert_close(segments, whole, atol=1e-4, rtol=0)


def test_out_of_memory_makes_boxes_smaller_and_goes_on(model, monkeypatch):
    """At step 7 of 20, in the third box: only from there on boxes are smaller."""
    tiling = Tiling((4, 12, 16), (2, 6, 4))
    reference = resolve(model, tiling=tiling, steps=20)
    calls, sizes, forward = 0, [], SimpleGVRDiT.forward

    def failing(self, z, *arguments):
        nonlocal calls
        calls += 1
        sizes.append(tuple(z.shape[2:]))
        if calls == 6 * boxes + 3:
            raise torch.OutOfMemoryError("simulated")
        return forward(self, z, *arguments)

    boxes = len(tiling.boxes((7, 16, 22)))
    monkeypatch.setattr(SimpleGVRDiT, "forward", failing)
    out = resolve(model, tiling=tiling, steps=20)
    failed = 6 * boxes + 2
    assert {size[2] for size in sizes[:failed]} == {16, 10}
    assert max(size[2] for size in sizes[failed + 1 :]) == 8
    assert (out - reference).square().mean() < 0.1 * reference.square().mean()


def test_memory_that_never_suffices_is_an_error_that_says_so():
    def network(z, condition, sigma):
        raise torch.OutOfMemoryError("simulated")

    velocity = TiledVelocity(network, SMALL, ATTENTION.alignment)
    with pytest.raises(OutOfMemory, match="out of memory with the smallest box"):
        velocity(torch.zeros(1, 16, 7, 16, 22), None, torch.tensor(0.5))


def test_the_next_smaller_plan_is_tried_until_one_fits():
    tried, told = [], []

    def run(plan):
        tried.append(plan)
        if plan > 2:
            raise torch.OutOfMemoryError("simulated")
        return f"done with {plan}"

    retry = partial(
        with_less_memory, on_out_of_memory=lambda *plans: told.append(plans), give_up=lambda plan: f"{plan} is the smallest: buy more"
    )
    assert retry(run, 5, smaller=lambda plan: plan - 1) == "done with 2"
    assert tried == [5, 4, 3, 2]
    assert told == [(5, 4), (4, 3), (3, 2)]
    with pytest.raises(torch.OutOfMemoryError, match="3 is the smallest: buy more"):
        retry(run, 3, smaller=lambda plan: None)


def test_an_error_that_is_final_is_not_tried_again():
    calls = []

    def part(plan):
        calls.append(plan)
        raise torch.OutOfMemoryError("simulated")

    def run(plan):
        inner = {"smaller": lambda plan: None, "on_out_of_memory": lambda *plans: None, "give_up": lambda plan: "final"}
        return with_less_memory(part, plan, **inner)

    with pytest.raises(OutOfMemory, match="final"):
        with_less_memory(run, 3, smaller=lambda plan: plan - 1, on_out_of_memory=lambda *plans: None, give_up=lambda plan: "outer")
    assert calls == [3]


def test_other_errors_pass():
    assert is_out_of_memory(RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"))

    def network(z, condition, sigma):
        raise RuntimeError("sizes do not match")

    with pytest.raises(RuntimeError, match="sizes do not match"):
        TiledVelocity(network, SMALL, ATTENTION.alignment)(torch.zeros(1, 16, 2, 2, 2), None, torch.tensor(0.5))


def test_a_run_that_was_cut_off_goes_on_from_its_last_step(model, tmp_path):
    expected = resolve(model)
    steps = []

    def stop(step, first_frame, z_0):
        steps.append(step)
        if step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        resolve(model, tmp_path, on_segment=stop)
    assert LatentFile(tmp_path / "z.safetensors").metadata["step"] == "2"
    steps.clear()
    assert torch.equal(resolve(model, tmp_path, on_segment=lambda step, first_frame, z_0: steps.append(step)), expected)
    assert set(steps) == {2}


def test_a_batch_is_its_items():
    network = random_weights(SimpleGVRDiT(DiTConfig(dim=128, ffn_dim=64, num_heads=2, num_layers=1), ATTENTION))
    pair = torch.cat((Z_LR, Z_LR.flip(2)))
    torch.testing.assert_close(resolve(network, z_lr=pair)[:1], resolve(network), atol=1e-4, rtol=0)
