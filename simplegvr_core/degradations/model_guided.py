"""Model-guided degradation: a text-to-video model denoises a noised latent and leaves its own artifacts in it (section 4.2.2)."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..flow import interpolate, shifted_sigmas
from ..sampling.solvers import integrate
from .randomness import uniform


@dataclass(frozen=True)
class ModelGuidedConfig:
    """Parameters of the model-guided degradation.

    Attributes:
        alpha: Range of the noise level that the latent is noised to, in (0, 1]. Larger is closer to the model, farther from the video.
        steps: Model evaluations from alpha to 0.
        shift: Shift of the noise levels between.

    Raises:
        ValueError: alpha is no range in (0, 1].
    """

    alpha: tuple[float, float] = (0.3, 0.4)
    steps: int = 10
    shift: float = 5.0

    def __post_init__(self) -> None:
        low, high = self.alpha
        if not 0 < low <= high <= 1:
            raise ValueError(f"alpha is {low} to {high}, wanted a range of noise levels above 0 and up to 1: the paper's is 0.3 to 0.4")


def degrade_model_guided(
    z_lr: Tensor, velocity: Callable[[Tensor, Tensor], Tensor], config: ModelGuidedConfig, generator: torch.Generator
) -> Tensor:
    """Returns a latent noised to a random noise level alpha and denoised by a model, Euler steps.

    Args:
        z_lr: (B, 16, T, h, w), normalised.
        velocity: Maps z_t and its noise level to the velocity of a text-to-video model.
        config: Range of alpha, and the steps.
        generator: Source of randomness, on the CPU.
    """
    alpha = uniform(*config.alpha, generator)
    noise = torch.randn(z_lr.shape, generator=generator).to(z_lr)
    sigmas = shifted_sigmas(config.steps, config.shift, alpha).to(z_lr.device)
    return integrate(velocity, interpolate(z_lr, noise, sigmas[0]), sigmas)
