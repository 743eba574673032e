"""Video of photographs in motion: `simplegvr photos --photos DIR --out DIR`.

Clean high-resolution video is scarce, photographs are not. A camera that pans, turns and zooms over a photograph gives real
texture in motion.
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
    """Folder of photographs, searched with its subfolders."""
    out: Path
    """Folder for the videos, in the same subfolders."""
    shots: int = 4
    """Camera movements over each photograph."""
    num_frames: int = 17
    """Video frames of each movement."""
    size: tuple[int, int] = (640, 360)
    """Width and height of the video in pixels."""
    seed: int = 0
    """Seed of all movements."""

    def run(self) -> dict:
        """Writes the videos.

        Returns:
            {"out": folder, "videos": their number, "frames": video frames of each}.

        Raises:
            ValueError: There is no photograph, or one cannot be read.
        """
        paths = sorted(path for path in self.photos.rglob("*") if path.suffix.lower() in PHOTO_SUFFIXES)
        if not paths:
            raise ValueError(f"--photos {self.photos} has no photograph ({', '.join(sorted(PHOTO_SUFFIXES))})")
        rng = np.random.default_rng(self.seed)
        for path in tqdm(paths, unit="photo"):
            photo = cv2.imread(str(path))
            if photo is None:
                raise ValueError(f"{path} is not a picture that can be read: take it out of --photos")
            photo = cv2.cvtColor(photo, cv2.COLOR_BGR2RGB)
            frames = [frame for _ in range(self.shots) for frame in move_camera(photo, self.size, self.num_frames, rng)]
            write_video(self.out / path.relative_to(self.photos).with_suffix(".mp4"), torch.from_numpy(np.stack(frames)), Fraction(24))
        return {"out": str(self.out), "videos": len(paths), "frames": self.shots * self.num_frames}


def move_camera(photo: np.ndarray, size: tuple[int, int], num_frames: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Returns the pictures (height, width, 3) uint8 that a moving camera sees of a photograph.

    The first view is half to nine tenths as large as the photograph allows. Each frame moves up to 3 pixels, turns up to 0.3
    degrees and zooms up to 0.6 %.

    Args:
        photo: Photograph (H, W, 3), uint8.
        size: Width and height of a picture in pixels.
        num_frames: Number of pictures.
        rng: Source of all randomness.
    """
    width, height = size
    reach = min(photo.shape[1] / width, photo.shape[0] / height)
    scale = rng.uniform(0.5, 0.9) * reach  # photo pixels a picture pixel
    interpolation = cv2.INTER_AREA if scale > 1 else cv2.INTER_CUBIC
    photo = cv2.resize(photo, None, fx=1 / scale, fy=1 / scale, interpolation=interpolation)
    room = np.array([photo.shape[1] - width, photo.shape[0] - height])
    start = np.array(size) / 2 + rng.uniform(0.2, 0.8, 2) * room
    heading = rng.uniform(0, 2 * np.pi)
    velocity = rng.uniform(0, 3) * np.array([np.cos(heading), np.sin(heading)])
    turn, zoom = rng.uniform(-0.3, 0.3), rng.uniform(-0.006, 0.006)
    frames = []
    for f in range(num_frames):
        x, y = start + f * velocity
        matrix = cv2.getRotationMatrix2D((x, y), f * turn, (1 + zoom) ** f)
        matrix[:, 2] += np.array(size) / 2 - (start + f * velocity)
        frames.append(cv2.warpAffine(photo, matrix, size, flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT_101))
    return frames


def main(arguments: Sequence[str]) -> dict:
    """Makes videos as the command line asks and returns Photos.run's summary."""
    return tyro.cli(Photos, prog="simplegvr photos", args=arguments).run()
