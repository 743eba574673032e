"""What SimpleGVR is trained by: conditional flow matching of upsampler and DiT together (paper, equations 1 to 3).

B batch, T latent frames, h, w low-resolution cells, H, W target cells; latents are normalised
"""

from copy import deepcopy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..evaluation.full_reference import st_lpips_network
from ..flow import clean_from_velocity, interpolate, velocity_target
from ..networks.dit import SimpleGVRDiT
from ..networks.tiny_vae import TinyVAE
from ..networks.upsampler import LatentUpsampler
from ..networks.wan_vae import WanVAE
from ..sampling.timesteps import Curve

PERCEIVED = 12  # cells a side that the perceptual error looks at, at most


class Pictures:
    """Compares latents as the pictures they decode to. Its networks are frozen, and no part of what is trained and saved."""

    def __init__(self, vae: TinyVAE | WanVAE | None, perceptual: bool):
        self.linear_decoder = None if vae is None else deepcopy(vae.linear_decoder)
        self.vae = deepcopy(vae) if perceptual else None
        self.network = deepcopy(st_lpips_network("vgg", "cpu")) if perceptual else None

    def to(self, device: torch.device) -> "Pictures":
        """Returns itself, on device."""
        for network in filter(None, (self.linear_decoder, self.vae, self.network)):
            network.to(device)
        return self

    def linear_error(self, z: Tensor, z_hr: Tensor) -> Tensor:
        """Returns the mean absolute error of the latent plus, given TinyVAE's linear decoder, five times that of its pixels.

        The latent gives fine detail more weight than the picture does; the second term restores the balance.
        """
        loss = F.l1_loss(z, z_hr)
        return loss if self.linear_decoder is None else loss + 5 * F.l1_loss(self.linear_decoder(z), self.linear_decoder(z_hr))

    def perceived(self, z: Tensor) -> Tensor:
        """Returns the frame (B, 3, 8h, 8w) in [-1, 1] that is compared: the last of the first two latent frames, its middle, h, w cells."""
        rows, columns = (middle(extent, PERCEIVED) for extent in z.shape[3:])
        return self.vae.decode(z[:, :, :2, rows, columns])[:, :, -1].float()

    def perceptual_error(self, z: Tensor, target: Tensor) -> Tensor:
        """Returns (B, 1, 1, 1, 1), how different the frame perceived in z looks from target, the one perceived in z_hr."""
        return self.network(self.perceived(z), target)[..., None]


class FlowMatching(nn.Module):
    """Upsampler and DiT with their common loss."""

    def __init__(
        self,
        upsampler: LatentUpsampler,
        dit: SimpleGVRDiT,
        pictures: Pictures,
        upsampler_weight: float,
        perceptual_weight: float,
        bf16: bool,
    ):
        super().__init__()
        self.upsampler, self.dit, self.pictures = upsampler, dit, pictures
        self.upsampler_weight, self.perceptual_weight, self.bf16 = upsampler_weight, perceptual_weight, bf16

    def forward(self, z_lr, z_hr, context, sigma, noise_share, noise, condition_noise) -> Tensor:
        """Returns the mean squared error of the velocity (equation 3), plus the other errors by their weights.

        z_lr: (B, 16, T, h, w). z_hr, noise, condition_noise: (B, 16, T, H, W). context: (B, S, text_dim).
        sigma, noise_share: (B, 1, 1, 1, 1), of the noised latent and of the condition.
        """
        pictures = self.pictures.to(z_hr.device)
        with torch.autocast(z_hr.device.type, torch.bfloat16, enabled=self.bf16):
            z_t = z = interpolate(z_hr, noise, sigma)
            loss = torch.zeros((), device=z.device)
            target = pictures.perceived(z_hr) if self.perceptual_weight else None
            if self.dit.config.in_dim > z.shape[1]:
                upsampled = self.upsampler(z_lr, z_hr.shape[3:]).float()
                z = torch.cat((z, interpolate(upsampled, condition_noise, noise_share)), dim=1)
                if self.upsampler_weight:
                    loss = loss + self.upsampler_weight * pictures.linear_error(upsampled, z_hr)
                if self.perceptual_weight:
                    loss = loss + self.perceptual_weight * pictures.perceptual_error(upsampled, target).mean()
            velocity = self.dit(z, 1000 * sigma.flatten(), context).float()
            if self.perceptual_weight:
                error = pictures.perceptual_error(clean_from_velocity(z_t, velocity, sigma), target)
                loss = loss + self.perceptual_weight * ((1 - sigma) * error).mean()  # from much noise nothing sharp can come
        return loss + F.mse_loss(velocity, velocity_target(z_hr, noise))


def middle(extent: int, length: int) -> slice:
    """Returns the middle part of an axis, length long or all of it."""
    start = max(0, extent - length) // 2
    return slice(start, start + length)


def draw_training_noise(
    z_hr: Tensor, noise_range: tuple[float, float], curve: Curve | None, generator: torch.Generator
) -> dict[str, Tensor]:
    """Returns noise levels, even or by the curve, noise shares of the condition, even in noise_range, and both noises."""
    uniform = torch.rand(len(z_hr), 1, 1, 1, 1, generator=generator)
    low, high = noise_range
    return {
        "sigma": uniform if curve is None else curve.sample(uniform),
        "noise_share": low + (high - low) * torch.rand(uniform.shape, generator=generator),
        "noise": torch.randn(z_hr.shape, generator=generator),
        "condition_noise": torch.randn(z_hr.shape, generator=generator),
    }
