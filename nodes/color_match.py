"""SimpleGVR Color Match: the colors of a reference for a video, its detail kept."""

import comfy.model_management
import comfy.utils
import torch
from comfy_api.latest import io
from torch import Tensor

from ..simplegvr_core.sampling.color_match import match_frame
from .host.bridge import CATEGORY, refuse, rgb_frames


class SimpleGVRColorMatch(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SimpleGVRColorMatch",
            display_name="SimpleGVR Color Match",
            category=CATEGORY,
            description="Gives a video the colors and brightness of a reference, frame by frame: low spatial frequencies are "
            "replaced, detail is not changed. Use it for upscaled video with color drift or flicker, with the source as "
            "the reference. SimpleGVR Sampler does the same in latent space.",
            search_aliases=["color fix", "color correction", "wavelet color", "color drift", "flicker", "deflicker"],
            inputs=[
                io.Image.Input("images", tooltip="The video to correct."),
                io.Image.Input(
                    "reference", tooltip="Video with the right colors, usually the source: the same number of frames, any size."
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="Strength of the correction: 0 changes nothing, 1 replaces the colors.",
                ),
                io.Int.Input(
                    "levels",
                    default=5,
                    min=1,
                    max=9,
                    tooltip="Number of wavelet levels that count as detail. With 5, detail finer than about 32 pixels is not changed; "
                    "fewer levels match colors more closely but copy blur from a small reference.",
                    advanced=True,
                ),
            ],
            outputs=[io.Image.Output(tooltip="The video with the reference's colors.")],
        )

    @classmethod
    def execute(cls, images: Tensor, reference: Tensor, strength: float, levels: int) -> io.NodeOutput:
        colors, sources = rgb_frames(images, cls, "images"), rgb_frames(reference, cls, "reference")
        if len(images) != len(reference):
            raise refuse(
                cls,
                f"images has {len(images)} frames and reference {len(reference)}, wanted as many: "
                "cut the longer one (SimpleGVR Trim does it for a video that went through a latent)",
            )
        matched, bar = colors.clone(), comfy.utils.ProgressBar(len(images))
        for frame, (image, source) in enumerate(zip(colors, sources, strict=True)):
            comfy.model_management.throw_exception_if_processing_interrupted()
            matched[frame] = match_frame(image.float(), source.to(image.device, torch.float32), strength, levels)
            bar.update(1)
        transparency = images[..., 3:] if images.shape[3] > 2 else images[..., 1:]
        return io.NodeOutput(torch.cat((matched, transparency), dim=3))
