"""SimpleGVR Seam Meter: seams and flicker at the borders of segments and tiles, in numbers and a picture."""

import comfy.model_management
import comfy.utils
from comfy_api.latest import io, ui
from einops import rearrange
from torch import Tensor

from ..simplegvr_core.evaluation.seam_plot import draw_panels
from ..simplegvr_core.evaluation.seams import LATENT, VIDEO, Borders, Seam, describe, measure
from .host.bridge import CATEGORY, latent_samples, to_core, to_image


class SimpleGVRSeamMeter(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        def border(name: str, tooltip: str, advanced: bool = False) -> io.Int.Input:
            return io.Int.Input(name, default=0, min=0, max=1 << 20, tooltip=tooltip, advanced=advanced)

        return io.Schema(
            node_id="SimpleGVRSeamMeter",
            display_name="SimpleGVR Seam Meter",
            category=CATEGORY,
            description="Measures whether a video shows where it was put together: flicker and seams between segments, seams between "
            "tiles. What it does at their borders, where an overlap begins and where it has ended, is compared with what it does "
            "nearby, so that the content cancels: 1 is none.",
            search_aliases=["flicker", "seam detector", "tile seams", "chunk borders", "temporal consistency"],
            is_output_node=True,
            inputs=[
                io.MultiType.Input("video", types=[io.Image, io.Latent], tooltip="The video, or its Wan 2.1 latent."),
                border(
                    "period",
                    "Frames from one segment's start to the next's: 4 x (segment - overlap) for SimpleGVR Sampler's, without the 4 for a "
                    "latent. 0: no segments.",
                ),
                border(
                    "tile_width",
                    "Pixels from one tile's start to the next's along the width, so its width - overlap; cells of a latent. 0: no tiles.",
                ),
                border(
                    "tile_height",
                    "Pixels from one tile's start to the next's along the height, so its height - overlap; cells of a latent. 0: no tiles.",
                ),
                border("first_border", "The second segment's first frame. 0: as SimpleGVR Sampler's segments have it.", advanced=True),
                border(
                    "overlap",
                    "Frames that segments share: 20 for SimpleGVR Sampler's, which share 5 latent frames (5 for a latent). "
                    "0: segments that are cut hard.",
                ),
                border(
                    "tile_overlap_width",
                    "Pixels that tiles share along the width: 144 for SimpleGVR Sampler's, one window of its attention (18 cells of a "
                    "latent). 0: tiles that are cut hard.",
                ),
                border(
                    "tile_overlap_height",
                    "Pixels that tiles share along the height: 192 for SimpleGVR Sampler's, one window of its attention (24 cells of a "
                    "latent). 0: tiles that are cut hard.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="plot", tooltip="Brightness over time and the jumps over frames, columns and rows."),
                io.String.Output(display_name="report", tooltip="The numbers in words."),
                io.Float.Output(
                    display_name="segment_flicker",
                    tooltip="Change of brightness at segment borders divided by that elsewhere: 1 is none. Not a number: no border.",
                ),
                io.Float.Output(
                    display_name="periodicity", tooltip="Autocorrelation of these changes at the period less that at half of it; 0 is none."
                ),
                io.Float.Output(
                    display_name="segment_seam", tooltip="Jumps from frame to frame at segment borders divided by those nearby: 1 is none."
                ),
                io.Float.Output(
                    display_name="tile_seam_width", tooltip="Jumps at tile borders along the width divided by those nearby: 1 is none."
                ),
                io.Float.Output(
                    display_name="tile_seam_height", tooltip="Jumps at tile borders along the height divided by those nearby: 1 is none."
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
        clip = to_core(latent_samples(video, cls)) if is_latent else rearrange(video[..., :3], "F H W C -> 1 C F H W")
        try:
            borders = Borders(period, (tile_width, tile_height), first_border or None, overlap, (tile_overlap_width, tile_overlap_height))
            seams, panels = measure(watched(clip), borders, LATENT if is_latent else VIDEO)
        except ValueError as error:
            raise ValueError(f"SimpleGVR Seam Meter: {error}") from error
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
