"""torchao's AdamW with moments of 8 bits, used as PyTorch's fused one is; imported where it is chosen only."""

from collections.abc import Callable
from contextlib import nullcontext
from importlib.util import find_spec
from typing import Any

import torch
import torchao.optim
from torch import Tensor
from torch.distributed.tensor import DTensor

from .moments import BLOCK, has_8_bits


class AdamW8bit(torchao.optim.AdamW8bit):
    """AdamW whose moments of large matrices have 8 bits.

    Attributes:
        found_inf: As of PyTorch's fused optimizers: 1 where the update is skipped. The host waits for it.
    """

    found_inf: Tensor | None = None

    def __init__(self, parameters: list[torch.nn.Parameter], **options: Any):
        super().__init__(parameters, **options, block_size=BLOCK)

    def _new_buffer(self, p: Tensor, signed: bool) -> Tensor:
        """Returns a moment of zeros. torchao itself decides by the size of a process' part, so that sharding would change results."""
        if not has_8_bits(p.shape):
            return torch.zeros_like(p)
        if not isinstance(p, DTensor):
            return self._subclass_zeros(p, signed, BLOCK)
        own = self._subclass_zeros(p.to_local(), signed, BLOCK)
        return DTensor.from_local(own, p.device_mesh, p.placements, run_check=False, shape=p.shape, stride=p.stride())

    def step(self, closure: Callable | None = None) -> None:
        """Updates the weights, compiled by Triton where it is; without, as on CPUs, operation by operation."""
        if self.found_inf is not None and self.found_inf:
            return
        for group in self.param_groups:
            group["lr"] = torch.as_tensor(group["lr"], dtype=torch.float32)  # a number would be compiled anew when it changes
        is_compiled = self.param_groups[0]["params"][0].is_cuda and find_spec("triton")
        with nullcontext() if is_compiled else torch.compiler.set_stance("force_eager"):
            super().step(closure)
