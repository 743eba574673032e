"""Wan 2.1's autoencoder outside ComfyUI gives what it gives inside; pairs and training take its latents."""

from dataclasses import replace

import pytest
import torch
from conftest import REPO, random_weights
from safetensors.torch import save_file

from simplegvr_core.networks.attention import AttentionConfig
from simplegvr_core.networks.dit import DiTConfig, SimpleGVRDiT
from simplegvr_core.networks.wan_vae import load_vae
from simplegvr_core.training.batches import Crop
from simplegvr_core.training.build_pairs import BuildPairs
from simplegvr_core.training.loop import LoopConfig
from simplegvr_core.training.pairs import Pairs
from simplegvr_core.training.presets import PRESETS

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def stock(comfy, tmp_path_factory):
    """ComfyUI's own network, 8 channels wide instead of 96, random weights, and the file of its weights."""
    from comfy.ldm.wan.vae import WanVAE

    vae = WanVAE(dim=8, z_dim=16, dim_mult=[1, 2, 4, 4], num_res_blocks=2, attn_scales=[], temperal_downsample=[False, True, True]).eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in vae.parameters():  # ComfyUI leaves them unset
        torch.nn.init.normal_(
            parameter, mean=float(parameter.ndim == 4), std=parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.1, generator=generator
        )
    path = tmp_path_factory.mktemp("vae") / "wan_2.1_vae.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in vae.state_dict().items()}, path)
    return vae, path


def test_it_equals_comfyui_s(stock):
    from comfy.latent_formats import Wan21

    vae, path = stock
    video = torch.rand(1, 3, 9, 24, 40, generator=torch.Generator().manual_seed(1)) * 2 - 1
    with torch.no_grad():
        z = Wan21().process_in(vae.encode(video))
        ours = load_vae(path)
        torch.testing.assert_close(ours.encode(video), z, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(ours.decode(z), vae.decode(Wan21().process_out(z)).clamp(-1, 1), atol=2e-3, rtol=0)


def test_sizes_are_rounded_up_to_whole_cells(stock):
    assert load_vae(stock[1]).encode(torch.zeros(1, 3, 6, 13, 21)).shape == (1, 16, 3, 2, 3)


def test_pairs_and_training_of_its_latents_with_a_stock_text_to_video_model(stock, tmp_path):
    t2v = random_weights(SimpleGVRDiT(DiTConfig(in_dim=16, dim=128, ffn_dim=160, num_heads=1, num_layers=2), AttentionConfig()))
    save_file({f"model.diffusion_model.{name}": tensor for name, tensor in t2v.state_dict().items()}, tmp_path / "wan_t2v.safetensors")
    files = {"vae": stock[1], "t2v": tmp_path / "wan_t2v.safetensors"}
    (tmp_path / "contexts").mkdir()
    for video in ("demo", "demo_original"):
        save_file({"context": torch.ones(3, 4096)}, tmp_path / "contexts" / f"{video}.safetensors")
    prompts = {"contexts": tmp_path / "contexts", "cfg": 1.0}
    BuildPairs(
        REPO / "assets", out=tmp_path / "pairs", recipe="aigc", num_frames=5, spacing=20, height=108, scales=(2,), **files, **prompts
    ).run()
    z_lr, z_hr = Pairs(tmp_path / "pairs")[0]
    assert z_hr.shape[1:] == (2, 2 * z_lr.shape[2], 2 * z_lr.shape[3])
    train = replace(
        PRESETS["smoke"],
        pairs=(tmp_path / "pairs",),
        out=tmp_path / "run",
        init_dit=files["t2v"],
        vae=files["vae"],
        crop=Crop(5, (4, 6), 2),
        loop=LoopConfig(steps=2, warmup=1, cpu=True),
    )
    assert train.run()["steps"] == 2
    assert list((tmp_path / "run").glob("preview_*.mp4"))


def test_another_file_is_named(tmp_path):
    save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=r"x\.safetensors is neither a TinyVAE nor Wan 2\.1's autoencoder"):
        load_vae(tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=r"x\.safetensors has no 'patch_embedding\.weight': give a Wan 2\.1 text-to-video model"):
        replace(PRESETS["smoke"], init_dit=tmp_path / "x.safetensors").networks()
