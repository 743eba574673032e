"""SimpleGVR Evaluate: how good a video is, in numbers, over time, and where it is worst."""

import json
import math

import comfy.model_management
import comfy.utils
import numpy as np
import torch
from comfy_api.latest import io, ui
from einops import rearrange
from torch import Tensor

from ..simplegvr_core.crops import most_different, side_by_side
from .bridge import CATEGORY

QUALITY = ("psnr", "ssim", "ms_ssim", "st_lpips", "vmaf", "niqe", "lr_consistency")
STEADINESS = ("warping_error", "tof", "flicker")
GROUPS = {
    "quick": ("psnr", "ssim", "lr_consistency", "flicker"),
    "quality": QUALITY,
    "steadiness": STEADINESS,
    "all": QUALITY + STEADINESS,
}


class SimpleGVREvaluate(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SimpleGVREvaluate",
            display_name="SimpleGVR Evaluate",
            category=CATEGORY,
            description="Measures how good an upscaled video is: against its original where there is one, against the small video it was "
            "made from, and by itself. Says so in numbers and curves over time, and shows the worst frame enlarged.",
            search_aliases=["PSNR", "SSIM", "LPIPS", "VMAF", "NIQE", "video quality", "metrics", "benchmark", "compare", "flicker"],
            is_output_node=True,
            inputs=[
                io.Image.Input("result", tooltip="The video to judge, decoded."),
                io.Image.Input(
                    "original",
                    optional=True,
                    tooltip="The truth at the result's size, frame by frame. Without it, only what needs none is measured: NIQE, and what "
                    "compares with the source.",
                ),
                io.Image.Input(
                    "source",
                    optional=True,
                    tooltip="The small video that the result was made from, decoded. What the result shows when made as small, how it "
                    "moves and how it flickers are compared with it.",
                ),
                io.Combo.Input(
                    "metrics",
                    options=list(GROUPS),
                    default="quick",
                    tooltip="quick: PSNR, SSIM, LR-consistency, flicker. quality: PSNR, SSIM, MS-SSIM, ST-LPIPS, VMAF, NIQE, "
                    "LR-consistency. steadiness: warping error, tOF, flicker. all: everything. What an input or a package is missing for "
                    "is named in the report, with the cure.",
                ),
            ],
            outputs=[
                io.String.Output(display_name="report", tooltip="The numbers in words, the worst frame of each, and what was left out."),
                io.Image.Output(display_name="picture", tooltip="The worst frame's worst place enlarged, and curves over the frames."),
                io.String.Output(display_name="values", tooltip="The numbers as JSON: of the clip and of each frame, for each metric."),
                io.Float.Output(display_name="psnr", tooltip="PSNR in dB, higher is better. Not a number where it was not measured."),
                io.Float.Output(display_name="ssim", tooltip="SSIM, 1 is equal. Not a number where it was not measured."),
            ],
        )

    @classmethod
    def execute(cls, result: Tensor, metrics: str, original: Tensor | None = None, source: Tensor | None = None) -> io.NodeOutput:
        if original is None or original.shape[:3] != result.shape[:3]:
            raise ValueError("SimpleGVR Evaluate: wanted an original of the result's frames and size: SimpleGVR Trim cuts the result to it")
        from ..simplegvr_core.metrics import METRICS

        video, truth = (rearrange(x[..., :3], "F H W C -> 1 C F H W").float() * 2 - 1 for x in (result, original))
        values, bar = {}, comfy.utils.ProgressBar(len(GROUPS[metrics]))
        for name in GROUPS[metrics]:
            comfy.model_management.throw_exception_if_processing_interrupted()
            if name in METRICS:
                values[name] = METRICS[name](video, truth)
            bar.update(1)
        report = "\n".join(f"{name}: {value:.4g}" for name, value in values.items())
        worst = int((video - truth).square().mean((0, 1, 3, 4)).argmax())
        images = {"result": to_image(result[worst]), "original": to_image(original[worst])}
        picture = side_by_side(images, most_different(*images.values()))
        image = torch.from_numpy(np.array(picture)).float()[None] / 255
        numbers = (values.get(name, math.nan) for name in ("psnr", "ssim"))
        return io.NodeOutput(report, image, json.dumps(values), *numbers, ui=ui.PreviewImage(image, cls=cls))


def to_image(image: Tensor) -> Tensor:
    """Returns an image (H, W, 3) uint8 of one (H, W, 3 or more) in [0, 1]."""
    return image[..., :3].float().cpu().clamp(0, 1).mul(255).round().byte()
