"""Selection of block-causal attention: one threshold per head and slab over the probabilities of its pairs of blocks.

B batch, n heads, d head dim, N blocks of a slab, Q query blocks, K key blocks.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from .block_causal_config import BlockCausalConfig, BlockLayout, Group
from .layers import exact_float32
from .windows import Windows


class BlockSelection(NamedTuple):
    """Key blocks of each query block in each head: block[start : start + count].

    Args:
        block: (pairs,) numbers of key blocks, ascending for each query block.
        start: (B, n, Q) places in block.
        count: (B, n, Q) numbers of key blocks, at least 1.
    """

    block: Tensor
    start: Tensor
    count: Tensor


@torch.no_grad()
def select_blocks(q_mean: Tensor, k_mean: Tensor, blocks: BlockLayout, config: BlockCausalConfig) -> BlockSelection:
    """Returns the key blocks of each query block.

    Args:
        q_mean: (B, Q, n, d) float32 means of the query blocks, zeros of the padding included.
        k_mean: (B, K, n, d) the same of the key blocks.
    """
    parts, starts, counts, found = [], [], [], 0
    for group, mask in group_masks(q_mean, k_mean, blocks, config):
        count = mask.sum(-1)
        index = mask.nonzero()[:, -1] if not mask.is_meta else expected_index(mask, group, blocks)
        parts.append(index + group.origin * blocks.blocks)
        starts.append(found + (count.flatten().cumsum(0) - count.flatten()).view_as(count))
        counts.append(count)
        found += len(index)
    return BlockSelection(torch.cat(parts), torch.cat(starts, dim=2), torch.cat(counts, dim=2))


def expected_index(mask: Tensor, group: Group, blocks: BlockLayout) -> Tensor:
    """Returns as many numbers, without values, as mask.nonzero() has places; on "meta", where memory is counted."""
    first = blocks.groups[0].start
    kept = sum(blocks.kept[group.start - first : group.stop - first])
    return mask.new_empty(mask.shape[0] * mask.shape[1] * kept, dtype=torch.long)


def group_masks(q_mean: Tensor, k_mean: Tensor, blocks: BlockLayout, config: BlockCausalConfig) -> Iterator[tuple[Group, Tensor]]:
    """Yields each group and (B, n, Q, K) whether its query blocks attend to the key blocks in its sight."""
    N, past = blocks.blocks, blocks.groups[0].start
    for group, allowed in zip(blocks.groups, blocks.allowed, strict=True):
        q, k = q_mean[:, (group.start - past) * N : (group.stop - past) * N], k_mean[:, group.origin * N : group.stop * N]
        with exact_float32(q.device):
            scores = torch.einsum("B Q n d, B K n d -> B n Q K", q, k) / q.shape[-1] ** 0.5
        probability = scores.masked_fill_(~allowed, -torch.inf).softmax(-1)
        slabs = group.stop - group.start
        entries = probability.unflatten(2, (slabs, N)).flatten(3)  # of each slab
        pairs = min(config.pairs_kept(blocks.frame_tokens, N, slabs), entries.shape[-1] - 1)
        threshold = entries.kthvalue(entries.shape[-1] - pairs).values  # the (pairs + 1)-th largest
        mask = (probability >= threshold.repeat_interleave(N, dim=-1)[..., None]) & allowed
        first_allowed = torch.zeros_like(allowed).scatter_(1, allowed.byte().argmax(1, keepdim=True), True)
        mask |= first_allowed & ~mask.any(-1, keepdim=True)
        if group.first:
            mask.diagonal(dim1=-2, dim2=-1).fill_(True)
        yield group, mask


def null_keys(selection: BlockSelection, keys: Windows) -> Tensor:
    """Returns (B, n, Q) zero keys by which the selected blocks are padded."""
    missing = (keys.size - keys.length[selection.block]).cumsum(0)
    missing = torch.cat((missing.new_zeros(1), missing))
    return missing[selection.start + selection.count] - missing[selection.start]
