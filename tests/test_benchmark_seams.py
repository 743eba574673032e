"""The benchmark of seams compares what the network is really given in boxes with what it is given for the whole clip."""

import pytest
import torch

from simplegvr_core.benchmark.seams import drawn_alike
from simplegvr_core.sampling import refine
from simplegvr_core.sampling import super_resolve as sampling
from simplegvr_core.sampling.refine import TiledVelocity
from simplegvr_core.sampling.super_resolve import SamplingConfig
from simplegvr_core.tiling import WHOLE, Tiling

TILING = Tiling((4, 6, 5), (2, 2, 1))


def alike():
    z_up = torch.randn(1, 16, 7, 11, 13, generator=torch.Generator().manual_seed(0))
    return drawn_alike(TiledVelocity(None, WHOLE, (1, 2, 2)), z_up, SamplingConfig(steps=3, denoise=0.7), TILING)


def test_noise_by_position_is_alike():
    assert alike()


@pytest.mark.parametrize("module", [refine, sampling], ids=["to start from", "of the condition"])
def test_noise_that_every_run_draws_anew_is_not(module, monkeypatch):
    monkeypatch.setattr(module, "positional_noise", lambda shape, *position: torch.randn(shape))
    assert not alike()
