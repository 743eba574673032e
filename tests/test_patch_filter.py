"""The filter of the mesh: what repeats from patch to patch vanishes, single details stay, in memory as in files."""

from dataclasses import replace

import pytest
import torch

from simplegvr_core.sampling.patch_filter import without_repetition
from simplegvr_core.sampling.super_resolve import SamplingConfig, weighed


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("size", [(6, 14), (7, 13), (3, 5)], ids=str)
def test_a_mesh_vanishes(size):
    mesh = noise(2, 3, 4, 2, 2).repeat(1, 1, 1, 7, 7)[..., : size[0], : size[1]]
    torch.testing.assert_close(without_repetition(mesh, 5), torch.zeros_like(mesh), atol=1e-6, rtol=0)


def test_one_detail_stays_and_leaves_no_trace_beyond_the_filter():
    x = torch.zeros(1, 2, 3, 22, 30)
    x[0, 1, 2, 10, 15] = 1.0
    filtered = without_repetition(x, 5)
    assert filtered[0, 1, 2, 10, 15] == pytest.approx(1 - 1 / 25)
    assert (filtered != 0).nonzero()[:, 3:].amin(0).tolist() == [6, 11]
    assert (filtered != 0).nonzero()[:, 3:].amax(0).tolist() == [14, 19]
    assert filtered[:, 0].abs().sum() == filtered[:, :, :2].abs().sum() == 0


def test_strength_and_filter_weigh_what_is_added():
    z, z_up = noise(1, 16, 2, 5, 7), noise(1, 16, 2, 5, 7, seed=1)
    assert weighed(z, z_up, SamplingConfig()) is z
    torch.testing.assert_close(weighed(z, z_up, SamplingConfig(strength=1.5)), z_up + 1.5 * (z - z_up))
    both = SamplingConfig(strength=1.5, patch_filter=3)
    torch.testing.assert_close(weighed(z, z_up, both), z_up + 1.5 * without_repetition(z - z_up, 3))
    torch.testing.assert_close(weighed(z_up, z_up, replace(both, strength=2.0)), z_up)


def test_slow_changes_vanish_with_the_mesh():
    stripes = torch.sin(torch.arange(120) * 2 * torch.pi / 30).expand(1, 1, 1, 40, 120)
    assert without_repetition(stripes, 5)[..., 20:-20].square().mean() < 0.06 * stripes.square().mean()


def test_a_training_is_known_without_them():
    """So that a run of before is resumed, and of a finished one they can be changed."""
    before = (
        "steps=50, cfg=1.0, shift=5.0, noise_augmentation=0.4, denoise=1.0, start='noise', noise_order='after_upsampler', solver='euler'"
    )
    assert repr(SamplingConfig(strength=1.5, patch_filter=5)) == repr(SamplingConfig()) == f"SamplingConfig({before})"


@pytest.mark.parametrize(
    "wrong", [{"strength": 0.0}, {"strength": float("nan")}, {"patch_filter": 4}, {"patch_filter": 1}, {"patch_filter": -3}], ids=str
)
def test_a_wrong_setting_is_refused(wrong):
    with pytest.raises(ValueError, match="wanted a number above 0, and 0 or an odd number of at least 3"):
        SamplingConfig(**wrong)
