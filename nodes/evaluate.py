"""SimpleGVR Evaluate: how good a video is, in numbers, over time, and where it is worst."""

import json
import math
from collections.abc import Iterator

import comfy.model_management
import comfy.utils
import numpy as np
import torch
from comfy_api.latest import io, ui
from einops import rearrange
from PIL import Image
from torch import Tensor

from ..simplegvr_core.evaluation.metrics import METRICS, Metric, finite, measure
from ..simplegvr_core.evaluation.result import EvaluationClip, Result
from ..simplegvr_core.evaluation.seam_plot import Panel, draw_panels
from ..simplegvr_core.video.pictures import most_detailed, most_different, side_by_side
from .host.bridge import CATEGORY, refuse, rgb_frames, to_image

QUALITY, STEADINESS = ([name for name, metric in METRICS.items() if metric.group == group] for group in ("quality", "steadiness"))
GROUPS = {
    "quick": [name for name in QUALITY + STEADINESS if METRICS[name].quick],
    "quality": QUALITY,
    "steadiness": STEADINESS,
    "all": QUALITY + STEADINESS,
}
BLOCK = 8  # frames at a time, for memory, progress and interrupt


class SimpleGVREvaluate(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        labels = {group: ", ".join(METRICS[name].label for name in names) for group, names in GROUPS.items()}
        groups = ". ".join(f"{group}: {labels[group]}" for group in ("quick", "quality", "steadiness"))
        return io.Schema(
            node_id="SimpleGVREvaluate",
            display_name="SimpleGVR Evaluate",
            category=CATEGORY,
            description="Measures the quality of an upscaled video: against its original, against the small video it was made from, "
            "and on its own. Reports numbers and curves over time, and shows the worst frame enlarged.",
            search_aliases=["PSNR", "SSIM", "LPIPS", "VMAF", "NIQE", "video quality", "metrics", "benchmark", "compare", "flicker"],
            is_output_node=True,
            inputs=[
                io.Image.Input("result", tooltip="Decoded video to evaluate."),
                io.Image.Input(
                    "original",
                    optional=True,
                    tooltip="Ground truth at the size of the result, frame by frame. Not connected: only NIQE and the comparisons with "
                    "the source are measured.",
                ),
                io.Image.Input(
                    "source",
                    optional=True,
                    tooltip="Decoded small video that the result was made from. The downscaled result, its motion and its flicker are "
                    "compared with it.",
                ),
                io.Combo.Input(
                    "metrics",
                    options=list(GROUPS),
                    default="quick",
                    tooltip=f"{groups}. all: everything. The report names each metric that lacks an input or a package, with the cure.",
                ),
            ],
            outputs=[
                io.String.Output(
                    display_name="report",
                    tooltip="The numbers as text, the worst frame of each metric, and the metrics that were not measured.",
                ),
                io.Image.Output(
                    display_name="picture", tooltip="The worst region of the worst frame, enlarged, and curves over the frames."
                ),
                io.String.Output(display_name="values", tooltip="The numbers as JSON, of the video and of each frame, for each metric."),
                io.Float.Output(display_name="psnr", tooltip="PSNR in dB; higher is better. NaN if it was not measured."),
                io.Float.Output(display_name="ssim", tooltip="SSIM; 1 is equal. NaN if it was not measured."),
            ],
        )

    @classmethod
    def execute(cls, result: Tensor, metrics: str, original: Tensor | None = None, source: Tensor | None = None) -> io.NodeOutput:
        clip = EvaluatedVideos(result, original, source)
        skipped = {name: why for name in GROUPS[metrics] if (why := clip.obstacle(METRICS[name]))}
        names = [name for name in GROUPS[metrics] if name not in skipped]
        if not names:
            reasons = "\n".join(f"{METRICS[name].label}: {why}" for name, why in skipped.items())
            raise refuse(cls, f"none of {metrics} can be measured:\n{reasons}")
        curves = clip.curves(names)
        values = {name: METRICS[name].pool(curve) for name, curve in curves.items()}
        picture = to_image(draw(clip, curves))[None]
        numbers = {name: {"value": finite(values[name]), "curve": list(map(finite, curves[name].tolist()))} for name in names}
        report = describe(clip, values, curves, skipped)
        return io.NodeOutput(
            report,
            picture,
            json.dumps({"metrics": numbers, "skipped": skipped}, indent=1),
            *(values.get(name, math.nan) for name in ("psnr", "ssim")),
            ui=ui.PreviewImage(picture, cls=cls).as_dict() | ui.PreviewText(report).as_dict(),
        )


class EvaluatedVideos:
    """The videos of one evaluation, (F, H, W, C) in [0, 1]; original and source may be None. source: (F, h, w, C), smaller."""

    def __init__(self, result: Tensor, original: Tensor | None, source: Tensor | None):
        """Raises ValueError that names the input and the cure when they do not fit."""
        self.result = rgb_frames(result, SimpleGVREvaluate, "result")
        self.original = None if original is None else rgb_frames(original, SimpleGVREvaluate, "original")
        self.source = None if source is None else rgb_frames(source, SimpleGVREvaluate, "source")
        self.frames, self.height, self.width = result.shape[:3]
        if original is not None and original.shape[:3] != result.shape[:3]:
            raise refuse(
                SimpleGVREvaluate,
                f"result has {measures(result)} and original {measures(original)}, wanted the same: cut the result "
                "with SimpleGVR Trim (source: the original, scale 1, even off), which takes off what whole latent cells and frames add",
            )
        if source is not None and len(source) != len(result):
            raise refuse(
                SimpleGVREvaluate,
                f"result has {measures(result)} and source {measures(source)}, wanted as many frames: cut the "
                "longer one with SimpleGVR Trim",
            )
        if source is not None and (source.shape[1] > self.height or source.shape[2] > self.width):
            raise refuse(
                SimpleGVREvaluate,
                f"source has {measures(source)}, more than the result's {measures(result)}: connect the small video "
                "that was upscaled to source, and the truth to original",
            )

    def obstacle(self, metric: Metric) -> str | None:
        """Returns why a metric cannot be measured, as a sentence with the cure, or None."""
        if "original" in metric.needs and self.original is None:
            return "connect original"
        if "source" in metric.needs and self.source is None:
            return "connect source"
        if "guide" in metric.needs and self.original is None and self.source is None:
            return "connect original or source"
        if "frames" in metric.needs and self.frames < 2:
            return "a single frame does not move"
        return metric.obstacle(EvaluationClip((self.height, self.width), self.original, self.source))

    def curves(self, names: list[str]) -> dict[str, Tensor]:
        """Returns the metrics of each frame, {name: (F,)}, with ComfyUI's progress and interrupt. NaN: it has none."""
        bar = comfy.utils.ProgressBar(self.frames)
        parts = {name: [] for name in names}
        for frames in blocks(self.frames):
            comfy.model_management.throw_exception_if_processing_interrupted()
            before = min(frames.start, 1)  # a frame more, for what compares a frame with that before
            part = self.part(slice(frames.start - before, frames.stop))
            for name in names:
                if not METRICS[name].whole_clip:
                    parts[name].append(torch.tensor(measure(name, part).curve)[before:])
            bar.update(frames.stop - frames.start)
        for name in names:
            if METRICS[name].whole_clip:
                parts[name] = [torch.tensor(measure(name, self.part(slice(None))).curve)]
        return {name: torch.cat(part) for name, part in parts.items()}

    def part(self, frames: slice) -> Result:
        """Returns some frames as the core measures them."""
        original, source = (None if x is None else to_video(x[frames]) for x in (self.original, self.source))
        return Result(to_video(self.result[frames]), EvaluationClip((self.height, self.width), original, source))


def blocks(frames: int) -> Iterator[slice]:
    """Yields the frames, a few at a time."""
    for start in range(0, frames, BLOCK):
        yield slice(start, min(start + BLOCK, frames))


def to_video(images: Tensor) -> Tensor:
    """Returns video (1, 3, F, H, W) in [-1, 1] of images (F, H, W, 3) in [0, 1]."""
    return rearrange(images.cpu().float(), "F H W C -> 1 C F H W") * 2 - 1


def measures(images: Tensor) -> str:
    return f"{images.shape[0]} frames of {images.shape[2]} x {images.shape[1]}"


def worst_frame(name: str, curve: Tensor) -> int:
    """Returns the number of the frame with the worst value; 0 when none has any."""
    lowest = METRICS[name].better == "higher"
    return int(curve.nan_to_num(nan=math.inf if lowest else -math.inf).mul(1 if lowest else -1).argmin())


def describe(clip: EvaluatedVideos, values: dict[str, float], curves: dict[str, Tensor], skipped: dict[str, str]) -> str:
    """Returns the report in words."""
    lines = [f"{measures(clip.result)}"]
    for name, value in values.items():
        metric, worst = METRICS[name], worst_frame(name, curves[name])
        unit = f" {metric.unit}" if metric.unit else ""
        lines.append(
            f"{metric.label}: {value:.{metric.decimals}f}{unit} ({metric.better} is better), "
            f"worst {curves[name][worst]:.{metric.decimals}f} in frame {worst}"
        )
    return "\n".join([*lines, *(f"{METRICS[name].label} was not measured: {why}" for name, why in skipped.items())])


def draw(clip: EvaluatedVideos, curves: dict[str, Tensor]) -> Image.Image:
    """Returns the picture: the frame that the first metric finds worst, and below it a panel for each metric, its worst frame marked."""
    worst = {name: worst_frame(name, curve) for name, curve in curves.items()}
    panels = draw_panels([Panel(title(name), curve.numpy(), [worst[name]]) for name, curve in curves.items()])
    first = next(iter(curves))
    crops = worst_place(clip, worst[first], METRICS[first].label)
    picture = Image.new("RGB", (max(panels.width, crops.width), panels.height + crops.height), "white")
    picture.paste(crops, (0, 0))
    picture.paste(panels, (0, crops.height))
    return picture


def title(name: str) -> str:
    metric = METRICS[name]
    return f"{metric.label}{', ' + metric.unit if metric.unit else ''} of each frame, {metric.better} is better (red: the worst)"


def worst_place(clip: EvaluatedVideos, frame: int, label: str) -> Image.Image:
    """Returns a frame of the videos side by side, enlarged where the result is farthest from the original, else most detailed."""
    result = to_bytes(clip.result[frame])
    images = {f"result, frame {frame}, worst in {label}": result}
    box = most_detailed(result)
    if clip.original is not None:
        images["original"] = to_bytes(clip.original[frame])
        box = most_different(result, images["original"])
    if clip.source is not None:
        source = Image.fromarray(to_bytes(clip.source[frame]).numpy())
        images["source"] = torch.from_numpy(np.array(source.resize((clip.width, clip.height), Image.Resampling.NEAREST)))
    return side_by_side(images, box)


def to_bytes(image: Tensor) -> Tensor:
    """Returns an image (H, W, 3) uint8 of one (H, W, 3) in [0, 1]."""
    return image.float().cpu().clamp(0, 1).mul(255).round().byte().contiguous()
