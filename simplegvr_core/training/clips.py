"""Clips of a folder of video: which there are, and reading them."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from ..video.frames import limit_height
from ..video.read import find_videos, inspect_video, read_frames
from .filters import Drop


@dataclass(frozen=True)
class Survey:
    """lengths: frames of each usable video, by its path in the folder. skipped: why the other files are of no use.
    notes: what is unusual about usable ones."""

    lengths: dict[str, int]
    skipped: dict[str, Drop]
    notes: dict[str, list[str]]

    def starts(self, num_frames: int, spacing: int) -> list[tuple[str, int]]:
        """Returns the video and first frame of every clip of num_frames, a new one every spacing frames."""
        return [(name, start) for name, length in self.lengths.items() for start in range(0, length - num_frames + 1, spacing)]


def survey(folder: Path, num_frames: int) -> Survey:
    """Returns what a folder holds for clips of num_frames. Raises ValueError when there is no video file in it."""
    videos = set(find_videos(folder))
    lengths, skipped, notes = {}, {}, {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        if path not in videos:
            skipped[name] = Drop("not a video", f"its name ends in {path.suffix!r}")
            continue
        try:
            length, remarks = inspect_video(path)
        except ValueError as error:
            skipped[name] = Drop("unreadable", str(error))
            continue
        if length < num_frames:
            skipped[name] = Drop("too short", f"{length} frames, a clip takes {num_frames}")
            continue
        lengths[name] = length
        if remarks:
            notes[name] = remarks
    return Survey(lengths, skipped, notes)


@dataclass(frozen=True)
class Clip:
    """images: uint8 (F, H, W, 3), or why they could not be read. frame: number of the first in the video."""

    video: str
    frame: int
    images: Tensor | Drop


def read_clips(folder: Path, starts: list[tuple[str, int]], num_frames: int, height: int) -> Iterator[Clip]:
    """Yields the clips that start at the given (video, frame)s, which are in order; each video is read once.

    Frames taller than height are made that tall by area averaging. Where a video turns out to be damaged, its clips from
    there on carry a Drop.
    """
    frames_of: dict[str, deque[int]] = {}
    for name, start in starts:
        frames_of.setdefault(name, deque()).append(start)
    for name, left in frames_of.items():
        wanted = {index for start in left for index in range(start, start + num_frames)}
        images, problem = [], "it has fewer frames than its packets say"
        try:
            for frame in read_frames(folder / name, wanted.__contains__):
                images.append(limit_height(frame, height))
                if len(images) == num_frames:
                    yield Clip(name, left.popleft(), torch.stack(images))
                    images = []
                if not left:
                    break
        except ValueError as error:
            problem = str(error)
        for start in left:
            yield Clip(name, start, Drop("unreadable", problem))


def load_clips(folder: Path, num_frames: int, spacing: int, height: int) -> list[Tensor]:
    """Returns the clips of every video below folder, uint8 (F, H, W, 3): num_frames frames, a new one every spacing frames.

    Frames taller than height are made that tall by area averaging, which hides their compression.
    Raises ValueError when spacing is less than num_frames, a video is damaged, or none is long enough for a clip.
    """
    if spacing < num_frames:
        raise ValueError(f"spacing is {spacing} frames, wanted at least the {num_frames} of a clip")
    found = survey(folder, num_frames)
    starts = found.starts(num_frames, spacing)
    read = tqdm(read_clips(folder, starts, num_frames, height), total=len(starts), unit="clip", mininterval=5)
    clips = []
    for outcome in chain(found.skipped.values(), (clip.images for clip in read)):
        if isinstance(outcome, Tensor):
            clips.append(outcome)
        elif outcome.reason == "unreadable":
            raise ValueError(f"{outcome.detail}: take it out of {folder}, or get it again")
    if not clips:
        raise ValueError(f"no video in {folder} has {num_frames} frames: use longer videos or fewer frames")
    return clips
