"""The sampler node at any length and size: exact sizes, the same in any boxes, out of memory, colors held."""

import sys

import pytest
import torch
from conftest import latent, scale

from simplegvr_core.latent_space import COLOR_FACTORS
from simplegvr_core.networks.upsampler import resize

CUT = {"tiling": "custom", "segment": 10, "tile_width": 288, "tile_height": 384}
SIZES, FRAMES = ((34, 61), (60, 104), (90, 160), (135, 240)), (1, 2, 5, 21, 41)
QUICK = [(frames, size) for frames in FRAMES for size in SIZES if frames * size[0] * size[1] < 100_000]


@pytest.fixture(scope="module")
def one_block(comfy):
    return comfy.run("SimpleGVRLoadModel", model_name="gvr_large_frames.safetensors", weight_dtype="default")[0]


def is_exact(sample, model, frames, size, batch, tiling):
    source = latent((batch, 16, frames, size[0] // 3, size[1] // 3))
    size_in_pixels = {"size": "width x height", "width": 8 * size[1], "height": 8 * size[0]}
    out, _ = sample(model=model, latent=source, size=size_in_pixels, steps=1, tiling=tiling)
    return out.shape == (batch, 16, frames, *size) and bool(torch.isfinite(out).all())


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize(("frames", "size"), QUICK, ids=str)
def test_every_length_size_and_batch_comes_out_exact(sample, one_block, frames, size, batch):
    assert is_exact(sample, one_block, frames, size, batch, {"tiling": "auto"})


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("frames", FRAMES)
def test_every_length_size_and_batch_comes_out_exact_whole_and_in_boxes(sample, one_block, frames, size, batch):
    assert is_exact(sample, one_block, frames, size, batch, {"tiling": "whole"})
    assert is_exact(sample, one_block, frames, size, batch, CUT)


def test_boxes_give_nearly_what_the_whole_gives(sample, one_block):
    source = latent((1, 16, 12, 18, 13))
    whole, in_boxes = (sample(model=one_block, latent=source, size=scale(3), tiling=tiling)[0] for tiling in ({"tiling": "whole"}, CUT))
    assert not torch.equal(whole, in_boxes)
    assert (in_boxes - whole).square().mean() < 0.02 * whole.square().mean()


def test_the_same_clip_made_longer_begins_the_same(sample, one_block):
    """Noise goes by position, attention by temporal units: what comes later changes nothing before."""
    long = latent((1, 16, 15, 5, 7))
    short = {"samples": long["samples"][:, :, :5]}
    out, expected = (sample(model=one_block, latent=z, steps=1)[0] for z in (long, short))
    torch.testing.assert_close(out[:, :, :5], expected, atol=1e-4, rtol=0)


def test_out_of_memory_halves_the_boxes_and_the_report_says_so(sample, one_block, monkeypatch):
    source, network = latent((1, 16, 12, 5, 7)), type(one_block.model.diffusion_model)
    whole, _ = sample(model=one_block, latent=source, tiling={"tiling": "whole"})
    forward = network.forward

    def small_machine(self, x, *arguments, **options):
        if x.shape[2] > 10:
            raise torch.OutOfMemoryError("simulated")
        return forward(self, x, *arguments, **options)

    monkeypatch.setattr(network, "forward", small_machine)
    out, report = sample(model=one_block, latent=source, tiling={"tiling": "whole"})
    assert "Out of memory with 12 latent frames of 112 x 80: continued with 10 latent frames of 112 x 80 at a time." in report
    assert report.count("Out of memory") == 1
    assert (out - whole).square().mean() < 0.02 * whole.square().mean()


def test_upsampling_out_of_memory_goes_on_in_tiles(comfy, upsampler, monkeypatch):
    inputs = dict(upsampler=upsampler, latent=latent((1, 16, 5, 20, 18)), size=scale(3))
    whole = comfy.run("SimpleGVRLatentUpscale", **inputs)[0]["samples"]
    upsample, calls = type(upsampler.model).upsample, []

    def small_machine(self, z_lr, tile, past):
        calls.append(tile)
        if len(calls) == 2 or tile[1].kept[1] - tile[1].kept[0] > 40:
            raise torch.OutOfMemoryError("simulated")
        return upsample(self, z_lr, tile, past)

    monkeypatch.setattr(type(upsampler.model), "upsample", small_machine)
    torch.testing.assert_close(comfy.run("SimpleGVRLatentUpscale", **inputs)[0]["samples"], whole, atol=1e-4, rtol=0)
    assert len(calls) > 5


def test_colors_are_held_to_the_sources(sample):
    wanted = colors(resize(latent()["samples"], (10, 14)))
    drift = [(colors(sample(color_match=strength)[0]) - wanted).abs().max().item() for strength in (0.0, 0.5, 1.0)]
    assert drift[0] > 0.1
    assert drift[1] == pytest.approx(drift[0] / 2, rel=1e-3)
    assert drift[2] < 1e-4


def colors(samples):
    """Returns what ComfyUI's preview and a linear decoder of Wan's make of the frames' mean, VAE space, but for a constant."""
    from comfy.latent_formats import Wan21

    deviations = Wan21().latents_std[:, :, 0, 0]
    return torch.einsum("BCT, nCc -> BTnc", samples.mean((3, 4)) / deviations, torch.tensor(COLOR_FACTORS["wan"]))


def test_context_windows_are_refused(comfy, model, sample):
    windowed = comfy.run(
        "WanContextWindowsManual", model=model, context_length=9, context_overlap=4, context_schedule="standard_static",
        context_stride=1, closed_loop=False, fuse_method="pyramid", freenoise=False,
    )[0]  # fmt: skip
    with pytest.raises(ValueError, match="cuts long videos itself"):
        sample(model=windowed)


def test_a_run_is_known_again_by_what_it_depends_on(comfy):
    ancestry = sys.modules[f"{comfy.pack.__name__}.nodes.host.refinement"].ancestry
    sampler = {"class_type": "SimpleGVRSampler", "inputs": {"latent": ["1", 0], "seed": 1, "tiling": "auto"}}
    source = {"class_type": "LoadLatent", "inputs": {"latent": "a.latent"}}
    prompt = {"1": source, "2": sampler, "3": {"class_type": "SaveLatent", "inputs": {"samples": ["2", 0]}}}

    def changed(node: str, **inputs):
        new = {**prompt, node: {**prompt[node], "inputs": {**prompt[node]["inputs"], **inputs}}}
        return ancestry(new.__getitem__, "2")

    same = ancestry(prompt.__getitem__, "2")
    assert same.keys() == {"1", "2"}
    assert changed("2", tiling="custom", **{"tiling.segment": 10}) == changed("3", samples=["2", 1]) == same
    assert changed("2", seed=2) != same != changed("1", latent="b.latent")


def test_a_run_is_known_again_whatever_loras_the_server_has_loaded(comfy, model):
    """Loaded, weights hold what a LoRA adds to them; also in the small ones, which tell models apart."""
    from comfy.model_management import load_models_gpu

    fingerprint = sys.modules[f"{comfy.pack.__name__}.nodes.host.working_files"].fingerprint
    cold, name = fingerprint(model), "diffusion_model.blocks.0.self_attn.q.bias"
    with_lora = model.clone()
    with_lora.add_patches({name: ("diff", (torch.ones_like(model.get_model_object(name)),))})
    before = model.get_model_object(name).clone()
    try:
        load_models_gpu([with_lora], force_full_load=True)
        assert not torch.equal(model.get_model_object(name), before)
        assert fingerprint(with_lora) == fingerprint(model) == cold
    finally:
        with_lora.detach()
    assert torch.equal(model.get_model_object(name), before)
    with torch.no_grad():
        model.get_model_object(name).add_(1)
        assert fingerprint(model) != cold
        model.get_model_object(name).copy_(before)


def test_frames_that_do_not_fit_are_upsampled_in_tiles_from_the_start(comfy, upsampler, monkeypatch):
    inputs = dict(upsampler=upsampler, latent=latent((1, 16, 3, 20, 18)), size=scale(3))
    whole = comfy.run("SimpleGVRLatentUpscale", **inputs)[0]["samples"]
    bridge, upsample, tiles = sys.modules[f"{comfy.pack.__name__}.nodes.host.bridge"], type(upsampler.model).upsample, []
    monkeypatch.setattr(bridge, "free_memory", lambda patcher: patcher.model_size() + 3_000_000)
    monkeypatch.setattr(type(upsampler.model), "upsample", lambda self, z, tile, past: tiles.append(tile) or upsample(self, z, tile, past))
    torch.testing.assert_close(comfy.run("SimpleGVRLatentUpscale", **inputs)[0]["samples"], whole, atol=1e-4, rtol=0)
    assert {tile[0].kept for tile in tiles} == {(0, 30), (30, 60)}


@pytest.mark.parametrize(
    "text", ["[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory", "MPS backend out of memory"]
)
def test_memory_that_runs_out_elsewhere_is_known_too(comfy, text):
    bridge = sys.modules[f"{comfy.pack.__name__}.nodes.host.bridge"]
    assert bridge.is_out_of_memory(RuntimeError(text))
    assert bridge.is_out_of_memory(torch.OutOfMemoryError("CUDA"))
    assert not bridge.is_out_of_memory(RuntimeError("shapes do not match"))
