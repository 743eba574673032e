"""SimpleGVR Sparse Attention: windows and temporal units for the self-attention of stock Wan models."""

import logging
import math
from functools import partial

import torch
from comfy.ldm.wan.model import WanModel
from comfy.patcher_extension import WrappersMP
from comfy_api.latest import io, ui
from comfy_api.torch_helpers.torch_compile import COMPILE_KEY
from torch import Tensor

from ..simplegvr_core.networks.attention import AttentionConfig
from ..simplegvr_core.networks.windows import TokenLayout
from .host.attention import ATTENTION_OPTION, RunAttention, describe
from .host.bridge import CATEGORY
from .host.networks import SimpleGVRModel

PRESETS = {
    "paper": AttentionConfig(window=(1, 12, 9), top_k=1, unit=5),
    "balanced": AttentionConfig(window=(1, 12, 9), top_k=7, unit=5),
    "dense units": AttentionConfig(kind="full", unit=5),
}
GRIDS = {"720p": (20, 45, 80), "1080p": (20, 68, 120), "2160p": (20, 135, 240)}  # tokens of 77 frames
UNREACHED = "another node put its own in this one's place"


class SimpleGVRSparseAttention(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        presets = [io.DynamicCombo.Option(name, []) for name in PRESETS]
        custom = io.DynamicCombo.Option(
            "custom",
            [
                io.Int.Input("window_frames", default=1, min=1, max=64, tooltip="Window length in latent frames."),
                io.Int.Input("window_height", default=12, min=1, max=256, tooltip="Window height in tokens of 16 pixels."),
                io.Int.Input("window_width", default=9, min=1, max=256, tooltip="Window width in tokens of 16 pixels."),
                io.Int.Input("top_k", default=1, min=0, max=4096, tooltip="How many other windows each window attends to."),
                io.Int.Input("unit", default=5, min=0, max=4096, tooltip="Latent frames of a temporal unit; 0 is the whole video."),
                io.Int.Input("radius", default=0, min=0, max=256, tooltip="How many windows away those others may be; 0 is anywhere."),
            ],
        )
        return io.Schema(
            node_id="SimpleGVRSparseAttention",
            display_name="SimpleGVR Sparse Attention",
            category=CATEGORY,
            description="Replaces the self-attention of a Wan model: windows that attend to themselves and their most similar "
            "others, inside temporal units that shift in every other block. Far cheaper at 1080p and beyond. "
            "On weights trained with dense attention it is an approximation.",
            search_aliases=["sparse attention", "window attention", "local attention", "faster Wan"],
            inputs=[
                io.Model.Input("model", tooltip="A text- or image-to-video Wan 2.1 or 2.2 model, or a SimpleGVR model."),
                io.DynamicCombo.Input(
                    "preset",
                    options=[*presets, custom],
                    tooltip="paper: 12x9 windows, 1 other window, units of 5 frames, for weights trained so. balanced: 7 other "
                    "windows, for other weights. dense units: full attention inside units of 5 frames.",
                ),
            ],
            outputs=[
                io.Model.Output(tooltip="The model with sparse attention; the input model stays as it is."),
                io.String.Output(display_name="report", tooltip="The attention that will run, and its share of dense attention."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, model, preset: dict) -> io.NodeOutput:
        config = PRESETS.get(preset["preset"]) or AttentionConfig(
            window=(preset["window_frames"], preset["window_height"], preset["window_width"]),
            top_k=preset["top_k"],
            unit=preset["unit"] or None,
            radius=preset["radius"] or None,
        )
        network = model.model.diffusion_model
        if not isinstance(model.model, SimpleGVRModel) and type(network) is not WanModel:
            raise ValueError(
                f"SimpleGVR Sparse Attention: the model is a {type(network).__name__}, wanted a text- or image-to-video "
                "Wan 2.1 or 2.2 model or a SimpleGVR model: others keep their attention where this node does not reach"
            )
        model = with_attention(model, RunAttention(config, cls.hidden.unique_id))
        report = f"{preset['preset']}\n" + "\n".join(forecast(config, model))
        return io.NodeOutput(model, report, ui=ui.PreviewText(report))


def with_attention(model, attention: RunAttention):
    """Returns a clone of MODEL, a stock Wan or a SimpleGVR model, with that self-attention."""
    model = model.clone()
    options = model.model_options["transformer_options"]
    if isinstance(model.model, SimpleGVRModel):
        options[ATTENTION_OPTION] = attention
    else:
        references_follow = model.model.diffusion_model.ref_conv is None
        override = SparseOverride(attention, options.get("optimized_attention_override"), references_follow)
        options["optimized_attention_override"] = override
        model.remove_wrappers_with_key(WrappersMP.APPLY_MODEL, ATTENTION_OPTION)
        model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, ATTENTION_OPTION, override.apply_model)
    return model


def attention_of(model) -> AttentionConfig:
    """Returns the self-attention that a MODEL runs with: a node's, its checkpoint's, or a stock Wan's full one."""
    options = model.model_options["transformer_options"]
    if isinstance(model.model, SimpleGVRModel):
        return model.model.diffusion_model.run_attention(options).config
    override = options.get("optimized_attention_override")
    return override.attention.config if isinstance(override, SparseOverride) else AttentionConfig(kind="full", unit=None)


def forecast(config: AttentionConfig, model) -> list[str]:
    """Returns lines that say what will run on the model's device, for 77 frames of common sizes."""
    block = model.model.diffusion_model.blocks[0].self_attn
    head_dim = block.norm_q.weight.numel() // block.num_heads
    runs_on = isinstance(model.model, SimpleGVRModel), model.load_device, model.model.get_dtype_inference(), head_dim
    return [f"{name}: {describe(config, grid, *runs_on)}" for name, grid in GRIDS.items()]


class SparseOverride:
    """An attention override for ComfyUI's stock Wan models; previous: the override it is chained to, or None.

    A block's first attention call is its self-attention; all others go to previous or to ComfyUI's own attention.
    references_follow: tokens beyond the grid's are references behind it; a sequence with tokens elsewhere is left alone.
    """

    def __init__(self, attention: RunAttention, previous, references_follow: bool):
        self.attention, self.previous, self.references_follow = attention, previous, references_follow
        self.why_dense: str | None = None  # in the model call that runs or has just run
        self.warned, self.reset_in_vain = set(), None
        self.layout: TokenLayout | None = None  # of the model call that runs: its blocks share the windows on the device

    @torch.compiler.disable  # a compiled model would keep the override it was compiled with
    def __call__(self, func, q, k, v, heads, *args, transformer_options=None, **kwargs):
        options, earlier = transformer_options or {}, func if self.previous is None else partial(self.previous, func)

        def dense(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return earlier(q, k, v, heads, *args, transformer_options=transformer_options, **kwargs)

        def dense_heads(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return dense(q.flatten(2), k.flatten(2), v.flatten(2)).unflatten(2, (heads, -1))

        block, grid = options.get("block_index"), options.get("grid_sizes")
        if block is not None and options.get("simplegvr_last_block") != block:
            options["simplegvr_last_block"] = block
            obstacle = self.obstacle(q, k, grid, (*args[:1], kwargs.get("mask"), kwargs.get("scale")))
            if obstacle is None:
                self.why_dense = None if self.why_dense is UNREACHED else self.why_dense
                q, k, v = (x.unflatten(2, (heads, -1)) for x in (q, k, v))
                layout = TokenLayout(tuple(grid), num_condition_tokens=q.shape[1] - math.prod(grid))
                self.layout = self.layout if self.layout == layout else layout
                return self.attention(q, k, v, self.layout, block, dense_heads).flatten(2)
            self.why_dense = obstacle
        return dense(q, k, v)

    def obstacle(self, q: Tensor, k: Tensor, grid: tuple[int, int, int], changes: tuple) -> str | None:
        """Returns why a block's self-attention must stay dense, None when it need not. changes: its mask and its scale."""
        if any(change is not None for change in changes):
            return "another node masks or scales it"
        length = math.prod(grid)
        follow = self.references_follow and q.shape[1] > length
        if q.ndim != 3 or q.shape[1] != k.shape[1] or not (q.shape[1] == length or follow):
            return "there are tokens before the video's, as of a reference image"
        return None

    def apply_model(self, executor, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options={}, **kwargs):  # noqa: B006
        """Returns the model's result, and says on the node and once in the log when its self-attention was dense.

        A model that was compiled before this override came knows nothing of it, as ComfyUI drops the guards on its
        options: it is compiled anew.
        """
        self.why_dense = UNREACHED
        inputs = (x, t, c_concat, c_crossattn, control, transformer_options)
        try:
            out = executor(*inputs, **kwargs)
            compiled = COMPILE_KEY in transformer_options["wrappers"][WrappersMP.APPLY_MODEL]
            override = transformer_options.get("optimized_attention_override")
            if self.why_dense is UNREACHED and compiled and override is not self.reset_in_vain:
                torch.compiler.reset()
                out = executor(*inputs, **kwargs)
                self.reset_in_vain = override if self.why_dense is UNREACHED else None
        finally:
            self.layout = None
        if self.why_dense is not None:
            text = f"dense, not sparse attention: {self.why_dense}"
            self.attention.show(text)
            if self.why_dense not in self.warned:
                self.warned.add(self.why_dense)
                logging.warning(f"SimpleGVR Sparse Attention: {text}")
        return out
