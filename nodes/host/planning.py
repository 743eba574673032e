"""The plan of a run inside ComfyUI: what a MODEL is, what memory ComfyUI could free for it, and the boxes that a node runs in."""

from dataclasses import replace

import comfy.model_management
import comfy.sample
import comfy.samplers
import node_helpers
import torch
from comfy.model_patcher import ModelPatcher

from ...simplegvr_core.latent_space import SPATIAL_FACTOR, token_grid
from ...simplegvr_core.networks.dit import DiTConfig
from ...simplegvr_core.planning.boxes import Machine, Networks, plan_tiling
from ...simplegvr_core.planning.flops import dit_flops
from ...simplegvr_core.planning.network_memory import dit_bytes, fastest_kernel
from ...simplegvr_core.planning.plan import Job, Plan, plan_sampling, trial
from ...simplegvr_core.tiling import Tiling
from .attention import describe
from .bridge import free_memory, null_prompt
from .networks import SimpleGVRModel
from .override import attention_of


def plan_run(model: ModelPatcher, upsampler: ModelPatcher | None, job: Job, free_bytes: int | None = None) -> Plan:
    """Returns the plan of a run of SimpleGVR Sampler on the model's device.

    Args:
        model: The MODEL.
        upsampler: A LATENT_UPSCALE_MODEL of ours; None is one of default widths.
        job: What is super-resolved.
        free_bytes: Memory of another machine; None is what ComfyUI could free on this one.

    Raises:
        ValueError: No box fits.
    """
    networks, machine = describe_model(model), machine_of(model, free_bytes)
    if upsampler is not None:
        networks = replace(networks, upsampler=upsampler.model.config)
        machine = replace(machine, upsampler_dtype=upsampler.model.get_dtype())
    return plan_sampling(networks, job, machine)


def run_tiling(model: ModelPatcher, shape: tuple[int, int, int, int]) -> Tiling:
    """Returns the tiling of plan_run's plan and counts nothing else. shape: (B, T, H, W) of the target."""
    return plan_tiling(describe_model(model), shape, machine_of(model))[0]


def chosen_tiling(tiling: dict | None, model: ModelPatcher, shape: tuple[int, int, int, int]) -> Tiling:
    """Returns the boxes that a `tiling` value asks for; with auto those that fit the memory with the least work.

    Args:
        tiling: The value; None is auto.
        model: The MODEL.
        shape: (B, T, H, W) of the target.

    Raises:
        ValueError: Not even the smallest box fits.
    """
    if tiling is None or tiling["tiling"] == "auto":
        return run_tiling(model, shape)
    attention = attention_of(model)
    if tiling["tiling"] == "whole":
        return attention.tiling((None, None, None))
    rows, columns = (-(-tiling[side] // SPATIAL_FACTOR) for side in ("tile_height", "tile_width"))
    return attention.tiling((tiling["segment"] or None, rows or None, columns or None))


def box_bytes(model: ModelPatcher, batch: int, box: tuple[int, int, int]) -> int:
    """Returns the counted bytes of the MODEL's forward pass on a box (T, H, W), beside its weights."""
    networks, machine = describe_model(model), machine_of(model)
    return dit_bytes(networks.dit, networks.attention, batch, box, machine.dtype, machine.kernel)


def describe_attention(model: ModelPatcher, grid: tuple[int, int, int]) -> str:
    """Returns in words which self-attention the MODEL runs on a grid of tokens."""
    networks, attention = describe_model(model), attention_of(model)
    if attention.kind == "full" and attention.unit is None:
        return "ComfyUI: full attention"
    ordered = isinstance(model.model, SimpleGVRModel)
    head_dim = networks.dit.dim // networks.dit.num_heads
    return describe(attention, grid, ordered, model.load_device, model.model.get_dtype_inference(), head_dim)


def machine_of(model: ModelPatcher, free_bytes: int | None = None) -> Machine:
    """Returns the MODEL's device, with the memory that ComfyUI could free there, or with that of another machine."""
    networks, dtype, device = describe_model(model), model.model.get_dtype_inference(), model.load_device
    return Machine(
        free_memory(model) if free_bytes is None else free_bytes,
        dtype,
        fastest_kernel(networks.dit, networks.attention, device, dtype),
        model.model_size(),
        on_host=free_bytes is None and comfy.model_management.is_device_cpu(device),
    )


def describe_model(model: ModelPatcher) -> Networks:
    """Returns sizes and self-attention of a SimpleGVR MODEL, or of a stock Wan one, with SimpleGVR Sparse Attention or without.

    The blocks of a stock Wan need within 1 % of the memory of ours.
    """
    network = model.model.diffusion_model
    if isinstance(model.model, SimpleGVRModel):
        return Networks(network.config, attention_of(model))
    dit = DiTConfig(
        in_dim=network.in_dim,
        dim=network.dim,
        ffn_dim=network.ffn_dim,
        num_heads=network.num_heads,
        num_layers=network.num_layers,
        text_dim=network.text_dim,
    )
    return Networks(dit, attention_of(model))


def seconds_per_operation(model: ModelPatcher, plan: Plan) -> float:
    """Returns the seconds that an operation of a forward pass takes, timed on a small box, with the null prompt of one token."""
    box, networks, found = plan.trial_tile, describe_model(model), []
    empty = torch.zeros(1, 16, *box)
    prompt = node_helpers.conditioning_set_values(null_prompt(), {"concat_latent_image": empty})

    def time_it(denoise, x: torch.Tensor, sigmas: torch.Tensor, extra_args: dict, callback, disable) -> torch.Tensor:
        operations = dit_flops(networks.dit, networks.attention, token_grid(box), text_tokens=1).total
        found.append(trial(lambda: denoise(x, sigmas[:1], **extra_args), operations))
        return x

    sampler, sigmas = comfy.samplers.KSAMPLER(time_it), torch.tensor([0.5, 0.0])
    comfy.sample.sample_custom(model, empty, 1.0, sampler, sigmas, prompt, prompt, empty)
    return found[0]
