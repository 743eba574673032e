"""Clips of a folder of video: the list of them, and reading."""

from collections import deque
from collections.abc import Iterable, Iterator
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
    """Result of a look at a folder of video.

    Attributes:
        lengths: Video frames of each usable video, by its path in the folder.
        skipped: Reasons why the other files are not usable.
        notes: Peculiarities of usable videos.
    """

    lengths: dict[str, int]
    skipped: dict[str, Drop]
    notes: dict[str, list[str]]

    def starts(self, num_frames: int, spacing: int) -> list[tuple[str, int]]:
        """Returns the video and first frame of every clip.

        Args:
            num_frames: Video frames of a clip.
            spacing: Video frames from the start of a clip to that of the next.
        """
        return [(name, start) for name, length in self.lengths.items() for start in range(0, length - num_frames + 1, spacing)]


def survey(folder: Path, num_frames: int) -> Survey:
    """Returns the usable videos of a folder. Raises ValueError when there is no video file in it.

    Args:
        folder: Folder, searched with its subfolders.
        num_frames: Video frames of a clip; a shorter video is skipped.
    """
    videos = set(find_videos(folder))
    lengths: dict[str, int] = {}
    skipped: dict[str, Drop] = {}
    notes: dict[str, list[str]] = {}
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
    """A clip of a video.

    Attributes:
        video: Path of the video in its folder.
        frame: Number of the clip's first frame in the video.
        images: (F, H, W, 3) uint8, or the reason why they could not be read.
    """

    video: str
    frame: int
    images: Tensor | Drop


@dataclass(frozen=True)
class ClipReader:
    """Reads clips of a folder of video.

    Attributes:
        folder: Folder of the videos.
        num_frames: Video frames of a clip.
        height: Height in pixels to which taller frames are reduced by area averaging.
    """

    folder: Path
    num_frames: int
    height: int

    def read(self, starts: Iterable[tuple[str, int]]) -> Iterator[Clip]:
        """Yields the clips with given starts; each video is read once. After damage in a video, its clips have a Drop for images.

        Args:
            starts: Video and first frame of each clip, in order.
        """
        frames_of: dict[str, deque[int]] = {}
        for name, start in starts:
            frames_of.setdefault(name, deque()).append(start)
        for name, left in frames_of.items():
            wanted = {index for start in left for index in range(start, start + self.num_frames)}
            images: list[Tensor] = []
            problem = "it has fewer frames than its packets say"
            try:
                for frame in read_frames(self.folder / name, wanted.__contains__):
                    images.append(limit_height(frame, self.height))
                    if len(images) == self.num_frames:
                        yield Clip(name, left.popleft(), torch.stack(images))
                        images = []
                    if not left:
                        break
            except ValueError as error:
                problem = str(error)
            for start in left:
                yield Clip(name, start, Drop("unreadable", problem))


def load_clips(folder: Path, num_frames: int, spacing: int, height: int) -> list[Tensor]:
    """Returns the clips of every video below a folder, uint8 (F, H, W, 3).

    Args:
        folder: Folder, searched with its subfolders.
        num_frames: Video frames of a clip.
        spacing: Video frames from the start of a clip to that of the next.
        height: Height in pixels to which taller frames are reduced by area averaging, which hides their compression.

    Raises:
        ValueError: spacing is less than num_frames, a video is damaged, or none is long enough for a clip.
    """
    if spacing < num_frames:
        raise ValueError(f"spacing is {spacing} frames, wanted at least the {num_frames} of a clip")
    found = survey(folder, num_frames)
    starts = found.starts(num_frames, spacing)
    read = tqdm(ClipReader(folder, num_frames, height).read(starts), total=len(starts), unit="clip", mininterval=5)
    clips = []
    for outcome in chain(found.skipped.values(), (clip.images for clip in read)):
        if isinstance(outcome, Tensor):
            clips.append(outcome)
        elif outcome.reason == "unreadable":
            raise ValueError(f"{outcome.detail}: take it out of {folder}, or get it again")
    if not clips:
        raise ValueError(f"no video in {folder} has {num_frames} frames: use longer videos or fewer frames")
    return clips
