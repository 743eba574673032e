"""Training: it learns, it resumes to the same losses, it stops at NaN; each command leaves what it promises."""

import json
from dataclasses import replace

import pytest
import torch
from conftest import REPO, random_weights
from safetensors.torch import load_file, save_file
from torch import nn

from simplegvr_core.attention import AttentionConfig
from simplegvr_core.model import DiTConfig, SimpleGVRDiT, load_dit
from simplegvr_core.train import Crops, LoopConfig, TrainGVR, TrainUpsampler, TrainVAE, fit
from simplegvr_core.upsampler import load_upsampler
from simplegvr_core.vae import TinyVAEConfig, load_tiny_vae

LOOP = LoopConfig(steps=12, warmup=2, save_every=5)
CROPS = Crops(num_frames=5, size=48, batch=2, height=108, spacing=16)
VAE = TinyVAEConfig(latent_width=16, latent_blocks=1, fine_width=16, fine_blocks=1, pixel_width=8)


def losses(folder):
    return [json.loads(line)["loss"] for line in (folder / "losses.jsonl").read_text().splitlines()]


def regression(seed=0):
    """A small network and the loss of drawing the sine."""
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Linear(1, 16), nn.Tanh(), nn.Linear(16, 1))

    def loss_of(generator):
        x = torch.rand(32, 1, generator=generator)
        return (network(x) - torch.sin(3 * x)).square().mean()

    return network, loss_of


def test_the_loss_falls(tmp_path):
    network, loss_of = regression()
    fit(network, loss_of, LoopConfig(steps=500, learning_rate=3e-2, warmup=10, ema=0.9), tmp_path)
    assert losses(tmp_path)[-1] < 0.1 * losses(tmp_path)[0]


def test_a_killed_run_resumes_with_the_losses_it_would_have_had(tmp_path):
    class Killed(Exception):
        pass

    network, loss_of = regression()
    whole = fit(network, loss_of, LOOP, tmp_path / "whole")
    network, loss_of = regression()
    calls = []

    def killed(generator):
        calls.append(1)
        if len(calls) == 9:
            raise Killed
        return loss_of(generator)

    with pytest.raises(Killed):
        fit(network, killed, LOOP, tmp_path / "killed")
    network, loss_of = regression(seed=1)
    resumed = fit(network, loss_of, LOOP, tmp_path / "killed")
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))


def test_a_loss_that_is_not_finite_stops_and_names_the_last_good_state(tmp_path):
    network, loss_of = regression()
    calls = []

    def explode(generator):
        calls.append(1)
        return loss_of(generator) * (float("nan") if len(calls) == 8 else 1)

    with pytest.raises(FloatingPointError, match=r"step 7: lower learning_rate.*state\.pt"):
        fit(network, explode, LOOP, tmp_path)
    assert torch.load(tmp_path / "state.pt", weights_only=True)["step"] == 5


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """All three commands, a few steps each, on the bundled clips."""
    out = tmp_path_factory.mktemp("trained")
    videos = REPO / "assets"
    vae = TrainVAE(videos, out / "vae", VAE, LOOP, replace(CROPS, num_frames=9)).run()["tiny_vae"]
    upsampler = TrainUpsampler(videos, vae, out / "upsampler", width=16, loop=LOOP, crops=CROPS, scales=(2, 3)).run()["upsampler"]
    sizes = DiTConfig(dim=128, ffn_dim=160, num_heads=1, num_layers=2)
    attention = AttentionConfig(window=(1, 2, 2))
    t2v = random_weights(SimpleGVRDiT(replace(sizes, in_dim=16), attention))
    save_file(t2v.state_dict(), out / "t2v.safetensors")
    gvr = TrainGVR(
        videos, vae, out / "gvr", upsampler, out / "t2v.safetensors", sizes, attention, loop=LOOP, crops=CROPS, scales=(2,)
    ).run()
    return out, vae, gvr


def test_every_command_writes_a_loadable_checkpoint(trained):
    out, vae, gvr = trained
    load_tiny_vae(vae)
    load_upsampler(gvr["upsampler"])
    model, config = load_dit(gvr["dit"])
    assert model.attention.window == (1, 2, 2)
    assert config["trained"] == {"noise_range": [0.0, 0.3], "num_frames": 5, "scales": [2]}
    assert len(losses(out / "gvr")) == 12


def test_training_changes_the_upsampler_and_the_model(trained):
    out, _, gvr = trained
    assert load_upsampler(gvr["upsampler"]).out.conv.weight.any()
    weights = load_dit(gvr["dit"])[0].state_dict()
    start = load_file(out / "t2v.safetensors")
    distance = (weights["blocks.0.ffn.0.weight"] - start["blocks.0.ffn.0.weight"]).abs().max()
    assert 0 < distance < 0.05  # it started from the text-to-video model, whose weights spread over 0.2, and moved
    assert weights["patch_embedding.weight"][:, 16:].any()
