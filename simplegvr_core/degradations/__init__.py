"""Degradations that turn a clip into the low-resolution latent of a training pair. Recipes are data.

A generator on the CPU is the only source of randomness: the same seed gives the same result, bit for bit.
"""

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from ..video.frames import area_downscale
from .classical import ClassicalConfig, degrade_classical
from .flow_based import FlowBasedConfig, degrade_flow_based
from .model_guided import ModelGuidedConfig, degrade_model_guided
from .motion import estimate_motion


@dataclass(frozen=True)
class Recipe:
    """Degradations in the order in which they are applied; None is not applied.

    Attributes:
        classical: Applied to the full-resolution video, which it downscales; area averaging downscales it where this is None.
        flow_based: Applied to the low-resolution video.
        model_guided: Applied to the low-resolution latent.
    """

    classical: ClassicalConfig | None = None
    flow_based: FlowBasedConfig | None = None
    model_guided: ModelGuidedConfig | None = None


# "classical": RealBasicVSR's two passes, which the ICLR text of the paper names. "one_order": what arXiv version 1 describes, where two
# passes are too much for generated video. "aigc": both of the paper's degradations on one clip, one after the other.
RECIPES = {
    "area": Recipe(),
    "classical": Recipe(classical=ClassicalConfig()),
    "one_order": Recipe(classical=ClassicalConfig(second=None)),
    "flow_based": Recipe(flow_based=FlowBasedConfig()),
    "model_guided": Recipe(model_guided=ModelGuidedConfig()),
    "aigc": Recipe(flow_based=FlowBasedConfig(), model_guided=ModelGuidedConfig()),
}


def degrade_video(video: Tensor, scale: int | Fraction, recipe: Recipe, generator: torch.Generator) -> Tensor:
    """Returns the low-resolution video after the degradations of a recipe that act on pixels.

    Args:
        video: (1, 3, F, H, W) in [-1, 1].
        scale: Downscaling factor.
        recipe: Degradations to apply.
        generator: Source of randomness, on the CPU.

    Returns:
        (1, 3, F, H // scale, W // scale) in [-1, 1].
    """
    classical, flow_based = recipe.classical, recipe.flow_based
    video = degrade_classical(video, scale, classical, generator) if classical else area_downscale(video, scale)
    if flow_based is None:
        return video
    return degrade_flow_based(video, estimate_motion(video, flow_based.motion), flow_based, generator)


def degrade_latent(z_lr: Tensor, recipe: Recipe, velocity: Callable[[Tensor, Tensor], Tensor], generator: torch.Generator) -> Tensor:
    """Returns a low-resolution latent after the model-guided degradation of a recipe; unchanged where the recipe has none.

    Args:
        z_lr: (B, 16, T, h, w), normalised.
        recipe: Degradations to apply.
        velocity: Maps z_t and its noise level to the velocity of a text-to-video model.
        generator: Source of randomness, on the CPU.
    """
    if recipe.model_guided is None:
        return z_lr
    return degrade_model_guided(z_lr, velocity, recipe.model_guided, generator)
