"""Degradations: what is done to a clip to make the low-resolution latent that training starts from. Recipes are data.

One generator, on the CPU, is the only source of randomness: the same seed gives the same result, bit for bit.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..video.frames import area_downscale
from .classical import ClassicalConfig, degrade_classical
from .flow_based import FlowBasedConfig, degrade_flow_based
from .model_guided import ModelGuidedConfig, degrade_model_guided
from .motion import estimate_motion


@dataclass(frozen=True)
class Recipe:
    """What is done, in this order; None is left out.

    classical: to the video, which it brings to its low-resolution size itself; without it, area averaging does.
    flow_based: to the video at low resolution. model_guided: to its latent.
    """

    classical: ClassicalConfig | None = None
    flow_based: FlowBasedConfig | None = None
    model_guided: ModelGuidedConfig | None = None


RECIPES = {
    "area": Recipe(),
    "classical": Recipe(classical=ClassicalConfig()),
    "flow_based": Recipe(flow_based=FlowBasedConfig()),
    "model_guided": Recipe(model_guided=ModelGuidedConfig()),
    "aigc": Recipe(flow_based=FlowBasedConfig(), model_guided=ModelGuidedConfig()),
}


def degrade_video(video: Tensor, scale: int, recipe: Recipe, generator: torch.Generator) -> Tensor:
    """Returns video (1, 3, F, H // scale, W // scale) in [-1, 1] by the recipe's pixel steps, of (1, 3, F, H, W) in [-1, 1]."""
    classical, flow_based = recipe.classical, recipe.flow_based
    video = degrade_classical(video, scale, classical, generator) if classical else area_downscale(video, scale)
    if flow_based is None:
        return video
    return degrade_flow_based(video, estimate_motion(video, flow_based.motion), flow_based, generator)


def degrade_latent(z_lr: Tensor, recipe: Recipe, velocity: Callable, generator: torch.Generator) -> Tensor:
    """Returns z_lr (B, 16, T, h, w), normalised, after the recipe's model-guided step if it has one, else z_lr itself.

    velocity: (z_t, sigma) -> velocity of a text-to-video model, as sampling.sample_euler wants it.
    """
    if recipe.model_guided is None:
        return z_lr
    return degrade_model_guided(z_lr, velocity, recipe.model_guided, generator)
