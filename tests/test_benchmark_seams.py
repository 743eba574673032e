"""The benchmark of seams compares the network's inputs in boxes with those for the whole clip."""

import pytest
import torch

from simplegvr_core.benchmark.seams import noise_is_identical
from simplegvr_core.sampling import refine
from simplegvr_core.sampling import super_resolve as sampling
from simplegvr_core.sampling.refine import TiledVelocity
from simplegvr_core.sampling.super_resolve import SamplingConfig
from simplegvr_core.tiling import WHOLE, Tiling

TILING = Tiling((4, 6, 5), (2, 2, 1))


def identical():
    z_up = torch.randn(1, 16, 7, 11, 13, generator=torch.Generator().manual_seed(0))
    return noise_is_identical(TiledVelocity(None, WHOLE, (1, 2, 2)), z_up, SamplingConfig(steps=3, denoise=0.7), TILING)


def test_positional_noise_is_identical():
    assert identical()


@pytest.mark.parametrize("module", [refine, sampling], ids=["to start from", "of the condition"])
def test_noise_that_every_run_samples_anew_is_not(module, monkeypatch):
    monkeypatch.setattr(module, "positional_noise", lambda shape, *position: torch.randn(shape))
    assert not identical()
