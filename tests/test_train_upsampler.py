"""Training of an upsampler alone: its loss falls, its file loads, a killed run resumes, its plan."""

from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from safetensors.torch import load_file
from test_pairs import footage
from test_train import losses, pairs  # noqa: F401 - a fixture

from simplegvr_core.files import GVR_TINY_VAE
from simplegvr_core.networks.upsampler import VARIANTS, load_upsampler, make_upsampler
from simplegvr_core.training.batches import Crop
from simplegvr_core.training.loop import LoopConfig
from simplegvr_core.training.train_upsampler import TrainUpsampler, main
from simplegvr_core.video.write import write_video

LOOP = LoopConfig(steps=12, learning_rate=3e-3, warmup=2, save_every=6, schedule="constant", cpu=True)


@pytest.fixture
def train(pairs, tmp_path):  # noqa: F811
    upsampler = replace(VARIANTS["simplegvr"], width=16, latents="tiny_vae")
    crop = Crop(num_frames=5, size=(6, 8), batch=2)
    return TrainUpsampler(tmp_path / "out", (pairs,), upsampler=upsampler, bf16=False, vae=GVR_TINY_VAE, crop=crop, loop=LOOP)


def test_the_loss_falls_and_the_file_loads(train):
    result = train.run()
    assert result["steps"] == 12 and result["loss_last"] < result["loss_first"]
    assert load_upsampler(train.out / "upsampler.safetensors").config == train.upsampler
    assert sorted(path.name for path in train.out.glob("preview*")) == ["preview_000006.mp4", "preview_000012.mp4"]


def test_a_stopped_run_resumes_with_the_losses_it_would_have_had(train, tmp_path):
    replace(train, loop=replace(LOOP, steps=6)).run()
    train.run()
    unbroken = replace(train, out=tmp_path / "unbroken")
    unbroken.run()
    assert losses(train.out) == losses(unbroken.out)


def test_it_starts_from_a_file_and_recomputing_changes_no_loss(train, tmp_path):
    first = train.run()
    second = replace(train, init_upsampler=tmp_path / "out" / "upsampler.safetensors", out=tmp_path / "second")
    second = replace(second, perceptual_loss=0.5, loop=replace(LOOP, steps=2, save_every=2))
    recomputed = replace(second, out=tmp_path / "recomputed", gradient_checkpointing=True)
    assert second.run()["loss_first"] < first["loss_first"] + 0.5
    recomputed.run()
    torch.testing.assert_close(losses(recomputed.out), losses(second.out), atol=1e-5, rtol=0)
    changed = load_file(second.out / "upsampler.safetensors")["out.conv.weight"]
    assert not torch.equal(changed, load_file(train.out / "upsampler.safetensors")["out.conv.weight"])


def test_it_trains_on_footage(train, tmp_path):
    write_video(tmp_path / "film" / "a.mp4", footage(5, 96, 128), Fraction(24))
    crop = Crop(num_frames=5, size=(6, 6), batch=2)
    assert replace(train, pairs=(), footage=(tmp_path / "film",), crop=crop).run()["steps"] == 12


def test_options_that_do_not_go_together_are_named(train):
    with pytest.raises(ValueError, match=r"--perceptual-loss is 1\.0"):
        replace(train, perceptual_loss=1.0, vae=None).run()
    with pytest.raises(ValueError, match="give either --pairs"):
        replace(train, pairs=()).run()
    with pytest.raises(ValueError, match=r"--upsampler\.resize pixels starts from TinyVAE's closed form"):
        replace(train, upsampler=VARIANTS["pixels"], vae=None).run()


def test_the_plan_counts_no_transformer(tmp_path):
    plan = main(["--out", str(tmp_path / "out"), "--plan", "--gradient-checkpointing"])
    assert plan is not None
    assert (
        plan["trained_parameters"]
        == plan["parameters"]
        == sum(x.numel() for x in make_upsampler(VARIANTS["simplegvr"], device="meta").parameters())
    )
    assert plan["card_24gb"]["fits"] and plan["noise_per_step"] == 0
