"""Self-attention over a grid of video tokens: full, shifted windows, or the paper's sparse local attention.

B batch, L tokens, n heads, d head dim. q, k, v: (B, L, n, d), rotary positions already applied.
"""

from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from . import kernels
from .temporal import segments
from .windows import Windows, cut_windows, token_order

KINDS = ("full", "swin", "sparse_local")
SCORE_BYTES = 64 * 2**20  # of window scores alive at a time
PRECISION = Lock()  # PyTorch's switch belongs to all threads


@dataclass(frozen=True)
class AttentionConfig:
    """Which tokens attend to which.

    kind: "full"; "swin", windows that shift in every other block; or "sparse_local", a window and its top_k most
    similar others. window: tokens along T, H, W. radius: how many windows away, along height and width, those others may
    be; None means anywhere. unit: frames of a temporal unit, outside of which nothing is seen; None means the whole video.
    """

    kind: str = "sparse_local"
    window: tuple[int, int, int] = (1, 12, 9)
    top_k: int = 1
    unit: int | None = 5
    radius: int | None = None

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(f"attention kind is {self.kind!r}, wanted one of {', '.join(KINDS)}")
        if min(self.window) < 1 or self.top_k < 0 or (self.unit is not None and self.unit < 1):
            raise ValueError(
                f"attention has window {self.window}, top_k {self.top_k}, unit {self.unit}: wanted sides and unit >= 1, top_k >= 0"
            )

    @property
    def window_major(self) -> bool:
        """Whether the order of tokens that serves it best is window-major: its windows never move."""
        return self.kind == "sparse_local"

    @property
    def alignment(self) -> tuple[int, int, int]:
        """Returns the cells along T, H, W between whose multiples a box begins: units and windows then fall as in the whole latent."""
        frames, rows, columns = (1, 1, 1) if self.kind == "full" else self.window
        return self.unit or frames, 2 * rows, 2 * columns

    @torch.compiler.disable
    def token_order(self, grid: tuple[int, int, int], device: torch.device | None = None) -> Tensor | None:
        """Returns (L,) raster numbers of the tokens in the order that serves it best, None for raster order."""
        return token_order(grid, self.window, device) if self.window_major else None

    def windows(self, grid, block: int, ordered: bool = False, num_references: int = 0, device=None) -> Windows:
        """Returns one block's windows, inside its temporal units. block: its index; odd blocks shift what shifts."""
        shifted = block % 2 == 1
        units = tuple(segments(grid[0], self.unit or grid[0], shifted))
        return cut_windows(grid, self.window, units, shifted and self.kind == "swin", ordered and self.window_major, num_references, device)


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    grid: tuple[int, int, int],
    config: AttentionConfig,
    block: int,
    ordered: bool = False,
    implementation: str | None = None,
    dense: Callable | None = None,
) -> Tensor:
    """Returns attention (B, L, n, d) of one block. block: its index; odd blocks shift units and Swin windows.

    Tokens are in raster order, or in config.token_order when ordered. Tokens after the grid's are references:
    all see them, they see all. implementation: of kernels.MODULES, by default the fastest. dense: (q, k, v) -> out for
    what is dense, by default full_attention. Scores are scaled by 1 / sqrt(d).
    """
    dense = dense or full_attention
    if config.kind == "full" and config.unit is None:
        return dense(q, k, v)
    length = grid[0] * grid[1] * grid[2]
    num_references = q.shape[1] - length
    if num_references:
        seen = attend_grid(q[:, :length], k, v, grid, config, block, ordered, num_references, implementation, dense)
        return torch.cat((seen, dense(q[:, length:], k, v)), dim=1)
    return attend_grid(q, k, v, grid, config, block, ordered, 0, implementation, dense)


def attend_grid(q, k, v, grid, config: AttentionConfig, block: int, ordered: bool, num_references: int, implementation, dense) -> Tensor:
    """Returns attention (B, L, n, d) of the grid's tokens to each other and to the references behind them."""
    if config.kind == "full":
        return attend_in_units(q, k, v, grid, config.unit, block, dense)
    q, k = q.to(v.dtype), k.to(v.dtype)  # mixed precision normalises q and k in float32
    kernel, windows, selection = choose(q, k, grid, config, block, ordered, num_references, implementation)
    return kernel.window_attention(q, k, v, windows, selection)


@torch.compiler.disable  # which would trace the cutting and the check anew for every block and size
def choose(q, k, grid, config: AttentionConfig, block: int, ordered: bool, num_references: int, implementation):
    """Returns the implementation that runs, the block's windows, and select_windows of them."""
    windows = config.windows(grid, block, ordered, num_references, q.device)
    training = torch.is_grad_enabled() and q.requires_grad
    case = q.device, q.dtype, q.shape[-1], windows.table.shape[1], windows.contiguous, training
    kernel = kernels.load(implementation or kernels.fastest(*case))
    return kernel, windows, select_windows(q, k, windows, config, kernel)


def attend_in_units(q: Tensor, k: Tensor, v: Tensor, grid: tuple[int, int, int], unit: int, block: int, dense: Callable) -> Tensor:
    """Returns full attention inside each temporal unit, and to the references."""
    frame, length = grid[1] * grid[2], q.shape[1]
    lengths = [frames * frame for frames in segments(grid[0], unit, block % 2 == 1)]
    parts = zip(*(x[:, :length].split(lengths, dim=1) for x in (q, k, v)), strict=True)
    k, v = k[:, length:], v[:, length:]
    return torch.cat([dense(q_, torch.cat((k_, k), dim=1), torch.cat((v_, v), dim=1)) for q_, k_, v_ in parts], dim=1)


def full_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Returns softmax(q k^T / sqrt(d)) v, (B, L, n, d); k and v may have another length than q."""
    out = F.scaled_dot_product_attention(*(rearrange(x, "B L n d -> B n L d") for x in (q, k, v)))
    return rearrange(out, "B n L d -> B L n d")


@torch.no_grad()
def select_windows(q: Tensor, k: Tensor, windows: Windows, config: AttentionConfig, kernel) -> Tensor:
    """Returns (B, n, num_windows, K) rows of windows.table that each window attends to, -1 for none.

    First itself, then its config.top_k most similar others, then all references. kernel: whose window_mean to use.
    """
    batch, _, heads, _ = q.shape
    rows = torch.arange(len(windows.table), device=q.device)
    itself, references = rows[: windows.num_windows, None], rows[windows.num_windows :].expand(windows.num_windows, -1)
    top_k = config.top_k if config.kind == "sparse_local" else 0
    shape = (batch, heads, -1, -1)
    chosen = [itself.expand(shape), references.expand(shape)]
    if top_k:
        chosen.insert(1, most_similar(kernel.window_mean(q, windows), kernel.window_mean(k, windows), windows, top_k, config.radius))
    return torch.cat(chosen, dim=-1)


def most_similar(q_mean: Tensor, k_mean: Tensor, windows: Windows, top_k: int, radius: int | None = None) -> Tensor:
    """Returns (B, n, num_windows, top_k) windows of the same unit and at most radius away, most similar first, -1 for none.

    q_mean, k_mean: (B, num_windows, n, d) float32; similarity is their product. Fewer than top_k others: all of them.
    """
    unit = windows.unit
    num_units, size = unit.shape
    top_k = min(top_k, size - 1)
    per_row = 4 * q_mean.shape[0] * q_mean.shape[2] * num_units * size
    parts = []
    for rows in torch.arange(size, device=unit.device).split(max(1, SCORE_BYTES // per_row)):
        barred = (unit < 0)[:, None] | (unit[:, rows, None] == unit[:, None])
        if radius is not None:
            place = windows.place[unit]
            barred |= (place[:, rows, None] - place[:, None]).abs().amax(-1) > radius
        with exact_float32(q_mean.device):
            scores = torch.einsum("B U r n d, B U M n d -> B n U r M", q_mean[:, unit[:, rows]], k_mean[:, unit])
        scores.masked_fill_(barred, -torch.inf)
        best, index = scores.max(-1, keepdim=True) if top_k == 1 else scores.topk(top_k)
        window = unit[:, None, :].expand(-1, len(rows), -1).expand(*index.shape[:2], -1, -1, -1).gather(-1, index)
        parts.append(window.masked_fill(best.isneginf(), -1))
    return rearrange(torch.cat(parts, dim=3), "B n U M k -> B n (U M) k")[:, :, windows.slot]


@contextmanager
def exact_float32(device: torch.device):
    """While open, float32 products stay float32: neither mixed precision nor TensorFloat-32, which choose other windows."""
    with PRECISION, torch.autocast("cpu" if device.type == "meta" else device.type, enabled=False):
        if hasattr(torch.backends.cuda.matmul, "fp32_precision"):
            switches = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)
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
