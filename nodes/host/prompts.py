"""What a CONDITIONING carries beside the text, for the low-resolution pass: found again at the target's size, or dropped with a word."""

from dataclasses import dataclass, field

from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io
from torch import Tensor

from ...simplegvr_core.tiling import Tiling, padded
from .boxes import REGION, refuse_boxes
from .regions import region_of

REGION_KEYS = {"area", "mask", "mask_strength", "set_area_to_bounds"}
UNCUTTABLE = {"control": "the prompt has a ControlNet", "gligen": "the prompt has GLIGEN boxes"}
# Patches that remember values from one call of the model to the next, which are of other boxes: by their key in transformer_options.
REMEMBERING = {"rel_l1_thresh": "TeaCache", "teacache_device": "TeaCache", "magcache_thresh": "MagCache"}


@dataclass
class Prompts:
    """The prompts of one run.

    Attributes:
        positive: CONDITIONING.
        negative: CONDITIONING.
        notes: What was dropped, as sentences.
    """

    positive: list
    negative: list
    notes: list[str] = field(default_factory=list)


def fit_prompts(positive: list, negative: list, extent: tuple[int, int, int]) -> Prompts:
    """Returns the prompts for a target, whatever size they were made for.

    Regions are found at the target's size. Latents and control videos are dropped: the models that read them are refused before.

    Args:
        positive: CONDITIONING.
        negative: CONDITIONING.
        extent: Of the target, in latent pixels along T, H, W.
    """
    dropped = {key for prompt in (positive, negative) for _, values in prompt for key in values if is_dropped(key, values[key])}
    notes = [f"The prompts' {key} is of the low-resolution pass and was dropped: the model takes none." for key in sorted(dropped)]
    fitted = ([[text, fit_prompt(values, extent)] for text, values in prompt] for prompt in (positive, negative))
    return Prompts(next(fitted), next(fitted), notes)


def fit_prompt(values: dict, extent: tuple[int, int, int]) -> dict:
    """Returns the dictionary of one prompt, see fit_prompts."""
    kept = {key: value for key, value in values.items() if key not in REGION_KEYS and not is_dropped(key, value)}
    region = region_of(values, extent, padded(extent))
    return kept if region is None else kept | {REGION: region, "area": (*region.tokens.size, *region.tokens.start)}


def is_dropped(key: str, value) -> bool:
    """Returns whether a value of a prompt is a latent or a video, or a list of them."""
    if key in REGION_KEYS:
        return False
    if isinstance(value, list | tuple):
        return any(is_dropped(key, part) for part in value)
    return isinstance(value, Tensor) and value.ndim >= 4


def check_boxes(tiling: Tiling, extent: tuple[int, int, int], model: ModelPatcher, prompts: Prompts, node: type[io.ComfyNode]) -> None:
    """Raises ValueError when a latent of that extent is cut into boxes, and the prompts or the model's patches do not allow it."""
    found = obstacles_to_boxes(model, prompts)
    if found and not tiling.fits(padded(extent)):
        raise refuse_boxes(found, node)


def obstacles_to_boxes(model: ModelPatcher, prompts: Prompts) -> list[str]:
    """Returns why the model may not be given the latent in boxes, as sentences; an empty list when it may."""
    keys = {key for prompt in (prompts.positive, prompts.negative) for _, values in prompt for key in values}
    found = [reason for key, reason in UNCUTTABLE.items() if key in keys]
    options = model.model_options.get("transformer_options", {})
    names = {name for key, name in REMEMBERING.items() if key in options}
    if has_momentum(model):
        names.add("APG with momentum")
    return found + [f"the model has {name}, which remembers other boxes' values from call to call" for name in sorted(names)]


def has_momentum(model: ModelPatcher) -> bool:
    """Returns whether Adaptive Projected Guidance is set to a running average over the calls of the model."""
    functions = [f for f in model.model_options.get("sampler_pre_cfg_function", []) if f.__module__.endswith("nodes_apg")]
    variables = [pair for f in functions for pair in zip(f.__code__.co_freevars, f.__closure__, strict=True)]
    return any(cell.cell_contents for name, cell in variables if name == "momentum")
