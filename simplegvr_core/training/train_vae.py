"""Training of TinyVAE: `python3 scripts/run.py train-vae --videos DIR --out DIR`."""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
import tyro
from torch import Tensor, nn

from ..evaluation.full_reference import st_lpips_network
from ..networks import checkpoint
from ..networks.tiny_vae import TinyVAE, TinyVAEConfig
from ..video.frames import random_crops
from .clips import load_clips
from .loop import LoopConfig, fit


@dataclass(frozen=True)
class Crops:
    """What a batch is made of. height: taller video is made this tall by area averaging, which hides its compression;
    spacing: frames from the start of one clip to the next."""

    num_frames: int = 9
    size: int = 96
    batch: int = 8
    height: int = 360
    spacing: int = 34


@dataclass(frozen=True)
class TrainVAE:
    """Trains TinyVAE's decoder on crops of a folder of video; its encoder is set once, in closed form, and stays."""

    videos: Path
    out: Path
    vae: TinyVAEConfig = TinyVAEConfig()
    init: Path | None = None
    """TinyVAE to go on from, its encoder included: latents stay what they were."""
    perceptual: float = 0.1
    """Weight of the perceptual loss (ST-LPIPS, VGG) of one frame of half the clips."""
    noise: float = 0.05
    """Noise on the latent while training: the decoder has to bear a little error of the models that make latents."""
    crops: Crops = Crops()
    loop: LoopConfig = LoopConfig(steps=4000, learning_rate=8e-4)

    def run(self) -> dict:
        """Returns {"tiny_vae": file}. Raises what load_clips and fit raise."""
        clips = load_clips(self.videos, self.crops.num_frames, self.crops.spacing, self.crops.height)
        vae = self.initial_vae(clips)
        num_frames, size = self.crops.num_frames, self.crops.size

        def draw(generator: torch.Generator) -> dict[str, Tensor]:
            video = random_crops(clips, batch=self.crops.batch, num_frames=num_frames, size=size, generator=generator)
            frame = torch.randint(num_frames, (1,), generator=generator).expand(self.crops.batch)
            return {"video": video, "noise": self.noise * torch.randn(vae.latent_shape(video.shape), generator=generator), "frame": frame}

        trained = fit(Reconstruction(vae, self.perceptual), draw, self.loop, self.out)
        path = self.out / "tiny_vae.safetensors"
        checkpoint.save(path, "tiny_vae", checkpoint.half(checkpoint.part(trained, "vae.")), model=self.vae)
        return {"tiny_vae": str(path)}

    def initial_vae(self, clips: list[Tensor]) -> TinyVAE:
        """Returns the autoencoder as training starts, its encoder not trainable."""
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


class Reconstruction(nn.Module):
    """TinyVAE with its loss."""

    def __init__(self, vae: TinyVAE, perceptual_weight: float):
        super().__init__()
        self.vae, self.perceptual_weight = vae, perceptual_weight
        self.perceptual = (deepcopy(st_lpips_network("vgg", "cpu")),)  # a tuple hides it: it is not trained, nor saved

    def forward(self, video: Tensor, noise: Tensor, frame: Tensor) -> Tensor:
        """Returns the error of the decoded video (smooth L1 and perceptual), the second by its weight.

        video: (B, 3, F, H, W) in [-1, 1]. noise: like the latent. frame: (B,), all the same: the one that is looked at closely.
        """
        with torch.autocast(video.device.type, torch.bfloat16):
            decoded = self.vae.decode(self.vae.encode(video) + noise).float()
            looked_at = slice(None, -(-len(video) // 2)), slice(None), frame[0]
            perceptual = self.perceptual[0].to(video.device)(decoded[looked_at], video[looked_at]).mean()
        error = F.smooth_l1_loss(decoded, video, beta=0.05)
        return error + self.perceptual_weight * perceptual


def main(arguments: Sequence[str]) -> dict:
    return tyro.cli(TrainVAE, prog="simplegvr train-vae", args=arguments).run()
