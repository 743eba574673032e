"""Training of TinyVAE: `simplegvr train-vae --videos DIR --out DIR`."""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import tyro
from torch import Tensor, nn

from ..checks import check_folder
from ..evaluation.full_reference import st_lpips_network
from ..networks import checkpoint
from ..networks.tiny_vae import TinyVAE, TinyVAEConfig
from ..video.frames import random_crops
from .clips import load_clips
from .draws import READING, Batch, Draws
from .loop import LoopConfig, fit


@dataclass(frozen=True)
class Crops:
    """Random crops of video, and how many are in a batch."""

    num_frames: int = 9
    """Video frames of a crop."""
    size: int = 96
    """Height and width of a crop in pixels."""
    batch: int = 8
    """Crops in a batch."""
    height: int = 360
    """Height in pixels to which taller video is reduced by area averaging, which hides its compression."""
    spacing: int = 34
    """Video frames from the start of one clip to that of the next."""


@dataclass(frozen=True)
class TrainVAE:
    """Trains TinyVAE's decoder on crops of a folder of video. The encoder is computed in closed form and not trained."""

    videos: Path
    """Folder of video files, searched with its subfolders."""
    out: Path
    """Folder of the run: the network, losses and the state to resume from."""
    vae: TinyVAEConfig = TinyVAEConfig()
    """Sizes of the network."""
    init: Path | None = None
    """TinyVAE to start from, its encoder included: the latents do not change."""
    perceptual: float = 0.1
    """Weight of the perceptual loss (ST-LPIPS, VGG) of one frame of half the clips."""
    noise: float = 0.05
    """Standard deviation of the noise on the latent in training, in place of the errors of models that make latents."""
    crops: Crops = Crops()
    """Crops of video in a batch."""
    loop: LoopConfig = LoopConfig(steps=4000, learning_rate=8e-4)
    """Length and rate of the training."""

    def run(self) -> dict:
        """Trains, or resumes from the state in the folder.

        Returns:
            {"tiny_vae": file}.

        Raises:
            ValueError: The videos or the state do not fit.
            FloatingPointError: A loss is not finite.
            tiling.OutOfMemory: Memory ran out.
            OSError: A file cannot be read or written.
        """
        check_folder(self.out)
        clips = load_clips(self.videos, self.crops.num_frames, self.crops.spacing, self.crops.height)
        vae = self.initial_vae(clips)
        trained = fit(Reconstruction(vae, self.perceptual), NoisedCrops(clips, self.crops, vae, self.noise), self.loop, self.out)
        path = self.out / "tiny_vae.safetensors"
        checkpoint.save(path, "tiny_vae", checkpoint.half(checkpoint.part(trained, "vae.")), model=self.vae)
        return {"tiny_vae": str(path)}

    def initial_vae(self, clips: list[Tensor]) -> TinyVAE:
        """Returns the autoencoder with its initial weights, its encoder not trainable."""
        generator = torch.Generator().manual_seed(self.loop.seed)
        vae = TinyVAE(self.vae)
        vae.init_weights(generator)
        if self.init is None:
            vae.fit_encoder(random_crops(clips, batch=512, num_frames=self.crops.num_frames, size=self.crops.size, generator=generator))
        else:
            state_dict, _ = checkpoint.read(self.init, "tiny_vae")
            checkpoint.load_strict(vae, state_dict, self.init)
        vae.encoder.requires_grad_(False)
        return vae


@dataclass(frozen=True)
class NoisedCrops:
    """A Source: crops of clips, and noise on their latents.

    Attributes:
        clips: Clips, uint8 (F, H, W, 3).
        crops: Sizes and number of the crops.
        vae: The autoencoder.
        deviation: Standard deviation of the noise.
    """

    clips: list[Tensor]
    crops: Crops
    vae: TinyVAE
    deviation: float

    @property
    def batch(self) -> int:
        return self.crops.batch

    def read(self, draws: Draws) -> dict[str, Any]:
        """Returns {"video" (B, 3, F, S, S) in [-1, 1]}."""
        sizes = {"batch": 1, "num_frames": self.crops.num_frames, "size": self.crops.size}
        return {"video": torch.cat([random_crops(self.clips, **sizes, generator=generator) for generator in draws.generators(READING)])}

    def finish(self, batch: Batch, draws: Draws) -> Batch:
        """Returns Reconstruction's arguments; the compared frame is the step's."""
        frame = int(torch.randint(self.crops.num_frames, (), generator=draws.of_step()))
        return batch | draws.each(batch["video"], self.noise_of) | {"frame": frame}

    def noise_of(self, video: Tensor, generator: torch.Generator) -> Batch:
        shape = self.vae.latent_shape(video.shape)
        return {"noise": self.deviation * torch.randn(shape, generator=generator, device=video.device)}


class Reconstruction(nn.Module):
    """TinyVAE with its loss."""

    def __init__(self, vae: TinyVAE, perceptual_weight: float):
        super().__init__()
        self.vae, self.perceptual_weight = vae, perceptual_weight
        self.perceptual = (deepcopy(st_lpips_network("vgg", "cpu")),)  # in a tuple, so that it is neither trained nor saved

    def forward(self, video: Tensor, noise: Tensor, frame: int) -> Tensor:
        """Returns the error of the decoded video, smooth L1 plus the weighted perceptual error; a scalar.

        Args:
            video: Video (B, 3, F, H, W) in [-1, 1].
            noise: Noise on its latent, of the latent's shape.
            frame: Number of the frame of the perceptual error.
        """
        with torch.autocast(video.device.type, torch.bfloat16):
            decoded = self.vae.decode(self.vae.encode(video) + noise).float()
            compared = slice(None, None, 2), slice(None), frame
            perceptual = self.perceptual[0].to(video.device)(decoded[compared], video[compared]).mean()
        error = F.smooth_l1_loss(decoded, video, beta=0.05)
        return error + self.perceptual_weight * perceptual


def main(arguments: Sequence[str]) -> dict:
    """Trains TinyVAE as the command line asks and returns TrainVAE.run's result."""
    return tyro.cli(TrainVAE, prog="simplegvr train-vae", args=arguments).run()
