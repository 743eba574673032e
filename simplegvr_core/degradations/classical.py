"""Classical degradation of RealBasicVSR: blur, resize, noise, JPEG and a video codec, twice (arXiv 2111.12704).

The parameters are its published ones, for crops of 256 x 256 pixels; the bits of a frame grow with its area. Its sharpening of the original
is left out, since the original itself is the target here.
Between the steps a clip is a list of frames, float32 (h, w, 3) in [0, 1], which may differ in size.
"""

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from .blur import SINC, BlurConfig, sample_kernels
from .codecs import jpeg, to_bytes, video_codec
from .opencv import opencv
from .randomness import Drift, choose, happens, uniform

Frames = list[np.ndarray]
PUBLISHED_AREA = 256 * 256  # pixels of the crops that the bits were published for
FEWEST_BITS = 1000  # of a frame, that every encoder takes


@dataclass(frozen=True)
class ResizeConfig:
    """Distribution of the resize factor.

    Attributes:
        weights: Probabilities that the first frame is upscaled, downscaled, or keeps its size.
        smallest: Smallest factor.
        largest: Largest factor.
        step: Largest change of the factor from frame to frame.
    """

    weights: tuple[float, float, float]
    smallest: float
    largest: float
    step: float


@dataclass(frozen=True)
class NoiseConfig:
    """Distribution of the noise, Gaussian or Poisson with equal probability.

    Attributes:
        gaussian: Standard deviation of Gaussian noise in levels of 255.
        poisson: Factor of Poisson noise.
        gray: Probability of the same noise in all three colors.
    """

    gaussian: Drift
    poisson: Drift
    gray: float = 0.4


@dataclass(frozen=True)
class PassConfig:
    """The steps that each of the two passes has before JPEG."""

    blur: BlurConfig
    resize: ResizeConfig
    noise: NoiseConfig


@dataclass(frozen=True)
class ClassicalConfig:
    """The passes and what they share.

    Attributes:
        first: First pass.
        second: Second pass, after a codec of its own; None for a recipe of one order.
        quality: JPEG quality, 1 to 100.
        codecs: Video encoders, equally likely.
        bits: Range of the mean bits of a frame of 256 x 256 pixels at full resolution, sampled once per clip and codec step.
        last_blur: Sinc filter after the last resize.
    """

    first: PassConfig = PassConfig(
        BlurConfig(),
        ResizeConfig((0.2, 0.7, 0.1), smallest=0.15, largest=1.5, step=0.015),
        NoiseConfig(Drift(1, 30, 0.1), Drift(0.05, 3, 0.005)),
    )
    second: PassConfig | None = PassConfig(
        BlurConfig(probability=0.8, sigma=Drift(0.2, 1.5, 0.02)),
        ResizeConfig((0.3, 0.4, 0.3), smallest=0.3, largest=1.2, step=0.03),
        NoiseConfig(Drift(1, 25, 0.1), Drift(0.05, 2.5, 0.005)),
    )
    quality: Drift = Drift(30, 95, 3)
    codecs: tuple[str, ...] = ("libx264", "h264", "mpeg4")
    bits: tuple[float, float] = (1e4, 1e5)
    last_blur: BlurConfig = BlurConfig(probability=0.8, kernels=(SINC,), weights=(1.0,), omega=Drift(math.pi / 3, math.pi, 0.02 * math.pi))


def degrade_classical(video: Tensor, scale: int | Fraction, config: ClassicalConfig, generator: torch.Generator) -> Tensor:
    """Returns a degraded low-resolution video. The last steps, a codec and the final resize with its sinc filter, come in random order.

    Args:
        video: (1, 3, F, H, W) in [-1, 1].
        scale: Downscaling factor.
        config: Distributions of the steps.
        generator: Source of randomness, on the CPU.

    Returns:
        (1, 3, F, H // scale, W // scale) in [-1, 1].
    """
    height, width = (int(extent // scale) for extent in video.shape[3:])
    frames = to_frames(video[..., : int(height * scale), : int(width * scale)])
    area = frames[0].shape[0] * frames[0].shape[1] / PUBLISHED_AREA
    frames = apply_pass(frames, config.first, config.quality, generator)
    if config.second is not None:
        frames = apply_codec(frames, config, area, generator)
        frames = apply_pass(frames, config.second, config.quality, generator)
    codec_first = happens(0.5, generator)
    if codec_first:
        frames = apply_codec(frames, config, area, generator)
    frames = resize_to([(height, width)] * len(frames), frames, generator)
    frames = apply_blur(frames, config.last_blur, generator)
    if not codec_first:
        frames = apply_codec(frames, config, area, generator)
    return to_video(frames).to(video.device)


def apply_pass(frames: Frames, config: PassConfig, quality: Drift, generator: torch.Generator) -> Frames:
    frames = apply_blur(frames, config.blur, generator)
    frames = apply_resize(frames, config.resize, generator)
    frames = apply_noise(frames, config.noise, generator)
    return [jpeg(frame, round(value)) for frame, value in zip(frames, quality.values(len(frames), generator), strict=True)]


def apply_blur(frames: Frames, config: BlurConfig, generator: torch.Generator) -> Frames:
    if not happens(config.probability, generator):
        return frames
    kernels = sample_kernels(config, len(frames), generator)
    return [opencv().filter2D(frame, -1, kernel) for frame, kernel in zip(frames, kernels, strict=True)]


def apply_resize(frames: Frames, config: ResizeConfig, generator: torch.Generator) -> Frames:
    """Returns the frames resized by a factor that drifts between smallest and largest."""
    drift = Drift(config.smallest, config.largest, config.step)
    start = {"up": (1, config.largest), "down": (config.smallest, 1), "keep": (1, 1)}
    low, high = start[choose(("up", "down", "keep"), generator, config.weights)]
    factors = drift.values(len(frames), generator, uniform(low, high, generator))
    sizes = [
        (max(2, int(frame.shape[0] * factor)), max(2, int(frame.shape[1] * factor))) for frame, factor in zip(frames, factors, strict=True)
    ]
    return resize_to(sizes, frames, generator)


def resize_to(sizes: list[tuple[int, int]], frames: Frames, generator: torch.Generator) -> Frames:
    """Returns each frame resized to its (height, width), all by the same random interpolation."""
    cv2 = opencv()
    method = choose((cv2.INTER_LINEAR, cv2.INTER_AREA, cv2.INTER_CUBIC), generator)
    return [cv2.resize(frame, size[::-1], interpolation=method) for frame, size in zip(frames, sizes, strict=True)]


def apply_noise(frames: Frames, config: NoiseConfig, generator: torch.Generator) -> Frames:
    gaussian, gray = happens(0.5, generator), happens(config.gray, generator)
    levels = (config.gaussian if gaussian else config.poisson).values(len(frames), generator)
    return [
        frame + (gaussian_noise(frame, level / 255, gray, generator) if gaussian else level * photon_noise(frame, gray, generator))
        for frame, level in zip(frames, levels, strict=True)
    ]


def gaussian_noise(frame: np.ndarray, sigma: float, gray: bool, generator: torch.Generator) -> np.ndarray:
    """Returns noise (h, w, 3), or (h, w, 1) where it is gray, of standard deviation sigma."""
    return sigma * torch.randn(*frame.shape[:2], 1 if gray else 3, generator=generator).numpy()


def photon_noise(frame: np.ndarray, gray: bool, generator: torch.Generator) -> np.ndarray:
    """Returns Poisson noise (h, w, 3), or (h, w, 1) where it is gray.

    A pixel of value 1 is as many photons as the frame has distinct levels, rounded up to a power of two.
    """
    image = opencv().cvtColor(frame, opencv().COLOR_RGB2GRAY)[..., None] if gray else frame
    levels = to_bytes(image)
    photons = 2 ** math.ceil(math.log2(np.count_nonzero(np.bincount(levels.ravel()))))
    image = torch.from_numpy(levels) / 255
    return (torch.poisson(image * photons, generator=generator) / photons - image).numpy()


def apply_codec(frames: Frames, config: ClassicalConfig, area: float, generator: torch.Generator) -> Frames:
    """Returns the frames after a random video codec, all at the size of the first.

    Args:
        frames: Frames of any sizes.
        config: Its codecs and bits.
        area: Area of the clip at full resolution over that of the published crops: the factor of the bits.
        generator: Source of randomness, on the CPU.
    """
    cv2 = opencv()
    size = frames[0].shape[1::-1]
    codec, bits = choose(config.codecs, generator), max(FEWEST_BITS, round(area * uniform(*config.bits, generator)))
    return video_codec([cv2.resize(frame, size, interpolation=cv2.INTER_CUBIC) for frame in frames], codec, bits)


def to_frames(video: Tensor) -> Frames:
    """Returns the frames of video (1, 3, F, H, W) in [-1, 1]."""
    return list(rearrange(video[0].float().cpu() / 2 + 0.5, "C F H W -> F H W C").contiguous().numpy())


def to_video(frames: Frames) -> Tensor:
    """Returns video (1, 3, F, H, W), clamped to [-1, 1], of frames of one size."""
    return rearrange(torch.from_numpy(np.stack(frames)), "F H W C -> 1 C F H W").contiguous().mul(2).sub(1).clamp(-1, 1)
