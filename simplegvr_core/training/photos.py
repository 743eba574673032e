"""Video of photographs in motion: `python3 scripts/run.py photos --photos DIR --out DIR`.

Clean high-resolution video is scarce, photographs are not: a camera that pans, turns and zooms over one gives real texture
with motion, at any quantity.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import torch
import tyro
from tqdm import tqdm

from ..video.write import write_video

PHOTO_SUFFIXES = {".jpg", ".jpeg", ".png"}


@dataclass(frozen=True)
class Photos:
    """Makes one video of every photograph below a folder, for training."""

    photos: Path
    out: Path
    shots: int = 4
    """Camera movements over each photograph."""
    num_frames: int = 17
    """Frames of each."""
    size: tuple[int, int] = (640, 360)
    """Width and height in pixels."""
    seed: int = 0

    def run(self) -> None:
        """Raises ValueError when there is no photograph."""
        paths = sorted(path for path in self.photos.rglob("*") if path.suffix.lower() in PHOTO_SUFFIXES)
        if not paths:
            raise ValueError(f"--photos {self.photos} holds no photograph ({', '.join(sorted(PHOTO_SUFFIXES))})")
        rng = np.random.default_rng(self.seed)
        for path in tqdm(paths, unit="photo"):
            photo = cv2.imread(str(path))
            if photo is None:
                raise ValueError(f"{path} is not a picture that can be read: take it out of --photos")
            photo = cv2.cvtColor(photo, cv2.COLOR_BGR2RGB)
            frames = [frame for _ in range(self.shots) for frame in move_camera(photo, self.size, self.num_frames, rng)]
            write_video(self.out / path.relative_to(self.photos).with_suffix(".mp4"), torch.from_numpy(np.stack(frames)), Fraction(24))


def move_camera(photo: np.ndarray, size: tuple[int, int], num_frames: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Returns num_frames pictures (height, width, 3) uint8 of size (width, height) that a moving camera sees of a photo.

    photo: (H, W, 3) uint8. It starts with a view of half to nine tenths of what the photo has room for and moves up to 3 pixels a
    frame, turns up to 0.3 degrees and zooms up to 0.6 % a frame.
    """
    width, height = size
    reach = min(photo.shape[1] / width, photo.shape[0] / height)
    scale = rng.uniform(0.5, 0.9) * reach  # photo pixels a picture pixel
    photo = cv2.resize(photo, None, fx=1 / scale, fy=1 / scale, interpolation=cv2.INTER_AREA if scale > 1 else cv2.INTER_CUBIC)
    room = np.array([photo.shape[1] - width, photo.shape[0] - height])
    start = np.array(size) / 2 + rng.uniform(0.2, 0.8, 2) * room
    heading = rng.uniform(0, 2 * np.pi)
    velocity = rng.uniform(0, 3) * np.array([np.cos(heading), np.sin(heading)])
    turn, zoom = rng.uniform(-0.3, 0.3), rng.uniform(-0.006, 0.006)
    frames = []
    for f in range(num_frames):
        matrix = cv2.getRotationMatrix2D(tuple(start + f * velocity), f * turn, (1 + zoom) ** f)
        matrix[:, 2] += np.array(size) / 2 - (start + f * velocity)
        frames.append(cv2.warpAffine(photo, matrix, size, flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT_101))
    return frames


def main(arguments: Sequence[str]) -> dict:
    return tyro.cli(Photos, prog="simplegvr photos", args=arguments).run()
