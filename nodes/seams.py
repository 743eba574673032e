"""SimpleGVR Seam Meter: seams and flicker at the borders of segments and tiles, in numbers and a picture."""

import comfy.model_management
import comfy.utils
from comfy_api.latest import io, ui
from einops import rearrange
from torch import Tensor

from ..simplegvr_core.evaluation.seam_plot import draw_panels
from ..simplegvr_core.evaluation.seams import LATENT, VIDEO, Borders, Seam, describe, measure
from .host.bridge import CATEGORY, latent_samples, refuse, rgb_frames, to_core, to_image


class SimpleGVRSeamMeter(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        def border(name: str, tooltip: str, advanced: bool = False) -> io.Int.Input:
            return io.Int.Input(name, default=0, min=0, max=1 << 20, tooltip=tooltip, advanced=advanced)

        return io.Schema(
            node_id="SimpleGVRSeamMeter",
            display_name="SimpleGVR Seam Meter",
            category=CATEGORY,
            description="Measures seams and flicker at the borders of segments, and seams at the borders of tiles. The change at a "
            "border, where an overlap begins and where it ends, is divided by the change nearby, so that the content "
            "cancels out: 1 is none.",
            search_aliases=["flicker", "seam detector", "tile seams", "chunk borders", "temporal consistency"],
            is_output_node=True,
            inputs=[
                io.MultiType.Input("video", types=[io.Image, io.Latent], tooltip="The video, or its Wan 2.1 latent."),
                border(
                    "period",
                    "Frames between the starts of two segments: 4 x (segment - overlap) for SimpleGVR Sampler, without the 4 for "
                    "a latent. 0 is no segments.",
                ),
                border(
                    "tile_width",
                    "Pixels between the starts of two tiles along the width, the tile width minus the overlap; latent pixels for "
                    "a latent. 0 is no tiles.",
                ),
                border(
                    "tile_height",
                    "Pixels between the starts of two tiles along the height, the tile height minus the overlap; latent pixels "
                    "for a latent. 0 is no tiles.",
                ),
                border("first_border", "First frame of the second segment. 0 is that of SimpleGVR Sampler's segments.", advanced=True),
                border(
                    "overlap",
                    "Frames that two segments share: 20 for SimpleGVR Sampler, whose segments share 5 latent frames (5 for a "
                    "latent). 0 is a hard cut.",
                ),
                border(
                    "tile_overlap_width",
                    "Pixels that two tiles share along the width: 144 for SimpleGVR Sampler, one window of its attention (18 "
                    "latent pixels for a latent). 0 is a hard cut.",
                ),
                border(
                    "tile_overlap_height",
                    "Pixels that two tiles share along the height: 192 for SimpleGVR Sampler, one window of its attention (24 "
                    "latent pixels for a latent). 0 is a hard cut.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="plot", tooltip="Brightness over time, and the changes across frames, columns and rows."),
                io.String.Output(display_name="report", tooltip="The numbers as text."),
                io.Float.Output(
                    display_name="segment_flicker",
                    tooltip="Change of brightness at segment borders divided by that elsewhere: 1 is none. NaN without a border.",
                ),
                io.Float.Output(
                    display_name="periodicity",
                    tooltip="Autocorrelation of the brightness changes at the period minus that at half the period; 0 is none.",
                ),
                io.Float.Output(
                    display_name="segment_seam", tooltip="Change between frames at segment borders divided by that nearby: 1 is none."
                ),
                io.Float.Output(
                    display_name="tile_seam_width", tooltip="Change at tile borders along the width divided by that nearby: 1 is none."
                ),
                io.Float.Output(
                    display_name="tile_seam_height", tooltip="Change at tile borders along the height divided by that nearby: 1 is none."
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        video: Tensor | dict,
        period: int,
        tile_width: int,
        tile_height: int,
        first_border: int,
        overlap: int,
        tile_overlap_width: int,
        tile_overlap_height: int,
    ) -> io.NodeOutput:
        is_latent = isinstance(video, dict)
        clip = to_core(latent_samples(video, cls)) if is_latent else rearrange(rgb_frames(video, cls, "video"), "F H W C -> 1 C F H W")
        try:
            borders = Borders(period, (tile_width, tile_height), first_border or None, overlap, (tile_overlap_width, tile_overlap_height))
            seams, panels = measure(watched(clip), borders, LATENT if is_latent else VIDEO)
        except ValueError as error:
            raise refuse(cls, str(error)) from error
        image = to_image(draw_panels(panels))[None]
        ratios = (found.ratio if isinstance(found, Seam) else found for found in vars(seams).values())
        numbers = (float("nan") if ratio is None else ratio for ratio in ratios)
        return io.NodeOutput(image, describe(seams), *numbers, ui=ui.PreviewImage(image, cls=cls))


def watched(clip: Tensor):
    """Yields the frames (B, C, H, W) of clip (B, C, F, H, W), with ComfyUI's progress and interrupt."""
    bar = comfy.utils.ProgressBar(clip.shape[2])
    for frame in clip.unbind(2):
        comfy.model_management.throw_exception_if_processing_interrupted()
        yield frame
        bar.update(1)
