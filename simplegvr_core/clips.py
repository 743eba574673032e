"""Clips of a folder of video: which there are, and reading them."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .data import find_videos, inspect_video, read_frames, shrink
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
                images.append(shrink(frame, height))
                if len(images) == num_frames:
                    yield Clip(name, left.popleft(), torch.stack(images))
                    images = []
                if not left:
                    break
        except ValueError as error:
            problem = str(error)
        for start in left:
            yield Clip(name, start, Drop("unreadable", problem))
