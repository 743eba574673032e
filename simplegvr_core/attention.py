"""Self-attention over a grid of video tokens: full, shifted windows, or the paper's sparse local attention.

B batch, L = T*H*W tokens in raster order, n heads, d head dim, W windows, P tokens of the largest window.
q, k, v: (B, L, n, d), rotary positions already applied.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from .kernels import reference, sdpa
from .temporal import segments

KERNELS = {"reference": reference.window_attention, "sdpa": sdpa.window_attention}
KINDS = ("full", "swin", "sparse_local")


@dataclass(frozen=True)
class AttentionConfig:
    """Which tokens attend to which.

    kind: "full"; "swin", windows that shift in every other block; or "sparse_local", a window and its top_k most
    similar others. window: tokens along T, H, W. unit: frames of a temporal unit, outside of which nothing is seen;
    None means the whole video.
    """

    kind: str = "sparse_local"
    window: tuple[int, int, int] = (1, 12, 9)
    top_k: int = 1
    unit: int | None = 5

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(f"attention kind is {self.kind!r}, wanted one of {', '.join(KINDS)}")


def attend(q: Tensor, k: Tensor, v: Tensor, grid: tuple[int, int, int], config: AttentionConfig, block: int, impl: str = "sdpa"):
    """Returns attention (B, L, n, d) of one block. block: its index; odd blocks shift units and Swin windows.

    impl: "reference" or "sdpa". Scores are scaled by 1 / sqrt(d).
    """
    shifted = block % 2 == 1
    lengths = segments(grid[0], config.unit or grid[0], shifted)
    frame = grid[1] * grid[2]
    parts = zip(*(x.split([frames * frame for frames in lengths], dim=1) for x in (q, k, v)), strict=True)
    return torch.cat(
        [attend_unit(*part, (frames, *grid[1:]), config, shifted, impl) for frames, part in zip(lengths, parts, strict=True)], dim=1
    )


def attend_unit(q: Tensor, k: Tensor, v: Tensor, grid: tuple[int, int, int], config: AttentionConfig, shifted: bool, impl: str):
    """Returns attention (B, L, n, d) inside one temporal unit of grid tokens."""
    if config.kind == "full":
        return full_attention(q, k, v)
    table = window_table(grid, config.window, shifted and config.kind == "swin").to(q.device)
    top_k = config.top_k if config.kind == "sparse_local" else 0
    return KERNELS[impl](q, k, v, table, select_windows(q, k, table, top_k))


def full_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Returns softmax(q k^T / sqrt(d)) v, (B, L, n, d); k and v may have another length than q."""
    out = F.scaled_dot_product_attention(*(rearrange(x, "B L n d -> B n L d") for x in (q, k, v)))
    return rearrange(out, "B n L d -> B L n d")


@lru_cache(maxsize=64)
def window_table(grid: tuple[int, int, int], window: tuple[int, int, int], shifted: bool) -> Tensor:
    """Returns (W, P) raster indices of each window's tokens, -1 where a window at the edge has fewer than P.

    Windows are cut from the first corner, or half a window earlier when shifted; those at the far edges are smaller.
    """
    T, H, W = grid
    tokens = torch.arange(T * H * W).view(grid)
    cells = [
        cell.flatten()
        for slab in tokens.split(segments(T, window[0], shifted), dim=0)
        for row in slab.split(segments(H, window[1], shifted), dim=1)
        for cell in row.split(segments(W, window[2], shifted), dim=2)
    ]
    return torch.nn.utils.rnn.pad_sequence(cells, batch_first=True, padding_value=-1)


@torch.no_grad()
def select_windows(q: Tensor, k: Tensor, table: Tensor, top_k: int) -> Tensor:
    """Returns (B, n, W, 1 + top_k) window indices for each window and head: itself, then its most similar others.

    Similarity is the product of the windows' mean q and mean k, in float32; the mean counts live tokens only.
    Fewer than top_k others: all of them.
    """
    num_windows = len(table)
    top_k = min(top_k, num_windows - 1)
    itself = torch.arange(num_windows, device=q.device).expand(q.shape[0], q.shape[2], -1)[..., None]
    if top_k == 0:
        return itself
    live = (table >= 0).float()[..., None, None]
    q_mean, k_mean = ((x.float()[:, table.clamp(min=0)] * live).sum(2) / live.sum(1) for x in (q, k))
    with torch.autocast(q.device.type, enabled=False):  # training's would choose by scores in bfloat16
        scores = torch.einsum("B W n d, B V n d -> B n W V", q_mean, k_mean)
    scores.diagonal(dim1=-2, dim2=-1).fill_(-torch.inf)
    return torch.cat((itself, scores.topk(top_k).indices), dim=-1)
