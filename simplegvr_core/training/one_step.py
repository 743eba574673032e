"""The objective of a one-step student: regression from the upsampled latent itself to the clean one, as DOVE (arXiv 2505.16239).

B batch, T latent frames, h, w low-resolution latent pixels, H, W target latent pixels, S text tokens; latents are normalised
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..flow import clean_from_velocity
from ..networks.dit import SimpleGVRDiT
from ..networks.upsampler import Upsampler
from ..sampling.super_resolve import SamplingConfig
from .draws import Batch, Draws
from .loss import Pictures

DECODED = 2.0  # weight of the decoded frames' mean absolute error beside the perceptual error
FLAT = 10.0  # weight of the error of the noise in their flat areas, where the perceptual error alone makes some
STUDENT = SamplingConfig(steps=1, shift=1.0, noise_augmentation=0.0, denoise=0.4, start="condition")


@dataclass(frozen=True)
class OneStepConfig:
    """Weights and precision of the objective.

    Attributes:
        sigma: Noise level that the student takes the upsampled latent for, in (0, 1].
        upsampler: Weight of the upsampled latent's own error.
        perceptual: Weight of the error of half the batch, decoded: ST-LPIPS of a frame, plus DECODED times the mean absolute error
            and FLAT times flat_error of all frames.
        bf16: Whether matrix products are in bfloat16.
    """

    sigma: float = STUDENT.denoise
    upsampler: float = 1.0
    perceptual: float = 0.0
    bf16: bool = True


class OneStep(nn.Module):
    """Upsampler and student. The upsampler learns by its own error alone: the student's gradient ends at the upsampled latent."""

    upsampler: Upsampler
    dit: SimpleGVRDiT

    def __init__(self, upsampler: Upsampler, dit: SimpleGVRDiT, pictures: Pictures, config: OneStepConfig):
        super().__init__()
        self.upsampler, self.dit, self.pictures, self.config = upsampler, dit, pictures, config

    def forward(self, *, z_lr: Tensor, z_hr: Tensor, context: Tensor, frame: int) -> Tensor:
        """Returns the mean absolute error of the result, plus the other errors by their weights; a scalar.

        Args:
            z_lr: Low-resolution latent (B, 16, T, h, w).
            z_hr: Target latent (B, 16, T, H, W).
            context: Text features (B, S, text_dim).
            frame: Number of the video frame that is perceptually compared.
        """
        pictures, config = self.pictures.to(z_hr.device), self.config
        with torch.autocast(z_hr.device.type, torch.bfloat16, enabled=config.bf16):
            z_up = self.upsampler(z_lr, (z_hr.shape[3], z_hr.shape[4])).float()
            z_0 = one_step(self.dit, z_up.detach(), config.sigma, context)
            loss = pictures.linear_error(z_0, z_hr) + config.upsampler * pictures.linear_error(z_up, z_hr)
            if config.perceptual:
                decoded, target = pictures.decoded(z_0[::2]), pictures.decoded(z_hr[::2])
                perceptual = pictures.distance(decoded[:, :, frame], target[:, :, frame])
                perceptual = perceptual + DECODED * F.l1_loss(decoded, target) + FLAT * pictures.flat_error(decoded, target)
                loss = loss + config.perceptual * perceptual
        return loss


def one_step(dit: nn.Module, z_up: Tensor, sigma: float, context: Tensor) -> Tensor:
    """Returns the clean latent that the student's velocity points to from the upsampled latent, which is its condition, too.

    Args:
        dit: The student.
        z_up: Upsampled latent (B, 16, T, H, W).
        sigma: Noise level that it is taken for.
        context: Text features (B, S, text_dim).
    """
    timestep = z_up.new_full((len(z_up),), 1000 * sigma)
    return clean_from_velocity(z_up, dit(torch.cat((z_up, z_up), dim=1), timestep, context).float(), sigma)


def sample_frame(z_hr: Tensor, draws: Draws) -> Batch:
    """Returns OneStep's frame of a batch, which is the step's."""
    return {"frame": int(torch.randint(4 * z_hr.shape[2] - 3, (), generator=draws.of_step()))}
