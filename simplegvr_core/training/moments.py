"""AdamW with its two moments in float32 or in 8 bits (Dettmers et al., 2022, arXiv:2110.02861), and what the moments take."""

from typing import TYPE_CHECKING, Literal

import torch
from torch import nn

if TYPE_CHECKING:
    from .loop import LoopConfig

Moments = Literal["float32", "8bit"]
BLOCK = 256  # numbers of a moment that have one scale
LEAST_ROWS = 256  # of a matrix whose moments have 8 bits, so that none of 16 processes that share it is left without a row


def adamw(parameters: list[nn.Parameter], loop: "LoopConfig") -> torch.optim.Optimizer:
    """Returns AdamW, which changes nothing in a step whose `found_inf`, a tensor on the device, is 1.

    Args:
        parameters: What is trained.
        loop: Rate, betas, weight decay and the type of the moments.

    Raises:
        ImportError: The moments have 8 bits and torchao is missing.
    """
    options = {"lr": loop.learning_rate, "betas": loop.betas, "weight_decay": loop.weight_decay}
    if loop.moments == "float32":
        return torch.optim.AdamW(parameters, **options, fused=True)
    try:
        from .adamw_8bit import AdamW8bit
    except ImportError as error:
        raise ImportError(
            f"--loop.moments 8bit needs torchao ({error}): install it by `pip install torchao`, or leave the option out"
        ) from error
    return AdamW8bit(parameters, **options)


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
