"""The nodes, in process, on real (tiny, random) models."""

import pytest
import torch
from conftest import LATENT, latent, scale

from simplegvr_core.flow import positional_noise

NODE_IDS = {
    "SimpleGVRLoadModel", "SimpleGVRLoadUpsampler", "SimpleGVRLoadTinyVAE", "SimpleGVRLatentUpscale", "SimpleGVRConditioning",
    "SimpleGVRSampler", "SimpleGVRSparseAttention", "SimpleGVRNullPrompt", "SimpleGVRTrim",
    "SimpleGVRFlowDegrade", "SimpleGVRClassicalDegrade", "SimpleGVRModelDegrade", "SimpleGVRTimestepCurve",
    "SimpleGVRPlan", "SimpleGVRDecodeSave", "SimpleGVRSeamMeter", "SimpleGVRColorMatch", "SimpleGVRCompare", "SimpleGVRAttentionMap",
    "SimpleGVREvaluate", "SimpleGVRLoadVideoDecoder",
}  # fmt: skip


def conditioned_ksampler(comfy, model, upscaled, steps=2, **changes):
    """Samples with the stock KSampler as SimpleGVR Sampler would with seeds 1 and 2."""
    null = comfy.run("SimpleGVRNullPrompt")[0]
    inputs = dict(positive=null, negative=null, upscaled=upscaled, noise_augmentation=0.4, noise_seed=2)
    positive, negative, empty = comfy.run("SimpleGVRConditioning", **inputs)
    inputs = dict(model=model, seed=1, steps=steps, cfg=1.0, sampler_name="euler", scheduler="simple", denoise=1.0)
    return comfy.run("KSampler", positive=positive, negative=negative, latent_image=empty, **{**inputs, **changes})[0]["samples"]


@pytest.fixture
def our_noise(comfy, monkeypatch):
    """Stock samplers draw noise as SimpleGVR Sampler does, by position."""
    monkeypatch.setattr("comfy.sample.prepare_noise", lambda z, seed, batch_index=None: positional_noise(z.shape, seed))


def test_every_node_is_there(comfy):
    assert comfy.nodes.keys() >= NODE_IDS


@pytest.mark.parametrize("steps", [2, 8, 20])
def test_sampler_equals_conditioning_and_stock_ksampler(comfy, model, upsampler, sample, our_noise, steps):
    """For steps that divide 1000: ComfyUI's "simple" scheduler rounds the others to its table of 1000 noise levels."""
    upscaled = comfy.run("SimpleGVRLatentUpscale", upsampler=upsampler, latent=latent(), size=scale(2))[0]
    torch.testing.assert_close(
        sample(steps=steps, color_match=0.0)[0], conditioned_ksampler(comfy, model, upscaled, steps), atol=1e-5, rtol=0
    )


def test_sampler_cfg_equals_stock_ksampler(comfy, model, upsampler, sample, our_noise):
    upscaled = comfy.run("SimpleGVRLatentUpscale", upsampler=upsampler, latent=latent(), size=scale(2))[0]
    expected = conditioned_ksampler(comfy, model, upscaled, cfg=2.0)
    torch.testing.assert_close(sample(cfg=2.0, color_match=0.0)[0], expected, atol=1e-5, rtol=0)


def test_training_free_mode_says_so(comfy, sample, wan):
    out, report = sample(model=wan, denoise=0.5, positive=comfy.run("SimpleGVRNullPrompt")[0])
    assert out.shape == (1, 16, 3, 10, 14)
    assert "Training-free" in report


def test_recommended_settings_are_the_checkpoints(comfy, model, sample):
    out, report = sample(settings="recommended")
    assert "noise augmentation level 0.40" in report
    assert "50 steps, cfg 1, shift 3" in report
    torch.testing.assert_close(out, sample(steps=50)[0])


def test_recommended_settings_of_a_stock_model_are_training_free(comfy, wan, sample):
    null = comfy.run("SimpleGVRNullPrompt")[0]
    _, report = sample(model=wan, settings="recommended", positive=null, negative=null)
    assert "from noise level 0.40" in report
    assert "20 steps, cfg 6, shift 8" in report


def test_target_size_by_width_and_height_and_by_short_side(sample):
    size = {"size": "width x height", "width": 120, "height": 88}
    assert sample(size=size)[0].shape == (1, 16, 3, 11, 15)
    wide = latent((1, 16, 1, 60, 104))
    assert sample(latent=wide, size={"size": "short side", "preset": "720p"}, steps=1)[0].shape == (1, 16, 1, 90, 156)


def test_1080_is_exactly_135_rows(comfy, upsampler):
    size = {"size": "width x height", "width": 1920, "height": 1080}
    upscaled = comfy.run("SimpleGVRLatentUpscale", upsampler=upsampler, latent=latent((1, 16, 1, 60, 104)), size=size)[0]
    assert upscaled["samples"].shape == (1, 16, 1, 135, 240)


@pytest.mark.parametrize("shape", [(2, 16, 3, 5, 7), (1, 16, 1, 5, 7), (2, 16, 6, 7, 5)])
def test_batches_single_frames_and_odd_sizes(sample, shape):
    assert sample(latent=latent(shape), size=scale(2))[0].shape == (*shape[:3], 2 * shape[3], 2 * shape[4])


def test_report_names_mode_and_sizes(sample):
    _, report = sample()
    assert "SimpleGVR: condition at noise augmentation level 0.40" in report
    assert "56 x 40 -> 112 x 80" in report


def test_seeds_fix_the_result_and_each_matters(sample):
    out = sample()[0]
    assert torch.equal(out, sample()[0])
    assert not torch.allclose(out, sample(seed=2)[0], atol=1e-3)
    assert not torch.allclose(out, sample(noise_seed=3)[0], atol=1e-3)


def test_prompts_are_used(comfy, sample):
    prompt = [[torch.randn(1, 6, 4096, generator=torch.Generator().manual_seed(5)), {}]]
    assert not torch.allclose(sample()[0], sample(positive=prompt)[0], atol=1e-4)


# Bad input


@pytest.mark.parametrize(
    "bad, message",
    [
        (latent((16, 3, 5, 7)), r"SimpleGVR Sampler: the latent has shape \(16, 3, 5, 7\).*video latent"),
        (latent((1, 4, 3, 5, 7)), "4 channels, wanted 16"),
        (latent((1, 32, 3, 5, 7)), "32 channels, wanted 16"),
        (latent((1, 48, 3, 5, 7)), "48 channels, wanted 16"),
        ({"samples": torch.full(LATENT, torch.nan)}, "NaN"),
    ],
)
def test_a_latent_that_does_not_fit_is_refused(sample, bad, message):
    with pytest.raises(ValueError, match=message):
        sample(latent=bad)


@pytest.mark.parametrize(
    "size, message",
    [
        ({"size": "width x height", "width": 40, "height": 200}, "the target 40 x 200 is smaller than the source 56 x 40"),
        ({"size": "width x height", "width": 1918, "height": 1080}, "wanted multiples of 8: the nearest is 1920 x 1080"),
    ],
)
def test_a_target_that_does_not_fit_is_refused(sample, size, message):
    with pytest.raises(ValueError, match=message):
        sample(size=size)


def test_training_free_mode_needs_a_start_below_one(sample, wan):
    with pytest.raises(ValueError, match=r"set denoise to 0\.3-0\.6"):
        sample(model=wan)


@pytest.mark.parametrize("cfg", [1.0, 6.0])
def test_training_free_mode_needs_the_prompts(comfy, sample, wan, cfg):
    prompt = {} if cfg == 1 else {"positive": comfy.run("SimpleGVRNullPrompt")[0]}
    with pytest.raises(ValueError, match="connect the positive and negative prompt"):
        sample(model=wan, denoise=0.4, cfg=cfg, **prompt)


@pytest.mark.parametrize("factor", [1.01, 1.1, 2.05, 2.83, 3.0, 3.1])
@pytest.mark.parametrize("source", [(7, 58, 71), (9, 64, 72)])
def test_trim_gives_exactly_scale_times_the_source_at_any_scale(comfy, upsampler, factor, source):
    frames, height, width = source
    cells = latent((1, 16, -(-(frames - 1) // 4) + 1, -(-height // 8), -(-width // 8)))
    upscaled = comfy.run("SimpleGVRLatentUpscale", upsampler=upsampler, latent=cells, size=scale(factor))[0]["samples"]
    decoded = torch.zeros(4 * upscaled.shape[2] - 3, 8 * upscaled.shape[3], 8 * upscaled.shape[4], 3)
    exact, even = (comfy.run("SimpleGVRTrim", images=decoded, source=torch.zeros(*source, 3), scale=factor, even=e)[0] for e in (0, 1))
    assert exact.shape == (frames, round(height * factor), round(width * factor), 3)
    assert even.shape[1:3] == tuple(side - side % 2 for side in exact.shape[1:3])


def test_trim_refuses_a_video_that_is_too_small(comfy):
    with pytest.raises(ValueError, match="give it the scale of SimpleGVR Sampler"):
        comfy.run("SimpleGVRTrim", images=torch.zeros(5, 16, 16, 3), source=torch.zeros(5, 8, 8, 3), scale=3.0, even=True)


def test_another_packs_upscaler_is_refused(comfy, sample, wan):
    with pytest.raises(ValueError, match="load it with Load SimpleGVR Upsampler"):
        sample(upsampler=wan)


def test_another_family_of_model_is_refused(sample, checkpoints, comfy):
    from conftest import save_dit

    from simplegvr_core.networks.dit import DiTConfig

    save_dit(
        checkpoints / "diffusion_models" / "i2v_test.safetensors", DiTConfig(in_dim=36, dim=256, ffn_dim=160, num_heads=2, num_layers=1)
    )
    i2v = comfy.run("UNETLoader", unet_name="i2v_test.safetensors", weight_dtype="default")[0]
    with pytest.raises(ValueError, match=r"36 input channels, wanted a SimpleGVR model \(32\)"):
        sample(model=i2v)


@pytest.mark.parametrize("shape", [(1, 16, 2, 10, 14), (1, 16, 3, 10, 12)])
def test_an_upscaled_latent_that_does_not_fit_is_refused(comfy, model, shape):
    """Stock ComfyUI would resize the condition without a word, or fail inside the model."""
    null = comfy.run("SimpleGVRNullPrompt")[0]
    inputs = dict(positive=null, negative=null, upscaled=latent(shape), noise_augmentation=0.4, noise_seed=2)
    positive, negative, _ = comfy.run("SimpleGVRConditioning", **inputs)
    inputs = dict(model=model, seed=1, steps=1, cfg=1.0, sampler_name="euler", scheduler="simple", denoise=1.0)
    with pytest.raises(ValueError, match=r"the condition is .* but the latent"):
        comfy.run("KSampler", positive=positive, negative=negative, latent_image={"samples": torch.zeros(1, 16, 3, 10, 14)}, **inputs)


def test_a_simplegvr_model_without_condition_is_refused(comfy, model):
    null = comfy.run("SimpleGVRNullPrompt")[0]
    inputs = dict(model=model, seed=1, steps=1, cfg=1.0, sampler_name="euler", scheduler="simple", denoise=1.0)
    with pytest.raises(ValueError, match="SimpleGVR Conditioning"):
        comfy.run("KSampler", positive=null, negative=null, latent_image={"samples": torch.zeros(1, 16, 3, 10, 14)}, **inputs)


# The MODEL in stock nodes


def test_equals_the_stock_loader_with_dense_attention(comfy, checkpoints, upsampler):
    from conftest import save_dit

    from simplegvr_core.networks.attention import AttentionConfig

    save_dit(checkpoints / "diffusion_models" / "full_test.safetensors", attention=AttentionConfig(kind="full", unit=None))
    ours = comfy.run("SimpleGVRLoadModel", model_name="full_test.safetensors", weight_dtype="default")[0]
    stock = comfy.run("UNETLoader", unet_name="full_test.safetensors", weight_dtype="default")[0]
    stock = comfy.run("ModelSamplingSD3", model=stock, shift=3.0)[0]
    outs = [conditioned_ksampler(comfy, model, latent((1, 16, 3, 9, 13))) for model in (ours, stock)]
    torch.testing.assert_close(*outs, atol=1e-5, rtol=0)


def test_the_checkpoints_shift_is_applied(model):
    assert model.get_model_object("model_sampling").shift == 3.0


def test_model_sampling_sd3_changes_the_shift(comfy, model, sample):
    shifted = comfy.run("ModelSamplingSD3", model=model, shift=8.0)[0]
    upscaled = latent((1, 16, 3, 10, 14))
    assert not torch.allclose(sample()[0], sample(model=shifted)[0], atol=1e-3)
    assert not torch.allclose(conditioned_ksampler(comfy, model, upscaled), conditioned_ksampler(comfy, shifted, upscaled), atol=1e-3)


def test_sampler_custom_advanced(comfy, model):
    upscaled, null = latent((1, 16, 3, 10, 14)), comfy.run("SimpleGVRNullPrompt")[0]
    positive, negative, empty = comfy.run(
        "SimpleGVRConditioning", positive=null, negative=null, upscaled=upscaled, noise_augmentation=0.4, noise_seed=2
    )
    out = comfy.run(
        "SamplerCustomAdvanced",
        noise=comfy.run("RandomNoise", noise_seed=1)[0],
        guider=comfy.run("CFGGuider", model=model, positive=positive, negative=negative, cfg=1.0)[0],
        sampler=comfy.run("KSamplerSelect", sampler_name="euler")[0],
        sigmas=comfy.run("BasicScheduler", model=model, scheduler="simple", steps=2, denoise=1.0)[0],
        latent_image=empty,
    )[0]["samples"]
    torch.testing.assert_close(out, conditioned_ksampler(comfy, model, upscaled), atol=1e-6, rtol=0)


@pytest.mark.parametrize("dtype, tolerance", [("bf16", 0.5), ("fp16", 0.02), ("fp8_e4m3fn", 1.0), ("fp8_e5m2", 2.0)])
def test_weight_dtypes(comfy, sample, dtype, tolerance):
    model = comfy.run("SimpleGVRLoadModel", model_name="gvr_test.safetensors", weight_dtype=dtype)[0]
    error = (sample(model=model)[0] - sample()[0]).abs().max()
    assert 0 < error < tolerance


def test_lora(comfy, model, sample, tmp_path):
    import folder_paths
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(0)
    key = "diffusion_model.blocks.1.self_attn.v"
    lora = {
        f"{key}.lora_A.weight": torch.randn(4, 128, generator=generator),
        f"{key}.lora_B.weight": torch.randn(128, 4, generator=generator),
    }
    save_file(lora, tmp_path / "test_lora.safetensors")
    folder_paths.add_model_folder_path("loras", str(tmp_path))
    patched = comfy.run("LoraLoaderModelOnly", model=model, lora_name="test_lora.safetensors", strength_model=1.0)[0]
    before = sample()[0]
    assert not torch.allclose(before, sample(model=patched)[0], atol=1e-3)
    assert torch.equal(before, sample()[0])


def test_context_windows(comfy, model):
    windowed = comfy.run(
        "WanContextWindowsManual", model=model, context_length=9, context_overlap=4, context_schedule="standard_static",
        context_stride=1, closed_loop=False, fuse_method="pyramid", freenoise=False,
    )[0]  # fmt: skip
    upscaled = latent((1, 16, 7, 10, 14))
    out = conditioned_ksampler(comfy, windowed, upscaled)
    assert out.shape == (1, 16, 7, 10, 14)
    assert not torch.allclose(out, conditioned_ksampler(comfy, model, upscaled), atol=1e-3)
