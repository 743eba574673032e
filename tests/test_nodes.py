"""The nodes, in process, on real (tiny, random) models."""

import pytest
import torch
from conftest import DIT

LATENT = (1, 16, 3, 5, 7)
NODE_IDS = {
    "SimpleGVRLoadModel", "SimpleGVRLoadUpsampler", "SimpleGVRLoadTinyVAE", "SimpleGVRLatentUpscale", "SimpleGVRConditioning",
    "SimpleGVRSampler", "SimpleGVRSparseAttention", "SimpleGVRNullPrompt", "SimpleGVRTrim",
}  # fmt: skip


def latent(shape=LATENT, seed=0) -> dict:
    return {"samples": torch.randn(shape, generator=torch.Generator().manual_seed(seed))}


def scale(factor: float) -> dict:
    return {"size": "scale", "scale": factor}


@pytest.fixture(scope="module")
def upsampler(comfy):
    return comfy.run("SimpleGVRLoadUpsampler", model_name="upsampler_test.safetensors")[0]


@pytest.fixture(scope="module")
def model(comfy):
    return comfy.run("SimpleGVRLoadModel", model_name="gvr_test.safetensors", weight_dtype="default")[0]


@pytest.fixture(scope="module")
def wan(comfy):
    return comfy.run("UNETLoader", unet_name="wan_test.safetensors", weight_dtype="default")[0]


@pytest.fixture
def sample(comfy, model, upsampler):
    def run(**changes):
        inputs = dict(
            model=model, upsampler=upsampler, latent=latent(), size=scale(2), seed=1, steps=2, cfg=1.0,
            noise_augmentation=0.4, denoise=1.0, noise_seed=2,
        )  # fmt: skip
        out, report = comfy.run("SimpleGVRSampler", **{**inputs, **changes})
        return out["samples"], report

    return run


def conditioned_ksampler(comfy, model, upscaled, steps=2, **changes):
    """Samples with the stock KSampler as SimpleGVR Sampler would with seeds 1 and 2."""
    null = comfy.run("SimpleGVRNullPrompt")[0]
    inputs = dict(positive=null, negative=null, upscaled=upscaled, noise_augmentation=0.4, noise_seed=2)
    positive, negative, empty = comfy.run("SimpleGVRConditioning", **inputs)
    inputs = dict(model=model, seed=1, steps=steps, cfg=1.0, sampler_name="euler", scheduler="simple", denoise=1.0)
    return comfy.run("KSampler", positive=positive, negative=negative, latent_image=empty, **{**inputs, **changes})[0]["samples"]


def test_every_node_is_there(comfy):
    assert comfy.nodes.keys() >= NODE_IDS


def test_sampler_equals_conditioning_and_stock_ksampler(comfy, model, upsampler, sample):
    upscaled = comfy.run("SimpleGVRLatentUpscale", upsampler=upsampler, latent=latent(), size=scale(2))[0]
    torch.testing.assert_close(sample()[0], conditioned_ksampler(comfy, model, upscaled), atol=1e-5, rtol=0)


def test_sampler_cfg_equals_stock_ksampler(comfy, model, upsampler, sample):
    upscaled = comfy.run("SimpleGVRLatentUpscale", upsampler=upsampler, latent=latent(), size=scale(2))[0]
    expected = conditioned_ksampler(comfy, model, upscaled, cfg=2.0)
    torch.testing.assert_close(sample(cfg=2.0)[0], expected, atol=1e-5, rtol=0)


def test_training_free_mode_says_so(sample, wan):
    out, report = sample(model=wan, denoise=0.5)
    assert out.shape == (1, 16, 3, 10, 14)
    assert "Training-free" in report
