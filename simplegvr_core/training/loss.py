"""The training loss: conditional flow matching of upsampler and DiT together (paper, equations 1 to 3).

B batch, T latent frames, h, w low-resolution latent pixels, H, W target latent pixels; latents are normalised
"""

from copy import deepcopy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..flow import clean_from_velocity, interpolate, velocity_target
from ..networks.dit import SimpleGVRDiT
from ..networks.tiny_vae import TinyVAE
from ..networks.upsampler import Upsampler
from ..networks.wan_vae import WanVAE
from ..sampling.super_resolve import NoiseOrder
from ..sampling.timesteps import Curve
from .draws import LEVELS, Batch, Draws

PERCEIVED = 12  # latent pixels a side that the perceptual error compares, at most


@dataclass(frozen=True)
class LossConfig:
    """Weights and precision of the loss.

    Attributes:
        upsampler: Weight of the upsampled latent's own error.
        perceptual: Weight of the perceptual error of decoded frames.
        bf16: Whether matrix products are in bfloat16.
        noise_order: SamplingConfig.noise_order.
    """

    upsampler: float = 0.0
    perceptual: float = 0.0
    bf16: bool = True
    noise_order: NoiseOrder = "after_upsampler"


class Pictures:
    """Errors of latents, measured on decoded pictures. Its networks are frozen and are not part of the trained network."""

    def __init__(self, vae: TinyVAE | WanVAE | None, perceptual: bool):
        """Copies the networks.

        Args:
            vae: The latents' autoencoder; needed where perceptual.
            perceptual: Whether perceptual_error is used.
        """
        self.linear_decoder = None if vae is None else deepcopy(vae.linear_decoder)
        self.vae = deepcopy(vae) if perceptual else None
        self.network = None
        if perceptual:
            from ..evaluation.full_reference import st_lpips_network  # which needs packages for video

            self.network = deepcopy(st_lpips_network("vgg", "cpu"))

    def to(self, device: torch.device) -> "Pictures":
        """Moves the networks to a device and returns itself."""
        for network in filter(None, (self.linear_decoder, self.vae, self.network)):
            network.to(device)
        return self

    def linear_error(self, z: Tensor, z_hr: Tensor) -> Tensor:
        """Returns the mean absolute error of a latent plus, with TinyVAE, five times that of its linearly decoded pixels.

        Fine detail has more weight in the latent than in the picture; the second term restores the balance.

        Args:
            z: Latent (B, 16, T, H, W).
            z_hr: Its target, of the same shape.
        """
        loss = F.l1_loss(z, z_hr)
        return loss if self.linear_decoder is None else loss + 5 * F.l1_loss(self.linear_decoder(z), self.linear_decoder(z_hr))

    def perceived(self, z: Tensor) -> Tensor:
        """Returns the frame (B, 3, 8h, 8w) in [-1, 1] that is compared: the last one of the first two latent frames, its middle.

        Args:
            z: Latent (B, 16, T, H, W); h and w are H and W, but at most PERCEIVED.
        """
        assert self.vae is not None  # it is perceptual
        rows, columns = (middle(extent, PERCEIVED) for extent in z.shape[3:])
        return self.vae.decode(z[:, :, :2, rows, columns])[:, :, -1].float()

    def decoded(self, z: Tensor) -> Tensor:
        """Returns the frames (B, 3, F, 8H, 8W) in [-1, 1] of the decoded latent (B, 16, T, H, W)."""
        assert self.vae is not None  # it is perceptual
        return self.vae.decode(z).float()

    def flat_error(self, video: Tensor, target: Tensor) -> Tensor:
        """Returns the mean absolute error of a video's noise where its target is flat, as flat_noise sees both; a scalar.

        Args:
            video: (B, 3, F, H, W) in [-1, 1].
            target: Of the same shape.
        """
        from ..evaluation.full_reference import FLAT_LEVELS, local_variance  # which needs packages for video

        (noise, _), (own, variance) = (local_variance(rearrange(x, "B C F H W -> (B F) C H W")) for x in (video, target))
        return ((noise - own).abs() * (variance < FLAT_LEVELS**2)).mean() / 127.5

    def distance(self, frame: Tensor, target: Tensor) -> Tensor:
        """Returns the mean perceptual error (ST-LPIPS) of frames (B, 3, H, W) in [-1, 1], a scalar."""
        assert self.network is not None  # it is perceptual
        return self.network(frame, target).float().mean()

    def perceptual_error(self, z: Tensor, target: Tensor) -> Tensor:
        """Returns the perceptual error (ST-LPIPS) of a latent's compared frame, (B, 1, 1, 1, 1).

        Args:
            z: Latent (B, 16, T, H, W).
            target: The target's frame, from perceived(z_hr).
        """
        assert self.network is not None  # it is perceptual
        return self.network(self.perceived(z), target)[..., None]


class FlowMatching(nn.Module):
    """Upsampler and DiT with their common loss.

    Attributes:
        levels: (B, 2): noise level and squared error of the velocity of each sample of the last batch.
    """

    upsampler: Upsampler
    dit: SimpleGVRDiT
    levels: Tensor

    def __init__(self, upsampler: Upsampler, dit: SimpleGVRDiT, pictures: Pictures, config: LossConfig):
        super().__init__()
        self.upsampler, self.dit, self.pictures, self.config = upsampler, dit, pictures, config

    def forward(
        self,
        *,
        z_lr: Tensor,
        z_hr: Tensor,
        context: Tensor,
        sigma: Tensor,
        noise_augmentation: Tensor,
        noise: Tensor,
        condition_noise: Tensor,
    ) -> Tensor:
        """Returns the mean squared error of the velocity (equation 3), plus the other errors by their weights; a scalar.

        Args:
            z_lr: Low-resolution latent (B, 16, T, h, w).
            z_hr: Target latent (B, 16, T, H, W).
            context: Text features (B, S, text_dim).
            sigma: Noise level of the noised latent, (B, 1, 1, 1, 1) in [0, 1].
            noise_augmentation: Noise augmentation level of the condition, (B, 1, 1, 1, 1) in [0, 1].
            noise: Noise of the noised latent, (B, 16, T, H, W).
            condition_noise: Noise of the condition, (B, 16, T, H, W); see noised_condition.
        """
        pictures = self.pictures.to(z_hr.device)
        with torch.autocast(z_hr.device.type, torch.bfloat16, enabled=self.config.bf16):
            z_t = z = interpolate(z_hr, noise, sigma)
            loss = torch.zeros((), device=z.device)
            target = pictures.perceived(z_hr) if self.config.perceptual else None
            if self.dit.config.in_dim > z.shape[1]:
                upsampled = self.upsampler(z_lr, z_hr.shape[3:]).float()
                noise_of_condition = {"noise": condition_noise, "level": noise_augmentation, "order": self.config.noise_order}
                z = torch.cat((z, noised_condition(self.upsampler, z_lr, upsampled, **noise_of_condition)), dim=1)
                if self.config.upsampler:
                    loss = loss + self.config.upsampler * pictures.linear_error(upsampled, z_hr)
                if target is not None:
                    loss = loss + self.config.perceptual * pictures.perceptual_error(upsampled, target).mean()
            velocity = self.dit(z, 1000 * sigma.flatten(), context).float()
            if target is not None:
                error = pictures.perceptual_error(clean_from_velocity(z_t, velocity, sigma), target)
                loss = loss + self.config.perceptual * ((1 - sigma) * error).mean()  # a high noise level has no detail
        target_velocity = velocity_target(z_hr, noise)
        self.levels = torch.stack((sigma.flatten(), (velocity.detach() - target_velocity).square().mean((1, 2, 3, 4))), dim=1)
        return loss + F.mse_loss(velocity, target_velocity)


def noised_condition(
    upsampler: Upsampler, z_lr: Tensor, z_up: Tensor, *, noise: Tensor, level: Tensor | float, order: NoiseOrder
) -> Tensor:
    """Returns the condition (B, 16, T, H, W), float32.

    Args:
        upsampler: The latent upsampler.
        z_lr: Low-resolution latent (B, 16, T, h, w).
        z_up: The same upsampled, (B, 16, T, H, W).
        noise: Noise (B, 16, T, H, W). Before the upsampler, its first h rows and w columns are used.
        level: Noise augmentation level, one number or (B, 1, 1, 1, 1), in [0, 1].
        order: SamplingConfig.noise_order.
    """
    if order == "after_upsampler":
        return interpolate(z_up, noise, level)
    rows, columns = z_lr.shape[3:]
    return upsampler(interpolate(z_lr, noise[..., :rows, :columns], level), (z_up.shape[3], z_up.shape[4])).float()


def middle(extent: int, length: int) -> slice:
    """Returns the middle part of an axis, of the given length or all of it."""
    start = max(0, extent - length) // 2
    return slice(start, start + length)


@dataclass(frozen=True)
class FlowNoise:
    """Noise and noise levels of FlowMatching.

    Attributes:
        noise_range: Lowest and highest noise augmentation level, in [0, 1]; levels are uniform between them.
        curve: Its timestep density is that of sigma; None is uniform in [0, 1].
    """

    noise_range: tuple[float, float]
    curve: Curve | None

    def __call__(self, z_hr: Tensor, draws: Draws) -> Batch:
        """Returns sigma, noise_augmentation, noise and condition_noise of target latents (B, 16, T, H, W), on their device."""
        generators = draws.generators(LEVELS)
        uniform = torch.stack([torch.rand(2, 1, 1, 1, 1, generator=generator) for generator in generators], dim=1)
        low, high = self.noise_range
        sigma = uniform[0] if self.curve is None else self.curve.sample(uniform[0])
        levels = {"sigma": sigma, "noise_augmentation": low + (high - low) * uniform[1]}
        return {name: level.to(z_hr.device, non_blocking=True) for name, level in levels.items()} | draws.each(z_hr, flow_noise)


def flow_noise(z_hr: Tensor, generator: torch.Generator) -> Batch:
    """Returns noise and condition_noise of one sample (1, 16, T, H, W)."""
    return {name: torch.randn(z_hr.shape, generator=generator, device=z_hr.device) for name in ("noise", "condition_noise")}
