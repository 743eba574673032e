"""Window attention, written to be read: one loop over batch, heads and windows."""

import torch
from torch import Tensor


def window_attention(q: Tensor, k: Tensor, v: Tensor, table: Tensor, selection: Tensor) -> Tensor:
    """Returns (B, L, n, d): each window's queries attend, in one softmax, to all tokens of its selected windows.

    q, k, v: (B, L, n, d). table: (W, P) token indices of each window, -1 where there is none. selection: (B, n, W, K)
    window indices. Every token is in one window. Scores are scaled by 1 / sqrt(d).
    """
    out = torch.empty_like(q)
    for batch, head, window in torch.cartesian_prod(*(torch.arange(extent) for extent in selection.shape[:3])).tolist():
        queries = table[window]
        queries = queries[queries >= 0]
        keys = table[selection[batch, head, window]].flatten()
        keys = keys[keys >= 0]
        scores = q[batch, queries, head] @ k[batch, keys, head].T / q.shape[-1] ** 0.5
        out[batch, queries, head] = scores.softmax(dim=-1) @ v[batch, keys, head]
    return out
