"""Latent pairs made while training: crops of video and of photographs in motion, downscaled and encoded on the training device.

For an autoencoder as cheap as TinyVAE. No pair is seen twice, and its ratio is that of any two sizes in latent pixels from 1.5 to 4.
B batch, F video frames, S pixels a side
"""

import math
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import cv2
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from ..latent_space import SPATIAL_FACTOR
from ..networks.layers import default_device
from ..networks.tiny_vae import TinyVAE
from ..video.frames import resize_frames, to_video
from ..video.read import VIDEO_SUFFIXES
from .batches import Crop
from .clips import load_clips
from .draws import READING, Batch, Draws
from .loop import LoopConfig
from .photos import PHOTO_SUFFIXES

RATIOS = 1.5, 4.0
PHOTOGRAPHS = 0.6  # of the crops, where there is video, too
FOREGROUND = 0.25  # of the crops of photographs: a second photograph moves before the first
FILTERS = {"area": 0.7, "bicubic": 0.2, "bilinear": 0.1}  # of downscaling, by their probability
CLIP_SPACING = 18  # video frames from the start of a clip to that of the next


class OnlinePairs:
    """Makes batches of pairs from the footage in memory."""

    def __init__(self, folders: Sequence[Path], vae: TinyVAE, crop: Crop, device: torch.device | str):
        """Reads the footage.

        Args:
            folders: Folders of video and photographs, searched with their subfolders.
            vae: Autoencoder of the latents.
            crop: Frames, latent pixels and number of the crops of a batch.
            device: Where the footage is stored and pairs are made.

        Raises:
            ValueError: There is no footage, or it is smaller than a crop.
        """
        self.vae, self.crop, self.device = vae.to(device), crop, device
        self.side = SPATIAL_FACTOR * crop.size[0]
        if crop.size[0] != crop.size[1]:
            raise ValueError(f"--crop.size is {crop.size} latent pixels, wanted a square: footage is cropped to squares")
        self.photographs = [photograph for folder in folders for photograph in read_photographs(folder, 2 * self.side)]
        with_video = [folder for folder in folders if any(path.suffix.lower() in VIDEO_SUFFIXES for path in folder.rglob("*"))]
        self.clips = [
            clip for folder in with_video for clip in load_clips(folder, crop.num_frames, max(CLIP_SPACING, crop.num_frames), height=1080)
        ]
        if not self.photographs and not self.clips:
            raise ValueError(f"--footage {' '.join(map(str, folders))} has no video and no photograph of {2 * self.side} pixels a side")
        if any(min(clip.shape[1:3]) < self.side for clip in self.clips):
            raise ValueError(f"--footage has video of less than {self.side} pixels a side, the crops': make --crop.size smaller")
        self.photographs, self.clips = ([item.to(device) for item in items] for items in (self.photographs, self.clips))

    def read(self, draws: Draws, text_dim: int) -> dict[str, Any]:
        """Returns {"context" (B, 1, text_dim)}, the null prompt."""
        return {"context": torch.zeros(len(draws.samples), 1, text_dim)}

    @torch.no_grad()
    def pairs_of(self, batch: Batch, draws: Draws) -> Batch:
        """Returns the batch with {"z_lr" (B, 16, T, h, w), "z_hr" (B, 16, T, H, W)}, float32, on the device. The ratio is the step's."""
        large, generators = self.crop.size[0], draws.generators(READING)
        least, most = math.ceil(large / RATIOS[1]), math.floor(large / RATIOS[0])
        small = least + below(most - least + 1, draws.of_step())
        video = torch.cat([self.sample_crop(generator) for generator in generators])
        sides = zip(video.split(1), generators, strict=True)
        low = torch.cat([downscale(crop, SPATIAL_FACTOR * small, generator) for crop, generator in sides])
        return batch | {"z_lr": self.vae.encode(low), "z_hr": self.vae.encode(video)}

    def sample_crop(self, generator: torch.Generator) -> Tensor:
        """Returns the crop with more detail of two, (1, 3, F, S, S) in [-1, 1]."""
        return max((self.any_crop(generator) for _ in range(2)), key=lambda crop: crop.diff(dim=4).abs().mean().item())

    def any_crop(self, generator: torch.Generator) -> Tensor:
        """Returns a crop (1, 3, F, S, S) in [-1, 1]."""
        if self.photographs and (not self.clips or uniform(0, 1, generator) < PHOTOGRAPHS):
            crop = self.photograph_in_motion(generator)
            if uniform(0, 1, generator) < FOREGROUND:
                crop = crop.lerp(self.photograph_in_motion(generator), self.moving_ellipse(generator))
        else:
            crop = self.crop_of_clip(generator)
        return crop.flip(4) if below(2, generator) else crop

    def crop_of_clip(self, generator: torch.Generator) -> Tensor:
        """Returns a crop of a clip, half of them at the video's own size, the others up to 2.2 times smaller."""
        clip = self.clips[below(len(self.clips), generator)]
        most = min(2.2, min(clip.shape[1:3]) / self.side)
        side = round(self.side * (1 if below(2, generator) else uniform(1, most, generator)))
        y, x = (below(extent - side + 1, generator) for extent in clip.shape[1:3])
        return resize_frames(to_video(clip[:, y : y + side, x : x + side]), (self.side, self.side), "area")

    def photograph_in_motion(self, generator: torch.Generator) -> Tensor:
        """Returns what a moving camera sees of a photograph: a frame moves up to 24 pixels (half of them up to 3), 0.3 degrees, 0.6 %."""
        photograph = self.photographs[below(len(self.photographs), generator)]
        view = round(1.3 * self.side)  # pixels of the part of the photograph that is seen, after its downscaling
        least, most = 1.4, max(1.4, min(4, min(photograph.shape[1:]) / view))
        extent = min(round(view * least * (most / least) ** uniform(0, 1, generator)), *photograph.shape[1:])
        y, x = (below(length - extent + 1, generator) for length in photograph.shape[1:])
        part = photograph[None, :, y : y + extent, x : x + extent].float() / 127.5 - 1
        part = F.interpolate(part, (view, view), mode="bicubic", antialias=True, align_corners=False).clamp(-1, 1)
        frames = torch.arange(self.crop.num_frames) - (self.crop.num_frames - 1) / 2
        angle = math.radians(uniform(-0.3, 0.3, generator)) * frames
        zoom = self.side / view * (1 + uniform(-0.006, 0.006, generator)) ** frames
        heading, speed = uniform(0, 2 * math.pi, generator), 24 * uniform(0, 1, generator) ** 3 * 2 / view
        rows = (
            (zoom * angle.cos(), -zoom * angle.sin(), speed * math.cos(heading) * frames),
            (zoom * angle.sin(), zoom * angle.cos(), speed * math.sin(heading) * frames),
        )
        camera = torch.stack([torch.stack(row, dim=1) for row in rows], dim=1).to(self.device)
        places = F.affine_grid(camera, [len(camera), 3, self.side, self.side], align_corners=False)
        seen = F.grid_sample(part.expand(len(camera), -1, -1, -1), places, mode="bicubic", padding_mode="reflection", align_corners=False)
        return rearrange(seen.clamp(-1, 1), "F C H W -> 1 C F H W")

    def moving_ellipse(self, generator: torch.Generator) -> Tensor:
        """Returns the opacity (1, 1, F, S, S) of an ellipse with a soft edge that moves up to 4 pixels a frame."""
        rows, columns = (torch.arange(self.side, dtype=torch.float32)[place] for place in ((slice(None), None), (None, slice(None))))
        centre, radii, velocity = (
            (uniform(low, high, generator) * self.side, uniform(low, high, generator) * self.side)
            for low, high in ((0, 1), (0.12, 0.4), (-4 / self.side, 4 / self.side))
        )
        frames = torch.arange(self.crop.num_frames, dtype=torch.float32)[:, None, None]
        radius = sum(
            (((place - c - v * frames) / r) ** 2 for place, c, r, v in zip((rows, columns), centre, radii, velocity, strict=True)),
            start=torch.zeros(()),
        ).sqrt()
        return ((1 - radius) * min(radii)).sigmoid().to(self.device)[None, None]


def check_source(pairs: Sequence[Path], footage: Sequence[Path], workers: int) -> None:
    """Raises ValueError unless there is one source of pairs: folders of pairs, or footage, which no worker reads."""
    if bool(footage) == bool(pairs):
        raise ValueError("give either --pairs, folders of pairs, or --footage, folders of video and photographs")
    if footage and workers:
        raise ValueError(f"--loop.workers is {workers}, but pairs of --footage are made on the training device: give --loop.workers 0")


def online_pairs(folders: Sequence[Path], vae: object, crop: Crop, loop: LoopConfig) -> OnlinePairs:
    """Returns the pairs of --footage on the training device. Raises ValueError when vae is no TinyVAE."""
    if not isinstance(vae, TinyVAE):
        raise ValueError(
            "--footage makes pairs by TinyVAE at every step: give its file with --vae, or build --pairs for another autoencoder"
        )
    return OnlinePairs(folders, deepcopy(vae), crop, "cpu" if loop.cpu else default_device())


def downscale(video: Tensor, side: int, generator: torch.Generator) -> Tensor:
    """Returns video (1, 3, F, S, S), each frame downscaled to side pixels a side by one of FILTERS."""
    chosen = torch.multinomial(torch.tensor(list(FILTERS.values())), 1, generator=generator).item()
    mode = list(FILTERS)[int(chosen)]
    if mode == "area":
        return resize_frames(video, (side, side), mode)
    frames = F.interpolate(video[0].transpose(0, 1), (side, side), mode=mode, antialias=True, align_corners=False)
    return frames.clamp(-1, 1).transpose(0, 1)[None]


def read_photographs(folder: Path, least: int) -> list[Tensor]:
    """Returns the photographs below a folder, uint8 (3, H, W), whose sides have at least so many pixels.

    Raises ValueError for a damaged one.
    """
    photographs = []
    for path in sorted(path for path in folder.rglob("*") if path.suffix.lower() in PHOTO_SUFFIXES):
        image = cv2.imread(str(path))
        if image is None:
            raise ValueError(f"{path} is not a picture that can be read: take it out of --footage")
        if min(image.shape[:2]) >= least:
            photographs.append(torch.from_numpy(cv2.cvtColor(image, cv2.COLOR_BGR2RGB)).permute(2, 0, 1).contiguous())
    return photographs


def below(limit: int, generator: torch.Generator) -> int:
    """Returns a random integer from 0 to limit - 1."""
    return int(torch.randint(limit, (), generator=generator))


def uniform(low: float, high: float, generator: torch.Generator) -> float:
    """Returns a random number between two."""
    return low + (high - low) * torch.rand((), generator=generator).item()
