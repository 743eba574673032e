"""The self-attention of one run inside ComfyUI, and its report on the node that set it."""

from dataclasses import dataclass
from functools import lru_cache

from torch import Tensor

from ..simplegvr_core import kernels
from ..simplegvr_core.attention import AttentionConfig, attend
from ..simplegvr_core.flops import share_of_dense
from .bridge import show_text

ATTENTION_OPTION = "simplegvr_attention"  # key in transformer_options: a RunAttention in place of the checkpoint's


@dataclass(frozen=True)
class RunAttention:
    """Attention by a configuration. node_id: the node that shows, while sampling, which implementation ran; None shows nothing."""

    config: AttentionConfig
    node_id: str | None = None

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, grid: tuple[int, int, int], block: int, ordered: bool = False) -> Tensor:
        """Returns attention (B, L, n, d) of one block, as attend does."""
        if block == 0 and self.node_id is not None:
            show_text(self.node_id, describe(self.config, grid, kernels.fastest(q.device, q.dtype, q.shape[-1], False)))
        return attend(q, k, v, grid, self.config, block, ordered)


@lru_cache
def describe(config: AttentionConfig, grid: tuple[int, int, int], implementation: str) -> str:
    """Returns in words which attention runs on a grid of tokens, how many windows it has, and its share of dense attention."""
    share = f"{100 * share_of_dense(config, grid):.2g} % of dense attention"
    if config.kind == "full":
        return f"full attention in units of {config.unit} latent frames: {share}"
    windows = config.windows(grid, 0)
    size, seen = " x ".join(map(str, config.window)), 1 + (config.top_k if config.kind == "sparse_local" else 0)
    return f"{implementation}: {windows.num_windows} windows of {size} tokens, each sees {seen}: {share}"
