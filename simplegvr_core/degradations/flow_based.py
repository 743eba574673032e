"""Flow-based degradation: colors of the frame before bleed into what moves, which is then blurred along its motion (section 4.2.1).

It imitates artifacts of text-to-video models. The paper gives no numbers; those below are ours. Static pixels stay bit-identical.
Images are float32 (H, W, 3) in [-1, 1], optical flow (H, W, 2) pixels (x, y) to the frame before.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from .motion import ClipMotion, MotionConfig
from .opencv import opencv
from .randomness import uniform


@dataclass(frozen=True)
class FlowBasedConfig:
    """Parameters of the flow-based degradation. Lengths whose names end in _size are fractions of the short side of the frame.

    Attributes:
        motion: What counts as moving.
        ellipses: Range of the number of ellipses in a frame.
        ellipse_size: Range of their half axes.
        samples: Pixels of the frame before whose mean is the color of an ellipse.
        blend: Range of the weight of that color in the centre.
        blur_gain: Range of the length of the blur over the length of the motion.
        longest_blur_size: Largest length of the blur.
        full_blur_size: Motion from which on the blurred image has weight 1.
        block: Side in pixels of the blocks that share a direction of blur.
        feather: Pixels over which both effects fade in at the border of what moves.
    """

    motion: MotionConfig = MotionConfig()
    ellipses: tuple[int, int] = (16, 32)
    ellipse_size: tuple[float, float] = (0.02, 0.1)
    samples: int = 4
    blend: tuple[float, float] = (0.4, 0.8)
    blur_gain: tuple[float, float] = (0.75, 1.5)
    longest_blur_size: float = 0.05
    full_blur_size: float = 0.02
    block: int = 16
    feather: float = 3.0


@dataclass(frozen=True)
class FrameMotion:
    """Motion of a frame.

    Attributes:
        optical_flow: (H, W, 2) pixels (x, y) to the frame before.
        weight: (H, W) in [0, 1]: strength of the degradation, 0 where nothing moves.
    """

    optical_flow: np.ndarray
    weight: np.ndarray


def degrade_flow_based(video: Tensor, motion: ClipMotion, config: FlowBasedConfig, generator: torch.Generator) -> Tensor:
    """Returns a video degraded where it moves.

    Args:
        video: (1, 3, F, H, W) in [-1, 1].
        motion: Its motion, from `estimate_motion`.
        config: Parameters of both effects.
        generator: Source of randomness, on the CPU.
    """
    clean = rearrange(video[0].float().cpu(), "C F H W -> F H W C").contiguous().numpy()
    frames = clean.copy()
    gain = uniform(*config.blur_gain, generator)
    for i in range(1, len(clean)):
        if motion.moving[i].any():
            frame_motion = FrameMotion(motion.optical_flow[i], feathered(motion.moving[i], config.feather))
            frames[i] = bleed_colors(frames[i], clean[i - 1], frame_motion, config=config, generator=generator)
            frames[i] = blur_along_motion(frames[i], frame_motion, gain, config)
    return rearrange(torch.from_numpy(frames), "F H W C -> 1 C F H W").contiguous().to(video.device)


def feathered(moving: np.ndarray, feather: float) -> np.ndarray:
    """Returns weights (H, W) in [0, 1]: 0 where moving is False, 1 at a distance of `feather` pixels inside."""
    distance = opencv().distanceTransform(moving.astype(np.uint8), opencv().DIST_L2, 5)
    return (distance / feather).clip(0, 1)


def bleed_colors(
    image: np.ndarray, before: np.ndarray, motion: FrameMotion, *, config: FlowBasedConfig, generator: torch.Generator
) -> np.ndarray:
    """Returns an image with ellipses in colors of the frame before, more of them where it moves faster.

    An ellipse is oriented along the motion at its centre. Its color is the mean of Gaussian samples of the frame before around the
    place that the centre came from; they spread as wide as the ellipse, and further along a faster motion.

    Args:
        image: (H, W, 3) in [-1, 1].
        before: (H, W, 3) in [-1, 1], the frame before.
        motion: Motion from the frame before.
        config: Number, size and weight of the ellipses.
        generator: Source of randomness, on the CPU.
    """
    image = image.copy()
    height, width = motion.weight.shape
    low, high = (fraction * min(height, width) for fraction in config.ellipse_size)
    speed = torch.from_numpy(motion.weight * np.linalg.norm(motion.optical_flow, axis=2)).flatten()
    count = int(torch.randint(config.ellipses[0], config.ellipses[1] + 1, (), generator=generator))
    for place in torch.multinomial(speed, count, replacement=True, generator=generator).tolist():
        centre = np.array([place % width, place // width])
        offset = motion.optical_flow[centre[1], centre[0]]
        axes_along = rotation(math.atan2(offset[1], offset[0]))
        axes = sorted((uniform(low, high, generator) for _ in range(2)), reverse=True)
        spread = torch.randn(config.samples, 2, generator=generator).numpy() * (axes[0] + math.hypot(*offset), axes[1]) / 2
        x, y = np.round(centre + offset + spread @ axes_along).astype(int).clip(0, (width - 1, height - 1)).T
        window, weight = ellipse(centre, axes, axes_along, (height, width))
        weight = uniform(*config.blend, generator) * weight * motion.weight[window]
        image[window] += weight[..., None].astype(np.float32) * (before[y, x].mean(axis=0) - image[window])
    return image


def ellipse(centre: np.ndarray, axes: list[float], directions: np.ndarray, size: tuple[int, int]) -> tuple[tuple[slice, slice], np.ndarray]:
    """Returns the rows and columns of a frame that an ellipse may touch, and its weight there: (1 - r^2)^2, 0 outside.

    Args:
        centre: (x, y) of the ellipse in pixels.
        axes: Lengths of its half axes in pixels, the longer one first.
        directions: Directions of the half axes, from `rotation`.
        size: Height and width of the frame in pixels.
    """
    reach = math.ceil(axes[0])
    rows, columns = (
        slice(max(0, middle - reach), min(extent, middle + reach + 1)) for middle, extent in zip(centre[::-1], size, strict=True)
    )
    offset = np.mgrid[rows, columns][::-1].transpose(1, 2, 0) - centre
    squared = ((offset @ directions.T / axes) ** 2).sum(axis=2)
    return (rows, columns), (1 - squared).clip(0) ** 2


def rotation(angle: float) -> np.ndarray:
    """Returns the matrix whose rows are the unit vectors (x, y) along an angle and across it."""
    return np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])


def blur_along_motion(image: np.ndarray, motion: FrameMotion, gain: float, config: FlowBasedConfig) -> np.ndarray:
    """Returns an image blurred by a line along the mean motion of each block, interpolated between the centres of the blocks.

    The weight of the blurred image grows in proportion to the motion.

    Args:
        image: (H, W, 3) in [-1, 1].
        motion: Motion from the frame before.
        gain: Length of the line over the length of the motion.
        config: Limits of the blur.
    """
    cv2 = opencv()
    height, width = motion.weight.shape
    moving = (motion.weight > 0).astype(np.float32)
    blocks = (math.ceil(width / config.block), math.ceil(height / config.block))
    fraction = cv2.resize(moving, blocks, interpolation=cv2.INTER_AREA)[..., None]
    block_flow = cv2.resize(motion.optical_flow * moving[..., None], blocks, interpolation=cv2.INTER_AREA) / np.maximum(fraction, 1e-6)
    smooth_flow = cv2.resize(block_flow, (width, height), interpolation=cv2.INTER_LINEAR).reshape(height, width, 2)
    length = np.linalg.norm(smooth_flow, axis=2, keepdims=True)
    longest = config.longest_blur_size * min(height, width)
    line = smooth_flow * np.minimum(gain, longest / np.maximum(length, 1e-6))
    taps = 2 * math.ceil(min(longest, gain * float(length.max())) / 2) + 1  # at most a pixel apart
    here = np.stack(np.meshgrid(np.arange(width), np.arange(height)), axis=2).astype(np.float32)
    blurred = np.zeros_like(image)
    for step in np.linspace(-0.5, 0.5, taps):
        there = (here + np.float32(step) * line).astype(np.float32)
        blurred += cv2.remap(image, there, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE) / taps
    strength = motion.weight * (length[..., 0] / (config.full_blur_size * min(height, width))).clip(0, 1)
    return image + strength[..., None].astype(np.float32) * (blurred - image)
