"""Operations of attention and of the whole network, counted from the configuration alone.

A floating-point operation (FLOP) is one multiplication or one addition; a multiply-accumulate (MAC) is two of them. Only
matrix products count. N tokens, D width.
"""

from dataclasses import dataclass

from ..networks.attention import AttentionConfig
from ..networks.block_causal_config import BlockCausalConfig
from ..networks.dit import DiTConfig
from ..networks.windows import TokenLayout


def attention_pairs(config: AttentionConfig, grid: tuple[int, int, int], block: int = 0) -> float:
    """Returns the number of (query, key) pairs that one head of one block multiplies; N^2 is dense.

    A selected window counts with the mean length of the other windows in its scope. A radius that leaves fewer than top_k is not counted.

    Args:
        config: The self-attention.
        grid: (T, H, W) in tokens.
        block: Index of the block: the temporal units of odd ones are shifted.
    """
    if config.kind == "full":
        frame = grid[1] * grid[2]
        return float(sum((frames * frame) ** 2 for frames in config.unit_lengths(grid[0], block)))
    if isinstance(config, BlockCausalConfig):
        return block_pairs(config, grid)
    windows = config.windows(TokenLayout(grid), block)
    top_k = config.top_k if config.kind == "sparse_local" else 0
    pairs = 0.0
    for scope in windows.scope:
        length = windows.length[scope[scope >= 0]].double()
        others = (length.sum() - length) / max(1, len(length) - 1)
        pairs += float((length * (length + min(top_k, len(length) - 1) * others)).sum())
    return pairs


def block_pairs(config: BlockCausalConfig, grid: tuple[int, int, int]) -> float:
    """Returns the same of block-causal attention of a clip: the pairs of blocks it keeps, each of the mean size of those allowed."""
    blocks, pairs = config.blocks(TokenLayout(grid)), 0.0
    length = blocks.keys.length.double()
    for group, allowed in zip(blocks.groups, blocks.allowed, strict=True):
        keys = length[group.origin * blocks.blocks : group.stop * blocks.blocks]
        for slab, mask in enumerate(allowed.double().split(blocks.blocks), group.start):
            queries = length[slab * blocks.blocks : (slab + 1) * blocks.blocks]
            pairs += blocks.kept[slab] * float(queries @ mask @ keys / mask.sum())
    return pairs


def share_of_dense(config: AttentionConfig, grid: tuple[int, int, int], block: int = 0) -> float:
    """Returns attention_pairs over dense attention's, in (0, 1]."""
    return attention_pairs(config, grid, block) / (grid[0] * grid[1] * grid[2]) ** 2


def attention_flops(config: AttentionConfig, grid: tuple[int, int, int], width: int, block: int = 0) -> float:
    """Returns the FLOPs of one block's q k^T and of its product with v. The selection of windows is not counted.

    Args:
        config: The self-attention.
        grid: (T, H, W) in tokens.
        width: D.
        block: Index of the block.
    """
    return 4 * width * attention_pairs(config, grid, block)


@dataclass(frozen=True)
class DiTFlops:
    """FLOPs of one forward pass.

    Attributes:
        self_attention: Products of q, k and v.
        linear: Everything else, with the projections.
    """

    self_attention: float
    linear: float

    @property
    def total(self) -> float:
        return self.self_attention + self.linear


def dit_flops(dit: DiTConfig, attention: AttentionConfig, grid: tuple[int, int, int], text_tokens: int = 512) -> DiTFlops:
    """Returns the FLOPs of one forward pass of a batch of one.

    Args:
        dit: Sizes of the network.
        attention: Its self-attention.
        grid: (T, H, W) in tokens.
        text_tokens: Length of the prompt.
    """
    tokens, D = grid[0] * grid[1] * grid[2], dit.dim
    per_token = 2 * (4 * D * D + 2 * D * D + 2 * D * dit.ffn_dim) + 4 * text_tokens * D  # self, cross, feed-forward; text
    per_text_token = 2 * 2 * D * D
    ends = tokens * 2 * D * (4 * dit.in_dim + 64) + text_tokens * 2 * D * (dit.text_dim + D)
    return DiTFlops(
        self_attention=sum(attention_flops(attention, grid, D, block) for block in range(dit.num_layers)),
        linear=dit.num_layers * (tokens * per_token + text_tokens * per_text_token) + ends,
    )


PAPER_GFLOPS = {"full": 1612.5, "swin": 452.6, "sparse_local": 377.1}  # table 2, "FLOPS (G)" of one attention operator
PAPER_GRID = (5, 72, 126)  # 17 frames of 1152 x 2016, 3x the 384 x 672 of figure 1, which 12 x 9 windows tile exactly
PAPER_ATTENTION = {
    "full": AttentionConfig(kind="full", unit=1),
    "swin": AttentionConfig(kind="swin", window=(1, 36, 21), unit=1),
    "sparse_local": AttentionConfig(kind="sparse_local", window=(1, 12, 9), top_k=1, unit=1),
}


def table_2() -> dict[str, dict[str, float]]:
    """Returns, for each attention of the paper's table 2, its GMAC by our count and the paper's figure, and both ratios to full.

    The paper does not say what it counted. Its three figures fit, within 0.4 %, the MACs of attention inside each of
    five frames at width 1536, beside one constant for the rest of the layer. The differences between rows, and so the
    ratios, follow from the configuration; the constant, about 348 GMAC or 3.25 D^2 per token, is read off the first row
    and fits no whole number of projections, so the absolute figures cannot be reproduced. Nor are the widths of its base
    model published: 1536 is what fits. The swin window of 36 x 21 tokens is the one that fits, too.
    """
    gmac = {name: attention_flops(config, PAPER_GRID, 1536) / 2e9 for name, config in PAPER_ATTENTION.items()}
    rest = PAPER_GFLOPS["full"] - gmac["full"]
    return {
        name: {
            "attention_gmac": gmac[name],
            "with_rest_gmac": gmac[name] + rest,
            "paper_gflops": PAPER_GFLOPS[name],
            "full_over_this": PAPER_GFLOPS["full"] / (gmac[name] + rest),
            "paper_full_over_this": PAPER_GFLOPS["full"] / PAPER_GFLOPS[name],
        }
        for name in gmac
    }
