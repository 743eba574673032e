"""How a MODEL is sampled: the settings of its checkpoint or of the user, and whether it takes a condition."""

from dataclasses import replace
from typing import cast

from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from ...simplegvr_core.latent_space import LATENT_CHANNELS
from ...simplegvr_core.sampling.super_resolve import SamplingConfig
from .bridge import refuse

TRAINING_FREE = SamplingConfig(steps=20, cfg=6.0, denoise=0.4)  # cfg: Wan 2.1's own


def sampling_config(model: ModelPatcher, settings: dict, node: type[io.ComfyNode]) -> SamplingConfig:
    """Returns the settings that a `settings` value asks for: recommended or custom, always with the model's own shift.

    Raises what takes_condition raises.
    """
    shift = cast("float", model.get_model_object("model_sampling").shift)
    if settings["settings"] == "custom":
        custom = {key: value for key, value in settings.items() if key != "settings"}
        return SamplingConfig(**custom, shift=shift)
    if not takes_condition(model, node):
        return replace(TRAINING_FREE, shift=shift)
    return replace(recommended(model), shift=shift)


def recommended(model: ModelPatcher) -> SamplingConfig:
    """Returns the settings of a SimpleGVR model's checkpoint, the paper's for another model that takes a condition."""
    return getattr(model.model, "sampling", SamplingConfig())


def takes_condition(model: ModelPatcher, node: type[io.ComfyNode]) -> bool:
    """Returns True for a SimpleGVR model (32 input channels), False for a plain text-to-video Wan (16).

    Raises:
        ValueError: It is another model.
    """
    embedding = getattr(model.model.diffusion_model, "patch_embedding", None)
    channels = None if embedding is None else embedding.in_channels
    if channels not in (LATENT_CHANNELS, 2 * LATENT_CHANNELS):
        raise refuse(
            node,
            f"the model is a {type(model.model).__name__} with {channels} input channels, wanted a "
            "SimpleGVR model (32) or a text-to-video Wan 2.1 or 2.2 14B model (16)",
        )
    return channels == 2 * LATENT_CHANNELS
