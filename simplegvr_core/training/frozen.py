"""Frozen weights beside a LoRA in few bytes."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..networks.dit import SimpleGVRDiT

Frozen = Literal["float32", "bfloat16", "float8"]
FLOAT8 = torch.float8_e4m3fn
LARGEST = torch.finfo(FLOAT8).max


class Float8Linear(nn.Linear):
    """A frozen linear layer whose matrix is float8 (e4m3) with one scale for each row; products are in the dtype of its input.

    Two neighbours of a row have the bits of one bfloat16, since not every backend of torch.distributed sends float8.
    """

    def __init__(self, layer: nn.Linear):
        """Rounds the matrix of a layer, whose bias it takes."""
        nn.Module.__init__(self)  # nn.Linear's would allocate a matrix
        self.in_features, self.out_features, self.bias = layer.in_features, layer.out_features, layer.bias
        weight = layer.weight.detach().float()
        scale = (weight.abs().amax(1, keepdim=True) / LARGEST).clamp(min=1e-12).bfloat16()
        self.weight = nn.Parameter((weight / scale).to(FLOAT8).view(torch.bfloat16), requires_grad=False)
        self.scale = nn.Parameter(scale, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        kind = x.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
        return F.linear(x, self.matrix(dtype), self.bias)

    def matrix(self, dtype: torch.dtype) -> Tensor:
        """Returns the matrix in a dtype."""
        return self.weight.view(FLOAT8).to(dtype) * self.scale.to(dtype)


def store_frozen(dit: SimpleGVRDiT, kind: Frozen) -> None:
    """Stores the linear layers of a DiT in a data type; for float8 those outside of its blocks, few and sensitive, in bfloat16."""
    for name, layer in list(dit.named_modules()):
        if not isinstance(layer, nn.Linear):
            continue
        if kind == "float8" and name.startswith("blocks."):
            dit.set_submodule(name, Float8Linear(layer))
        layer.to(torch.float32 if kind == "float32" else torch.bfloat16)  # of a replaced one its bias
