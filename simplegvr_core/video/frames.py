"""Frames in memory: color ranges, sizes, crops.

B batch, F frames, H, W pixels. Images are uint8 (F, H, W, 3), as files store them; video is float
(B, 3, F, H, W) in [-1, 1], as networks take it.
"""

from fractions import Fraction

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor


def to_video(images: Tensor) -> Tensor:
    """Returns images as video.

    Args:
        images: (F, H, W, 3) uint8.

    Returns:
        (1, 3, F, H, W) float32 in [-1, 1].
    """
    return rearrange(images, "F H W C -> 1 C F H W").float() / 127.5 - 1


def to_images(video: Tensor) -> Tensor:
    """Returns the first video of a batch as images.

    Args:
        video: (B, 3, F, H, W) in [-1, 1]; values outside are clamped.

    Returns:
        (F, H, W, 3) uint8.
    """
    return rearrange(video[0].clamp(-1, 1) * 127.5 + 127.5, "C F H W -> F H W C").round().byte()


def resize_frames(video: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    """Returns a video whose frames are resized independently.

    Args:
        video: (B, 3, F, H, W), any range.
        size: Height and width of the result in pixels.
        mode: Interpolation mode of `torch.nn.functional.interpolate`: "area", "bilinear", "bicubic", "nearest-exact".

    Returns:
        (B, 3, F, *size).
    """
    frames = rearrange(video, "B C F H W -> (B F) C H W")
    exact = {} if mode in ("area", "nearest-exact") else {"align_corners": False}
    return rearrange(F.interpolate(frames, size, mode=mode, **exact), "(B F) C H W -> B C F H W", B=video.shape[0])


def area_downscale(video: Tensor, scale: int | Fraction) -> Tensor:
    """Returns a video downscaled by area averaging.

    Args:
        video: (B, 3, F, H, W), any range. Rows and columns beyond a multiple of scale are cut off.
        scale: Pixels along each side of the squares that are averaged; with a fraction, squares overlap by less than a pixel.

    Returns:
        (B, 3, F, H // scale, W // scale).
    """
    height, width = (int(extent // scale) for extent in video.shape[3:])
    return resize_frames(video[..., : int(height * scale), : int(width * scale)], (height, width), "area")


def limit_height(frame: Tensor, height: int) -> Tensor:
    """Returns a frame that is at most so tall, downscaled by area averaging where it is taller.

    Args:
        frame: (H, W, 3) uint8.
        height: Largest height of the result in pixels.

    Returns:
        (h, w, 3) uint8 of the same aspect ratio, to the nearest pixel.
    """
    if frame.shape[0] <= height:
        return frame
    import cv2  # ComfyUI does not install it, and its sampling needs none

    width = round(frame.shape[1] * height / frame.shape[0])
    return torch.from_numpy(cv2.resize(frame.numpy(), (width, height), interpolation=cv2.INTER_AREA))


def crop_centre(images: Tensor, multiple: int) -> Tensor:
    """Returns the largest central crop whose sides are multiples of a number.

    Args:
        images: (F, H, W, 3).
        multiple: Number of pixels that divides the height and the width of the result.
    """
    top, left = (extent % multiple // 2 for extent in images.shape[1:3])
    height, width = (extent // multiple * multiple for extent in images.shape[1:3])
    return images[:, top : top + height, left : left + width]


def random_crops(clips: list[Tensor], *, batch: int, num_frames: int, size: int, generator: torch.Generator) -> Tensor:
    """Returns crops of random clips, places, first frames and left-right mirroring.

    Args:
        clips: Clips to crop, each (F, H, W, 3) uint8.
        batch: Number of crops.
        num_frames: Frames of a crop.
        size: Height and width of a crop in pixels.
        generator: Source of randomness.

    Returns:
        (batch, 3, num_frames, size, size) float32 in [-1, 1].

    Raises:
        ValueError: A clip is smaller than a crop.
    """

    def sample(limit: int) -> int:
        return int(torch.randint(limit, (), generator=generator))

    crops = []
    for _ in range(batch):
        clip = clips[sample(len(clips))]
        if any(have < want for have, want in zip(clip.shape, (num_frames, size, size), strict=False)):
            frames, height, width = clip.shape[:3]
            raise ValueError(f"a clip has {frames} frames of {width} x {height}, the crops want {num_frames} of {size} x {size}")
        f, y, x = (sample(extent - want + 1) for extent, want in zip(clip.shape, (num_frames, size, size), strict=False))
        crop = to_video(clip[f : f + num_frames, y : y + size, x : x + size])
        crops.append(crop.flip(-1) if sample(2) else crop)
    return torch.cat(crops)
