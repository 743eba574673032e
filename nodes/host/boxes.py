"""ComfyUI's guider for one box of the latent at a time: prompts are cut with the box, what patches remember is remembered by box."""

import copy
from typing import Any

import comfy.samplers
import torch
from comfy_api.latest import io
from torch import Tensor

from ...simplegvr_core.tiling import Box
from .bridge import refuse
from .regions import Region

REGION = "simplegvr_region"  # key in a prompt: its Region
CACHE = "easycache"  # key in transformer_options: what EasyCache and LazyCache remember


class BoxedGuider:
    """(z_t, condition or None, sigma) -> velocity, by ComfyUI's guider, of the box that was entered last.

    Args:
        denoise: What ComfyUI gives a sampler, (z_t, sigma (B,)) -> predicted clean latent.
        extra_args: What ComfyUI gives a sampler beside it.
        extent: Of the latent that is sampled, in latent pixels along T, H, W.
        device: The model's.
        uncuttable: Why the latent may not be cut, as sentences; empty when it may.
        causal: Whether the model looks back on earlier segments.
        node: The node that errors name.
    """

    def __init__(
        self,
        denoise,
        extra_args: dict,
        *,
        extent: tuple[int, int, int],
        device: torch.device,
        uncuttable: list[str],
        causal: bool,
        node: type[io.ComfyNode],
    ):
        self.denoise, self.extra_args, self.extent, self.device = denoise, extra_args, extent, device
        self.uncuttable, self.node = uncuttable, node
        self.guider: comfy.samplers.CFGGuider = denoise.inner_model
        self.whole = {name: [on_host(prompt, extent, causal) for prompt in prompts] for name, prompts in self.guider.conds.items()}
        self.caches: dict[Box, Any] = {}

    def enter(self, box: Box) -> None:
        """Prepares the next call for a box. Raises ValueError when it is not the whole latent and that may not be cut."""
        if self.uncuttable and box.size != self.extent:
            raise refuse_boxes(self.uncuttable, self.node)
        cut = {name: [cut_prompt(prompt, box, self.extent, self.device) for prompt in prompts] for name, prompts in self.whole.items()}
        self.guider.conds = {name: [prompt for prompt in prompts if prompt is not None] for name, prompts in cut.items()}
        options = self.extra_args["model_options"]["transformer_options"]
        if CACHE in options:
            if box not in self.caches:
                self.caches[box] = copy.copy(options[CACHE]).reset()
            self.extra_args = with_option(self.extra_args, CACHE, self.caches[box])

    def __call__(self, z: Tensor, condition: Tensor | None, sigma: Tensor) -> Tensor:
        if condition is not None:
            for prompt in [prompt for prompts in self.guider.conds.values() for prompt in prompts]:
                given = prompt["model_conds"]["c_concat"]
                prompt["model_conds"]["c_concat"] = given._copy_with(condition.to(self.device))
        z, sigma = z.to(self.device), sigma.to(self.device)
        return ((z - self.denoise(z, sigma.expand(len(z)), **self.extra_args)) / sigma).float().cpu()

    def close(self) -> None:
        """Gives the guider its own prompts back, by which ComfyUI cleans up."""
        self.guider.conds = self.whole

    def report(self) -> list[str]:
        """Returns what there is to say about the patches that remember."""
        if not self.caches:
            return []
        skipped, name = sum(cache.total_steps_skipped for cache in self.caches.values()), next(iter(self.caches.values())).name
        return [f"{name}: kept for each of {len(self.caches)} boxes, skipped {skipped} calls of the model."]


def refuse_boxes(obstacles: list[str], node: type[io.ComfyNode]) -> ValueError:
    """Returns the error of a node whose latent is cut into boxes and may not be. obstacles: why, as sentences."""
    why = ", and ".join(obstacles)
    return refuse(node, f"the latent is sampled in boxes, but {why}: remove that, or choose a smaller size and tiling whole")


def with_option(extra_args: dict, name: str, value: Any) -> dict:
    """Returns a sampler's extra_args with another value in transformer_options."""
    options = extra_args["model_options"]
    return {**extra_args, "model_options": {**options, "transformer_options": {**options["transformer_options"], name: value}}}


def on_host(prompt: dict, extent: tuple[int, int, int], causal: bool) -> dict:
    """Returns a prompt whose conditions of the latent's size are in host memory, and whose region is that of a causal model or not."""
    conds = prompt["model_conds"]
    large = {name: given._copy_with(given.cond.cpu()) for name, given in conds.items() if is_of_size(given.cond, extent)}
    region: Region | None = prompt.get(REGION)
    causal_region = {REGION: region.made_causal()} if region is not None and causal else {}
    return {**prompt, **causal_region, "model_conds": conds | large}


def is_of_size(values: Any, extent: tuple[int, int, int]) -> bool:
    return isinstance(values, Tensor) and values.ndim >= 5 and tuple(values.shape[-3:]) == extent


def cut_prompt(prompt: dict, box: Box, extent: tuple[int, int, int], device: torch.device) -> dict | None:
    """Returns a prompt as the guider wants it for a box of the latent; None where it does not apply."""
    conds = dict(prompt["model_conds"])
    for name, given in conds.items():
        if is_of_size(given.cond, extent):
            conds[name] = given._copy_with(given.cond[box.slices].to(device))
    cut = {key: value for key, value in prompt.items() if key not in (REGION, "area")} | {"model_conds": conds}
    region: Region | None = prompt.get(REGION)
    if region is None:
        return cut
    if (part := region.cut(box)) is None:
        return None
    area, weights = part
    return cut | {"area": (*area.size, *area.start), "mask": weights.to(device)}
