"""Finished videos of other systems, which evaluation scores beside its own methods: `simplegvr evaluate --videos NAME=DIR`.

F frames; H, W pixels of the result
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from torch import Tensor

from ..checks import DEVICES
from ..latent_space import video_frames
from ..sampling.comfyui_latent import read_latent_shape
from ..video.frames import resize_frames, to_video
from ..video.read import VIDEO_SUFFIXES, inspect_video, read_video
from .result import EvaluationClip, required


def find_finished(videos: Iterable[str], clips: Iterable[str]) -> dict[str, dict[str, Path]]:
    """Returns the file of each clip that each system made: {clip: {name: file}}.

    Args:
        videos: NAME=DIR of each system; the file of a clip is DIR/CLIP with the suffix of a video.
        clips: Names of the clips.

    Raises:
        ValueError: An entry is not NAME=DIR, a name comes twice, or a clip has no file.
    """
    folders: dict[str, Path] = {}
    for entry in videos:
        name, _, folder = entry.partition("=")
        if not name or not folder or not Path(folder).is_dir():
            raise ValueError(f"--videos has {entry}, wanted NAME=DIR with a folder of finished videos")
        if not re.fullmatch(r"\w[\w .+-]*", name) or DEVICES.match(name):
            raise ValueError(f"--videos has the name {name!r}, which files get: wanted letters, digits, spaces, . + - and _")
        if name in folders:
            raise ValueError(f"--videos has {name} twice: give each system a name of its own")
        folders[name] = Path(folder)
    return {clip: {name: finished_file(folder, clip) for name, folder in folders.items()} for clip in clips}


def finished_file(folder: Path, clip: str) -> Path:
    """Returns the video of a clip in a folder. Raises ValueError where there is none."""
    wanted = folder / clip
    found = [path for path in sorted(wanted.parent.glob("*")) if path.stem == wanted.name and path.suffix.lower() in VIDEO_SUFFIXES]
    if not found:
        raise ValueError(f"--videos {folder} has no video of the clip {clip}: {wanted}.mp4 is not there")
    return found[0]


def check_lengths(found: Mapping[str, tuple[Path, ...]], finished: Mapping[str, Mapping[str, Path]], num_frames: int) -> None:
    """Raises ValueError unless each finished video has the frames of its clip.

    Args:
        found: Files of each clip.
        finished: Finished videos of each clip, from `find_finished`.
        num_frames: Frames of a clip that are wanted at most.
    """
    for clip, (first, *_) in found.items():
        if not finished[clip]:
            continue
        is_video = first.suffix.lower() in VIDEO_SUFFIXES
        there = inspect_video(first)[0] if is_video else video_frames(read_latent_shape(first)[2])
        for path in finished[clip].values():
            check_length(path, inspect_video(path)[0], min(num_frames, there))


def check_length(path: Path, frames: int, wanted: int) -> None:
    """Raises ValueError when a finished video has fewer frames than wanted."""
    if frames < wanted:
        raise ValueError(f"{path} has {frames} frames, and the clip {wanted}: give --num-frames {frames}, or finish the video")


def read_finished(path: Path, clip: EvaluationClip) -> Tensor:
    """Returns a finished video (1, 3, F, H, W) in [-1, 1] with the frames and the size of a clip's results.

    Frames beyond the clip's are left out. A larger video is reduced by area averaging, as baselines of a fixed scale are.

    Args:
        path: File of the video.
        clip: Its frames and its size are wanted.

    Raises:
        ValueError: The video has fewer frames, or it is smaller.
    """
    frames, (height, width) = required(clip.source).shape[2], clip.size
    images, _ = read_video(path, frames)
    check_length(path, len(images), frames)
    video = to_video(images)
    if video.shape[3] < height or video.shape[4] < width:
        found = f"{video.shape[4]} x {video.shape[3]}"
        raise ValueError(f"{path} has {found} pixels, wanted {width} x {height} or more: give a smaller --size or --scale")
    return video if video.shape[3:] == clip.size else resize_frames(video, clip.size, "area")
