"""Latent pairs made while training: crops of video and of photographs in motion, downscaled and encoded on the training device.

For an autoencoder as cheap as TinyVAE. No pair is seen twice, and its ratio is that of any two sizes in latent pixels from 1.5 to 4.
B batch, F video frames, S pixels a side
"""

import math
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor
from torch.utils.data import get_worker_info

from ..latent_space import SPATIAL_FACTOR
from ..networks.tiny_vae import TinyVAE
from ..video.frames import resize_frames
from ..video.read import VIDEO_SUFFIXES
from .batches import Crop, PairSampler
from .clips import load_clips
from .draws import READING, Batch, Draws
from .photos import PHOTO_SUFFIXES

RATIOS = 1.5, 4.0
PHOTOGRAPHS = 0.6  # of the crops, where there is video, too
FOREGROUND = 0.25  # of the crops of photographs: a second photograph moves before the first
FILTERS = {"area": 0.7, "bicubic": 0.2, "bilinear": 0.1}  # of downscaling, by their probability
CLIP_SPACING = 18  # video frames from the start of a clip to that of the next


class OnlinePairs:
    """Makes batches of pairs from the footage in memory, which workers share: they make the crops, the training device the pairs."""

    def __init__(self, folders: Sequence[Path], vae: TinyVAE, crop: Crop):
        """Reads the footage.

        Args:
            folders: Folders of video and photographs, searched with their subfolders.
            vae: Autoencoder of the latents; it is moved to the training device.
            crop: Frames, latent pixels and number of the crops of a batch.

        Raises:
            ValueError: There is no footage, or it is smaller than a crop.
        """
        self.vae, self.crop = vae, crop
        self.side = SPATIAL_FACTOR * crop.size[0]
        if crop.size[0] != crop.size[1]:
            raise ValueError(f"--crop.size is {crop.size} latent pixels, wanted a square: footage is cropped to squares")
        self.photographs = [photograph for folder in folders for photograph in read_photographs(folder, 2 * self.side)]
        with_video = [folder for folder in folders if any(path.suffix.lower() in VIDEO_SUFFIXES for path in folder.rglob("*"))]
        spacing = max(CLIP_SPACING, crop.num_frames)
        self.clips = [clip for folder in with_video for clip in load_clips(folder, crop.num_frames, spacing, height=1080)]
        if not self.photographs and not self.clips:
            raise ValueError(f"--footage {' '.join(map(str, folders))} has no video and no photograph of {2 * self.side} pixels a side")
        if any(min(clip.shape[1:3]) < self.side for clip in self.clips):
            raise ValueError(f"--footage has video of less than {self.side} pixels a side, the crops': make --crop.size smaller")

    def read(self, draws: Draws, text_dim: int) -> dict[str, Any]:
        """Returns {"video" (B, F, S, S, 3), uint8, "context" (B, 1, text_dim), the null prompt}."""
        if get_worker_info():
            cv2.setNumThreads(1)
        crops = np.stack([self.sample_crop(generator) for generator in draws.generators(READING)])
        return {"video": torch.from_numpy(crops), "context": torch.zeros(len(crops), 1, text_dim)}

    @torch.no_grad()
    def pairs_of(self, batch: Batch, draws: Draws) -> Batch:
        """Returns {"context", "z_lr" (B, 16, T, h, w), "z_hr" (B, 16, T, H, W)}, on the device. Ratio and filter are the step's."""
        large, generator = self.crop.size[0], draws.of_step()
        least, most = math.ceil(large / RATIOS[1]), math.floor(large / RATIOS[0])
        small = least + below(most - least + 1, generator)
        video = rearrange(batch["video"], "B F H W C -> B C F H W").float() / 127.5 - 1
        low, vae = downscale(video, SPATIAL_FACTOR * small, generator), self.vae.to(video.device)
        return {"context": batch["context"], "z_lr": vae.encode(low), "z_hr": vae.encode(video)}

    def sample_crop(self, generator: torch.Generator) -> np.ndarray:
        """Returns a crop (F, S, S, 3)."""
        if self.photographs and (not self.clips or uniform(0, 1, generator) < PHOTOGRAPHS):
            crop = self.photograph_in_motion(generator)
            if uniform(0, 1, generator) < FOREGROUND:
                opacity = self.moving_ellipse(generator)
                crop = np.rint(crop + opacity * (self.photograph_in_motion(generator) - crop.astype(np.float32))).astype(np.uint8)
        else:
            crop = self.crop_of_clip(generator)
        return crop[:, :, ::-1] if below(2, generator) else crop

    def crop_of_clip(self, generator: torch.Generator) -> np.ndarray:
        """Returns a crop of a clip, half of them at the video's own size, the others up to 2.2 times smaller."""

        def sample_place() -> Place:
            clip = self.clips[below(len(self.clips), generator)].numpy()
            most = min(2.2, min(clip.shape[1:3]) / self.side)
            return sample_square(clip, round(self.side * (1 if below(2, generator) else uniform(1, most, generator))), generator)

        place = max(
            (sample_place() for _ in range(2)), key=lambda place: detail(place.reduced(place.images[self.crop.num_frames // 2], self.side))
        )
        return np.stack([place.reduced(frame, self.side) for frame in place.images])

    def photograph_in_motion(self, generator: torch.Generator) -> np.ndarray:
        """Returns what a moving camera sees of a photograph: a frame moves up to 24 pixels (half of them up to 3), 0.3 degrees, 0.6 %."""
        view = round(1.3 * self.side)  # pixels of the part of the photograph that is seen, after its downscaling

        def sample_part() -> np.ndarray:
            photograph = self.photographs[below(len(self.photographs), generator)].numpy()
            least, most = 1.4, max(1.4, min(4, min(photograph.shape[:2]) / view))
            extent = min(round(view * least * (most / least) ** uniform(0, 1, generator)), *photograph.shape[:2])
            return sample_square(photograph[None], extent, generator).reduced(photograph, view)

        part = max((sample_part() for _ in range(2)), key=detail)
        turn, growth = uniform(-0.3, 0.3, generator), 1 + uniform(-0.006, 0.006, generator)
        heading, speed = uniform(0, 2 * math.pi, generator), 24 * uniform(0, 1, generator) ** 3

        def frame_at(time: float) -> np.ndarray:
            camera = cv2.getRotationMatrix2D(((view - 1) / 2, (view - 1) / 2), turn * time, growth**time)
            camera[:, 2] += (self.side - view) / 2 + speed * time * np.array((math.cos(heading), math.sin(heading)))
            return cv2.warpAffine(part, camera, (self.side,) * 2, flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT)

        return np.stack([frame_at(frame - (self.crop.num_frames - 1) / 2) for frame in range(self.crop.num_frames)])

    def moving_ellipse(self, generator: torch.Generator) -> np.ndarray:
        """Returns the opacity (F, S, S, 1) of an ellipse with a soft edge that moves up to 4 pixels a frame."""
        centre, radii, velocity = (
            [uniform(low, high, generator) * self.side for _ in range(2)]
            for low, high in ((0, 1), (0.12, 0.4), (-4 / self.side, 4 / self.side))
        )
        frames = np.arange(self.crop.num_frames)[:, None]
        rows, columns = (
            ((np.arange(self.side) - c - v * frames) / r) ** 2 for c, r, v in zip(centre, radii, velocity, strict=True)
        )  # (F, S)
        depth = (1 - np.sqrt(rows[:, :, None] + columns[:, None, :])) * min(radii)
        return (1 / (1 + np.exp(-depth.clip(-30, 30))))[..., None].astype(np.float32)


@dataclass(frozen=True)
class Place:
    """A square of images (F, H, W, 3) by its first row, first column and side."""

    images: np.ndarray
    y: int
    x: int
    extent: int

    def reduced(self, image: np.ndarray, side: int) -> np.ndarray:
        """Returns the square of one of the images, reduced to side pixels a side by area averaging."""
        square = image[self.y : self.y + self.extent, self.x : self.x + self.extent]
        return cv2.resize(square, (side, side), interpolation=cv2.INTER_AREA)


def sample_square(images: np.ndarray, extent: int, generator: torch.Generator) -> Place:
    """Returns a random square of images (F, H, W, 3)."""
    y, x = (below(length - extent + 1, generator) for length in images.shape[1:3])
    return Place(images, y, x, extent)


def detail(image: np.ndarray) -> float:
    """Returns the mean difference between neighbors of a row of an image (H, W, 3)."""
    return float(np.abs(np.diff(image.astype(np.int16), axis=1)).mean())


def check_source(pairs: Sequence[Path], footage: Sequence[Path], contexts: Path | None) -> None:
    """Raises ValueError unless there is one source of pairs: folders of pairs, or footage, which has no captions."""
    if bool(footage) == bool(pairs):
        raise ValueError("give either --pairs, folders of pairs, or --footage, folders of video and photographs")
    if footage and contexts:
        raise ValueError(f"--contexts is {contexts}, but pairs of --footage have no captions: give --pairs, or no --contexts")


def chosen_pairs(config: Any, vae: object, contexts: Path | None = None, null_prompt: float = 1.0) -> PairSampler | OnlinePairs:
    """Returns what samples the pairs of a training.

    Args:
        config: Options of the training, "pairs", "footage" and "crop" among them.
        vae: Autoencoder of the latents; for footage, TinyVAE.
        contexts: Folder of text features; None is the null prompt.
        null_prompt: Fraction of samples that have the null prompt nevertheless.

    Raises:
        ValueError: There are no pairs, they do not fit, or vae is no TinyVAE.
    """
    if not config.footage:
        return PairSampler(config.pairs, config.crop, contexts, null_prompt)
    if not isinstance(vae, TinyVAE):
        raise ValueError(
            "--footage makes pairs by TinyVAE at every step: give its file with --vae, or build --pairs for another autoencoder"
        )
    return OnlinePairs(config.footage, deepcopy(vae), config.crop)


def downscale(video: Tensor, side: int, generator: torch.Generator) -> Tensor:
    """Returns video (B, 3, F, S, S), each frame downscaled to side pixels a side by one of FILTERS."""
    mode = list(FILTERS)[int(torch.multinomial(torch.tensor(list(FILTERS.values())), 1, generator=generator))]
    if mode == "area":
        return resize_frames(video, (side, side), mode)
    frames = rearrange(video, "B C F H W -> (B F) C H W")
    frames = F.interpolate(frames, (side, side), mode=mode, antialias=True, align_corners=False).clamp(-1, 1)
    return rearrange(frames, "(B F) C H W -> B C F H W", B=len(video))


def read_photographs(folder: Path, least: int) -> list[Tensor]:
    """Returns the photographs below a folder, uint8 (H, W, 3), whose sides have at least so many pixels.

    Raises ValueError for a damaged one.
    """
    photographs = []
    for path in sorted(path for path in folder.rglob("*") if path.suffix.lower() in PHOTO_SUFFIXES):
        image = cv2.imread(str(path))
        if image is None:
            raise ValueError(f"{path} is not a picture that can be read: take it out of --footage")
        if min(image.shape[:2]) >= least:
            photographs.append(torch.from_numpy(cv2.cvtColor(image, cv2.COLOR_BGR2RGB)))
    return photographs


def below(limit: int, generator: torch.Generator) -> int:
    """Returns a random integer from 0 to limit - 1."""
    return int(torch.randint(limit, (), generator=generator))


def uniform(low: float, high: float, generator: torch.Generator) -> float:
    """Returns a random number between two."""
    return low + (high - low) * torch.rand((), generator=generator).item()
