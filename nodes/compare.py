"""SimpleGVR Compare: two videos, one over the other, in the node; web/js/compare.js plays them."""

from fractions import Fraction

import comfy.model_management
import comfy.utils
import torch
import torch.nn.functional as F
from comfy_api.latest import io
from einops import rearrange
from torch import Tensor

from ..simplegvr_core.video.write import Encoding, write_frames
from .host.bridge import CATEGORY
from .host.working_files import save_path

CRF = 12  # close to no loss: what differs is to be the videos, not their coding


class SimpleGVRCompare(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SimpleGVRCompare",
            display_name="SimpleGVR Compare",
            category=CATEGORY,
            description="Plays two videos in one place, in step: drag the line between before and after, zoom in, step through the "
            "frames. Before may be smaller: it is resized to after's size, as a player would.",
            search_aliases=["compare video", "before after", "wipe", "slider", "A/B"],
            is_output_node=True,
            inputs=[
                io.Image.Input("before", tooltip="Left of the line, for example the decoded low-resolution video."),
                io.Image.Input(
                    "after", tooltip="Right of the line, for example the super-resolved video. The longer one is cut at its end."
                ),
                io.Float.Input("fps", default=16.0, min=1.0, max=240.0, step=0.01, tooltip="Frames per second at which they play."),
            ],
            outputs=[],
        )

    @classmethod
    def execute(cls, before, after, fps) -> io.NodeOutput:
        return io.NodeOutput(ui=comparison(before, after, fps))


def comparison(before: Tensor, after: Tensor, fps: float) -> dict:
    """Returns the `ui` of a node that compares two IMAGEs: the temporary file that holds both, and how.

    The file's frames have before over after, each of width x height pixels and made even by a repeated edge, so that the
    two cannot get out of step.
    """
    frames, (height, width) = min(len(before), len(after)), after.shape[1:3]
    even = height + height % 2, width + width % 2
    encoding = Encoding(even[1], 2 * even[0], Fraction(round(fps * 1000), 1000), CRF)
    path, shown = save_path("SimpleGVR_compare", encoding, io.FolderType.temp)
    bar = comfy.utils.ProgressBar(frames)
    with write_frames(path, encoding) as add:
        for pair in zip(before[:frames], after[:frames], strict=True):
            comfy.model_management.throw_exception_if_processing_interrupted()
            add(torch.cat([fitted(image, (height, width), even) for image in pair])[None])
            bar.update(1)
    return {"simplegvr_compare": [{**shown, "width": width, "height": height, "frames": frames, "fps": fps}]}


def fitted(image: Tensor, size: tuple[int, int], even: tuple[int, int]) -> Tensor:
    """Returns uint8 (*even, 3) of an image (H, W, C) in [0, 1]: resized to size by bicubic interpolation, then its edge repeated."""
    image = rearrange(image[..., :3].cpu().float(), "H W C -> 1 C H W")
    if image.shape[2:] != size:
        image = F.interpolate(image, size, mode="bicubic", antialias=True)
    image = F.pad(image, (0, even[1] - size[1], 0, even[0] - size[0]), mode="replicate")
    return rearrange((255 * image.clamp(0, 1)).round().byte(), "1 C H W -> H W C")
