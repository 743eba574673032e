"""The core's networks inside ComfyUI: its operations, memory management, model options and VAE socket."""

import logging
import math
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, cast

import comfy.cli_args
import comfy.latent_formats
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.patcher_extension
import comfy.sd
import comfy.supported_models
import comfy.utils
import torch
from comfy.ldm.modules.attention import optimized_attention
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...simplegvr_core.networks import checkpoint
from ...simplegvr_core.networks.attention import AttentionConfig
from ...simplegvr_core.networks.dit import DiTConfig, SelfAttention, SimpleGVRDiT, TokenOrder, parse_dit_config, time_in_float32
from ...simplegvr_core.networks.foreign import read_any
from ...simplegvr_core.networks.layers import CausalState
from ...simplegvr_core.networks.slab_memory import SlabMemory
from ...simplegvr_core.networks.tiny_vae import PreviewColors, TinyVAE, TinyVAEConfig
from ...simplegvr_core.networks.upsampler import LatentUpsampler, make_upsampler, parse_upsampler_config
from ...simplegvr_core.networks.windows import TokenLayout
from ...simplegvr_core.planning.network_memory import coding_bytes, dit_bytes, fastest_kernel
from ...simplegvr_core.sampling.super_resolve import SamplingConfig
from .attention import ATTENTION_OPTION, RunAttention
from .family import set_origin

MEMORY_OPTION = "simplegvr_memory"  # key in transformer_options: a SlabMemory, where a clip comes in segments


class ComfyDiT(SimpleGVRDiT):
    """The DiT with ComfyUI's operations, dense attention and wrappers. Of the stock Wan's patches it reads none but
    attention overrides, and those for its dense attention only."""

    def __init__(self, config: DiTConfig, attention: AttentionConfig, dtype=None, device=None, operations=None, **detected):
        super().__init__(config, attention, device=device, dtype=dtype, operations=operations)
        self.text_dim = config.text_dim

    def forward(self, x: Tensor, timestep: Tensor, context: Tensor, transformer_options: dict, **kwargs) -> Tensor:
        """Returns the velocity (B, 16, T, H, W) of x (B, 32, T, H, W). kwargs: other models' conditions, unused."""
        wrappers = comfy.patcher_extension.get_all_wrappers(comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, transformer_options)
        executor = comfy.patcher_extension.WrapperExecutor.new_class_executor(self._forward, self, wrappers)
        return executor.execute(x, timestep, context, None, None, transformer_options)

    def _forward(self, x, timestep, context, clip_fea, time_dim_concat, transformer_options):
        transformer_options["total_blocks"] = len(self.blocks)
        options = {"transformer_options": transformer_options}
        self_attention = cast(SelfAttention, partial(self.self_attention, **options))
        token_order = cast(TokenOrder, partial(self.token_order, **options))
        memory = memory_of(transformer_options)
        first_frame = 0 if memory is None else memory.first_frame
        return super().forward(x, timestep, context, self_attention, partial(dense_attention, **options), token_order, first_frame)

    @torch.compiler.disable  # a compiled model would keep the options it was compiled with
    def token_order(self, grid: tuple[int, int, int], device: torch.device, transformer_options: dict) -> Tensor | None:
        """Returns the order of tokens that serves the attention of this run best, None for raster order."""
        if (memory := memory_of(transformer_options)) is not None:
            return memory.token_order(grid, device)
        return self.run_attention(transformer_options).config.token_order(grid, device)

    def run_attention(self, transformer_options: dict) -> RunAttention:
        """Returns the attention that a node set, else the checkpoint's."""
        return transformer_options.get(ATTENTION_OPTION, RunAttention(self.attention))

    @torch.compiler.disable
    def self_attention(self, q: Tensor, k: Tensor, v: Tensor, layout: TokenLayout, block: int, transformer_options: dict) -> Tensor:
        """Returns attention (B, L, n, d) by the node's configuration, else the checkpoint's; full attention is ComfyUI's."""
        transformer_options["grid_sizes"], transformer_options["block_index"] = layout.grid, block
        if (memory := memory_of(transformer_options)) is not None:
            prompts = transformer_options["uuids"]  # whose batches lie behind each other
            batches = zip(prompts, *(x.chunk(len(prompts)) for x in (q, k, v)), strict=True)
            return torch.cat([memory.attend(q_, k_, v_, layout=layout, block=block, branch=prompt) for prompt, q_, k_, v_ in batches])
        attention = self.run_attention(transformer_options)
        return attention(q, k, v, layout, block, partial(dense_attention, transformer_options=transformer_options))


def memory_of(transformer_options: dict) -> SlabMemory | None:
    """Returns the keys and values of the segments before, where a clip comes in segments and the attention is causal."""
    return transformer_options.get(MEMORY_OPTION)


def dense_attention(q: Tensor, k: Tensor, v: Tensor, transformer_options: dict) -> Tensor:
    """Returns ComfyUI's own attention (B, L, n, d), by the kernel that the user chose; k and v may have another length."""
    heads = q.shape[2]
    q, k, v = (y.flatten(2) for y in (q, k, v))
    return optimized_attention(q, k, v, heads=heads, transformer_options=transformer_options).unflatten(2, (heads, -1))


class SimpleGVRModel(comfy.model_base.WAN21):
    """ComfyUI's Wan 2.1 model (latents, conditions, sampling) around our DiT.

    Args:
        model_config: ComfyUI's configuration.
        dit: Sizes of the network.
        attention: The checkpoint's self-attention.
        sampling: Settings that the checkpoint recommends.
        colors: Of previews of its latents; None is Wan's.
    """

    diffusion_model: ComfyDiT
    checkpoint_config: dict  # of the file that was loaded

    def __init__(
        self,
        model_config,
        dit: DiTConfig,
        attention: AttentionConfig,
        sampling: SamplingConfig,
        colors: PreviewColors | None = None,
        device=None,
    ):
        network = cast("Any", partial(ComfyDiT, dit, attention))
        comfy.model_base.BaseModel.__init__(self, model_config, comfy.model_base.ModelType.FLOW, device=device, unet_model=network)
        self.image_to_video, self.sampling = False, sampling
        if colors is not None:
            self.latent_format.latent_rgb_factors, self.latent_format.latent_rgb_factors_bias = colors.factors, colors.bias

    def state_dict_for_saving(self, unet_state_dict: dict[str, Tensor], *args, **kwargs) -> dict[str, Tensor]:
        """Returns what ComfyUI's Model Save writes: the weights, and the configuration as a tensor, as it writes metadata of its own."""
        with_config = {**unet_state_dict, checkpoint.METADATA_KEY: checkpoint.config_tensor(self.checkpoint_config)}
        return super().state_dict_for_saving(with_config, *args, **kwargs)

    def concat_cond(self, **kwargs) -> Tensor | None:
        """Returns the condition, normalised, of the latent's size. The stock model would fill in zeros or resize it."""
        condition, latent = kwargs.get("concat_latent_image"), kwargs["noise"]
        if condition is None:
            raise ValueError("a SimpleGVR model has no condition: put SimpleGVR Conditioning before the sampler, or use SimpleGVR Sampler")
        if condition.shape[2:] != latent.shape[2:]:
            raise ValueError(
                f"the condition is {tuple(condition.shape[2:])} latent frames, rows, columns, but the latent to sample is "
                f"{tuple(latent.shape[2:])}: sample the latent that SimpleGVR Conditioning gives"
            )
        return super().concat_cond(**kwargs)

    def memory_required(self, input_shape, cond_shapes={}) -> int:  # noqa: B006
        """Returns the bytes of one forward pass at input_shape (B, 16, T, H, W), counted from the network.

        Beside the network's there are four float32 latents: noised, condition, velocity, clean.
        """
        network, dtype = self.diffusion_model, self.get_dtype_inference()
        batch, _, *box = input_shape
        kernel = fastest_kernel(network.config, network.attention, comfy.model_management.get_torch_device(), dtype)
        return dit_bytes(network.config, network.attention, batch, tuple(box), dtype, kernel) + 4 * 4 * math.prod(input_shape)


def model_config(dit: DiTConfig, shift: float, weights: dict[str, Tensor], model_options: dict) -> comfy.supported_models.WAN21_T2V:
    """Returns ComfyUI's configuration of a SimpleGVR model, as it gives one to a stock Wan with these weights.

    Args:
        dit: Sizes of the network.
        shift: Shift of the noise levels.
        weights: State dict of the network.
        model_options: ComfyUI's: dtype and fp8_optimizations are read.
    """
    management, utils = comfy.model_management, comfy.utils
    config = comfy.supported_models.WAN21_T2V({"image_model": "wan2.1", "model_type": "t2v", **asdict(dit)})
    supported = config.supported_inference_dtypes
    dtype = model_options.get("dtype") or management.unet_dtype(
        model_params=utils.calculate_parameters(weights), supported_dtypes=list(supported), weight_dtype=utils.weight_dtype(weights)
    )
    config.set_inference_dtype(dtype, management.unet_manual_cast(dtype, management.get_torch_device(), supported))
    config.optimizations["fp8"] = model_options.get("fp8_optimizations", False)
    config.sampling_settings["shift"] = shift
    return config


def load_model(path: str, model_options: dict, family: str = "auto", disable_dynamic: bool = False) -> ModelPatcher:
    """Returns the MODEL of a checkpoint with a condition, its configuration applied.

    Args:
        path: The checkpoint, ours or one that foreign.read_any recognises.
        model_options: ComfyUI's: dtype and fp8_optimizations are read.
        family: Whose weights they are where the file does not say it, of foreign.FAMILIES.
        disable_dynamic: Whether ComfyUI wants the patcher that does not load weights on demand.

    Raises:
        ValueError: It is no complete checkpoint of that kind, or does not fit its configuration. The message names the file.
    """
    weights, config = read_any(Path(path), "dit", family)
    dit, attention = parse_dit_config(config, Path(path))
    checkpoint.check_fit_of(partial(SimpleGVRDiT, dit, attention), weights, Path(path))
    weights = time_in_float32(dit, weights)
    sampling = checkpoint.parse_config(SamplingConfig, config, "sampling", Path(path))
    colors = checkpoint.parse_config(PreviewColors, config, "preview", Path(path)) if "preview" in config else None
    network = SimpleGVRModel(model_config(dit, sampling.shift, weights, model_options), dit, attention, sampling, colors)
    network.checkpoint_config = config
    # looked up at each call: with dynamic VRAM ComfyUI puts another class there when it starts
    patcher_class = ModelPatcher if disable_dynamic else comfy.model_patcher.CoreModelPatcher
    model = patcher_class(
        network, load_device=comfy.model_management.get_torch_device(), offload_device=comfy.model_management.unet_offload_device()
    )
    if not comfy.model_management.is_device_cpu(model.offload_device):
        network.to(model.offload_device)
    network.load_model_weights(weights, assign=model.is_dynamic())
    model.cached_patcher_init = (load_model, (path, model_options, family))
    set_origin(model, config, path)
    return model


def load_upsampler(path: str, family: str = "auto") -> ModelPatcher:
    """Returns the LATENT_UPSCALE_MODEL of an upsampler checkpoint, under ComfyUI's memory management. family: as of load_model.

    Raises ValueError that names the file when it is no complete upsampler or does not fit its configuration.
    """
    state_dict, config = read_any(Path(path), "upsampler", family)
    upsampler_config = parse_upsampler_config(config, Path(path))
    checkpoint.check_fit_of(partial(make_upsampler, upsampler_config), state_dict, Path(path))
    dtype = comfy.model_management.vae_dtype(allowed_dtypes=[torch.bfloat16, torch.float32])
    model = make_upsampler(upsampler_config, dtype=dtype, operations=comfy.ops.disable_weight_init).eval()
    if isinstance(model, LatentUpsampler):
        model.fast = not comfy.cli_args.args.fp32_vae
    comfy.model_management.archive_model_dtypes(model)
    patcher = comfy.model_patcher.CoreModelPatcher(
        model, load_device=comfy.model_management.get_torch_device(), offload_device=comfy.model_management.unet_offload_device()
    )
    model.load_state_dict(state_dict, assign=patcher.is_dynamic())
    set_origin(patcher, config, path)
    return patcher


class ComfyTinyVAE(TinyVAE):
    """TinyVAE at ComfyUI's border: latents in VAE space instead of normalised."""

    latent_format = comfy.latent_formats.Wan21()

    def encode(self, video: Tensor) -> Tensor:
        return self.latent_format.process_out(super().encode(video))

    def decode_after(self, past: CausalState | None, samples: Tensor) -> Tensor:
        return super().decode_after(past, self.latent_format.process_in(samples))


class VideoSocket(comfy.sd.VAE):
    """A VAE for ComfyUI's stock encode and decode nodes, with Wan 2.1's latent shape.

    Args:
        make: Makes the network; dtype and operations are given.
        state_dict: Weights that fit it.
        memory: Maps "encode" or "decode", the shape of what comes in and a dtype to the bytes that it takes.
        dtypes: That the network may run in, the best one first.
    """

    def __init__(
        self,
        make: Callable,
        state_dict: dict[str, Tensor],
        memory: Callable[[str, tuple[int, ...], torch.dtype], int],
        dtypes: tuple[torch.dtype, ...] = (torch.bfloat16, torch.float32),
    ):
        # ComfyUI sets a VAE's 20 or so defaults nowhere else, and each release adds some: a VAE without weights has them
        with without_empty_vae_warning():
            super().__init__(sd={})
        self.latent_dim, self.latent_channels = 3, 16
        self.upscale_ratio = (lambda frames: max(0, 4 * frames - 3), 8, 8)
        self.downscale_ratio = (lambda frames: max(0, (frames + 3) // 4), 8, 8)
        self.upscale_index_formula = self.downscale_index_formula = (4, 8, 8)
        self.memory_used_encode, self.memory_used_decode = partial(memory, "encode"), partial(memory, "decode")
        self.device = comfy.model_management.vae_device()
        self.output_device = comfy.model_management.intermediate_device()
        self.vae_dtype = comfy.model_management.vae_dtype(self.device, list(dtypes))
        self.first_stage_model = make(dtype=self.vae_dtype, operations=comfy.ops.disable_weight_init).eval()
        comfy.model_management.archive_model_dtypes(self.first_stage_model)
        self.patcher = comfy.model_patcher.CoreModelPatcher(
            self.first_stage_model, load_device=self.device, offload_device=comfy.model_management.vae_offload_device()
        )
        self.first_stage_model.load_state_dict(state_dict, assign=self.patcher.is_dynamic())
        self.model_size()


class TinyVAESocket(VideoSocket):
    """TinyVAE. Videos of any size are padded, not cropped, to whole cells."""

    def __init__(self, path: str):
        state_dict, config = checkpoint.read(Path(path), "tiny_vae")
        vae_config = checkpoint.parse_config(TinyVAEConfig, config, "model", Path(path))
        checkpoint.check_fit_of(partial(TinyVAE, vae_config), state_dict, Path(path))
        super().__init__(
            partial(ComfyTinyVAE, vae_config),
            state_dict,
            lambda method, shape, dtype: coding_bytes(vae_config, method, (1, *shape[1:]), dtype),
        )
        self.first_stage_model.fast = not comfy.cli_args.args.fp32_vae
        self.crop_input = False


@contextmanager
def without_empty_vae_warning():
    """While open, drops the one log record that a VAE has no weights: ComfyUI logs to the root logger, so the filter is there."""

    def other(record: logging.LogRecord) -> bool:
        return "No VAE weights detected" not in record.getMessage()

    logger = logging.getLogger()
    logger.addFilter(other)
    try:
        yield
    finally:
        logger.removeFilter(other)
