"""How a MODEL is sampled: the settings of its checkpoint or of the user, whether it takes a condition, and which models cannot be run."""

import json
from dataclasses import replace
from pathlib import Path
from typing import cast

import comfy.model_base
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from ...simplegvr_core.latent_space import LATENT_CHANNELS
from ...simplegvr_core.networks import checkpoint
from ...simplegvr_core.sampling.solvers import Solver
from ...simplegvr_core.sampling.super_resolve import SamplingConfig
from .bridge import refuse
from .networks import SimpleGVRModel

TRAINING_FREE = SamplingConfig(steps=20, cfg=6.0, denoise=0.4)  # cfg: Wan 2.1's own
DISTILLED = replace(TRAINING_FREE, steps=4, cfg=1.0)  # for a LoRA that distils steps and guidance
IMAGE_TO_VIDEO = 36  # input channels: noised latent, mask (4), image
FITTING = (
    "load a text-to-video Wan with the same latents in its place, such as wan2.2_t2v_low_noise_14B_fp8_scaled.safetensors or "
    "wan2.1_t2v_1.3B_fp16.safetensors; the text prompts can stay"
)
REFERENCES = {  # in a prompt; a text-to-video Wan would join them to the latent at their own size
    "time_dim_concat": "reference images of Wan Phantom",
    "context_latents": "reference videos of Wan Bernini",
}


def sampling_config(model: ModelPatcher, settings: dict, node: type[io.ComfyNode], solver: str = "recommended") -> SamplingConfig:
    """Returns the settings that a `settings` value asks for: recommended, custom or distilled.

    The shift is that of the model, which stock nodes change, or of its few-step LoRA. Custom settings start from noise or from the
    condition, and have the solver, as the model's recommended ones do.

    Args:
        model: The MODEL.
        settings: Value of a `settings` input.
        node: The node that errors name.
        solver: Value of a `solver` input.

    Raises:
        ValueError: What takes_condition raises; the settings are distilled and the model takes a condition; or they are recommended
            and the model is a SimpleGVR checkpoint without its settings.
    """
    of_lora = lora_sampling(model)
    shift = cast("float", model.get_model_object("model_sampling").shift)
    if of_lora is not None and "model_sampling" not in model.object_patches:
        shift = of_lora.shift
    with_condition = takes_condition(model, node)
    own = recommended(model) if with_condition else of_lora or TRAINING_FREE
    if solver != "recommended":
        own = replace(own, solver=cast("Solver", solver))
    if settings["settings"] == "custom":
        return replace(own, **{key: value for key, value in settings.items() if key != "settings"}, shift=shift)
    if settings["settings"] == "distilled":
        if with_condition:
            raise refuse(
                node,
                "settings is distilled with a model that takes a condition, wanted a stock text-to-video Wan with a few-step LoRA: "
                "choose recommended, which are the settings of the model's checkpoint",
            )
        own = replace(DISTILLED, solver=own.solver)
    elif with_condition and of_lora is None and not isinstance(model.model, SimpleGVRModel):
        raise refuse(
            node,
            "the settings of the model's checkpoint are unknown, because a stock node loaded it: load it with Load SimpleGVR Model, "
            "or choose settings custom (and put SimpleGVR Sparse Attention before this node)",
        )
    return replace(own, shift=shift)


def recommended(model: ModelPatcher) -> SamplingConfig:
    """Returns the settings of the LoRA that was loaded last, else of the checkpoint, else the paper's, for a model with a condition."""
    return lora_sampling(model) or getattr(model.model, "sampling", SamplingConfig())


def lora_sampling(model: ModelPatcher) -> SamplingConfig | None:
    """Returns the settings in the metadata of the LoRA that was loaded last, None where it has none. Its loader attaches the metadata.

    Raises:
        ValueError: The settings are damaged.
    """
    metadata = model.get_attachment("lora_metadata") or {}
    if checkpoint.METADATA_KEY not in metadata:
        return None
    try:
        config = json.loads(metadata[checkpoint.METADATA_KEY])
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"the LoRA has a damaged {checkpoint.METADATA_KEY!r} ({error}): get the file again") from error
    return checkpoint.parse_config(SamplingConfig, config, "sampling", Path("the LoRA"))


def takes_condition(model: ModelPatcher, node: type[io.ComfyNode]) -> bool:
    """Returns True for a SimpleGVR model (32 input channels), False for a plain text-to-video Wan (16).

    Raises:
        ValueError: It is another model; the message names the one that fits.
    """
    embedding = getattr(model.model.diffusion_model, "patch_embedding", None)
    channels = None if embedding is None else embedding.in_channels
    if type(model.model) in (comfy.model_base.WAN21, SimpleGVRModel) and channels in (LATENT_CHANNELS, 2 * LATENT_CHANNELS):
        return channels == 2 * LATENT_CHANNELS
    what = f"the model is a {type(model.model).__name__} with {channels} input channels"
    wanted = "wanted a SimpleGVR model (32) or a plain text-to-video Wan 2.1 or 2.2 14B model (16)"
    if isinstance(model.model, comfy.model_base.WAN22):
        cure = f"it is the 5B model of Wan 2.2, whose latents differ: {FITTING}"
    elif isinstance(model.model, comfy.model_base.WAN21):
        kind = "an image-to-video Wan" if channels == IMAGE_TO_VIDEO else "a Wan with inputs of its own"
        cure = f"it is {kind}; the refinement starts from the video's own latent and needs no image or control video: {FITTING}"
    else:
        cure = FITTING
    raise refuse(node, f"{what}, {wanted}. {cure[0].upper()}{cure[1:]}")


def check_prompts(model: ModelPatcher, prompts: list[list | None], node: type[io.ComfyNode]) -> None:
    """Raises ValueError when a CONDITIONING has references that a stock Wan would join to a latent of another size."""
    if isinstance(model.model, SimpleGVRModel):
        return  # reads nothing but text and condition
    for prompt in prompts:
        for _, values in prompt or []:
            if name := next((REFERENCES[key] for key in REFERENCES if values.get(key) is not None), None):
                raise refuse(
                    node,
                    f"a prompt carries {name}, at the size of the low-resolution video: "
                    "connect CLIP Text Encode itself, not the node behind it that adds the references",
                )


def has_lora(model: ModelPatcher) -> bool:
    """Returns whether a node has patched the weights of a MODEL, or put modules beside them, as LoRA loaders do."""
    return bool(model.patches or model.injections)
