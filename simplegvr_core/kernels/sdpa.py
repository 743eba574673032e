"""Window attention by gathering and PyTorch's scaled_dot_product_attention. Runs on every device."""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

GATHER_BYTES = 256 * 2**20  # of keys and values gathered at a time


def window_attention(q: Tensor, k: Tensor, v: Tensor, table: Tensor, selection: Tensor) -> Tensor:
    """Returns (B, L, n, d): each window's queries attend, in one softmax, to all tokens of its selected windows.

    q, k, v: (B, L, n, d). table: (W, P) token indices of each window, -1 where there is none. selection: (B, n, W, K)
    window indices. Every token is in one window. Scores are scaled by 1 / sqrt(d).
    """
    batch, length, heads, head_dim = q.shape
    tokens = table.clamp(min=0)
    live = table >= 0
    ragged = not live.all()
    q, k, v = (rearrange(x, "B L n d -> (B n) L d")[:, tokens] for x in (q, k, v))  # (B n) W P d
    selection = rearrange(selection, "B n W K -> (B n) W K")
    out = q.new_empty(batch * heads, length, head_dim)
    rows = torch.arange(batch * heads, device=q.device)[:, None, None]
    gathered_per_window = 2 * batch * heads * selection.shape[-1] * table.shape[1] * head_dim * q.element_size()
    for part in torch.arange(len(table), device=q.device).split(max(1, GATHER_BYTES // gathered_per_window)):
        keys, values = (rearrange(x[rows, selection[:, part]], "b W K P d -> b W (K P) d") for x in (k, v))
        mask = rearrange(live[selection[:, part]], "b W K P -> b W 1 (K P)") if ragged else None
        attended = F.scaled_dot_product_attention(q[:, part], keys, values, attn_mask=mask)
        out[:, table[part][live[part]]] = attended[:, live[part]]
    return rearrange(out, "(B n) L d -> B L n d", B=batch)
