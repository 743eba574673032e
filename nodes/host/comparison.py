"""Two videos in one temporary file, for the player of web/js/compare.js."""

import shutil
from fractions import Fraction

import comfy.model_management
import comfy.utils
import torch
import torch.nn.functional as F
from comfy_api.latest import io
from einops import rearrange
from torch import Tensor

from ...simplegvr_core.video.write import Encoding, write_frames
from .working_files import reserve_path, working_folder

CRF = 12  # nearly lossless, so that the coding does not hide what differs


def comparison(before: Tensor, after: Tensor, fps: float) -> dict:
    """Returns the `ui` of a node that compares two videos (F, H, W, 3) in [0, 1]: the temporary file that holds both, and how.

    The file's frames have before over after, each of width x height pixels and made even by a repeated edge, so that the
    two cannot get out of step.
    """
    frames, (height, width) = min(len(before), len(after)), after.shape[1:3]
    even = height + height % 2, width + width % 2
    encoding = Encoding(even[1], 2 * even[0], Fraction(round(fps * 1000), 1000), CRF)
    bar = comfy.utils.ProgressBar(frames)
    with working_folder(None, lambda text: None) as folder:
        with write_frames(folder / "compared.mp4", encoding) as add:
            for pair in zip(before[:frames], after[:frames], strict=True):
                comfy.model_management.throw_exception_if_processing_interrupted()
                add(torch.cat([fitted(image, (height, width), even) for image in pair])[None])
                bar.update(1)
        path, shown = reserve_path("SimpleGVR_compare", encoding, io.FolderType.temp)
        shutil.move(folder / "compared.mp4", path)
    return {"simplegvr_compare": [{**shown, "width": width, "height": height, "frames": frames, "fps": fps}]}


def fitted(image: Tensor, size: tuple[int, int], even: tuple[int, int]) -> Tensor:
    """Returns uint8 (*even, 3) of an image (H, W, 3) in [0, 1]: resized to size by bicubic interpolation, then its edge repeated."""
    image = rearrange(image.cpu().float(), "H W C -> 1 C H W")
    if image.shape[2:] != size:
        image = F.interpolate(image, size, mode="bicubic", antialias=True)
    image = F.pad(image, (0, even[1] - size[1], 0, even[0] - size[0]), mode="replicate")
    return rearrange((255 * image.clamp(0, 1)).round().byte(), "1 C H W -> H W C")
