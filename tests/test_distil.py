"""The objectives of distillation, on small networks."""

from dataclasses import replace

import pytest
import torch

from simplegvr_core.networks import checkpoint
from simplegvr_core.networks.attention import AttentionConfig
from simplegvr_core.networks.dit import DiTConfig, SimpleGVRDiT
from simplegvr_core.networks.upsampler import VARIANTS, LatentUpsampler
from simplegvr_core.sampling.super_resolve import SamplingConfig, super_resolve
from simplegvr_core.training.distil import PRESETS
from simplegvr_core.training.dmd2 import DMD2, DMD2Config, matching_loss, sample_matching_noise
from simplegvr_core.training.draws import Draws
from simplegvr_core.training.loss import Pictures
from simplegvr_core.training.one_step import STUDENT, OneStep, OneStepConfig

pytestmark = pytest.mark.usefixtures("one_thread")
NO_PICTURES = Pictures(None, perceptual=False)
FRAME = 0


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def small_dit(seed=0):
    dit = SimpleGVRDiT(DiTConfig(dim=128, ffn_dim=96, num_heads=1, num_layers=1, text_dim=8), AttentionConfig(window=(1, 3, 3)))
    dit.init_weights(generator(seed))
    torch.nn.init.normal_(dit.head.head.weight, std=0.02, generator=generator(seed))
    return dit


def batch():
    z = torch.randn(2, 16, 3, 6, 10, generator=generator())
    return {"z_lr": z[..., ::2, ::2].clone(), "z_hr": z, "context": torch.zeros(2, 1, 8)}


def test_regression_measures_what_is_sampled():
    """With no error of the upsampler counted, the objective is the error of super_resolve's result."""
    upsampler, dit, sample = LatentUpsampler(VARIANTS["bilinear"]), small_dit(), batch()
    loss = OneStep(upsampler, dit, NO_PICTURES, OneStepConfig(upsampler=0.0, bf16=False))(**sample, frame=FRAME)
    z = super_resolve(dit.eval(), upsampler, sample["z_lr"], (6, 10), sampling=STUDENT, color_match=0.0, seed=5)
    assert loss.item() == pytest.approx((z - sample["z_hr"]).abs().mean().item(), rel=1e-4)


def test_start_at_the_condition_takes_no_noise():
    upsampler, dit, sample = LatentUpsampler(VARIANTS["bilinear"]), small_dit().eval(), batch()
    results = {
        start: [
            super_resolve(dit, upsampler, sample["z_lr"], (6, 10), sampling=replace(STUDENT, start=start), seed=seed) for seed in (1, 2)
        ]
        for start in ("condition", "noise")
    }
    assert torch.equal(*results["condition"]) and not torch.allclose(*results["noise"])


def test_the_students_gradient_does_not_reach_the_upsampler():
    upsampler = LatentUpsampler(replace(VARIANTS["cnn"], width=8))
    upsampler.init_weights(generator())
    model = OneStep(upsampler, small_dit(), NO_PICTURES, OneStepConfig(upsampler=0.0, bf16=False))
    model(**batch(), frame=FRAME).backward()
    assert model.dit.head.head.weight.grad.any()
    assert not any(p.grad.any() for p in upsampler.parameters() if p.grad is not None)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("turn, moves", [(0.05, True), (0.19, True), (0.21, False), (0.9, False)])
def test_the_student_moves_once_in_five_updates_of_the_fake_score(turn, moves, guidance):
    config = DMD2Config(SamplingConfig(steps=2), guidance=guidance, fake_updates=5, bf16=False)
    model = DMD2(LatentUpsampler(VARIANTS["bilinear"]), small_dit(), NO_PICTURES, config)
    sample = batch()
    model(**sample, **sample_matching_noise(sample["z_hr"], Draws(0, 0, range(2), 2)) | {"turn": turn}).backward()
    student, fake = model.dit.head.head.weight.grad, model.fake.head.head.weight.grad
    assert fake.any() and (student is not None and bool(student.any())) == moves


def test_frozen_networks_are_not_saved():
    model = DMD2(LatentUpsampler(VARIANTS["bilinear"]), small_dit(), NO_PICTURES, DMD2Config())
    assert {name.split(".")[0] for name in model.state_dict()} == {"dit", "fake"}


def test_gradient_of_distribution_matching_is_the_difference_of_the_scores():
    z_0 = torch.randn(2, 16, 1, 3, 5, generator=generator(), requires_grad=True)
    real, fake = (torch.randn(z_0.shape, generator=generator(seed)) for seed in (1, 2))
    matching_loss(z_0, real, fake).backward()
    scale = (z_0 - real).abs().mean((1, 2, 3, 4), keepdim=True)
    torch.testing.assert_close(z_0.grad, ((fake - real) / scale / z_0.numel()).detach())


def test_the_teacher_has_the_attention_of_its_checkpoint(tmp_path):
    dit, upsampler = small_dit(), LatentUpsampler(VARIANTS["bilinear"])
    checkpoint.save(tmp_path / "dit.safetensors", "dit", dit.state_dict(), model=dit.config, attention=dit.attention)
    checkpoint.save(tmp_path / "upsampler.safetensors", "upsampler", upsampler.state_dict(), model=upsampler.config)
    students = AttentionConfig(window=(1, 2, 2))
    files = {"init_dit": tmp_path / "dit.safetensors", "init_upsampler": tmp_path / "upsampler.safetensors"}
    model, _ = replace(PRESETS["wan"], attention=students, **files).model(None)
    assert model.frozen[0].attention == dit.attention
    assert model.dit.attention == model.fake.attention == students
