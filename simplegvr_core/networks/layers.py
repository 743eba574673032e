"""Building blocks shared by the networks: norms, causal 3D convolutions, Wan's embeddings and rotary positions.

B batch, C channels, T latent frames, H, W latent pixels or pixels, L tokens, n heads, d head dim
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from threading import Lock
from typing import Any, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PRECISION = Lock()  # PyTorch's switch belongs to all threads
Function = TypeVar("Function", bound=Callable)


class ChannelNorm(nn.Module):
    """Scales x (B, C, ...) to unit mean square over its channels, at each place alone: a tile gives what the whole gives."""

    def __init__(self, channels: int, device=None, dtype=None):
        super().__init__()
        self.scale = nn.Parameter(torch.empty(channels, device=device, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        scale = self.scale.to(x).view(-1, *[1] * (x.ndim - 2))
        return x * torch.rsqrt(x.float().square().mean(1, keepdim=True) + 1e-6).to(x) * scale


CausalState = dict[str, Tensor]  # from a clip's chunk to the next one: the last two input frames of each convolution, by its name


class CausalConv3d(nn.Module):
    """A 3x3x3 convolution over past frames only, (B, C, T, H, W) -> (B, C', T, H, W), with replicated edges."""

    def __init__(self, in_channels: int, out_channels: int, device=None, dtype=None, operations: Any = nn):
        super().__init__()
        self.name = ""  # its key in a CausalState
        self.conv = operations.Conv3d(in_channels, out_channels, 3, device=device, dtype=dtype)

    def starts_clip(self, past: CausalState | None) -> bool:
        """Returns whether the chunk that comes next is the clip's first."""
        return past is None or self.name not in past

    def forward(self, x: Tensor, past: CausalState | None = None) -> Tensor:
        """Returns the convolution of x.

        Args:
            x: (B, C, T, H, W), a whole clip, or one chunk of it.
            past: None for a whole clip. For a chunk the state that the chunk before left, empty before the first; x's own
                frames replace it.
        """
        x = F.pad(x, (1, 1, 1, 1, 2, 0), mode="replicate")
        if past is not None and self.name in past:
            x[:, :, :2] = past[self.name]
        if past is not None:
            past[self.name] = x[:, :, -2:].clone()
        return self.conv(x)


def name_convolutions(network: nn.Module) -> None:
    """Gives each causal convolution of network its qualified name, by which a CausalState lists its frames."""
    for name, module in network.named_modules():
        if isinstance(module, CausalConv3d):
            module.name = name


class ResidualBlock3d(nn.Module):
    """x + f(x), f two causal convolutions with norm and SiLU. x: (B, C, T, H, W)."""

    def __init__(self, channels: int, device=None, dtype=None, operations: Any = nn):
        super().__init__()
        self.norm1 = ChannelNorm(channels, device, dtype)
        self.conv1 = CausalConv3d(channels, channels, device, dtype, operations)
        self.norm2 = ChannelNorm(channels, device, dtype)
        self.conv2 = CausalConv3d(channels, channels, device, dtype, operations)

    def forward(self, x: Tensor, past: CausalState | None = None) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)), past)
        return x + self.conv2(F.silu(self.norm2(h)), past)


def sinusoidal_embedding(dim: int, position: Tensor) -> Tensor:
    """Returns (B, dim) cosines then sines of position / 10000^(i / (dim / 2)).

    position: (B,), 0 to 1000 for timesteps; in float64 so is the result, else float32.
    """
    half, dtype = dim // 2, torch.promote_types(position.dtype, torch.float32)
    frequency = torch.pow(10000, -torch.arange(half, device=position.device, dtype=dtype) / half)
    angle = torch.outer(position.to(dtype), frequency)
    return torch.cat((angle.cos(), angle.sin()), dim=1)


def rotary_table(grid: tuple[int, int, int], head_dim: int, device: torch.device | None = None, first_frame: int = 0) -> Tensor:
    """Returns (L, d / 2, 2) cosine and sine of each token's rotary angles, float32, for L = T*H*W tokens in raster order.

    Wan 2.1's split of the head: d - 4 (d // 6) features turn with T, 2 (d // 6) each with H and W; theta 10000.
    Each axis' angles are computed in float64 on the CPU, as not every device has it.

    Args:
        grid: T, H, W tokens.
        head_dim: d.
        device: of the table.
        first_frame: position of the first token along T.
    """
    widths = (head_dim - 4 * (head_dim // 6), 2 * (head_dim // 6), 2 * (head_dim // 6))
    axes = []
    for axis, (size, width) in enumerate(zip(grid, widths, strict=True)):
        frequency = 10000 ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
        position = torch.arange(size, dtype=torch.float64) + (first_frame if axis == 0 else 0)
        angle = torch.outer(position, frequency)
        turn = torch.stack((angle.cos(), angle.sin()), dim=-1).to(device, torch.float32)
        axes.append(turn.view([size if i == axis else 1 for i in range(3)] + [width // 2, 2]).expand(*grid, -1, -1))
    return torch.cat(axes, dim=3).flatten(0, 2)


def apply_rotary(x: Tensor, table: Tensor) -> Tensor:
    """Returns x with each pair of neighbouring features turned by its angle. x: (B, L, n, d); table: (L, d / 2, 2)."""
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = table[:, None].unbind(-1)
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2).to(x.dtype)


@contextmanager
def exact_float32(device: torch.device) -> Iterator[None]:
    """While open, float32 products stay float32: neither mixed precision nor TensorFloat-32, which choose other windows.

    PyTorch has no such switch for one product, so the process's is set and set back under a lock. Products in float64 need
    none, but run at 1/64 of the speed on consumer GPUs, and some devices have no float64.
    """
    with PRECISION, torch.autocast("cpu" if device.type == "meta" else device.type, enabled=False):
        if hasattr(torch.backends.cuda.matmul, "fp32_precision"):
            switches = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # pyright: ignore[reportAttributeAccessIssue]
            before = [switch.fp32_precision for switch in switches]
            for switch in switches:
                switch.fp32_precision = "ieee"
        else:  # before PyTorch 2.9; newer ones refuse this where another pack has used the above
            before = torch.get_float32_matmul_precision()
            torch.set_float32_matmul_precision("highest")
        try:
            yield
        finally:
            if isinstance(before, str):
                torch.set_float32_matmul_precision(before)
            else:
                for switch, precision in zip(switches, before, strict=True):
                    switch.fp32_precision = precision


def uncompiled(function: Function) -> Function:
    """Returns function, which torch.compile calls and does not trace."""
    return cast(Function, torch.compiler.disable(function))


def default_device() -> str:
    """Returns where commands run networks unless told otherwise: "cuda" where there is one, else "cpu"."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def mixed_precision(device: torch.device | str) -> torch.autocast:
    """Returns the context in which trained networks compute, as in training and in ComfyUI: bfloat16 on a GPU, float32 on a CPU.

    In float32 there is no Triton kernel for sparse attention.
    """
    kind = torch.device(device).type
    return torch.autocast(kind, torch.bfloat16, enabled=kind != "cpu")


@cache
def multiplies_bfloat16() -> bool:
    """Returns whether the CPU has instructions for products of bfloat16; elsewhere oneDNN converts them, at a loss."""
    supports = (getattr(torch.cpu, f"_is_{name}_supported", None) for name in ("avx512_bf16", "amx_tile"))  # since PyTorch 2.6
    return any(supported is not None and supported() for supported in supports)


def fast_products(fast: bool, device: torch.device) -> AbstractContextManager:
    """Returns a context in which products are in bfloat16, if fast, on a CPU that multiplies it fast; elsewhere nothing changes."""
    is_fast = fast and device.type == "cpu" and multiplies_bfloat16()
    return torch.autocast("cpu", torch.bfloat16) if is_fast else nullcontext()
