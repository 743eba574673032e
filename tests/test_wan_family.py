"""Training-free mode with the models and LoRAs that Wan users have: few-step LoRAs run, and what cannot run is refused with the cure."""

import pytest
import torch
from safetensors.torch import save_file

SIZES = {"dim": 256, "ffn_dim": 160, "num_heads": 2, "num_layers": 1, "operations": torch.nn}
DISTILLED = "distilled"


def load(network: torch.nn.Module):
    """Returns the MODEL that ComfyUI makes of a network's weights, which are random."""
    from comfy.sd import load_diffusion_model_state_dict

    generator = torch.Generator().manual_seed(0)
    return load_diffusion_model_state_dict(
        {name: torch.randn(tensor.shape, generator=generator) * 0.02 for name, tensor in network.state_dict().items()}
    )


@pytest.fixture
def few_step(comfy, wan, tmp_path):
    """The tiny stock Wan with a LoRA by ComfyUI's own loader."""
    import folder_paths

    generator, key = torch.Generator().manual_seed(0), "diffusion_model.blocks.1.self_attn.v"
    shapes = {f"{key}.lora_down.weight": (4, 128), f"{key}.lora_up.weight": (128, 4)}
    save_file({name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}, tmp_path / "few_step.safetensors")
    folder_paths.add_model_folder_path("loras", str(tmp_path))
    return comfy.run("LoraLoaderModelOnly", model=wan, lora_name="few_step.safetensors", strength_model=1.0)[0]


@pytest.fixture
def passes(wan, monkeypatch):
    """The noise level of each pass through the stock Wan."""
    seen, network = [], type(wan.model.diffusion_model)
    forward = network.forward
    monkeypatch.setattr(
        network, "forward", lambda self, x, t, *args, **kwargs: seen.append(float(t[0])) or forward(self, x, t, *args, **kwargs)
    )
    return seen


def test_distilled_settings_are_four_passes_without_guidance(comfy, few_step, sample, passes):
    """The negative prompt may be open, as it is at cfg 1."""
    prompt = comfy.run("SimpleGVRNullPrompt")[0]
    out, report = sample(model=few_step, settings=DISTILLED, positive=prompt)
    assert "4 steps, cfg 1, shift 8" in report and "from noise level 0.40" in report and "LoRA" not in report
    assert len(passes) == 4 and passes[0] == pytest.approx(400, abs=1)
    assert torch.equal(out, sample(model=few_step, steps=4, cfg=1.0, denoise=0.4, positive=prompt)[0])


def test_distilled_settings_without_a_lora_are_pointed_out(comfy, wan, sample):
    _, report = sample(model=wan, settings=DISTILLED, positive=comfy.run("SimpleGVRNullPrompt")[0])
    assert "no LoRA is on the model" in report and "LoraLoaderModelOnly" in report


def test_distilled_settings_of_a_simplegvr_model_are_refused(model, sample):
    with pytest.raises(ValueError, match=r"distilled with a model that takes a condition.*choose recommended"):
        sample(settings=DISTILLED)


@pytest.mark.parametrize("widths", [(256, 2), (384, 3)])
def test_a_text_to_video_wan_of_any_width_runs(comfy, sample, widths):
    """1.3B and 14B, Wan 2.1 and 2.2: one layout."""
    from comfy.ldm.wan.model import WanModel

    wan = load(WanModel("t2v", in_dim=16, **{**SIZES, "dim": widths[0], "num_heads": widths[1]}))
    out, _ = sample(model=wan, settings=DISTILLED, positive=comfy.run("SimpleGVRNullPrompt")[0])
    assert out.isfinite().all()


def image_to_video():
    from comfy.ldm.wan.model import WanModel

    return WanModel("i2v", in_dim=36, **SIZES)


def image_to_video_of_wan22():
    from comfy.ldm.wan.model import WanModel

    return WanModel("t2v", in_dim=36, **SIZES)


def fun_control():
    from comfy.ldm.wan.model import WanModel

    return WanModel("i2v", in_dim=48, **SIZES)


def vace():
    from comfy.ldm.wan.model import VaceWanModel

    return VaceWanModel(in_dim=16, vace_layers=1, vace_in_dim=96, **SIZES)


def camera():
    """It has as many input channels as a SimpleGVR model."""
    from comfy.ldm.wan.model import CameraWanModel

    return CameraWanModel("camera", in_dim=32, **SIZES)


def wan22_5b():
    from comfy.ldm.wan.model import WanModel

    return WanModel("t2v", in_dim=48, out_dim=48, **SIZES)


@pytest.mark.parametrize(
    "network, what",
    [
        (image_to_video, "WAN21 with 36 input channels.* an image-to-video Wan"),
        (image_to_video_of_wan22, "WAN21 with 36 input channels.* an image-to-video Wan"),
        (fun_control, "WAN21 with 48 input channels.* a Wan with inputs of its own"),
        (vace, "WAN21_Vace with 16 input channels.* a Wan with inputs of its own"),
        (camera, "WAN21_Camera with 32 input channels.* a Wan with inputs of its own"),
        (wan22_5b, "WAN22 with 48 input channels.* the 5B model of Wan 2.2, whose latents differ"),
    ],
)
def test_other_wan_models_are_refused_with_the_one_that_fits_before_any_work(comfy, upsampler, sample, monkeypatch, network, what):
    monkeypatch.setattr(type(upsampler.model), "stream", lambda *args: pytest.fail("the upsampler ran"))
    null = comfy.run("SimpleGVRNullPrompt")[0]
    with pytest.raises(ValueError, match=rf"SimpleGVR Sampler: the model is a {what}.*wan2\.2_t2v_low_noise_14B"):
        sample(model=load(network()), settings="recommended", positive=null, negative=null)


def test_prompts_of_an_image_to_video_workflow_can_stay(comfy, wan, sample):
    """What WanImageToVideo adds to them a text-to-video Wan does not read."""
    from types import SimpleNamespace

    null = comfy.run("SimpleGVRNullPrompt")[0]
    image = {"concat_latent_image": torch.ones(1, 16, 3, 5, 7), "concat_mask": torch.ones(1, 1, 3, 5, 7)}
    image["clip_vision_output"] = SimpleNamespace(penultimate_hidden_states=torch.ones(1, 257, 1280))
    with_image = [[null[0][0], image]]
    settings = {"denoise": 0.4, "steps": 1}
    assert torch.equal(sample(model=wan, positive=with_image, **settings)[0], sample(model=wan, positive=null, **settings)[0])


def test_a_simplegvr_model_reads_its_own_condition_whatever_the_prompts_carry(comfy, sample):
    null = comfy.run("SimpleGVRNullPrompt")[0]
    image = {"concat_latent_image": torch.ones(1, 16, 3, 5, 7), "concat_mask": torch.ones(1, 1, 3, 5, 7)}
    assert torch.equal(sample(positive=[[null[0][0], image]])[0], sample(positive=null)[0])


@pytest.mark.parametrize("key", ["time_dim_concat", "context_latents"])
def test_references_at_the_size_of_the_source_are_refused(comfy, wan, sample, key):
    reference = torch.zeros(1, 16, 1, 5, 7)
    prompt = [[torch.zeros(1, 1, 4096), {key: reference if key == "time_dim_concat" else [reference]}]]
    with pytest.raises(ValueError, match=r"a prompt carries reference .*connect CLIP Text Encode itself"):
        sample(model=wan, denoise=0.4, positive=prompt)
    assert sample(positive=prompt)[0].isfinite().all()  # by a SimpleGVR model, which does not read it
