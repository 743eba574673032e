"""Ultra Flash's files in the nodes: read as they are, sampled in one step and in segments, a wrong pair or size refused or told."""

import shutil
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import comfyui as setup
import pytest
import torch
from client import output_files
from conftest import REPO, latent, random_weights, scale
from safetensors.torch import load_file, save_file
from test_nodes import our_noise  # noqa: F401 (a fixture)
from test_server import run

from simplegvr_core.networks.block_causal_config import BlockCausalConfig
from simplegvr_core.networks.convert import Convert
from simplegvr_core.networks.dit import DiTConfig, SimpleGVRDiT
from simplegvr_core.networks.ultra_upsampler import UltraUpsampler, UltraUpsamplerConfig
from simplegvr_core.video.read import read_video

DIT = DiTConfig(dim=128, ffn_dim=160, num_heads=1, num_layers=2, exact_time=True)
ONE_STEP = {"settings": "recommended"}
FOLDERS = {"diffusion_models": "2K-Causal-Sparse-SR-Dit.pth", "latent_upscale_models": "x3.pth"}


def save_pair(models: Path) -> Path:
    """Returns models, a folder with a small pair for each scale, random but real, as their authors would save them: pickled, bfloat16."""
    for folder in FOLDERS:
        (models / folder).mkdir(parents=True, exist_ok=True)
    dit = random_weights(SimpleGVRDiT(DIT, BlockCausalConfig())).bfloat16().state_dict()
    for name in ("uf.pth", "2K-Causal-Sparse-SR-Dit.pth"):
        torch.save({"generator": {f"model.{key}": tensor for key, tensor in dit.items()}, "step": 7}, models / "diffusion_models" / name)
    for factor in (2, 3):
        upsampler, generator = UltraUpsampler(UltraUpsamplerConfig(width=8, blocks=2, factors=(factor,))), torch.Generator().manual_seed(1)
        for parameter in upsampler.parameters():
            torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5, generator=generator)
        torch.save({"model": upsampler.bfloat16().state_dict()}, models / "latent_upscale_models" / f"x{factor}.pth")
    return models


@pytest.fixture(scope="module")
def pair(comfy, tmp_path_factory):
    """Loads a node's file of the pair: pair("uf.pth") a MODEL, pair("x2.pth") a LATENT_UPSCALE_MODEL."""
    import folder_paths

    models = save_pair(tmp_path_factory.mktemp("pair"))
    for folder in FOLDERS:
        folder_paths.add_model_folder_path(folder, str(models / folder))

    def load(name: str, **options):
        if name.startswith("x"):
            return comfy.run("SimpleGVRLoadUpsampler", model_name=name, **options)[0]
        return comfy.run("SimpleGVRLoadModel", model_name=name, weight_dtype="default", **options)[0]

    load.models = models
    return load


@pytest.fixture
def prompt():
    return [[torch.randn(1, 6, 4096, generator=torch.Generator().manual_seed(5)), {}]]


@pytest.fixture
def super_resolve(sample, pair, prompt):
    """Runs SimpleGVR Sampler with the x2 pair, a prompt and the settings of its checkpoint."""

    def run(**changes):
        inputs = dict(model=pair("uf.pth"), upsampler=pair("x2.pth"), positive=prompt, settings="recommended", color_match=0.0)
        return sample(**inputs | changes)

    return run


def test_the_report_has_weights_settings_attention_and_memory(super_resolve):
    out, report = super_resolve(size={"size": "upsampler scale"})
    assert out.shape == (1, 16, 3, 10, 14)
    assert "Ultra Flash: condition at noise augmentation level 0.00, from noise level 1.00" in report
    assert "1 steps, cfg 1" in report
    assert "model uf.pth (Ultra Flash, its family assumed from its shapes), upsampler x2.pth (Ultra Flash)" in report
    assert "Attention: sdpa: block-causal, 2 blocks of 2 x 8 x 8 tokens, each sees" in report
    assert "MB for the model's largest box, counted" in report
    assert "Warning" not in report


@pytest.mark.parametrize("shape", [(1, 16, 3, 5, 7), (2, 16, 1, 5, 7), (1, 16, 15, 8, 6)])
def test_one_step_equals_the_stock_ksampler(comfy, pair, super_resolve, prompt, our_noise, shape):  # noqa: F811
    low = latent(shape)
    upscaled = comfy.run("SimpleGVRLatentUpscale", upsampler=pair("x2.pth"), latent=low, size=scale(2))[0]
    positive, negative, empty = comfy.run(
        "SimpleGVRConditioning", positive=prompt, negative=prompt, upscaled=upscaled, noise_augmentation=0.0, noise_seed=2
    )
    inputs = dict(model=pair("uf.pth"), seed=1, steps=1, cfg=1.0, sampler_name="euler", scheduler="simple", denoise=1.0)
    expected = comfy.run("KSampler", positive=positive, negative=negative, latent_image=empty, **inputs)[0]["samples"]
    torch.testing.assert_close(super_resolve(latent=low)[0], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("cfg", [1.0, 2.0])
def test_segments_in_comfyui_are_those_of_the_whole(super_resolve, cfg):
    settings = {"steps": 2, "cfg": cfg, "noise_augmentation": 0.2, "denoise": 1.0}
    settings = {"settings": {"settings": "custom"} | settings}
    low = latent((1, 16, 15, 6, 7))
    whole, report = super_resolve(latent=low, tiling={"tiling": "whole"}, **settings)
    assert "The whole video at a time." in report
    parts, report = super_resolve(latent=low, tiling={"tiling": "custom", "segment": 4, "tile_width": 0, "tile_height": 0}, **settings)
    assert "3 boxes a step, of 6 latent frames" in report
    torch.testing.assert_close(parts, whole, atol=2e-5, rtol=0)


MASK = torch.cat((torch.zeros(8, 12, 14), torch.ones(7, 12, 14)))
SOME_FRAMES = {
    "mask": {"mask": MASK, "mask_strength": 1.0},
    "area": {"area": ("percentage", 0.5, 1.0, 1.0, 0.5, 0.0, 0.0)},
    "area of the first": {"area": ("percentage", 0.4, 0.5, 1.0, 0.0, 0.5, 0.0)},
}


@pytest.mark.parametrize("kind", SOME_FRAMES)
def test_a_prompt_of_some_frames_is_the_same_in_segments(super_resolve, prompt, kind):
    other = [[torch.randn(1, 4, 4096, generator=torch.Generator().manual_seed(6)), SOME_FRAMES[kind]]]
    low = latent((1, 16, 15, 6, 7))
    whole, _ = super_resolve(latent=low, positive=prompt + other, tiling={"tiling": "whole"})
    tiling = {"tiling": "custom", "segment": 6, "tile_width": 0, "tile_height": 0}
    parts, _ = super_resolve(latent=low, positive=prompt + other, tiling=tiling)
    torch.testing.assert_close(parts, whole, atol=2e-5, rtol=0)
    assert (whole - super_resolve(latent=low, tiling={"tiling": "whole"})[0]).abs().max() > 1e-3


def test_every_node_of_the_chain_takes_the_pair(comfy, pair, prompt):
    model, up, low = pair("uf.pth"), pair("x2.pth"), latent((1, 16, 7, 16, 18))
    options = {"size": {"size": "upsampler scale"}, "settings": ONE_STEP, "memory": {"memory": "free"}, "trial": True}
    *_, plan, _ = comfy.run("SimpleGVRPlan", model=model, latent=low, upsampler=up, **options)
    assert "144 x 128 -> 288 x 256 pixels" in plan
    high = comfy.run("SimpleGVRLatentUpscale", upsampler=up, latent=low, size=scale(2))[0]
    where = dict(x=200, y=100, frame=20, block=1, head=0, sigma=0.9, seed=0)
    _, report, mask = comfy.run("SimpleGVRAttentionMap", model=model, latent=high, positive=prompt, **where)
    assert "attends to itself" in report and mask.any()


def test_a_missing_prompt_is_told(super_resolve, caplog):
    _, report = super_resolve(positive=None)
    assert "Warning: no prompt is connected, and Ultra Flash's model was distilled with prompts only." in report
    assert "no prompt is connected" in caplog.text


def test_a_pair_of_two_families_is_told(super_resolve, upsampler, model):
    _, report = super_resolve(upsampler=upsampler)
    assert "the model is of family Ultra Flash, the upsampler of SimpleGVR: they were not trained together" in report
    _, report = super_resolve(model=model, settings={"settings": "custom", "steps": 1, "cfg": 1.0, "noise_augmentation": 0, "denoise": 1})
    assert "the model is of family SimpleGVR, the upsampler of Ultra Flash" in report


def test_a_pair_of_two_scales_is_told(super_resolve, pair):
    """Only the published names say it."""
    other = pair("2K-Causal-Sparse-SR-Dit.pth")
    _, report = super_resolve(model=other)
    assert "2K-Causal-Sparse-SR-Dit.pth was trained for scale 3, but the upsampler enlarges 2 times" in report
    assert "Warning" not in super_resolve(model=other, upsampler=pair("x3.pth"), size={"size": "upsampler scale"})[1]


@pytest.mark.parametrize(
    "size", [scale(3), {"size": "short side", "preset": "1080p"}, {"size": "width x height", "width": 120, "height": 80}]
)
def test_another_scale_is_refused_with_the_size_that_fits(comfy, super_resolve, pair, size):
    message = "this upsampler enlarges 2 times: it makes 112 x 80 pixels of 56 x 40, not .* Ask for scale 2 or 112 x 80 pixels"
    with pytest.raises(ValueError, match=f"^SimpleGVR Sampler: {message}"):
        super_resolve(size=size)
    with pytest.raises(ValueError, match=f"^SimpleGVR Latent Upscale: {message}"):
        comfy.run("SimpleGVRLatentUpscale", upsampler=pair("x2.pth"), latent=latent(), size=size)
    with pytest.raises(ValueError, match=f"^SimpleGVR Plan: {message}"):
        options = {"size": size, "settings": ONE_STEP, "memory": {"memory": "free"}, "trial": False}
        comfy.run("SimpleGVRPlan", model=pair("uf.pth"), latent=latent(), upsampler=pair("x2.pth"), **options)


def test_the_scale_of_an_upsampler_for_any_scale_is_three(sample):
    assert sample(size={"size": "upsampler scale"})[0].shape == (1, 16, 3, 15, 21)


@pytest.mark.parametrize("channels", [4, 32, 48])
def test_a_latent_of_another_model_is_refused(super_resolve, channels):
    with pytest.raises(ValueError, match=f"{channels} channels, wanted 16"):
        super_resolve(latent=latent((1, channels, 3, 5, 7)))


def test_files_in_the_others_folder_are_refused(comfy, pair):
    shutil.copy(pair.models / "diffusion_models" / "uf.pth", pair.models / "latent_upscale_models" / "x_dit.pth")
    shutil.copy(pair.models / "latent_upscale_models" / "x2.pth", pair.models / "diffusion_models" / "upsampler.pth")
    with pytest.raises(ValueError, match=r"x_dit\.pth holds a diffusion transformer.*move it to models/diffusion_models"):
        pair("x_dit.pth")
    with pytest.raises(ValueError, match=r"upsampler\.pth holds a latent upsampler.*move it to models/latent_upscale_models"):
        pair("upsampler.pth")


def test_the_family_can_be_chosen(pair, super_resolve):
    ours = pair("uf.pth", family="SimpleGVR")
    assert ours.model.diffusion_model.attention.kind == "sparse_local"
    assert ours.model.sampling.steps == 50
    theirs = pair("uf.pth", family="Ultra Flash")
    assert asdict(theirs.model.diffusion_model.attention) == asdict(BlockCausalConfig())  # the pack has its own copy of the class
    assert "model uf.pth (Ultra Flash), upsampler" in super_resolve(model=theirs)[1]
    with pytest.raises(ValueError, match="is an upsampler of Ultra Flash, not of SimpleGVR"):
        pair("x2.pth", family="SimpleGVR")


NOISE = """
import sys
sys.path.append({repo!r})
import comfy.sample
from simplegvr_core.flow import positional_noise
comfy.sample.prepare_noise = lambda z, seed, batch_index=None: positional_noise(z.shape, seed)
NODE_CLASS_MAPPINGS = {{}}
"""


def test_a_pickled_pair_makes_a_video_in_a_server(tmp_path):
    """By SimpleGVR Sampler, by the stock KSampler with the same noise, and by the converted files: all equal."""
    models = save_pair(tmp_path / "models")
    for path in (models / "diffusion_models" / "uf.pth", models / "latent_upscale_models" / "x2.pth"):
        converted = load_file(Convert(path).run()["out"])
        content = torch.load(path, weights_only=True)
        content = content.get("model") or {key.removeprefix("model."): tensor for key, tensor in content["generator"].items()}
        assert converted.keys() == content.keys() and all(torch.equal(converted[key], content[key]) for key in content)
    (tmp_path / "same_noise").mkdir()
    (tmp_path / "same_noise" / "__init__.py").write_text(NOISE.format(repo=str(REPO)))
    (tmp_path / "base" / "input").mkdir(parents=True)
    save_file({"latent_tensor": latent((1, 16, 7, 6, 8))["samples"], "latent_format_version_0": torch.tensor([])},
              tmp_path / "base" / "input" / "low.latent")  # fmt: skip
    setup.link_folder(tmp_path / "base" / "models", models)
    with setup.server(tmp_path / "base", beside=(tmp_path / "same_noise",)) as (address, _):
        files = output_files(run(SimpleNamespace(address=address), workflow()), tmp_path / "base" / "output")
    latents = {
        name: load_file(next((tmp_path / "base" / "output").glob(f"{name}_*.latent")))["latent_tensor"]
        for name in ("ours", "stock", "converted")
    }
    assert latents["ours"].shape == (1, 16, 7, 12, 16)
    torch.testing.assert_close(latents["ours"], latents["stock"], atol=1e-5, rtol=0)
    assert torch.equal(latents["ours"], latents["converted"])
    assert read_video(files[0])[0].shape == (25, 96, 128, 3)


def workflow() -> dict:
    """Returns a prompt for the server with all three chains."""
    nodes = {"low": ("LoadLatent", {"latent": "low.latent"}), "null": ("SimpleGVRNullPrompt", {})}
    for name, suffix in (("ours", ".pth"), ("converted", ".safetensors")):
        nodes[f"{name} model"] = ("SimpleGVRLoadModel", {"model_name": f"uf{suffix}", "weight_dtype": "default"})
        nodes[f"{name} upsampler"] = ("SimpleGVRLoadUpsampler", {"model_name": f"x2{suffix}", "family": "auto"})
        nodes[name] = ("SimpleGVRSampler", {
            "model": [f"{name} model", 0], "upsampler": [f"{name} upsampler", 0], "latent": ["low", 0], "size": "upsampler scale",
            "seed": 1, "settings": "recommended", "noise_seed": 0, "positive": ["null", 0], "color_match": 0.0,
        })  # fmt: skip
    nodes["high"] = ("SimpleGVRLatentUpscale", {"upsampler": ["ours upsampler", 0], "latent": ["low", 0], "size": "upsampler scale"})
    prompts = {"positive": ["null", 0], "negative": ["null", 0]}
    nodes["condition"] = ("SimpleGVRConditioning", {**prompts, "upscaled": ["high", 0], "noise_augmentation": 0.0, "noise_seed": 0})
    nodes["stock"] = ("KSampler", {
        "model": ["ours model", 0], "seed": 1, "steps": 1, "cfg": 1.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0,
        "positive": ["condition", 0], "negative": ["condition", 1], "latent_image": ["condition", 2],
    })  # fmt: skip
    for name in ("ours", "stock", "converted"):
        nodes[f"save {name}"] = ("SaveLatent", {"samples": [name, 0], "filename_prefix": name})
    nodes["vae"] = ("SimpleGVRLoadTinyVAE", {"vae_name": "gvr_tiny_vae.safetensors"})
    video = {
        "vae": ["vae", 0],
        "latent": ["ours", 0],
        "fps": 16.0,
        "filename_prefix": "video",
        "trim": "none",
        "crf": 16.0,
        "resume": False,
    }
    nodes["video"] = ("SimpleGVRDecodeSave", video)
    return {name: {"class_type": kind, "inputs": inputs} for name, (kind, inputs) in nodes.items()}
