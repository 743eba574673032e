"""The self-attention of one run inside ComfyUI, and its report on the node that set it."""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from ...simplegvr_core.networks import kernels
from ...simplegvr_core.networks.attention import AttentionConfig, DenseAttention, attend
from ...simplegvr_core.networks.block_causal_config import BlockCausalConfig
from ...simplegvr_core.networks.windows import TokenLayout
from ...simplegvr_core.planning.flops import share_of_dense
from .bridge import show_text

ATTENTION_OPTION = "simplegvr_attention"  # key in transformer_options: a RunAttention in place of the checkpoint's


@dataclass(frozen=True)
class RunAttention:
    """Attention by a configuration. node_id: the node that shows, while sampling, which kernel ran; None shows nothing."""

    config: AttentionConfig
    node_id: str | None = None

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, layout: TokenLayout, block: int, dense: DenseAttention) -> Tensor:
        """Returns attention (B, L, n, d) of one block, as attend does. dense: ComfyUI's attention, for what is dense."""
        if block == 0 and self.node_id is not None:
            self.show(describe(self.config, layout.grid, layout.ordered, q.device, q.dtype, q.shape[-1]))
        return attend(q, k, v, layout, self.config, block, dense=dense)

    def show(self, text: str) -> None:
        """Shows a text on the node, if there is one."""
        if self.node_id is not None:
            show_text(self.node_id, text)


@lru_cache
def describe(
    config: AttentionConfig, grid: tuple[int, int, int], ordered: bool, device: torch.device, dtype: torch.dtype, head_dim: int
) -> str:
    """Returns in words which attention runs on a grid of tokens, how many windows it has, and its share of dense attention."""
    percent = 100 * share_of_dense(config, grid)
    bound = "" if config.radius is None else "at most "
    share = f"{bound}{percent:.0f} % of dense attention" if percent > 10 else f"{bound}{percent:.2g} % of dense attention"
    if config.kind == "full":
        return f"ComfyUI: full attention in units of {config.unit} latent frames: {share}"
    if isinstance(config, BlockCausalConfig):
        return f"{describe_blocks(config, grid, ordered, device, dtype, head_dim)}: {share}"
    windows = config.windows(TokenLayout(grid, ordered), 0)
    kernel = kernels.fastest(kernels.KernelCase(device, dtype, head_dim, windows.size, windows.contiguous))
    size = " x ".join(str(min(sides)) for sides in zip(config.window, (min(config.unit or grid[0], grid[0]), *grid[1:]), strict=True))
    seen = min(1 + config.top_k, windows.scope.shape[1]) if config.kind == "sparse_local" else 1
    where = " of the whole video" if config.scope == "video" else ""
    return f"{kernel}: {windows.num_windows} windows of {size} tokens, each sees {seen}{where}: {share}"


def describe_blocks(
    config: BlockCausalConfig, grid: tuple[int, int, int], ordered: bool, device: torch.device, dtype: torch.dtype, head_dim: int
) -> str:
    """Returns in words which block-causal attention runs on a grid of tokens, and how many blocks each block attends to."""
    blocks = config.blocks(TokenLayout(grid, ordered))
    kernel = kernels.fastest_block(kernels.KernelCase(device, dtype, head_dim, blocks.keys.size, blocks.keys.contiguous))
    count, size = blocks.queries.num_windows, " x ".join(map(str, config.window))
    return f"{kernel}: block-causal, {count} blocks of {size} tokens, each sees {sum(blocks.kept) / count:.1f} on average"
