"""Distribution matching distillation of a many-step teacher to a student of few steps: DMD2 (Yin et al., 2024, arXiv 2405.14867).

The student's result is noised; where the teacher and a second network, which learns the student's own distribution, disagree
about the clean latent, the student is moved by their difference. B batch, T latent frames, H, W latent pixels, S text tokens.
"""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..flow import clean_from_velocity, interpolate, shifted_sigmas, velocity_target
from ..networks.dit import SimpleGVRDiT
from ..networks.upsampler import Upsampler
from ..sampling.solvers import SOLVERS, step_ratio
from ..sampling.super_resolve import SamplingConfig
from .draws import Batch, Draws
from .loss import Pictures, noised_condition


@dataclass(frozen=True)
class DMD2Config:
    """Weights and schedule of the objective.

    Attributes:
        sampling: How the student is sampled: its steps and noise levels.
        guidance: Classifier-free guidance scale of the teacher, which the student learns; 1 is none.
        fake_updates: Updates of the fake score per update of the student, on average (the two time scales).
        regression: Weight of the result's error against the target, which real data bounds.
        bf16: Whether matrix products are in bfloat16.
    """

    sampling: SamplingConfig = SamplingConfig(steps=4)
    guidance: float = 1.0
    fake_updates: int = 5
    regression: float = 1.0
    bf16: bool = True


class DMD2(nn.Module):
    """Student and fake score, both of the teacher's weights at first; the upsampler and the teacher are frozen."""

    upsampler: Upsampler
    dit: SimpleGVRDiT
    fake: SimpleGVRDiT

    def __init__(
        self,
        upsampler: Upsampler,
        teacher: SimpleGVRDiT,
        pictures: Pictures,
        config: DMD2Config,
        copy: Callable[[SimpleGVRDiT], SimpleGVRDiT] = deepcopy,
    ):
        """Copies the teacher twice.

        Args:
            upsampler: The upsampler.
            teacher: The teacher.
            pictures: Errors of latents.
            config: Weights and schedule.
            copy: Returns the trainable network that begins as the teacher: all its weights, or a LoRA on them (lora.lora_copy).
        """
        super().__init__()
        self.dit, self.fake = copy(teacher), copy(teacher)
        self.upsampler = upsampler.requires_grad_(False)
        self.frozen = (teacher.requires_grad_(False),)  # a tuple: no part of what is trained and saved
        self.pictures, self.config = pictures, config
        sigmas = shifted_sigmas(config.sampling.steps, config.sampling.shift, config.sampling.denoise)
        self.sigmas, self.lengths = sigmas.tolist(), sigmas.diff().tolist()  # numbers, as the host needs them in each step
        self.ratios = [step_ratio(sigmas, i) for i in range(config.sampling.steps)]

    def forward(self, *, z_lr: Tensor, z_hr: Tensor, context: Tensor, turn: float, level: Tensor, noise: Tensor, fresh: Tensor) -> Tensor:
        """Returns the fake score's error and, on the student's turn, the student's; a scalar.

        Args:
            z_lr: Low-resolution latent (B, 16, T, h, w).
            z_hr: Target latent (B, 16, T, H, W).
            context: Text features (B, S, text_dim).
            turn: Uniform in [0, 1); decides whether the student is updated and which of its steps is trained.
            level: Noise level at which the scores are compared, (B, 1, 1, 1, 1) in [0, 1].
            noise: Starting noise, then that of the condition, (B, 32, T, H, W).
            fresh: Noise of the comparison, (B, 16, T, H, W).
        """
        config, teacher = self.config, self.frozen[0].to(z_hr.device)
        index, fraction = divmod(turn * config.fake_updates, 1.0)
        students_turn, last = index == 0, int(fraction * config.sampling.steps)
        with torch.autocast(z_hr.device.type, torch.bfloat16, enabled=config.bf16):
            with torch.no_grad():
                z_up = self.upsampler(z_lr, (z_hr.shape[3], z_hr.shape[4])).float()
                start, condition_noise = noise.chunk(2, dim=1)
                level_of_condition, order = config.sampling.noise_augmentation, config.sampling.noise_order
                condition = noised_condition(self.upsampler, z_lr, z_up, noise=condition_noise, level=level_of_condition, order=order)
            z_0 = self.simulate(z_up, condition, context, start, last=last, train=students_turn)
            z_t = interpolate(z_0.detach(), fresh, level)
            velocity = predict(self.fake, z_t, condition, level, context)
            loss = F.mse_loss(velocity, velocity_target(z_0.detach(), fresh))
            if students_turn:
                real = self.real_score(teacher, z_t, condition, level, context)
                loss = loss + matching_loss(z_0, real, clean_from_velocity(z_t, velocity.detach(), level))
                loss = loss + config.regression * self.pictures.to(z_hr.device).linear_error(z_0, z_hr)
        return loss

    def simulate(self, z_up: Tensor, condition: Tensor, context: Tensor, noise: Tensor, last: int, train: bool) -> Tensor:
        """Returns the clean latent that the student predicts in step `last` of its own sampling (backward simulation)."""
        sampling = self.config.sampling
        z, velocity = z_up if sampling.start == "condition" else interpolate(z_up, noise, self.sigmas[0]), None
        for i in range(last + 1):
            sigma = z.new_full((len(z), 1, 1, 1, 1), self.sigmas[i])
            velocity_before = velocity
            with torch.set_grad_enabled(train and i == last):
                velocity = predict(self.dit, z, condition, sigma, context)
            if i == last:
                return clean_from_velocity(z, velocity, sigma)
            z = z + self.lengths[i] * SOLVERS[sampling.solver](velocity, velocity_before, self.ratios[i])
        raise AssertionError("last is a step")

    def real_score(self, teacher: nn.Module, z_t: Tensor, condition: Tensor, level: Tensor, context: Tensor) -> Tensor:
        """Returns the clean latent that the teacher predicts, with guidance."""
        with torch.no_grad():
            velocity = predict(teacher, z_t, condition, level, context)
            if self.config.guidance != 1:
                unconditional = predict(teacher, z_t, condition, level, torch.zeros_like(context))
                velocity = unconditional + self.config.guidance * (velocity - unconditional)
        return clean_from_velocity(z_t, velocity, level)


def predict(dit: nn.Module, z_t: Tensor, condition: Tensor, sigma: Tensor, context: Tensor) -> Tensor:
    """Returns the velocity, float32. sigma: (B, 1, 1, 1, 1)."""
    return dit(torch.cat((z_t, condition), dim=1), 1000 * sigma.flatten(), context).float()


def matching_loss(z_0: Tensor, real: Tensor, fake: Tensor) -> Tensor:
    """Returns a loss whose gradient to z_0 is the difference of the two predictions (equation 3 of DMD, arXiv 2311.18828).

    Args:
        z_0: The student's clean latent (B, 16, T, H, W).
        real: The teacher's prediction of it.
        fake: The fake score's.
    """
    scale = (z_0.detach() - real).abs().mean((1, 2, 3, 4), keepdim=True).clamp(min=1e-4)
    target = z_0.detach() - (fake - real) / scale
    return 0.5 * F.mse_loss(z_0, target)


def sample_matching_noise(z_hr: Tensor, draws: Draws) -> Batch:
    """Returns DMD2's turn, which is the step's, and level, noise and fresh of a batch. The level is at least 0.02 and at most 0.98."""
    return {"turn": torch.rand((), generator=draws.of_step()).item()} | draws.each(z_hr, sample_of_matching)


def sample_of_matching(z_hr: Tensor, generator: torch.Generator) -> Batch:
    """Returns level, noise and fresh of one sample (1, 16, T, H, W)."""
    _, channels, *extent = z_hr.shape
    factory = {"generator": generator, "device": z_hr.device}
    return {
        "level": 0.02 + 0.96 * torch.rand(1, 1, 1, 1, 1, **factory),
        "noise": torch.randn(1, 2 * channels, *extent, **factory),
        "fresh": torch.randn(z_hr.shape, **factory),
    }
