"""The paper's method: upsample a latent, noise the condition, integrate the velocity from noise to data.

`super_resolve` does it in memory; `super_resolve_to_file.py` is its twin for clips of any length.
B batch, T latent frames, h, w low-resolution latent pixels, H, W those of the target, S text tokens; latents are normalised.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from ..flow import interpolate, positional_noise, shifted_sigmas
from ..latent_space import LATENT_CHANNELS
from ..networks.dit import SimpleGVRDiT
from ..networks.slab_memory import SlabMemory, slab_memory
from ..networks.upsampler import Upsampler, resize
from ..tiling import Tiling
from .color_match import match_color
from .latent_file import LatentFrames
from .patch_filter import without_repetition
from .refine import Network, Segment, TiledVelocity, padded_velocity
from .solvers import SOLVERS, Solver, integrate

UPSAMPLER_FRAMES = 2  # latent, at a time
NoiseOrder = Literal["after_upsampler", "before_upsampler"]
CONDITION_FIELD = 1  # of the condition's noise: independent of the starting noise, with the same seed, too


@dataclass(frozen=True)
class SamplingConfig:
    """How a model is sampled. A checkpoint has the values that suit it; the defaults are the paper's.

    Attributes:
        steps: Number of steps.
        cfg: Scale of classifier-free guidance; 1 is none.
        shift: Shift of the noise levels; above 1 more of the steps are at high noise.
        noise_augmentation: Noise level of the condition, in [0, 1].
        denoise: First noise level, in (0, 1]. 1 starts from pure noise, less from the noised upsampled latent.
        start: "noise": sampling starts from the upsampled latent noised to the first noise level. "condition": it starts from the
            upsampled latent itself, without noise, which a one-step student takes for that noise level (DOVE, arXiv 2505.16239).
        noise_order: "after_upsampler": the condition is the upsampled latent, noised (arXiv version 1). "before_upsampler": it is the
            noised low-resolution latent, upsampled (the ICLR formula). A model is sampled in the order that it was trained in.
        solver: "euler", or "ab2" of second order, see solvers.
        strength: Factor, above 0, of what the refinement adds to the upsampled latent. Above 1 the result is sharper than the
            objective of the training balances.
        patch_filter: Width in patches, odd and at least 3, of the filter that removes a mesh from what is added, see patch_filter; 0
            is none. This and the strength are no part of repr, by which a training run is known: no training reads them.

    Raises:
        ValueError: The solver is unknown, or a number is out of its range.
    """

    steps: int = 50
    cfg: float = 1.0
    shift: float = 5.0
    noise_augmentation: float = 0.4
    denoise: float = 1.0
    start: Literal["noise", "condition"] = "noise"
    noise_order: NoiseOrder = "after_upsampler"
    solver: Solver = "euler"
    strength: float = field(default=1.0, repr=False)
    patch_filter: int = field(default=0, repr=False)

    def __post_init__(self) -> None:
        if self.solver not in SOLVERS:
            raise ValueError(f"solver is {self.solver!r}, wanted one of {', '.join(SOLVERS)}")
        if self.steps < 1 or self.shift <= 0 or not 0 < self.denoise <= 1 or not 0 <= self.noise_augmentation <= 1:
            raise ValueError(f"{self}: wanted steps >= 1, shift > 0, denoise in (0, 1] and noise_augmentation in [0, 1]")
        if not 0 < self.strength < math.inf or not (self.patch_filter == 0 or (self.patch_filter >= 3 and self.patch_filter % 2)):
            raise ValueError(
                f"strength is {self.strength} and patch_filter {self.patch_filter}, "
                "wanted a number above 0, and 0 or an odd number of at least 3"
            )

    @property
    def weighs(self) -> bool:
        """Returns whether strength or filter changes what the refinement adds."""
        return self.strength != 1 or self.patch_filter > 0

    @property
    def weighing(self) -> str:
        """Returns strength and filter in words, each after a comma; "" for the defaults."""
        strength = "" if self.strength == 1 else f", strength {self.strength:g}"
        return strength + (f", mesh filter of {self.patch_filter} patches" if self.patch_filter else "")


PAPER = SamplingConfig()


@torch.inference_mode()
def super_resolve(
    model: SimpleGVRDiT,
    upsampler: Upsampler,
    z_lr: Tensor,
    size: tuple[int, int],
    *,
    sampling: SamplingConfig = PAPER,
    context: Tensor | None = None,
    negative_context: Tensor | None = None,
    seed: int = 0,
    noise_seed: int = 0,
    tiling: Tiling | None = None,
    color_match: float = 1.0,
    on_step: Callable[[int, Tensor, Tensor], None] = lambda step, z_t, z_0: None,
) -> Tensor:
    """Returns the super-resolved latent (B, 16, T, H, W), in z_lr's dtype and on its device.

    Args:
        model: The DiT. One with 16 input channels (any text-to-video Wan) takes no condition: training-free mode.
        upsampler: The latent upsampler.
        z_lr: Low-resolution latent (B, 16, T, h, w), normalised, in the networks' dtype and on their device.
        size: (H, W), target size in latent pixels of 8 x 8 pixels.
        sampling: Steps, guidance and noise levels.
        context: Text features (B, S, text_dim) of the prompt; None is the null prompt.
        negative_context: Text features (B, S, text_dim) of the negative prompt; None is the null prompt. Unused at cfg 1.
        seed: Seed of the starting noise.
        noise_seed: Seed of the condition's noise.
        tiling: Boxes that the model is given one at a time; None is the whole clip.
        color_match: Strength in [0, 1] of the removal of low-frequency color drift, see match_source.
        on_step: Called in each step with its number, z_t and the clean latent z_0 that the velocity predicts.

    Raises:
        ValueError: denoise is 1 and the model takes no condition.
        tiling.OutOfMemory: There is not enough memory for the smallest box.
    """

    def upsample(z: Tensor) -> Tensor:
        return torch.cat(list(upsampler.stream(z.to(z_lr).split(UPSAMPLER_FRAMES, dim=2), size)), dim=2).float()

    z_up, condition = upsample(z_lr), None
    if takes_condition(model, sampling):
        level = sampling.noise_augmentation
        if sampling.noise_order == "after_upsampler":
            condition = augment_condition(z_up, level, noise_seed)
        else:
            condition = upsample(augment_condition(z_lr.float(), level, noise_seed))

    memory = slab_memory(model.attention, z_up.shape[2])
    network = guided_network(model, sampling.cfg, context, negative_context, like=z_lr, memory=memory)
    velocity = TiledVelocity(network, tiling or whole(model), model.attention.alignment, memory=memory)

    sigmas = shifted_sigmas(sampling.steps, sampling.shift, sampling.denoise)
    z = z_up if sampling.start == "condition" else interpolate(z_up, positional_noise(z_up.shape, seed).to(z_up), sigmas[0])
    z = integrate(lambda z_t, sigma: padded_velocity(velocity, Segment(z_t, condition, sigma)), z, sigmas, on_step, sampling.solver)
    return match_source(weighed(z, z_up, sampling), z_lr, upsampler.config.latents, color_match).to(z_lr)


def takes_condition(model: SimpleGVRDiT, sampling: SamplingConfig) -> bool:
    """Returns whether the model takes a condition. Raises ValueError when it takes none and would start from pure noise."""
    if model.config.in_dim > LATENT_CHANNELS:
        return True
    if sampling.denoise == 1:
        raise ValueError("denoise is 1, so a model with 16 input channels would not see the video: set denoise to 0.3-0.6")
    return False


def whole(model: SimpleGVRDiT) -> Tiling:
    """Returns the tiling of one box, which is cut where the model's windows and temporal units begin when memory runs out."""
    return model.attention.tiling((None, None, None))


def guided_network(
    model: SimpleGVRDiT,
    cfg: float,
    context: Tensor | None = None,
    negative_context: Tensor | None = None,
    *,
    like: Tensor,
    memory: SlabMemory | None = None,
) -> Network:
    """Returns the model with classifier-free guidance, as TiledVelocity takes it.

    Args:
        model: The DiT.
        cfg: Guidance scale; 1 is none, and costs half.
        context: Text features (B, S, text_dim) of the prompt; None is the null prompt.
        negative_context: Those of the negative prompt; None is the null prompt.
        like: A tensor on the model's device and in its dtype.
        memory: Keys and values of the segments before, see slab_memory.
    """

    def network(z_t: Tensor, condition: Tensor | None, sigma: Tensor) -> Tensor:
        z = (z_t if condition is None else torch.cat((z_t, condition), dim=1)).to(like)
        timestep = (1000 * sigma).to(like.device).expand(len(z))

        def predict(prompt: Tensor | None, branch: str) -> Tensor:
            text = z.new_zeros(len(z), 1, model.config.text_dim) if prompt is None else prompt
            if memory is None:
                return model(z, timestep, text).to(z_t)
            attend = partial(memory.attend, branch=branch)
            return model(z, timestep, text, attend, token_order=memory.token_order, first_frame=memory.first_frame).to(z_t)

        conditional = predict(context, "positive")
        if cfg == 1:
            return conditional
        unconditional = predict(negative_context, "negative")
        return unconditional + cfg * (conditional - unconditional)

    return network


def augment_condition(z: Tensor, noise_augmentation: float, noise_seed: int, first_frame: int = 0) -> Tensor:
    """Returns (1 - s) z + s noise, s the noise augmentation level. The noise depends on seed and position.

    Args:
        z: Latent (B, 16, t, H, W): the upsampled one, or the low-resolution one with noise_order "before_upsampler".
        noise_augmentation: s, in [0, 1].
        noise_seed: Seed of the noise.
        first_frame: Number in the clip of z's first latent frame.
    """
    noise = positional_noise(z.shape, noise_seed, first_frame, CONDITION_FIELD).to(z)
    return interpolate(z, noise, noise_augmentation)


@dataclass(frozen=True)
class NoisedFrames:
    """A latent that augment_condition noises as its frames are read.

    Attributes:
        z: Latent (B, 16, T, h, w).
        noise_augmentation: Noise level, in [0, 1].
        noise_seed: Seed of the noise.
    """

    z: LatentFrames
    noise_augmentation: float
    noise_seed: int

    @property
    def shape(self) -> tuple[int, ...]:
        return self.z.shape

    def __getitem__(self, frames: slice) -> Tensor:
        return augment_condition(self.z[frames], self.noise_augmentation, self.noise_seed, frames.start)


def weighed(z: Tensor, z_up: Tensor, sampling: SamplingConfig) -> Tensor:
    """Returns z_up plus what the refinement adds to it, by sampling's strength and patch filter; by default z itself, bit for bit.

    Args:
        z: Refined latent (B, 16, T, H, W).
        z_up: Upsampled latent of the same shape.
        sampling: strength and patch_filter are read.
    """
    if not sampling.weighs:
        return z
    added = z - z_up
    if sampling.patch_filter:
        added = without_repetition(added, sampling.patch_filter)
    return z_up + sampling.strength * added


def match_source(z: Tensor, z_lr: Tensor, latents: str, strength: float) -> Tensor:
    """Returns z without its low-frequency color drift from z_lr, each latent frame alone; see match_color.

    Args:
        z: Latent (B, 16, T, H, W).
        z_lr: Latent (B, 16, T, h, w) whose colors are right.
        latents: Autoencoder of both, a key of COLOR_FACTORS, as the upsampler's configuration has it.
        strength: In [0, 1]. The blur that tells low frequencies is 4 latent pixels of z_lr wide.
    """
    size = z.shape[3], z.shape[4]
    width = 4 * size[0] / z_lr.shape[3], 4 * size[1] / z_lr.shape[4]
    return match_color(z, resize(z_lr.to(z), size), latents, strength, width)
