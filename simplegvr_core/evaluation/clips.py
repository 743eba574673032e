"""The clips that methods are compared on: with their original (suite pairs), or made by a text-to-video model (suite aigc).

F frames, T latent frames, F = 4 (T - 1) + 1; H, W pixels, h, w of the low resolution; video (1, 3, F, H, W) in [-1, 1]
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from ..sampling.comfyui_latent import LATENT_SUFFIXES, read_latent
from ..video.frames import area_downscale, limit_height, resize_frames, to_video
from ..video.read import VIDEO_SUFFIXES, find_videos, read_video
from .metrics import SMALLEST
from .result import EvaluationClip
from .seams import Borders

Suite = Literal["pairs", "aigc"]
LATENT_RATE = Fraction(16)  # frames a second, of Wan 2.1


@dataclass(frozen=True)
class Reading:
    """How clips are read.

    Attributes:
        suite: "pairs": clips with their original. "aigc": low-resolution videos or latents of a text-to-video model.
        scale: Upscaling factor of the methods; where size is given, of originals that come without their low resolution.
        num_frames: Number of frames from the start of a clip.
        height: Largest height of an original in pixels that comes without its low resolution; unused where size is given.
        size: Height and width of the results in pixels; None is scale times those of the low resolution.
        borders: Borders of the boxes that gvr refines, in pixels and frames.
    """

    suite: Suite
    scale: float
    num_frames: int
    height: int
    size: tuple[int, int] | None = None
    borders: Borders | None = None


def find_clips(folder: Path, suite: Suite) -> dict[str, tuple[Path, ...]]:
    """Returns the files of each clip of a suite by the clip's name: its path in folder, without the suffix where that is unique.

    Args:
        folder: pairs: originals; with their low resolution where folder has both, as hr/NAME and lr/NAME. aigc: videos and latents.
        suite: What the clips are.

    Raises:
        ValueError: There is no clip, or the low resolution of one is missing.
    """
    paired = suite == "pairs" and (folder / "hr").is_dir() and (folder / "lr").is_dir()
    home = folder / "hr" if paired else folder
    paths = [path.relative_to(home) for path in find_videos(home, VIDEO_SUFFIXES | (LATENT_SUFFIXES if suite == "aigc" else set()))]
    unique = max(Counter(path.with_suffix("") for path in paths).values()) == 1
    files = {(path.with_suffix("") if unique else path).as_posix(): (home / path,) for path in paths}
    return {name: (*path, low_resolution(folder / "lr", *path, home)) for name, path in files.items()} if paired else files


def low_resolution(folder: Path, original: Path, home: Path) -> Path:
    """Returns the file in folder that has the name of an original in home, with any suffix. Raises ValueError without one."""
    wanted = folder / original.relative_to(home)
    found = [path for path in sorted(wanted.parent.glob("*")) if path.stem == wanted.stem and path.suffix.lower() in VIDEO_SUFFIXES]
    if not found:
        raise ValueError(f"{original} has no low resolution: {wanted} is not there")
    return found[0]


def read_clip(files: tuple[Path, ...], reading: Reading, decode: Callable[[Tensor], Tensor]) -> EvaluationClip:
    """Returns a clip.

    Args:
        files: Files of the clip, from `find_clips`.
        reading: How it is read.
        decode: Decodes a normalised latent (1, 16, T, h / 8, w / 8) to video (1, 3, F, h, w) in [-1, 1].

    Raises:
        ValueError: A file is damaged, too short or too small; the message names it.
    """
    z_lr, original = None, None
    if reading.suite == "aigc" and files[0].suffix.lower() in LATENT_SUFFIXES:
        z_lr = read_latent(files[0])[:, :, : (reading.num_frames - 1) // 4 + 1]  # the latent frames that are whole
        source, rate = decode(z_lr).clamp(-1, 1), LATENT_RATE
    else:
        (images, rate), *small = (read_video(file, reading.num_frames) for file in files)
        if reading.suite == "aigc":
            source = to_video(images)
        elif small:
            original, source = to_video(images), to_video(small[0][0])
            check_pair(files, original, source, reading)
        else:
            original, source = shrunk(to_original(images, reading, files[0]), reading.scale)
    height, width = reading.size or (round(reading.scale * source.shape[3]), round(reading.scale * source.shape[4]))
    if original is not None and len(files) == 1:
        height, width = original.shape[3:]
    if source.shape[2] < 2 or min(height, width) < SMALLEST:
        raise ValueError(f"{files[0]} has {source.shape[2]} frames of {width} x {height}, wanted at least 2 of {SMALLEST} x {SMALLEST}")
    if original is not None:
        original = original[..., :height, :width]
    return EvaluationClip((height, width), original, source, rate, reading.borders, z_lr, files)


def to_original(images: Tensor, reading: Reading, path: Path) -> Tensor:
    """Returns an original (1, 3, F, H, W) of reading.size, or of at most reading.height lines, by area averaging.

    Args:
        images: (F, H', W', 3) uint8.
        reading: How clips are read.
        path: File of the images.

    Raises:
        ValueError: The images are smaller than reading.size.
    """
    if reading.size is None:
        return to_video(torch.stack([limit_height(image, reading.height) for image in images]))
    if any(have < want for have, want in zip(images.shape[1:3], reading.size, strict=True)):
        (height, width), (h, w) = reading.size, images.shape[1:3]
        raise ValueError(f"{path} has {w} x {h} pixels, and --size wants originals of at least {width} x {height}")
    return resize_frames(to_video(images), reading.size, "area")


def shrunk(original: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Returns an original and its low resolution by area averaging.

    A whole scale cuts off what is beyond a multiple; with another one, the size of the low resolution is rounded down, and the original's
    low-resolution pixels are not all squares.
    """
    if scale == int(scale):
        source = area_downscale(original, int(scale))
        return original[..., : source.shape[3] * int(scale), : source.shape[4] * int(scale)], source
    rows, columns = (max(1, int(extent / scale)) for extent in original.shape[3:])
    height, width = (min(extent, round(scale * side)) for extent, side in zip(original.shape[3:], (rows, columns), strict=True))
    return original[..., :height, :width], resize_frames(original[..., :height, :width], (rows, columns), "area")


def check_pair(files: tuple[Path, ...], original: Tensor, source: Tensor, reading: Reading) -> None:
    """Raises ValueError unless original has as many frames as source and scale times its size, or up to a low-resolution pixel more."""
    shapes = [f"{video.shape[2]} frames of {video.shape[4]} x {video.shape[3]}" for video in (original, source)]
    large, small = original.shape[3:], source.shape[3:]
    fits = all(0 <= extent - reading.scale * side < reading.scale for extent, side in zip(large, small, strict=True))
    fits = tuple(large) == reading.size if reading.size else fits
    if not fits or original.shape[2] != source.shape[2]:
        wanted = f"{reading.size[1]} x {reading.size[0]}, --size" if reading.size else f"{reading.scale:g} times the size, --scale"
        raise ValueError(f"{files[0]} has {shapes[0]} and {files[1]} {shapes[1]}: wanted as many frames of {wanted}")
