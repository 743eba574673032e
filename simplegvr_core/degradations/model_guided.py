"""Model-guided degradation: a text-to-video model redraws a noised latent, and leaves its own faults in it (section 4.2.2)."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..flow import interpolate, shifted_sigmas
from ..sampling.super_resolve import sample_euler
from .randomness import uniform


@dataclass(frozen=True)
class ModelGuidedConfig:
    """alpha: range of the noise share, in (0, 1]: more brings the latent closer to the model and further from the video.

    steps: model evaluations from alpha to 0. shift: of the noise levels between. Raises ValueError for a wrong alpha.
    """

    alpha: tuple[float, float] = (0.3, 0.4)
    steps: int = 10
    shift: float = 5.0

    def __post_init__(self) -> None:
        low, high = self.alpha
        if not 0 < low <= high <= 1:
            raise ValueError(f"alpha is {low} to {high}, wanted a range of noise shares above 0 and up to 1: the paper's is 0.3 to 0.4")


def degrade_model_guided(z_lr: Tensor, velocity: Callable, config: ModelGuidedConfig, generator: torch.Generator) -> Tensor:
    """Returns z_lr (B, 16, T, h, w), normalised, noised to alpha and brought back to 0 by velocity(z_t, sigma)."""
    alpha = uniform(*config.alpha, generator)
    noise = torch.randn(z_lr.shape, generator=generator).to(z_lr)
    sigmas = shifted_sigmas(config.steps, config.shift, alpha).to(z_lr.device)
    return sample_euler(velocity, interpolate(z_lr, noise, sigmas[0]), sigmas)
