"""Rectified flow: the straight line from data to noise, its velocity and its noise levels (paper, equations 1 to 3).

sigma in [0, 1]: 1 is noise, 0 is data. z_0 clean, z_t noised latents of one shape (B, C, T, H, W).
"""

import numpy as np
import torch
from torch import Tensor


def interpolate(z_0: Tensor, noise: Tensor, sigma: Tensor | float) -> Tensor:
    """Returns z_t = (1 - sigma) z_0 + sigma noise (equation 1). sigma: one number, or (B, 1, 1, 1, 1)."""
    return (1 - sigma) * z_0 + sigma * noise


def velocity_target(z_0: Tensor, noise: Tensor) -> Tensor:
    """Returns the velocity d z_t / d sigma = noise - z_0, which the model is trained to predict (equation 3)."""
    return noise - z_0


def clean_from_velocity(z_t: Tensor, velocity: Tensor, sigma: Tensor | float) -> Tensor:
    """Returns the clean latent z_0 = z_t - sigma velocity that a predicted velocity points to."""
    return z_t - sigma * velocity


def shift_sigma(sigma: Tensor, shift: float) -> Tensor:
    """Returns shift sigma / (1 + (shift - 1) sigma): more of the steps at high noise for shift > 1, as latents grow."""
    return shift * sigma / (1 + (shift - 1) * sigma)


def shifted_sigmas(steps: int, shift: float, start: float = 1.0) -> Tensor:
    """Returns steps + 1 noise levels that fall from start to 0, float32, evenly spaced before the shift.

    Args:
        steps: number of sampling steps.
        shift: of shift_sigma.
        start: the first noise level itself, in (0, 1].

    Raises:
        ValueError: start is outside (0, 1].
    """
    if not 0 < start <= 1:
        raise ValueError(f"start is {start}, wanted a noise level above 0 and up to 1")
    unshifted_start = start / (shift - (shift - 1) * start)
    return shift_sigma(torch.linspace(unshifted_start, 0, steps + 1), shift)


def positional_noise(shape: tuple[int, ...], seed: int, first_frame: int = 0, field: int = 0) -> Tensor:
    """Returns unit Gaussian noise (B, C, T, H, W), float32, on the CPU, so that a seed means the same on every device.

    A frame's noise depends on the seed, its number in the clip, its number in the batch and its shape alone: neither the
    clip's length nor how it is cut changes it. Philox (Salmon et al., 2011): the seed is its key; field, batch item and
    frame are the upper three quarters of its counter.

    Args:
        shape: (B, C, T, H, W).
        seed: at least 0.
        first_frame: number in the clip of the first of the T latent frames.
        field: noise of another field is independent, with the same seed too.
    """
    noise = torch.empty(shape)
    for item, clip in enumerate(noise):
        for frame in range(shape[2]):
            generator = np.random.Generator(np.random.Philox(key=seed, counter=(0, field, item, first_frame + frame)))
            clip[:, frame] = torch.from_numpy(generator.standard_normal((shape[1], *shape[3:]), dtype=np.float32))
    return noise
