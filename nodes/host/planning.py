"""The plan of a run inside ComfyUI: what a MODEL is, and what memory ComfyUI could free for it."""

import comfy.model_management
import comfy.sample
import comfy.samplers
import node_helpers
import torch

from ...simplegvr_core.latent_space import token_grid
from ...simplegvr_core.networks.attention import AttentionConfig
from ...simplegvr_core.networks.dit import DiTConfig
from ...simplegvr_core.networks.upsampler import UpsamplerConfig
from ...simplegvr_core.planning.flops import dit_flops
from ...simplegvr_core.planning.network_memory import implementation
from ...simplegvr_core.planning.plan import Plan, longest_segment, plan_sampling, plan_tiling, trial
from ...simplegvr_core.sampling.super_resolve import SamplingConfig
from ...simplegvr_core.tiling import Tiling
from ..latent import null_prompt
from ..sparse_attention import attention_of
from .bridge import free_memory
from .networks import SimpleGVRModel


def plan_run(
    model, upsampler, samples_shape: tuple[int, ...], size: tuple[int, int], sampling: SamplingConfig, free_bytes: int | None = None
) -> Plan:
    """Returns the plan of a run of SimpleGVR Sampler on the model's device.

    upsampler: a LATENT_UPSCALE_MODEL of ours; None stands for one of default widths. samples_shape: (B, 16, T, h, w);
    size: (H, W). free_bytes: of another machine; by default what ComfyUI could free here. Raises ValueError when no box fits.
    """
    dit, attention = describe_model(model)
    batch, _, *extent = samples_shape
    facts = run_facts(model, free_bytes)
    return plan_sampling(
        dit,
        attention,
        UpsamplerConfig() if upsampler is None else upsampler.model.config,
        (batch, *extent),
        size,
        sampling,
        upsampler_dtype=facts["dtype"] if upsampler is None else upsampler.model.get_dtype(),
        **facts,
    )


def run_tiling(model, samples_shape: tuple[int, ...], size: tuple[int, int]) -> Tiling:
    """Returns the tiling of plan_run's plan, and makes no more of it."""
    batch, _, frames, *_ = samples_shape
    tiling, _ = plan_tiling(*describe_model(model), (batch, frames, *size), **run_facts(model))
    return tiling


def run_facts(model, free_bytes: int | None = None) -> dict:
    """Returns what plan_tiling must know of a MODEL and its device. free_bytes: of another one."""
    dit, attention = describe_model(model)
    dtype, device = model.model.get_dtype_inference(), model.load_device
    return {
        "free_bytes": free_memory(model) if free_bytes is None else free_bytes,
        "dtype": dtype,
        "max_frames": longest_segment(dit, attention),
        "implementation": implementation(dit, attention, device, dtype),
        "weights_bytes": model.model_size(),
        "on_host": free_bytes is None and comfy.model_management.is_device_cpu(device),
    }


def describe_model(model) -> tuple[DiTConfig, AttentionConfig]:
    """Returns sizes and self-attention of a SimpleGVR MODEL, or of a stock Wan one, with SimpleGVR Sparse Attention or without.

    A stock Wan's blocks need within 1 % of the memory of ours.
    """
    network = model.model.diffusion_model
    if isinstance(model.model, SimpleGVRModel):
        return network.config, attention_of(model)
    dit = DiTConfig(
        in_dim=network.in_dim,
        dim=network.dim,
        ffn_dim=network.ffn_dim,
        num_heads=network.num_heads,
        num_layers=network.num_layers,
        text_dim=network.text_dim,
    )
    return dit, attention_of(model)


def seconds_per_operation(model, plan: Plan) -> float:
    """Returns the seconds that an operation of a forward pass takes, timed on a small box, with the null prompt of one token."""
    box, found = plan.trial_tile, []
    empty = torch.zeros(1, 16, *box)
    prompt = node_helpers.conditioning_set_values(null_prompt(), {"concat_latent_image": empty})

    def time_it(denoise, x: torch.Tensor, sigmas: torch.Tensor, extra_args: dict, callback, disable) -> torch.Tensor:
        operations = dit_flops(*describe_model(model), token_grid(box), text_tokens=1).total
        found.append(trial(lambda: denoise(x, sigmas[:1], **extra_args), operations))
        return x

    sampler, sigmas = comfy.samplers.KSAMPLER(time_it), torch.tensor([0.5, 0.0])
    comfy.sample.sample_custom(model, empty, 1.0, sampler, sigmas, prompt, prompt, empty)
    return found[0]
