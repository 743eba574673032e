"""Everything that a run of SimpleGVR Sampler needs, checked before the work. SimpleGVR Plan shows what is missing."""

from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

import folder_paths
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from ...simplegvr_core.checks import check_folder, check_host_memory
from ...simplegvr_core.latent_space import LATENT_CHANNELS
from ...simplegvr_core.planning.boxes import host_bytes
from ...simplegvr_core.sampling.refine import working_latents
from ...simplegvr_core.sampling.super_resolve import SamplingConfig
from ...simplegvr_core.tiling import Tiling, padded
from .bridge import null_prompt, refuse
from .planning import chosen_tiling, describe_model, machine_of
from .prompts import Prompts, check_boxes, fit_prompts
from .sampling import check_prompts, takes_condition


@dataclass(frozen=True)
class Request:
    """A run that is asked for.

    Attributes:
        model: The MODEL.
        sampling: Steps, guidance and noise levels.
        shape: (B, T, H, W) of the target, in latent pixels.
        positive: CONDITIONING; None where there is none.
        negative: CONDITIONING; None where there is none.
        tiling: Value of a `tiling` input; None is auto.
    """

    model: ModelPatcher
    sampling: SamplingConfig
    shape: tuple[int, int, int, int]
    positive: list | None = None
    negative: list | None = None
    tiling: dict | None = None


def preflight(request: Request, node: type[io.ComfyNode]) -> tuple[Prompts, Tiling]:
    """Returns the prompts, fitted to the target, and the boxes of a run that can be done.

    Raises:
        ValueError: It cannot; the message has what came, what is wanted and the cure.
    """
    model, extent = request.model, request.shape[1:]
    check_settings(request, node)
    try:
        tiling = chosen_tiling(request.tiling, model, request.shape)
    except ValueError as error:
        raise refuse(node, f"{error}; or choose tiling custom, which is not checked beforehand") from error
    prompts = fit_prompts(request.positive or null_prompt(), request.negative or null_prompt(), extent)
    check_boxes(tiling, extent, model, prompts, node)
    check_room(request, node)
    check_segment(model, request.shape, tiling, node)
    return prompts, tiling


def missing(request: Request, node: type[io.ComfyNode]) -> list[str]:
    """Returns what would stop a run for which there are no prompts yet, as sentences; an empty list when nothing would."""
    try:
        preflight(replace(request, positive=null_prompt(), negative=null_prompt()), node)
    except ValueError as error:
        return [f"It cannot run yet. {error}."]
    return []


def check_settings(request: Request, node: type[io.ComfyNode]) -> None:
    """Raises ValueError unless the model can run with these settings and prompts."""
    if not takes_condition(request.model, node):
        if request.sampling.denoise == 1:
            raise refuse(
                node,
                "denoise is 1 with a stock Wan model, which would ignore the source: "
                "set denoise to 0.3-0.6 for training-free mode, or load a SimpleGVR model",
            )
        if request.positive is None or (request.negative is None and request.sampling.cfg != 1):
            raise refuse(
                node,
                "a stock Wan model is not trained with the null prompt: "
                "connect the positive and negative prompt of the video's own sampler",
            )
        check_prompts(request.model, [request.positive, request.negative], node)
    if "context_handler" in request.model.model_options:
        raise refuse(
            node,
            "the model has context windows, but the sampler cuts long videos itself: "
            "remove the context windows node, and choose segments in tiling",
        )


def check_segment(model: ModelPatcher, shape: tuple[int, int, int, int], tiling: Tiling, node: type[io.ComfyNode]) -> None:
    """Raises ValueError unless a segment of a clip of shape (B, T, H, W), and the past of causal attention, fit the host's memory."""
    needed = host_bytes(describe_model(model), shape, tiling.tile_size(padded(shape[1:])), machine_of(model))
    try:
        check_host_memory(needed, "a segment", "choose shorter segments in tiling, a smaller size, or close other programs")
    except ValueError as error:
        raise refuse(node, str(error)) from error


def check_room(request: Request, node: type[io.ComfyNode]) -> None:
    """Raises ValueError unless a run's working files fit the output folder."""
    latents = working_latents(takes_condition(request.model, node), request.sampling.solver)
    try:
        check_folder(Path(folder_paths.get_output_directory()), latents * 4 * LATENT_CHANNELS * prod(request.shape))
    except OSError as error:
        raise refuse(node, str(error)) from error
