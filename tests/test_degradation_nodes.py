"""The degradation nodes, in process, on real video and on real (tiny, random) models."""

import sys
from pathlib import Path

import pytest
import torch
from conftest import REPO, random_weights

from simplegvr_core.degradations import RECIPES, degrade_video
from simplegvr_core.flow import interpolate, positional_noise, shifted_sigmas
from simplegvr_core.networks.attention import AttentionConfig
from simplegvr_core.networks.dit import DiTConfig, SimpleGVRDiT
from simplegvr_core.sampling.solvers import integrate
from simplegvr_core.video.frames import area_downscale, to_images, to_video
from simplegvr_core.video.read import read_video

FLOW = dict(seed=3, color_bleeding=0.8, ellipses=32, motion_blur=1.5, min_motion=1.0)
CLASSICAL = dict(scale=1, seed=3, blur=1.0, smallest=0.15, noise=1.0, jpeg_quality=30, kilobits=10.0)


@pytest.fixture(scope="module")
def images():
    """IMAGE of a moment with motion, (4, 107, 190, 3), of odd sizes."""
    return read_video(REPO / "assets" / "demo.mp4", 32)[0][28:, :107, :190] / 255


@pytest.fixture
def run(comfy):
    """Runs a node: (outputs, the frames that its player shows: before and after, each (F, H, W, 3) uint8)."""

    def run(node_id, **inputs):
        import folder_paths

        node = comfy.nodes[node_id].PREPARE_CLASS_CLONE(None)
        with torch.inference_mode():
            output = node.execute(**inputs)
        (saved,) = output.ui["simplegvr_compare"]
        played = read_video(Path(folder_paths.get_temp_directory()) / saved["subfolder"] / saved["filename"])[0]
        return output.args, tuple(half[:, : saved["height"], : saved["width"]] for half in played.chunk(2, dim=1))

    return run


def recipe(name: str, images: torch.Tensor, scale: int, seed: int) -> torch.Tensor:
    video = degrade_video(to_video((images * 255).round().byte()), scale, RECIPES[name], torch.Generator().manual_seed(seed))
    return to_images(video) / 255


def test_flow_degrade_is_the_recipe_with_its_pictures(run, images):
    (degraded, optical_flow, moving), played = run("SimpleGVRFlowDegrade", images=images, **FLOW)
    torch.testing.assert_close(degraded, recipe("flow_based", images, 1, 3), atol=0.51 / 255, rtol=0)
    assert degraded.shape == optical_flow.shape == (4, 107, 190, 3)
    assert moving.shape == (4, 107, 190)
    assert set(moving.unique().tolist()) == {0, 1}
    assert torch.equal(degraded[moving == 0], images[moving == 0])
    assert optical_flow[moving == 1].amax(dim=1).mean() > 3 * optical_flow[moving == 0].amax(dim=1).mean()
    for shown, video in zip(played, (images, degraded), strict=True):
        assert (shown / 255 - video).abs().mean() < 0.02


def test_the_parameters_of_flow_degrade_turn_it_off(run, images):
    (still, _, _), _ = run("SimpleGVRFlowDegrade", images=images, **{**FLOW, "color_bleeding": 0.0, "motion_blur": 0.0})
    torch.testing.assert_close(still, images, atol=1e-6, rtol=0)
    (_, _, moving), _ = run("SimpleGVRFlowDegrade", images=images, **{**FLOW, "min_motion": 64.0})
    assert not moving.any()


@pytest.mark.parametrize("scale", [1, 3])
def test_classical_degrade_with_its_defaults_is_the_recipe(run, images, scale):
    (degraded, optical_flow, moving), played = run("SimpleGVRClassicalDegrade", images=images, **{**CLASSICAL, "scale": scale})
    assert degraded.shape == optical_flow.shape == (4, 107 // scale, 190 // scale, 3)
    assert moving.any()
    torch.testing.assert_close(degraded, recipe("classical", images, scale, 3), atol=0.51 / 255, rtol=0)
    before, after = to_images(area_downscale(to_video((images * 255).round().byte()), scale)), degraded
    for shown, video in zip(played, (before, 255 * after), strict=True):
        assert shown.shape == video.shape
        assert (shown.float() - video).abs().mean() < 6


@pytest.mark.parametrize("change", [{"blur": 4.0}, {"smallest": 0.05}, {"noise": 4.0}, {"jpeg_quality": 1}, {"kilobits": 1.0}, {"seed": 4}])
def test_each_parameter_of_classical_degrade_counts(run, images, change):
    outs = [run("SimpleGVRClassicalDegrade", images=images, **{**CLASSICAL, **inputs})[0][0] for inputs in ({}, {}, change)]
    assert torch.equal(outs[0], outs[1])
    assert not torch.equal(outs[0], outs[2])


def test_an_alpha_channel_and_a_single_frame_are_taken(run, images):
    one = torch.cat((images[:1], images[:1, ..., :1]), dim=3)
    (degraded, _, _), _ = run("SimpleGVRFlowDegrade", images=one, **FLOW)
    assert torch.equal(degraded, images[:1])
    (degraded, _, _), _ = run("SimpleGVRClassicalDegrade", images=one, **CLASSICAL)
    assert degraded.shape == (1, 107, 190, 3)


def test_a_scale_that_leaves_nothing_is_named(run, images):
    with pytest.raises(ValueError, match=r"SimpleGVR Classical Degrade: nothing is left of 190 x 7 pixels at scale 8"):
        run("SimpleGVRClassicalDegrade", images=images[:, :7], **{**CLASSICAL, "scale": 8})


@pytest.fixture(scope="module")
def wan(comfy):
    return comfy.run("UNETLoader", unet_name="wan_test.safetensors", weight_dtype="default")[0]


SAMPLES = torch.randn(1, 16, 3, 5, 7, generator=torch.Generator().manual_seed(0))


def redraw(comfy, model, **changes):
    inputs = dict(model=model, latent={"samples": SAMPLES}, alpha=0.35, steps=3, seed=5)
    return comfy.run("SimpleGVRModelDegrade", **{**inputs, **changes})[0]["samples"]


def test_model_degrade_equals_the_core(comfy, wan):
    """The real sampler and ComfyUI's own Wan, against the core's network with the same weights and noise levels."""
    from comfy.latent_formats import Wan21

    config = DiTConfig(in_dim=16, dim=128, ffn_dim=160, num_heads=1, num_layers=3)  # of wan_test
    network = random_weights(SimpleGVRDiT(config, AttentionConfig(kind="full", unit=None)))
    latent_format = Wan21()
    z = latent_format.process_in(SAMPLES)
    sigmas = shifted_sigmas(3, wan.get_model_object("model_sampling").shift, 0.35)

    @torch.inference_mode()
    def velocity(z, sigma):
        return network(z, (1000 * sigma).expand(1), torch.zeros(1, 1, 4096))

    expected = integrate(velocity, interpolate(z, positional_noise(z.shape, 5), 0.35), sigmas)
    out = latent_format.process_in(redraw(comfy, wan))
    assert (expected - z).abs().mean() > 0.1
    torch.testing.assert_close(out, expected, atol=1e-4, rtol=0)


def test_model_degrade_repeats_and_its_inputs_count(comfy, wan):
    out = redraw(comfy, wan)
    assert torch.equal(out, redraw(comfy, wan))
    prompt = [[torch.randn(1, 6, 4096, generator=torch.Generator().manual_seed(1)), {}]]
    for change in ({"seed": 6}, {"alpha": 0.4}, {"steps": 4}, {"positive": prompt}):
        assert not torch.allclose(out, redraw(comfy, wan, **change), atol=1e-4), change


def test_more_alpha_is_further_from_the_video(comfy, wan):
    distances = [(redraw(comfy, wan, alpha=alpha) - SAMPLES).square().mean() for alpha in (0.01, 0.35, 1.0)]
    assert distances[0] < 0.1 * distances[1] < 0.1 * distances[2]


@pytest.mark.parametrize("shape", [(1, 4, 3, 5, 7), (1, 16, 5, 7)])
def test_a_latent_of_another_model_is_refused(comfy, wan, shape):
    with pytest.raises(ValueError, match=r"SimpleGVR Model Degrade: the latent has shape .*16 channels and 3 axes"):
        redraw(comfy, wan, latent={"samples": torch.zeros(shape)})


def test_a_model_that_is_no_rectified_flow_is_refused(comfy, wan):
    other = comfy.run("ModelSamplingDiscrete", model=wan, sampling="eps", zsnr=False)[0]
    with pytest.raises(ValueError, match="SimpleGVR Model Degrade: the model is a WAN21, wanted a rectified flow"):
        redraw(comfy, other)


def test_missing_opencv_is_named_with_its_cure(run, images, monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ImportError, match="pip install opencv-python-headless"):
        run("SimpleGVRFlowDegrade", images=images, **FLOW)
