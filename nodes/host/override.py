"""The self-attention of a MODEL: set on a clone, read, and put in place of ComfyUI's own in stock Wan models."""

import logging
import math
from functools import partial

import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from comfy_api.torch_helpers.torch_compile import COMPILE_KEY
from torch import Tensor

from ...simplegvr_core.networks.attention import AttentionConfig
from ...simplegvr_core.networks.windows import TokenLayout
from .attention import ATTENTION_OPTION, RunAttention
from .networks import SimpleGVRModel

UNREACHED = "another node replaced this node's attention"


def with_attention(model: ModelPatcher, attention: RunAttention) -> ModelPatcher:
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


def attention_of(model: ModelPatcher) -> AttentionConfig:
    """Returns the self-attention that a MODEL runs with: a node's, its checkpoint's, or a stock Wan's full one."""
    options = model.model_options["transformer_options"]
    if isinstance(model.model, SimpleGVRModel):
        return model.model.diffusion_model.run_attention(options).config
    override = options.get("optimized_attention_override")
    return override.attention.config if isinstance(override, SparseOverride) else AttentionConfig(kind="full", unit=None)


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
        if block is not None and grid is not None and options.get("simplegvr_last_block") != block:
            options["simplegvr_last_block"] = block
            obstacle = self.obstacle(q, k, grid, (*args[:1], kwargs.get("mask"), kwargs.get("scale")))
            if obstacle is None:
                self.why_dense = None if self.why_dense is UNREACHED else self.why_dense
                q, k, v = (x.unflatten(2, (heads, -1)) for x in (q, k, v))
                layout = TokenLayout(tuple(grid), num_condition_tokens=q.shape[1] - math.prod(grid))
                layout = self.layout = layout if self.layout is None or self.layout != layout else self.layout
                return self.attention(q, k, v, layout, block, dense_heads).flatten(2)
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
                torch.compiler.reset()  # of all functions: PyTorch has no public reset of one; those of other models compile once more
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
