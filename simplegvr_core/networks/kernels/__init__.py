"""Implementations of window attention, all with the same two functions.

window_mean(x, windows) -> (B, num_windows, n, d) and window_attention(q, k, v, windows, selection) -> (B, L, n, d).
`reference` is the plain one that the others are tested against; `sdpa` runs on every device; `triton` is the fast one.
"""

import logging
from functools import lru_cache
from importlib import import_module
from types import ModuleType

import torch

MODULES = {"reference": "reference", "sdpa": "sdpa", "triton": "sparse_local_triton"}


def load(name: str) -> ModuleType:
    """Returns the implementation of that name. Raises ImportError when it needs Triton and there is none."""
    return import_module(f".{MODULES[name]}", __package__)


@lru_cache
def fastest(device: torch.device, dtype: torch.dtype, head_dim: int, size: int, contiguous: bool, training: bool) -> str:
    """Returns the name of the fastest implementation that works: "triton" or "sdpa".

    size: tokens of the largest window. contiguous: tokens of each window are successive. Triton's is tried out on a
    small case first, with its gradients where training needs them. What keeps it away on a GPU is logged once.
    """
    if device.type != "cuda":
        return "sdpa"
    try:
        load("triton").check(device, dtype, head_dim, size, contiguous, training)
    except torch.OutOfMemoryError:  # says nothing of the kernels
        raise
    except Exception as error:  # whatever a compiler, a driver or the check itself raises: the windows stay, only slower
        logging.warning(
            f"SimpleGVR: attention in windows of {size} tokens, {dtype}, runs by PyTorch's attention, without Triton: {error!r}"
        )
        return "sdpa"
    return "triton"
