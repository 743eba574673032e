"""The detail-aware sampler: energy of known pictures, densities, draws, and the measurement of a real model."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import REPO

from simplegvr_core.sampling.timesteps import Curve, load_curve
from simplegvr_core.training.build_pairs import BuildPairs
from simplegvr_core.training.draws import Draws
from simplegvr_core.training.loss import FlowNoise
from simplegvr_core.training.measure_curve import MeasureCurve, high_frequencies
from simplegvr_core.training.presets import PRESETS

CURVE = Curve(sigma=(1.0, 0.75, 0.5, 0.25), energy=(0.0, 3.0, 4.0, 4.0), clips=1)


def high_frequency_energy(z):
    return np.square(high_frequencies(z)).mean()


def test_smooth_latents_have_no_high_frequencies_and_checkerboards_have_all():
    flat = torch.ones(1, 2, 3, 6, 10)
    checkerboard = flat * (-1) ** (torch.arange(6)[:, None] + torch.arange(10))
    assert high_frequency_energy(flat) < 1e-20
    coefficients = 60 / 45  # of 60 coefficients 45 are high; the energy of all is that of the cells
    assert high_frequency_energy(checkerboard) == pytest.approx(coefficients, rel=0.05)
    assert high_frequency_energy(torch.randn(1, 16, 5, 31, 47)) == pytest.approx(1, rel=0.05)


def test_a_change_of_energy_between_two_steps_belongs_to_the_noise_levels_between_them():
    sigma, density = replace(CURVE, floor=0.0).density()
    np.testing.assert_allclose(sigma, [0, 0.25, 0.5, 0.75, 1])
    np.testing.assert_allclose(density, [0, 0, 0.25, 0.75])
    np.testing.assert_allclose(replace(CURVE, floor=0.2).density()[1], [0.05, 0.05, 0.25, 0.65])


def test_the_papers_differences_are_those_of_coefficients_which_energies_do_not_show():
    """A detail that moves keeps its energy: the coefficients change, their energy does not."""
    curve = replace(CURVE, energy=(1.0, 1.0, 1.0, 2.0), variation=(3.0, 1.0, 0.0), change="coefficients", floor=0.0)
    np.testing.assert_allclose(curve.density()[1], [0, 0, 0.25, 0.75])
    np.testing.assert_allclose(replace(curve, change="energy").density()[1], [0, 1, 0, 0])
    checkerboard = torch.ones(1, 1, 1, 8, 8) * (-1) ** (torch.arange(8)[:, None] + torch.arange(8))
    assert high_frequency_energy(checkerboard) == pytest.approx(high_frequency_energy(-checkerboard))
    assert np.abs(high_frequencies(checkerboard) - high_frequencies(-checkerboard)).mean() > 0.1
    for wrong in ({"variation": ()}, {"floor": 1.5}, {"change": "sum"}, {"variation": (0.0, 0.0, 0.0)}):
        with pytest.raises(ValueError, match=r"curve has|wanted coefficients or energy|never change"):
            replace(curve, **wrong)


def test_draws_follow_the_density():
    drawn = replace(CURVE, floor=0.2).sample(torch.rand(20_000, 1, 1, generator=torch.Generator().manual_seed(0)))
    assert drawn.shape == (20_000, 1, 1)
    share = torch.histc(drawn, 4, 0, 1) / 20_000
    torch.testing.assert_close(share, torch.tensor([0.05, 0.05, 0.25, 0.65]), atol=0.01, rtol=0)


def test_training_draws_from_the_curve():
    noise = FlowNoise((0.3, 0.6), CURVE)(torch.zeros(4000, 1, 1, 1, 1), Draws(0, 0, range(4000), 4000))
    assert (noise["sigma"] > 0.75).float().mean() > 0.65


def test_a_model_is_measured_written_down_and_trained_with(tmp_path):
    pairs, out = tmp_path / "pairs", tmp_path / "curve.json"
    smoke = PRESETS["smoke"]
    BuildPairs(REPO / "assets", smoke.vae, pairs, "area", num_frames=5, spacing=9, height=108, scales=(2,)).run()
    curve = MeasureCurve(pairs, out, clips=2, steps=3).run()
    assert load_curve(out) == curve
    assert curve.change == "coefficients" and len(curve.variation) == 2 and min(curve.variation) > 0
    assert load_curve(out).density()[1].sum() == pytest.approx(1)
    assert curve.clips == 2
    assert curve.sigma[0] == 1
    assert min(curve.energy) > 0
    assert out.with_suffix(".png").read_bytes()[1:4] == b"PNG"
    loop = replace(smoke.loop, steps=2, cpu=True)
    crop = replace(smoke.crop, num_frames=5, size=(4, 6), batch=2)
    result = replace(smoke, pairs=(pairs,), out=tmp_path / "run", curve=out, loop=loop, crop=crop).run()
    assert result["steps"] == 2


@pytest.mark.parametrize("text", ["no json", json.dumps({"sigma": [1]})])
def test_a_file_that_is_no_curve_is_named(tmp_path, text):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ValueError, match=r"x\.json is no curve.*measure one with .*curve`"):
        load_curve(tmp_path / "x.json")
