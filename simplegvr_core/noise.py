"""Noise by position: one field for the whole clip, of which any part can be drawn alone."""

import numpy as np
import torch
from torch import Tensor


def draw_noise(shape: tuple[int, ...], seed: int, first_frame: int = 0, field: int = 0) -> Tensor:
    """Returns unit Gaussian noise (B, C, T, H, W), float32, on the CPU, so that a seed means the same on every device.

    A frame's noise depends on the seed, its number in the clip (first_frame and on), its number in the batch and its
    shape alone: neither the clip's length nor how it is cut changes it. field: another one is independent of it, with the
    same seed, too. Philox counts (Salmon et al., 2011): the seed is its key; field, batch item and frame are the upper
    three quarters of its counter.
    """
    noise = torch.empty(shape)
    for item, clip in enumerate(noise):
        for frame in range(shape[2]):
            generator = np.random.Generator(np.random.Philox(key=seed, counter=(0, field, item, first_frame + frame)))
            clip[:, frame] = torch.from_numpy(generator.standard_normal((shape[1], *shape[3:]), dtype=np.float32))
    return noise
