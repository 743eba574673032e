"""SimpleGVR checkpoints that went through other tools: their settings are still there, or the nodes say that they are unknown."""

import json

import pytest
import torch
from conftest import latent, scale
from safetensors.torch import load_file, save_file

from simplegvr_core.networks import checkpoint


@pytest.fixture(scope="module")
def saved(comfy, checkpoints, model, tmp_path_factory):
    """Our MODEL as ComfyUI's Model Save writes it, put into the models folder."""
    import folder_paths

    import nodes

    if "ModelSave" not in nodes.NODE_CLASS_MAPPINGS:
        import asyncio

        import comfyui as setup

        path = setup.find_comfyui(setup.HOME) / "comfy_extras" / "nodes_model_merging.py"
        asyncio.run(nodes.load_custom_node(str(path), module_parent="comfy_extras"))
    folder = tmp_path_factory.mktemp("saved")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folder_paths, "output_directory", str(folder))
        node = nodes.NODE_CLASS_MAPPINGS["ModelSave"]()
        node.output_dir = str(folder)
        with torch.inference_mode():
            node.save(model=model, filename_prefix="gvr")
    (path,) = folder.glob("*.safetensors")
    target = checkpoints / "diffusion_models" / "model_saved.safetensors"
    target.write_bytes(path.read_bytes())
    return target


def load(comfy, name: str):
    return comfy.run("SimpleGVRLoadModel", model_name=name, weight_dtype="default")[0]


def test_model_save_keeps_weights_and_settings(comfy, saved, model, sample):
    again = load(comfy, saved.name)
    expected, report = sample(settings="recommended")
    out, report_again = sample(model=again, settings="recommended")
    assert report_again == report.replace("gvr_test.safetensors", saved.name)
    assert torch.equal(out, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_the_settings_survive_a_change_of_dtype(saved, tmp_path, dtype):
    """As quantisers and LoRA mergers make it, which write neither our metadata nor ComfyUI's."""
    tensors = {name: values.to(dtype) for name, values in load_file(saved).items()}
    save_file(tensors, tmp_path / "cast.safetensors")
    assert checkpoint.read_config(tmp_path / "cast.safetensors", "dit") == checkpoint.read_config(saved, "dit")
    assert checkpoint.is_ours(tmp_path / "cast.safetensors")


def test_a_stock_loaders_model_has_no_settings_to_guess(comfy, saved, sample):
    stock = comfy.run("UNETLoader", unet_name=saved.name, weight_dtype="default")[0]
    with pytest.raises(
        ValueError, match="settings of the model's checkpoint are unknown, because a stock node loaded it: load it with Load"
    ):
        sample(model=stock, settings="recommended")
    with pytest.raises(ValueError, match="SimpleGVR Plan: the settings of the model's checkpoint are unknown"):
        comfy.run(
            "SimpleGVRPlan", model=stock, latent=latent(), size=scale(2), settings={"settings": "recommended"},
            memory={"memory": "free"}, trial=False,
        )  # fmt: skip
    sample(model=stock)


def test_weights_with_scales_are_named(comfy, saved, checkpoints):
    tensors = load_file(saved)
    tensors["model.diffusion_model.blocks.0.self_attn.q.scale_weight"] = torch.ones(1)
    save_file(tensors, checkpoints / "diffusion_models" / "scaled.safetensors")
    with pytest.raises(ValueError, match=r"scaled\.safetensors has weights with scales, .* load it with ComfyUI's Load Diffusion Model"):
        load(comfy, "scaled.safetensors")


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "1", '"dit"', '{"kind": "dit"}', '{"kind": "dit", "model": 3}', "[" * 100_000, '{"kind": ["dit"]}']
)
def test_damaged_settings_are_named(saved, tmp_path, text):
    path = tmp_path / "damaged.safetensors"
    save_file({"x": torch.zeros(1)}, path, {checkpoint.METADATA_KEY: text})
    with pytest.raises(ValueError, match=r"damaged\.safetensors"):
        checkpoint.parse_config(dict, checkpoint.read_config(path, "dit"), "model", path)


def test_settings_as_a_tensor_are_exact():
    config = {"kind": "dit", "text": "ünï", "numbers": [1.5, 2, None]}
    assert checkpoint.config_of_tensor(checkpoint.config_tensor(config)) == json.loads(json.dumps(config))
