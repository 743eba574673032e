"""What a model in training gives for fixed crops of pairs: its loss, the perceptual error of its samples, a video to look at."""

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import torch
from accelerate import PartialState
from torch import Tensor, nn

from ..evaluation.full_reference import st_lpips_network
from ..latent_space import PREVIEW_FACTORS
from ..networks.tiny_vae import TinyVAE
from ..networks.wan_vae import WanVAE
from ..sampling.super_resolve import SamplingConfig, super_resolve
from ..video.frames import resize_frames, to_images
from ..video.write import write_video
from .batches import NoisedPairs
from .draws import Draws
from .loop import Shown
from .loss import FlowMatching
from .sharding import gathered

VALIDATED = 8  # crops whose loss is measured, over all processes


@dataclass(frozen=True)
class Validation:
    """Shows a model and, on held-out pairs, measures it. Every process has its own crops, the same ones each time.

    Attributes:
        source: The pairs and their noise.
        is_held_out: Whether training does not see them.
        sampling: How the model is sampled.
        vae: Autoencoder of the pairs; without it the video has preview colors, and ST-LPIPS is not measured.
        out: Folder of the videos.
        seed: Seed of crops and noise.
    """

    source: NoisedPairs
    is_held_out: bool
    sampling: SamplingConfig
    vae: TinyVAE | WanVAE | None
    out: Path
    seed: int

    def __call__(self, model: nn.Module, step: int) -> Shown:
        """Returns the loss and ST-LPIPS of this process' crops, and on the main process the first one's video.

        The video is written to preview_STEP.mp4, too: low resolution, result, target, side by side.

        Args:
            model: The network with its loss.
            step: Number of finished steps.
        """
        assert isinstance(model, FlowMatching)
        device, place = next(model.dit.parameters()).device, PartialState()
        batches = [self.source.batch_on(device, self.draws(number)) for number in self.numbers]
        values = {"validation/loss": sum(model(**batch).item() for batch in batches) / len(batches)} if self.is_held_out else {}
        z_lr, z_hr = batches[0]["z_lr"], batches[0]["z_hr"]
        size = z_hr.shape[3], z_hr.shape[4]
        model.eval()
        context = batches[0]["context"]
        with torch.autocast(device.type, torch.bfloat16, enabled=model.config.bf16), gathered(model):
            z = super_resolve(model.dit, model.upsampler, z_lr, size, sampling=self.sampling, context=context, noise_seed=1)
        model.train()
        measured = self.is_held_out and self.vae is not None
        if not (measured or place.is_main_process):
            return Shown(values, None)
        result, target = decode(z, self.vae), decode(z_hr, self.vae)
        if measured:
            values |= {"validation/st_lpips": st_lpips(result, target)}
        if not place.is_main_process:
            return Shown(values, None)
        return Shown(values, side_by_side(self.out / f"preview_{step:06d}.mp4", (decode(z_lr, self.vae), result, target)))

    @property
    def numbers(self) -> range:
        """Numbers of this process' crops."""
        return range(max(1, VALIDATED // PartialState().num_processes) if self.is_held_out else 1)

    def draws(self, number: int) -> Draws:
        place = PartialState()
        return Draws(self.seed, number, range(place.process_index, place.process_index + 1), place.num_processes)

    def check(self) -> None:
        """Raises ValueError when a crop cannot be read."""
        for number in self.numbers:
            self.source.read(self.draws(number))


def side_by_side(path: Path, videos: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """Writes three videos (1, 3, F, H, W) in [-1, 1] beside each other, in the size of the last, and returns the frames (F, H, W, 3)."""
    size = videos[-1].shape[3], videos[-1].shape[4]
    images = to_images(torch.cat([resize_frames(video, size, "nearest-exact") for video in videos], dim=4).cpu())
    write_video(path, images, Fraction(12))
    return images


def decode(z: Tensor, vae: TinyVAE | WanVAE | None) -> Tensor:
    """Returns a latent's video in [-1, 1]: (1, 3, F, 8H, 8W) decoded, or (1, 3, T, H, W) in ComfyUI's preview colors.

    Args:
        z: Latent (1, 16, T, H, W).
        vae: Its autoencoder, which is moved to the latent's device; None for preview colors.
    """
    if vae is None:
        return torch.einsum("BCTHW, Cc -> BcTHW", z, torch.tensor(PREVIEW_FACTORS, dtype=z.dtype, device=z.device))
    if isinstance(vae, WanVAE):
        vae.vae.enable_tiling()
    return vae.to(z.device).decode(z)


def st_lpips(video: Tensor, target: Tensor) -> float:
    """Returns the mean ST-LPIPS of the frames of two videos (1, 3, F, H, W) in [-1, 1]."""
    network = st_lpips_network("alex", video.device)
    frames = zip(video[0].float().split(1, dim=1), target[0].float().split(1, dim=1), strict=True)
    errors = [network(a.transpose(0, 1), b.transpose(0, 1)).mean() for a, b in frames]
    return torch.stack(errors).mean().item()
