"""Flow-based degradation: colors of the frame before bleed into what moves, then it blurs along its motion (section 4.2.1).

What a text-to-video model's own faults look like. The paper gives no numbers; those below are ours. Static pixels stay
bit-identical. Images are float32 (H, W, 3) in [-1, 1], optical flow (H, W, 2) pixels (x, y) to the frame before.
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
    """Lengths ending in _size are shares of the frame's short side.

    ellipses: how many in a frame. ellipse_size: their half axes. samples: pixels whose mean is an ellipse's color.
    blend: weight of that color in the middle. blur_gain: length of the blur over that of the motion, until the blur is
    longest. full_blur_size: motion from which on only the blurred picture is left. block: pixels a side of what is blurred
    alike. feather: pixels over which both effects fade in at the border of what moves.
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


def degrade_flow_based(video: Tensor, motion: ClipMotion, config: FlowBasedConfig, generator: torch.Generator) -> Tensor:
    """Returns video (1, 3, F, H, W) in [-1, 1] degraded where it moves; motion: its own, from estimate_motion."""
    clean = rearrange(video[0].float().cpu(), "C F H W -> F H W C").contiguous().numpy()
    frames = clean.copy()
    gain = uniform(*config.blur_gain, generator)
    for i in range(1, len(clean)):
        if motion.moving[i].any():
            optical_flow, inside = motion.optical_flow[i], feathered(motion.moving[i], config.feather)
            frames[i] = bleed_colors(frames[i], clean[i - 1], optical_flow, inside, config, generator)
            frames[i] = blur_along_motion(frames[i], optical_flow, inside, gain, config)
    return rearrange(torch.from_numpy(frames), "F H W C -> 1 C F H W").contiguous().to(video.device)


def feathered(moving: np.ndarray, feather: float) -> np.ndarray:
    """Returns weights (H, W) in [0, 1]: 0 where moving is False, 1 from `feather` pixels inside of it on."""
    distance = opencv().distanceTransform(moving.astype(np.uint8), opencv().DIST_L2, 5)
    return (distance / feather).clip(0, 1)


def bleed_colors(
    image: np.ndarray, before: np.ndarray, optical_flow: np.ndarray, inside: np.ndarray, config: FlowBasedConfig, generator: torch.Generator
) -> np.ndarray:
    """Returns the image with ellipses in colors of the frame before it, more of them where it moves faster.

    An ellipse lies along the motion at its centre. Its color is a mean of Gaussian samples around where that came from,
    which spread as wide as the ellipse, and further along a faster motion.
    """
    image = image.copy()
    height, width = inside.shape
    low, high = (share * min(height, width) for share in config.ellipse_size)
    speed = torch.from_numpy(inside * np.linalg.norm(optical_flow, axis=2)).flatten()
    count = int(torch.randint(config.ellipses[0], config.ellipses[1] + 1, (), generator=generator))
    for place in torch.multinomial(speed, count, replacement=True, generator=generator).tolist():
        centre = np.array([place % width, place // width])
        motion = optical_flow[centre[1], centre[0]]
        turn = turned(math.atan2(motion[1], motion[0]))
        axes = sorted((uniform(low, high, generator) for _ in range(2)), reverse=True)
        spread = torch.randn(config.samples, 2, generator=generator).numpy() * (axes[0] + math.hypot(*motion), axes[1]) / 2
        x, y = np.round(centre + motion + spread @ turn).astype(int).clip(0, (width - 1, height - 1)).T
        box, weight = ellipse(centre, axes, turn, inside.shape)
        weight = uniform(*config.blend, generator) * weight * inside[box]
        image[box] += weight[..., None].astype(np.float32) * (before[y, x].mean(axis=0) - image[box])
    return image


def ellipse(centre: np.ndarray, axes: list[float], turn: np.ndarray, size: tuple[int, int]) -> tuple[tuple[slice, slice], np.ndarray]:
    """Returns the rows and columns of a frame of size (H, W) that an ellipse may touch, and its weight there.

    The weight is (1 - r^2)^2, 1 in the centre (x, y) and 0 from the half axes on. turn: from turned.
    """
    reach = math.ceil(axes[0])
    box = tuple(slice(max(0, middle - reach), min(extent, middle + reach + 1)) for middle, extent in zip(centre[::-1], size, strict=True))
    offset = np.mgrid[box][::-1].transpose(1, 2, 0) - centre
    squared = ((offset @ turn.T / axes) ** 2).sum(axis=2)
    return box, (1 - squared).clip(0) ** 2


def turned(angle: float) -> np.ndarray:
    """Returns the matrix whose rows are the unit vectors (x, y) along angle and across it."""
    return np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])


def blur_along_motion(image: np.ndarray, optical_flow: np.ndarray, inside: np.ndarray, gain: float, config: FlowBasedConfig) -> np.ndarray:
    """Returns the image blurred by a line along the mean motion of each block, interpolated between the blocks' centres.

    The line is gain times as long as the motion; its weight against the sharp image grows in proportion to the motion.
    """
    cv2 = opencv()
    height, width = inside.shape
    moving = (inside > 0).astype(np.float32)
    blocks = (math.ceil(width / config.block), math.ceil(height / config.block))
    share = cv2.resize(moving, blocks, interpolation=cv2.INTER_AREA)[..., None]
    block_motion = cv2.resize(optical_flow * moving[..., None], blocks, interpolation=cv2.INTER_AREA) / np.maximum(share, 1e-6)
    motion = cv2.resize(block_motion, (width, height), interpolation=cv2.INTER_LINEAR).reshape(height, width, 2)
    length = np.linalg.norm(motion, axis=2, keepdims=True)
    longest = config.longest_blur_size * min(height, width)
    line = motion * np.minimum(gain, longest / np.maximum(length, 1e-6))
    taps = 2 * math.ceil(min(longest, gain * float(length.max())) / 2) + 1  # at most a pixel apart
    here = np.stack(np.meshgrid(np.arange(width), np.arange(height)), axis=2).astype(np.float32)
    blurred = np.zeros_like(image)
    for step in np.linspace(-0.5, 0.5, taps):
        there = (here + np.float32(step) * line).astype(np.float32)
        blurred += cv2.remap(image, there, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE) / taps
    strength = inside * (length[..., 0] / (config.full_blur_size * min(height, width))).clip(0, 1)
    return image + strength[..., None].astype(np.float32) * (blurred - image)
