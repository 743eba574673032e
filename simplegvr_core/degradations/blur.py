"""Blur kernels: Gaussian, generalised Gaussian and plateau, each round or oval, and sinc.

A kernel is float32 (K, K), K odd, of sum 1. Lengths are pixels, angles radians.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from .randomness import Drift, choose

SINC = "sinc"


@dataclass(frozen=True)
class BlurConfig:
    """Distribution of blur kernels. One kind and size per clip; its parameters drift over frames.

    Attributes:
        probability: Probability that a clip is blurred.
        kernels: Kinds of kernels.
        weights: Probability of each kind.
        sizes: Sides of a kernel in pixels, equally likely.
        sigma: Standard deviation along each axis of an oval, in pixels.
        angle: Direction of an oval's first axis in radians.
        beta_gaussian: Exponent of generalised Gaussians; 1 is a Gaussian.
        beta_plateau: Exponent of plateaus.
        omega: Cut-off of a sinc filter in radians per pixel; None is from pi / 3 for sizes below 13, from pi / 5 for others.
        omega_step: Drift of the cut-off where omega is None.
    """

    probability: float = 1.0
    kernels: tuple[str, ...] = ("iso", "aniso", "generalized_iso", "generalized_aniso", "plateau_iso", "plateau_aniso", SINC)
    weights: tuple[float, ...] = (0.405, 0.225, 0.108, 0.027, 0.108, 0.027, 0.1)
    sizes: tuple[int, ...] = (7, 9, 11, 13, 15, 17, 19, 21)
    sigma: Drift = Drift(0.2, 3.0, 0.02)
    angle: Drift = Drift(-math.pi, math.pi, 0.1 * math.pi)
    beta_gaussian: Drift = Drift(0.5, 4.0, 0.05)
    beta_plateau: Drift = Drift(1.0, 2.0, 0.1)
    omega: Drift | None = None
    omega_step: float = 0.02 * math.pi


def sample_kernels(config: BlurConfig, num_frames: int, generator: torch.Generator) -> Iterator[np.ndarray]:
    """Yields a kernel for each frame, float32 (K, K) of sum 1, all of one random kind and size.

    Args:
        config: Distribution of kernels.
        num_frames: Number of kernels.
        generator: Source of randomness, on the CPU.
    """
    kind = choose(config.kernels, generator, config.weights)
    size = choose(config.sizes, generator)
    if kind == SINC:
        omega = config.omega or Drift(math.pi / (3 if size < 13 else 5), math.pi, config.omega_step)
        yield from (sinc_kernel(size, value) for value in omega.values(num_frames, generator))
        return
    beta = config.beta_plateau if kind.startswith("plateau") else config.beta_gaussian
    drifts = (config.sigma, config.sigma, config.angle, beta)
    for sigma_x, sigma_y, angle, exponent in zip(*(drift.values(num_frames, generator) for drift in drifts), strict=True):
        sigmas = (sigma_x, sigma_y if kind.endswith("aniso") else sigma_x)
        yield bell_kernel(kind, size, sigmas=sigmas, angle=angle, beta=exponent)


def bell_kernel(kind: str, size: int, *, sigmas: tuple[float, float], angle: float, beta: float) -> np.ndarray:
    """Returns the kernel exp(-r^(2 beta) / 2), or 1 / (1 + r^(2 beta)) for a plateau, r the distance from the centre in sigmas.

    Args:
        kind: A kind of `BlurConfig.kernels` but sinc; beta is 1 for "iso" and "aniso".
        size: Side K of the kernel in pixels.
        sigmas: Standard deviations in pixels along the two axes of the oval.
        angle: Direction of the first axis in radians.
        beta: Exponent.

    Returns:
        float32 (K, K) of sum 1.
    """
    y, x = np.mgrid[:size, :size] - size // 2
    along = (math.cos(angle) * x + math.sin(angle) * y) / sigmas[0]
    across = (math.cos(angle) * y - math.sin(angle) * x) / sigmas[1]
    squared = along**2 + across**2
    if kind.startswith("plateau"):
        kernel = 1 / (1 + squared**beta)
    else:
        kernel = np.exp(-(squared ** (beta if kind.startswith("generalized") else 1)) / 2)
    return (kernel / kernel.sum()).astype(np.float32)


def sinc_kernel(size: int, omega: float) -> np.ndarray:
    """Returns the circular low-pass filter omega J1(omega r) / (2 pi r), which rings as sharpening does.

    Args:
        size: Side K of the kernel in pixels.
        omega: Cut-off in radians per pixel.

    Returns:
        float32 (K, K) of sum 1.
    """
    y, x = np.mgrid[:size, :size] - size // 2
    radius = np.hypot(y, x)
    radius[size // 2, size // 2] = 1
    kernel = omega * torch.special.bessel_j1(torch.from_numpy(omega * radius)).numpy() / (2 * math.pi * radius)
    kernel[size // 2, size // 2] = omega**2 / (4 * math.pi)
    return (kernel / kernel.sum()).astype(np.float32)
