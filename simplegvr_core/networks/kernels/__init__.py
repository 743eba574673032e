"""Kernels of window attention: each is a file of this folder with the two functions of WindowKernel.

`reference` is the plain one that the others are tested against; `sdpa` runs on every device; `triton` is the fast one.

To add a kernel: write a file here with `window_mean` and `window_attention`, give it a name in KERNELS, and run
tests/test_kernels.py, which compares every kernel of KERNELS with `reference`. `attend(..., kernel=load(NAME))` then runs
it. For attention to choose it unasked, let `fastest` return its name where it is the fastest and works.
"""

import logging
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from typing import TYPE_CHECKING, Protocol, cast

import torch
from torch import Tensor

from ..windows import Windows

if TYPE_CHECKING:
    from ..block_selection import BlockSelection
from ..block_causal_config import BlockLayout

KERNELS = {"reference": "reference", "sdpa": "sdpa", "triton": "sparse_local_triton"}  # files, imported when asked for: Triton is rare
BLOCK_KERNELS = {"reference": "block_reference", "sdpa": "block_sdpa", "triton": "block_triton"}


class WindowKernel(Protocol):
    """Window attention on one kind of device. A module with these two functions is one."""

    def window_mean(self, x: Tensor, windows: Windows) -> Tensor:
        """Returns (B, num_windows, n, d) float32 means over each window's tokens. x: (B, L, n, d) of any float dtype."""
        ...

    def window_attention(self, q: Tensor, k: Tensor, v: Tensor, windows: Windows, selection: Tensor) -> Tensor:
        """Returns (B, L, n, d) in q's dtype: each window's queries attend, in one softmax, to all tokens of its selected rows.

        Scores are scaled by 1 / sqrt(d). Autograd gives the gradients of q, k and v.

        Args:
            q: (B, L, n, d), L tokens of the windows.
            k, v: (B, L + condition tokens, n, d).
            windows: on q's device. The result must hold for ragged windows and for tokens that are not contiguous.
            selection: (B, n, num_windows, K) rows of windows.table, -1 for none. The first is the window itself.
        """
        ...


class BlockKernel(Protocol):
    """Block-causal attention on one kind of device. A module with these two functions is one."""

    def window_mean(self, x: Tensor, windows: Windows) -> Tensor:
        """Returns the same as a WindowKernel's."""
        ...

    def block_attention(self, q: Tensor, k: Tensor, v: Tensor, blocks: "BlockLayout", selection: "BlockSelection") -> Tensor:
        """Returns (B, L, n, d) in q's dtype: each block's queries attend, in one softmax, to its selected blocks and their null keys.

        Scores are scaled by 1 / sqrt(d).

        Args:
            q: (B, L, n, d), tokens of blocks.queries.
            k, v: (B, past and L, n, d), tokens of blocks.keys.
            blocks: on q's device.
            selection: key blocks of each query block.
        """
        ...


@dataclass(frozen=True)
class KernelCase:
    """What a kernel is chosen by.

    Args:
        device: of q, k and v.
        dtype: of q, k and v.
        head_dim: d.
        window_size: tokens of the largest window.
        contiguous: whether the tokens of each window are successive.
        training: whether gradients are needed.
    """

    device: torch.device
    dtype: torch.dtype
    head_dim: int
    window_size: int
    contiguous: bool
    training: bool = False


def load(name: str) -> WindowKernel:
    """Returns the kernel of that name in KERNELS. Raises ImportError when it needs Triton and there is none."""
    return cast(WindowKernel, import_module(f".{KERNELS[name]}", __package__))


def load_block(name: str) -> BlockKernel:
    """Returns the kernel of that name in BLOCK_KERNELS. Raises ImportError when it needs Triton and there is none."""
    return cast(BlockKernel, import_module(f".{BLOCK_KERNELS[name]}", __package__))


@lru_cache
def fastest(case: KernelCase) -> str:
    """Returns the name of the fastest kernel that works: "triton" or "sdpa".

    Triton's is tried out on a small case first, with its gradients where training needs them. Why a GPU runs without it is
    logged once.
    """
    what = f"attention in windows of {case.window_size} tokens, {case.dtype}"
    return by_triton(case, what, KERNELS["triton"])


@lru_cache
def fastest_block(case: KernelCase) -> str:
    """Returns the same of BLOCK_KERNELS. Triton's has no gradients."""
    if case.training:
        return "sdpa"
    return by_triton(case, f"block-causal attention in blocks of {case.window_size} tokens, {case.dtype}", BLOCK_KERNELS["triton"])


def by_triton(case: KernelCase, what: str, module: str) -> str:
    """Returns "triton" where the check(case) of a module passes on a GPU, else "sdpa". what: names the attention in the log."""
    if case.device.type != "cuda":
        return "sdpa"
    try:
        import_module(f".{module}", __package__).check(case)
    except torch.OutOfMemoryError:  # says nothing of the kernels
        raise
    except Exception as error:  # whatever a compiler, a driver or the check itself raises: the windows stay, only slower
        logging.warning(f"SimpleGVR: {what}, runs by PyTorch's attention, without Triton: {error!r}")
        return "sdpa"
    return "triton"
