"""SimpleGVR Sparse Attention: windows and temporal units for the self-attention of stock Wan models."""

from typing import get_args

from comfy.ldm.wan.model import WanModel
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io, ui

from ..simplegvr_core.networks.attention_config import AttentionConfig, Scope
from .host.attention import RunAttention, describe
from .host.bridge import CATEGORY, named_choices, refuse
from .host.networks import SimpleGVRModel
from .host.override import with_attention

PRESETS = {
    "balanced": AttentionConfig(window=(1, 12, 9), top_k=7, unit=5),
    "paper": AttentionConfig(window=(1, 12, 9), top_k=1, unit=5, scope="video"),
    "dense units": AttentionConfig(kind="full", unit=5),
}
GRIDS = {"720p": (20, 45, 80), "1080p": (20, 68, 120), "2160p": (20, 135, 240)}  # tokens of 77 frames


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
                io.Int.Input("top_k", default=1, min=0, max=4096, tooltip="Number of other windows that each window attends to."),
                io.Int.Input("unit", default=5, min=0, max=4096, tooltip="Latent frames per temporal unit; 0 is the whole video."),
                io.Int.Input(
                    "radius", default=0, min=0, max=256, tooltip="Largest distance of the other windows, in windows; 0 is no limit."
                ),
                io.Combo.Input(
                    "scope",
                    options=list(get_args(Scope)),
                    default="unit",
                    optional=True,  # workflows of before it existed
                    tooltip="Where the other windows are: in the same temporal unit, or anywhere in the video.",
                ),
            ],
        )
        return io.Schema(
            node_id="SimpleGVRSparseAttention",
            display_name="SimpleGVR Sparse Attention",
            category=CATEGORY,
            description="Replaces the self-attention of a Wan model by sparse local attention: each window attends to itself and to "
            "the most similar other windows, of its temporal unit or of the whole video. Temporal units shift in every other block. "
            "It is far cheaper at 1080p and above. For weights trained with dense attention it is an approximation.",
            search_aliases=["sparse attention", "window attention", "local attention", "faster Wan"],
            inputs=[
                io.Model.Input("model", tooltip="A text- or image-to-video Wan 2.1 or 2.2 model, or a SimpleGVR model."),
                io.DynamicCombo.Input(
                    "preset",
                    options=[*presets, custom],
                    tooltip="balanced: 12x9 windows, 7 other windows, units of 5 frames, for weights trained with dense attention. paper: "
                    "1 other window of the whole video, for weights trained so. dense units: full attention inside units of 5 frames.",
                ),
            ],
            outputs=[
                io.Model.Output(tooltip="The model with sparse attention; the input model is not changed."),
                io.String.Output(display_name="report", tooltip="The attention that will run, and its cost relative to dense attention."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    @named_choices
    def execute(cls, model: ModelPatcher, preset: dict) -> io.NodeOutput:
        config = PRESETS.get(preset["preset"]) or AttentionConfig(
            window=(preset["window_frames"], preset["window_height"], preset["window_width"]),
            top_k=preset["top_k"],
            unit=preset["unit"] or None,
            radius=preset["radius"] or None,
            scope=preset.get("scope") or "unit",
        )
        network = model.model.diffusion_model
        if not isinstance(model.model, SimpleGVRModel) and type(network) is not WanModel:
            raise refuse(
                cls,
                f"the model is a {type(network).__name__}, wanted a text- or image-to-video "
                "Wan 2.1 or 2.2 model or a SimpleGVR model: others keep their attention where this node does not reach",
            )
        model = with_attention(model, RunAttention(config, cls.hidden.unique_id))
        report = f"{preset['preset']}\n" + "\n".join(forecast(config, model))
        return io.NodeOutput(model, report, ui=ui.PreviewText(report))


def forecast(config: AttentionConfig, model: ModelPatcher) -> list[str]:
    """Returns lines that say what will run on the model's device, for 77 frames of common sizes."""
    block = model.model.diffusion_model.blocks[0].self_attn
    head_dim = block.norm_q.weight.numel() // block.num_heads
    runs_on = isinstance(model.model, SimpleGVRModel), model.load_device, model.model.get_dtype_inference(), head_dim
    return [f"{name}: {describe(config, grid, *runs_on)}" for name, grid in GRIDS.items()]
