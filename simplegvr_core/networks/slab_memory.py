"""Block-causal attention of a clip in segments: the keys and values that later segments look back on are kept."""

from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from .attention_config import AttentionConfig
from .block_causal import attend_blocks
from .block_causal_config import BlockCausalConfig, slabs_in_sight
from .windows import TokenLayout


class Past(NamedTuple):
    """What later segments look back on, in one transformer block.

    Args:
        stop: latent frame after its last.
        k, v: keys and values (B, l, n, d).
    """

    stop: int
    k: Tensor
    v: Tensor


class SlabMemory:
    """Keys and values of a clip's last slabs, of every transformer block.

    With it, segments in order give what the whole clip gives. Each begins with a group of the configuration. Its size does not
    depend on the clip's length unless the configuration's memory is None.

    Args:
        config: of the attention.
        num_frames: latent frames of the clip.
        device: where keys and values are kept.
    """

    def __init__(self, config: BlockCausalConfig, num_frames: int, device: torch.device | str = "cpu"):
        self.config, self.num_frames, self.device = config, num_frames, device
        self.first_frame, self.tile = 0, None
        self.kept: dict[tuple, Past] = {}
        self.new: dict[tuple, Past] = {}

    @contextmanager
    def segment(self, first_frame: int, tile: Hashable = None) -> Iterator[None]:
        """While open, the network is given a segment. What it leaves is kept when the block ends without an error.

        Args:
            first_frame: the segment's first latent frame in the clip.
            tile: which part of the frame it is; each part has a past of its own.
        """
        self.first_frame, self.tile, self.new = first_frame, tile, {}
        try:
            yield
            self.kept |= self.new
        finally:
            self.new = {}

    def token_order(self, grid: tuple[int, int, int], device: torch.device | None = None) -> Tensor | None:
        """Returns config.token_order of the segment."""
        return self.config.token_order(grid, device, self.first_frame)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, *, layout: TokenLayout, block: int, branch: Hashable = None) -> Tensor:
        """Returns attention (B, L, n, d) of one transformer block, as attend_blocks does.

        Args:
            q, k, v: (B, L, n, d) of the segment.
            layout: of its tokens, with the segment's first_frame.
            block: number of the transformer block.
            branch: which prompt the network is given, where it is run with several.

        Raises:
            RuntimeError: the segment before was not given to the network.
        """
        key = self.tile, branch, block
        if self.config.blocks(layout).past_frames:
            past = self.kept.get(key)
            if past is None or past.stop != layout.first_frame:
                reached = "none" if past is None else f"the one that ends before latent frame {past.stop}"
                raise RuntimeError(
                    f"block-causal attention at latent frame {layout.first_frame} needs the segment before it, and has {reached}: "
                    "a patch left out a call of the model; remove it, or choose tiling whole"
                )
            k, v = torch.cat((past.k.to(k), k), dim=1), torch.cat((past.v.to(v), v), dim=1)
        if layout.first_frame + layout.grid[0] < self.num_frames:
            self.new[key] = self.last_slabs(layout, k, v)
        return attend_blocks(q, k, v, layout, self.config)

    def last_slabs(self, layout: TokenLayout, k: Tensor, v: Tensor) -> Past:
        """Returns the keys and values that the next segment looks back on."""
        frames, rows, columns = layout.grid
        stop = layout.first_frame + frames
        tokens = slabs_in_sight(self.config, stop, 1).past_frames * rows * columns
        last = slice(k.shape[1] - tokens, None)
        return Past(stop, k[:, last].to(self.device, copy=True), v[:, last].to(self.device, copy=True))


def slab_memory(config: AttentionConfig, num_frames: int) -> SlabMemory | None:
    """Returns what segments of a clip of so many latent frames need to follow each other; None where they are blended instead."""
    return SlabMemory(config, num_frames) if isinstance(config, BlockCausalConfig) else None
