"""What a user may switch on, on two layers of the network: torch.compile, and weights or products in float8."""

from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...networks.dit import SimpleGVRDiT
from ...planning.network_memory import TEXT_TOKENS
from ..network import random_model
from .items import Bench, Item, Sizes, Stopwatch
from .network import median_seconds

LAYERS = 2  # an even and an odd one
FLOAT8, LARGEST = torch.float8_e4m3fn, 448.0


def option_items(sizes: Sizes) -> Iterator[Item]:
    """Yields each option beside the plain network."""
    yield Item("options", f"torch.compile, {LAYERS} layers", 15, compiled)
    yield Item("options", f"weights in float8, {LAYERS} layers", 3, partial(in_float8, False))
    yield Item("options", f"products in float8, {LAYERS} layers", 3, partial(in_float8, True))


@torch.inference_mode()
def compiled(bench: Bench) -> dict[str, Any]:
    """Returns milliseconds before and after torch.compile of each block, the seconds that it took, and the change of the result."""
    model = small_model(bench)
    plain, expected = forward(model, bench)
    for block in model.blocks:
        block.compile(backend=bench.sizes.compiler, dynamic=False)
    watch = Stopwatch(bench.machine)
    model(*inputs(bench))
    first = watch.lap()
    ms, out = forward(model, bench)
    return {"backend": bench.sizes.compiler, "plain_ms": plain, "ms": ms, "first_seconds": first, "change": change(out, expected)}


@torch.inference_mode()
def in_float8(products: bool, bench: Bench) -> dict[str, Any]:
    """Returns milliseconds and weights' GB before and after the blocks' weights are in float8, and the change of the result.

    Args:
        products: Whether matrix products are in float8 too; otherwise weights are converted on each call.
        bench: The device.
    """
    model = small_model(bench)
    plain, expected = forward(model, bench)
    float8 = deepcopy(model)
    for block in float8.blocks:
        for name, layer in [(name, layer) for name, layer in block.named_modules() if isinstance(layer, nn.Linear)]:
            block.set_submodule(name, Float8Linear(layer, products))
    before, after = (sum(tensor.nbytes for tensor in network.blocks.state_dict().values()) / 1e9 for network in (model, float8))
    ms, out = forward(float8, bench)
    return {"plain_ms": plain, "ms": ms, "plain_weights_gb": before, "weights_gb": after, "change": change(out, expected)}


class Float8Linear(nn.Module):
    """A linear layer whose weight is in float8 with one scale, as ComfyUI's fp8 loading has it."""

    weight: Tensor
    scale: Tensor

    def __init__(self, layer: nn.Linear, products: bool):
        super().__init__()
        self.products, self.bias = products, layer.bias
        scale = layer.weight.abs().amax().float() / LARGEST
        self.register_buffer("scale", scale)
        self.register_buffer("weight", (layer.weight / scale).to(FLOAT8))

    def forward(self, x: Tensor) -> Tensor:
        """Returns the layer of x (..., width)."""
        if not self.products:
            return F.linear(x, self.weight.to(x) * self.scale.to(x), self.bias)
        rows = x.flatten(0, -2)
        scale = rows.abs().amax().float() / LARGEST
        rows = (rows / scale).clamp(-LARGEST, LARGEST).to(FLOAT8)
        scaled_mm = torch._scaled_mm  # pyright: ignore[reportPrivateImportUsage]: there is no public one
        out = scaled_mm(rows, self.weight.T, scale_a=scale, scale_b=self.scale, bias=self.bias, out_dtype=x.dtype)
        return out.unflatten(0, x.shape[:-1])


def small_model(bench: Bench) -> SimpleGVRDiT:
    """Returns a network of LAYERS layers with random weights and sparse local attention."""
    bench.release()
    model = random_model(replace(bench.sizes.dit, num_layers=LAYERS), bench.machine).eval()
    model.attention = bench.sizes.attention
    return model


def inputs(bench: Bench) -> tuple[Tensor, Tensor, Tensor]:
    """Returns z, timestep and context."""
    dit = bench.sizes.dit
    timestep = torch.tensor([500.0], device=bench.device)
    return bench.noise(1, dit.in_dim, *bench.sizes.high), timestep, bench.noise(1, TEXT_TOKENS, dit.text_dim)


def forward(model: Callable[..., Tensor], bench: Bench) -> tuple[float, Tensor]:
    """Returns the milliseconds of a forward pass, the median of three after one that warms up, and the result."""
    given = inputs(bench)
    out = model(*given)
    return 1e3 * median_seconds(lambda: model(*given), bench), out


def change(out: Tensor, expected: Tensor) -> float:
    """Returns the relative difference (L2) of a result."""
    return float((out - expected).float().norm() / expected.float().norm())
