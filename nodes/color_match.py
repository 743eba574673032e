"""SimpleGVR Color Match: the colors of a reference for a video, its detail kept."""

import comfy.model_management
import comfy.utils
import torch
from comfy_api.latest import io
from torch import Tensor

from ..simplegvr_core.sampling.color_match import match_frame
from .host.bridge import CATEGORY


class SimpleGVRColorMatch(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SimpleGVRColorMatch",
            display_name="SimpleGVR Color Match",
            category=CATEGORY,
            description="Gives a video the colors and brightness of a reference, frame by frame: its low spatial frequencies are "
            "replaced, its detail stays. For upscaled video that drifted or flickers, with the source as reference. "
            "SimpleGVR Sampler does the like in latent space by itself.",
            search_aliases=["color fix", "color correction", "wavelet color", "color drift", "flicker", "deflicker"],
            inputs=[
                io.Image.Input("images", tooltip="The video to correct."),
                io.Image.Input("reference", tooltip="The video with the right colors, of as many frames and any size: the source."),
                io.Float.Input(
                    "strength", default=1.0, min=0.0, max=1.0, step=0.05, tooltip="0 leaves the video as it is, 1 replaces its colors."
                ),
                io.Int.Input(
                    "levels",
                    default=5,
                    min=1,
                    max=9,
                    tooltip="Wavelet levels that count as detail. 5 keeps what is finer than about 32 pixels; fewer match colors closer, "
                    "but take blur from a small reference.",
                    advanced=True,
                ),
            ],
            outputs=[io.Image.Output(tooltip="The video with the reference's colors.")],
        )

    @classmethod
    def execute(cls, images: Tensor, reference: Tensor, strength: float, levels: int) -> io.NodeOutput:
        if len(images) != len(reference):
            raise ValueError(
                f"SimpleGVR Color Match: images has {len(images)} frames and reference {len(reference)}, wanted as many: "
                "cut the longer one (SimpleGVR Trim does it for a video that went through a latent)"
            )
        matched, bar = torch.empty_like(images), comfy.utils.ProgressBar(len(images))
        for frame, (image, source) in enumerate(zip(images, reference, strict=True)):
            comfy.model_management.throw_exception_if_processing_interrupted()
            matched[frame] = image
            matched[frame, ..., :3] = match_frame(image[..., :3], source[..., :3].to(image), strength, levels)
            bar.update(1)
        return io.NodeOutput(matched)
