"""Prompts of a part of the video, model patches that remember, and conditions of another size: in boxes as in the whole."""

import comfyui as setup
import pytest
import torch
from conftest import latent, scale
from test_nodes import our_noise  # noqa: F401 (a fixture)

SOURCE = (1, 16, 3, 20, 48)
WHOLE, HALVES, QUARTERS = (
    {"tiling": "custom", "segment": 0, "tile_width": width, "tile_height": height} for width, height in ((0, 0), (464, 0), (464, 256))
)


def text(seed: int) -> list:
    return [[torch.randn(1, 4, 4096, generator=torch.Generator().manual_seed(seed)), {}]]


def left_half(comfy, kind: str) -> list:
    """Returns a prompt of the left half of the frame; "odd": of an area that begins within a token."""
    if kind == "odd":
        region = {"width": 0.625, "height": 2 / 3, "temporal": 1.0, "x": 0.01, "y": 1 / 3, "z": 0.0, "strength": 0.7}
        return comfy.run("ConditioningSetAreaPercentageVideo", conditioning=text(1), **region)[0]
    if kind == "area":
        region = {"width": 0.5, "height": 1.0, "temporal": 1.0, "x": 0.0, "y": 0.0, "z": 0.0, "strength": 1.0}
        return comfy.run("ConditioningSetAreaPercentageVideo", conditioning=text(1), **region)[0]
    mask = torch.zeros(1, 40, 96)
    mask[..., :48] = 1
    return comfy.run("ConditioningSetMask", conditioning=text(1), mask=mask, strength=1.0, set_cond_area="default")[0]


@pytest.fixture(scope="module", autouse=True)
def video_nodes(comfy):
    import asyncio

    import nodes

    path = setup.find_comfyui(setup.HOME) / "comfy_extras"
    for name in ("video_model", "easycache", "apg"):
        asyncio.run(nodes.load_custom_node(str(path / f"nodes_{name}.py"), module_parent="comfy_extras"))


def effect(sample, comfy, kind: str, tiling: dict) -> torch.Tensor:
    """Returns the mean absolute effect of a prompt of the left half in each quarter of the width, as parts of the whole's largest."""
    regional = text(2) + left_half(comfy, kind)
    options = {"latent": latent(SOURCE), "tiling": tiling, "steps": 1, "color_match": 0.0}
    difference = sample(positive=regional, **options)[0] - sample(positive=text(2), **options)[0]
    return torch.stack([quarter.abs().mean() for quarter in difference.chunk(4, dim=4)])


@pytest.mark.parametrize("kind", ["area", "mask", "odd"])
def test_a_region_has_its_effect_in_the_same_place_in_any_boxes(comfy, sample, kind):
    whole = effect(sample, comfy, kind, WHOLE)
    assert whole[0] > 10 * whole[3]
    for tiling in (HALVES, QUARTERS):
        assert ((effect(sample, comfy, kind, tiling) - whole).abs() / whole.max() < 0.02).all()


def test_an_area_gives_what_the_stock_sampler_gives(comfy, model, upsampler, sample, our_noise):  # noqa: F811
    upscaled = comfy.run("SimpleGVRLatentUpscale", upsampler=upsampler, latent=latent(SOURCE), size=scale(2))[0]
    regional = text(2) + left_half(comfy, "area")
    inputs = dict(positive=regional, negative=text(3), upscaled=upscaled, noise_augmentation=0.4, noise_seed=2)
    positive, negative, empty = comfy.run("SimpleGVRConditioning", **inputs)
    inputs = dict(model=model, seed=1, steps=2, cfg=2.0, sampler_name="euler", scheduler="simple", denoise=1.0)
    expected = comfy.run("KSampler", positive=positive, negative=negative, latent_image=empty, **inputs)[0]["samples"]
    out, _ = sample(positive=regional, negative=text(3), latent=latent(SOURCE), cfg=2.0, color_match=0.0, tiling=WHOLE)
    torch.testing.assert_close(out, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("mask", [torch.ones(40, 96), torch.ones(9, 20, 48), torch.ones(1, 3, 40, 96)], ids=lambda mask: str(mask.ndim))
def test_masks_of_any_shape_apply(comfy, sample, mask):
    regional = comfy.run("ConditioningSetMask", conditioning=text(1), mask=mask, strength=1.0, set_cond_area="mask bounds")[0]
    everywhere, _ = sample(positive=text(1), latent=latent(SOURCE), tiling=HALVES)
    masked, _ = sample(positive=regional, latent=latent(SOURCE), tiling=HALVES)
    torch.testing.assert_close(masked, everywhere, atol=1e-5, rtol=0)


def test_a_timestep_range_applies_in_boxes(comfy, sample):
    late = comfy.run("ConditioningSetTimestepRange", conditioning=text(1), start=0.99, end=1.0)[0]
    options = {"latent": latent(SOURCE), "tiling": HALVES, "denoise": 1.0}
    without, _ = sample(positive=text(2), **options)
    assert torch.equal(sample(positive=text(2) + late, **options)[0], without)
    always = comfy.run("ConditioningSetTimestepRange", conditioning=text(1), start=0.0, end=1.0)[0]
    assert not torch.allclose(sample(positive=text(2) + always, **options)[0], without, atol=1e-3)


# Patches that remember


@pytest.mark.parametrize("node", ["EasyCache", "LazyCache"])
def test_caches_are_kept_for_each_box(comfy, model, sample, node):
    """What is skipped in boxes of the same content is what is skipped in each alone."""
    cached = comfy.run(node, model=model, reuse_threshold=3.0, start_percent=0.0, end_percent=1.0, verbose=False)[0]
    options = {"latent": latent(SOURCE), "steps": 8}
    _, whole = sample(model=cached, tiling=WHOLE, **options)
    out, boxes = sample(model=cached, tiling=HALVES, **options)
    skipped = {report: int(report.split("skipped ")[1].split()[0]) for report in (whole, boxes)}
    assert f"{node}: kept for each of 1 boxes" in whole
    assert f"{node}: kept for each of 2 boxes" in boxes
    assert skipped[whole] > 0
    assert skipped[boxes] == 2 * skipped[whole]
    assert out.isfinite().all()
    off = comfy.run(node, model=model, reuse_threshold=0.0, start_percent=0.0, end_percent=1.0, verbose=False)[0]
    assert torch.equal(sample(model=off, tiling=HALVES, **options)[0], sample(tiling=HALVES, **options)[0])


def test_a_patch_that_cannot_be_kept_by_box_is_refused_in_boxes_alone(comfy, model, sample):
    guided = {momentum: comfy.run("APG", model=model, eta=1.0, norm_threshold=5.0, momentum=momentum)[0] for momentum in (0.0, -0.5)}
    with pytest.raises(ValueError, match="SimpleGVR Sampler: the latent is sampled in boxes, but the model has APG with momentum"):
        sample(model=guided[-0.5], latent=latent(SOURCE), tiling=HALVES, cfg=2.0)
    sample(model=guided[-0.5], latent=latent(SOURCE), tiling=WHOLE, cfg=2.0)
    sample(model=guided[0.0], latent=latent(SOURCE), tiling=HALVES, cfg=2.0)


def test_a_patch_that_cannot_be_kept_by_box_is_refused_when_memory_runs_out(comfy, model, sample, monkeypatch):
    guided = comfy.run("APG", model=model, eta=1.0, norm_threshold=5.0, momentum=-0.5)[0]
    forward = type(model.model.diffusion_model).forward

    def small_only(self, x, *args, **kwargs):
        if x.shape[-1] > 60:
            raise torch.OutOfMemoryError("simulated")
        return forward(self, x, *args, **kwargs)

    monkeypatch.setattr(type(model.model.diffusion_model), "forward", small_only)
    with pytest.raises(ValueError, match="APG with momentum, which remembers other boxes' values"):
        sample(model=guided, latent=latent(SOURCE), tiling=WHOLE, cfg=2.0)


def test_a_control_net_is_refused_in_boxes(comfy, sample):
    prompt = [[text(1)[0][0], {"control": object()}]]
    with pytest.raises(ValueError, match="the prompt has a ControlNet"):
        sample(positive=prompt, latent=latent(SOURCE), tiling=HALVES)


# Conditions of the low-resolution pass


def test_what_a_plain_model_does_not_take_is_dropped_with_a_word(sample):
    """VACE's control and references, as the prompts of the low-resolution pass carry them."""
    size = (20, 48)
    carried = {
        "vace_frames": [torch.randn(1, 32, 3, *size)],
        "vace_mask": [torch.ones(1, 64, 3, *size)],
        "vace_strength": [1.0],
        "reference_latents": [torch.zeros(1, 16, 1, *size)],
        "concat_latent_image": torch.zeros(1, 16, 3, *size),
        "concat_mask": torch.zeros(1, 4, 3, *size),
    }
    prompt = [[text(1)[0][0], carried]]
    out, report = sample(positive=prompt, latent=latent(SOURCE))
    assert torch.equal(out, sample(positive=text(1), latent=latent(SOURCE))[0])
    for name in carried.keys() - {"vace_strength"}:
        assert f"The prompts' {name} is of the low-resolution pass and was dropped" in report
