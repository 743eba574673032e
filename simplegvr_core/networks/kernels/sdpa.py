"""Window attention by gathering and PyTorch's scaled_dot_product_attention. Runs on every device."""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from ..windows import Windows

GATHER_BYTES = 256 * 2**20  # gathered at a time
CACHE_BYTES = 8 * 2**20  # the same on a CPU, in whose caches it should stay
MAX_BATCH = 2**15  # of one call, which some backends limit to 2^16 - 1


def window_mean(x: Tensor, windows: Windows) -> Tensor:
    """Returns (B, num_windows, n, d) float32 means over each window's tokens. x: (B, L, n, d)."""
    table, length = windows.table[: windows.num_windows], windows.length[: windows.num_windows]
    if windows.contiguous and not windows.ragged:
        return x[:, : table.numel()].unflatten(1, table.shape).mean(2, dtype=torch.float32)
    batch, _, heads, head_dim = x.shape
    per_window = batch * table.shape[1] * heads * head_dim * x.element_size()
    means, chunk = [], max(1, gather_bytes(x) // per_window)
    for rows, tokens in zip(table.split(chunk), length.split(chunk), strict=True):
        live = (rows >= 0)[..., None, None]
        means.append(x[:, rows].where(live, 0).sum(2, dtype=torch.float32) / tokens[:, None, None])
    return torch.cat(means, dim=1)


def window_attention(q: Tensor, k: Tensor, v: Tensor, windows: Windows, selection: Tensor) -> Tensor:
    """Returns (B, L, n, d): each window's queries attend, in one softmax, to all tokens of its selected windows.

    q: (B, L, n, d); k, v: the same, or with condition tokens behind. selection: (B, n, num_windows, K) rows of
    windows.table, -1 for none. Scores are scaled by 1 / sqrt(d).
    """
    (batch, length, heads, head_dim), keys_length = q.shape, k.shape[1]
    keys_per_window = selection.shape[-1] * windows.table.shape[1]
    per_window = 2 * batch * heads * keys_per_window * head_dim * k.element_size()
    chunk = max(1, min(gather_bytes(q) // per_window, MAX_BATCH // batch))
    first_row = torch.arange(batch, device=q.device)[:, None, None, None, None] * keys_length
    head = torch.arange(heads, device=q.device)[:, None, None]
    k, v = (rearrange(x, "B L n d -> (B L n) d") for x in (k, v))
    whole = (selection >= 0) & (windows.length[selection] == windows.table.shape[1])
    padded = (~whole).any(-1).any(1).any(0).split(chunk)
    padded = torch.stack([part.any() for part in padded]).tolist()  # the only wait for the device
    out = q.new_empty(batch, length + 1, heads, head_dim)  # the last row takes what padding attends, -1 of the table
    selection = rearrange(selection, "B n W K -> B W n K")
    chunks = zip(windows.table[: windows.num_windows].split(chunk), selection.split(chunk, dim=1), padded, strict=True)
    for rows, selected, some_padding in chunks:
        tokens = windows.table[selected]  # B w n K P
        live = (tokens >= 0) & (selected >= 0)[..., None]
        tokens = (first_row + tokens.clamp(min=0)) * heads + head
        keys, values = (rearrange(F.embedding(tokens, x), "B w n K P d -> (B w) n (K P) d") for x in (k, v))
        mask = rearrange(live, "B w n K P -> (B w) n 1 (K P)") if some_padding else None
        queries = rearrange(q[:, rows], "B w P n d -> (B w) n P d")
        attended = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
        out[:, rows] = rearrange(attended, "(B w) n P d -> B w P n d", B=batch).to(out.dtype)  # which autocast may change
    return out[:, :length]


def gather_bytes(x: Tensor) -> int:
    """Returns how much to gather at a time. Each chunk's gradient is as large as the whole, so training takes few."""
    return CACHE_BYTES if x.device.type == "cpu" and not x.requires_grad else GATHER_BYTES
