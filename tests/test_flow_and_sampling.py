"""Rectified flow, noise levels, Euler, sizes and super_resolve."""

from itertools import pairwise

import pytest
import torch
from conftest import ATTENTION, DIT, UPSAMPLER, random_weights

from simplegvr_core.flow import clean_from_velocity, interpolate, positional_noise, shifted_sigmas, velocity_target
from simplegvr_core.latent_space import pixel_size, scaled_size, short_side_size
from simplegvr_core.networks.dit import DiTConfig, SimpleGVRDiT
from simplegvr_core.networks.upsampler import LatentUpsampler
from simplegvr_core.sampling.solvers import integrate
from simplegvr_core.sampling.super_resolve import SamplingConfig, augment_condition, super_resolve

Z = torch.randn(2, 16, 3, 5, 7, generator=torch.Generator().manual_seed(0))
NOISE = positional_noise(Z.shape, 1)


def test_velocity_leads_back_to_the_clean_latent():
    torch.testing.assert_close(clean_from_velocity(interpolate(Z, NOISE, 0.7), velocity_target(Z, NOISE), 0.7), Z)


@pytest.mark.parametrize("steps", [1, 2, 7])
@pytest.mark.parametrize("start", [1.0, 0.4])
def test_euler_with_the_true_velocity_gives_the_clean_latent(steps, start):
    sigmas = shifted_sigmas(steps, 5.0, start)
    seen = []
    out = integrate(lambda z, sigma: NOISE - Z, interpolate(Z, NOISE, start), sigmas, lambda i, z, z_0: seen.append((i, z_0)))
    torch.testing.assert_close(out, Z, atol=1e-5, rtol=0)
    assert [i for i, _ in seen] == list(range(steps))
    torch.testing.assert_close(seen[0][1], Z, atol=1e-5, rtol=0)


def rotating(z, sigma):
    """A velocity whose solution is known: rotated()."""
    return 2 * torch.stack((-z[1], z[0]))


def rotated(z, sigma):
    """Returns z at noise level 1, carried along `rotating` to noise level sigma."""
    angle = 2 * (sigma - 1)
    turn = torch.tensor([[angle.cos(), -angle.sin()], [angle.sin(), angle.cos()]], dtype=z.dtype)
    return turn @ z


@pytest.mark.parametrize("shift", [1.0, 5.0])
def test_the_error_falls_with_the_order_of_the_solver(shift):
    """With twice the steps the error of a method of order p is 2**p times smaller, with steps of unequal length too."""
    z = torch.tensor([1.0, 0.5], dtype=torch.float64)
    for solver, order in (("euler", 1), ("ab2", 2)):
        errors = []
        for steps in (64, 128):
            sigmas = shifted_sigmas(steps, shift).double()
            errors.append((integrate(rotating, z, sigmas, solver=solver) - rotated(z, sigmas[-1])).norm())
        assert torch.log2(errors[0] / errors[1]).item() == pytest.approx(order, abs=0.15)


def test_euler_is_the_default_bit_for_bit():
    sigmas, z = shifted_sigmas(5, 3.0), Z.clone()
    for sigma, sigma_next in pairwise(sigmas):
        z = z + (sigma_next - sigma) * torch.sin(z * sigma)
    assert torch.equal(integrate(lambda z, sigma: torch.sin(z * sigma), Z, sigmas), z)
    assert torch.equal(integrate(lambda z, sigma: torch.sin(z * sigma), Z, sigmas, solver="euler"), z)
    assert not torch.allclose(integrate(lambda z, sigma: torch.sin(z * sigma), Z, sigmas, solver="ab2"), z, atol=1e-4)


def test_a_solver_that_is_unknown_is_named():
    with pytest.raises(ValueError, match="solver is 'heun', wanted one of euler, ab2"):
        SamplingConfig(solver="heun")


def test_sigmas_start_where_asked_and_fall_to_zero():
    sigmas = shifted_sigmas(9, 5.0, 0.35)
    assert len(sigmas) == 10
    assert sigmas[0] == pytest.approx(0.35)
    assert sigmas[-1] == 0
    assert (sigmas.diff() < 0).all()


def test_sigmas_refuse_a_start_outside_zero_to_one():
    with pytest.raises(ValueError, match="start is 0"):
        shifted_sigmas(4, 5.0, 0)


def test_condition_is_a_mix_that_its_seed_fixes():
    torch.testing.assert_close(augment_condition(Z, 0.3, 5), 0.7 * Z + 0.3 * positional_noise(Z.shape, 5, field=1))
    assert not torch.equal(augment_condition(Z, 0.3, 5), augment_condition(Z, 0.3, 6))
    assert torch.equal(augment_condition(Z, 0.0, 5), Z)


def test_sizes_are_exact_to_the_cell():
    assert pixel_size(1920, 1080) == (135, 240)
    assert scaled_size((14, 27), 3) == (42, 81)
    assert scaled_size((13, 24), 2.83) == (37, 68)
    assert scaled_size((13, 24), 2.05) == (27, 50)
    assert short_side_size((60, 104), 1080) == (135, 234)
    assert short_side_size((104, 60), 720) == (156, 90)


def test_pixel_size_names_the_nearest_possible_size():
    with pytest.raises(ValueError, match=r"1918 x 1083 .*1920 x 1080"):
        pixel_size(1918, 1083)


def resolve(model, size=(9, 13), **changes):
    upsampler = random_weights(LatentUpsampler(UPSAMPLER))
    sampling = SamplingConfig(**{"steps": 2, **changes})
    prompt = torch.randn(2, 3, 4096, generator=torch.Generator().manual_seed(2))
    return super_resolve(model, upsampler, Z, size, sampling=sampling, context=prompt, seed=3, noise_seed=4)


def test_super_resolve_gives_the_exact_size_and_depends_on_its_settings():
    model = random_weights(SimpleGVRDiT(DIT, ATTENTION))
    out = resolve(model)
    assert out.shape == (2, 16, 3, 9, 13)
    assert torch.equal(out, resolve(model))
    for changes in ({"cfg": 2.0}, {"noise_augmentation": 0.1}, {"denoise": 0.5}, {"shift": 2.0}, {"solver": "ab2"}):
        assert not torch.allclose(out, resolve(model, **changes), atol=1e-4), changes


def test_guidance_is_a_line_through_both_predictions():
    model = random_weights(SimpleGVRDiT(DIT, ATTENTION))
    plain, null_only, twice = (resolve(model, steps=1, cfg=cfg) for cfg in (1.0, 0.0, 2.0))
    torch.testing.assert_close(twice, null_only + 2 * (plain - null_only), atol=1e-4, rtol=0)


def test_a_model_without_condition_needs_a_start_below_one():
    model = random_weights(SimpleGVRDiT(DiTConfig(in_dim=16, dim=128, ffn_dim=160, num_heads=1, num_layers=1), ATTENTION))
    assert resolve(model, denoise=0.5).shape == (2, 16, 3, 9, 13)
    with pytest.raises(ValueError, match=r"set denoise to 0\.3-0\.6"):
        resolve(model)
