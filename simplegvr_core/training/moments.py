"""Which of AdamW's moments have 8 bits (Dettmers et al., 2022, arXiv:2110.02861), and what the moments take."""

from typing import Literal

import torch
from torch import nn

Moments = Literal["float32", "8bit"]
BLOCK = 256  # numbers of a moment that have one scale
LEAST_ROWS = 256  # of a matrix whose moments have 8 bits, so that none of 16 processes that share it is left without a row


def has_8_bits(shape: torch.Size) -> bool:
    """Returns whether moments of 8 bits are used for a parameter: for large matrices of which each row is whole blocks.

    Sharding among processes divides rows, never blocks, so that it changes no moment.

    Args:
        shape: Of the whole parameter.
    """
    return len(shape) > 1 and shape[0] >= LEAST_ROWS and shape[1:].numel() % BLOCK == 0


def moment_bytes(parameter: nn.Parameter, moments: Moments) -> int:
    """Returns the bytes of both moments of a parameter."""
    if moments == "float32" or not has_8_bits(parameter.shape):
        return 2 * 4 * parameter.numel()
    scales, codes = 4 * parameter.numel() // BLOCK, 4 * 2**8  # float32; codes: the value of each
    return 2 * (parameter.numel() + scales + codes)
