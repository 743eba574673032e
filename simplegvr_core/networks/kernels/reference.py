"""Window attention, written to be read: one loop over batch, heads and windows."""

import torch
from torch import Tensor

from ..windows import Windows


def window_mean(x: Tensor, windows: Windows) -> Tensor:
    """Returns (B, num_windows, n, d) float32 means over each window's tokens. x: (B, L, n, d)."""
    return torch.stack([x[:, row[row >= 0]].float().mean(1) for row in windows.table[: windows.num_windows]], dim=1)


def window_attention(q: Tensor, k: Tensor, v: Tensor, windows: Windows, selection: Tensor) -> Tensor:
    """Returns (B, L, n, d): each window's queries attend, in one softmax, to all tokens of its selected windows.

    q: (B, L, n, d); k, v: the same, or with condition tokens behind. selection: (B, n, num_windows, K) rows of
    windows.table, -1 for none. Scores are scaled by 1 / sqrt(d).
    """
    out = torch.empty_like(q)
    for batch, head, window in torch.cartesian_prod(*(torch.arange(extent) for extent in selection.shape[:3])).tolist():
        queries = windows.table[window]
        queries = queries[queries >= 0]
        selected = selection[batch, head, window]
        keys = windows.table[selected[selected >= 0]].flatten()
        keys = keys[keys >= 0]
        scores = q[batch, queries, head] @ k[batch, keys, head].T / q.shape[-1] ** 0.5
        out[batch, queries, head] = scores.softmax(dim=-1) @ v[batch, keys, head]
    return out
