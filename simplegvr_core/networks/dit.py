"""The diffusion transformer: Wan 2.1's parameter names and maths, 32 input channels, attention by configuration.

B batch, T, H, W latent pixels, L tokens of (1, 2, 2) latent pixels, D width, n heads, d head dim, S text tokens
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, cast

import torch
import torch.nn.functional as F
from einops import rearrange
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recompute

from ..latent_space import LATENT_CHANNELS
from . import checkpoint
from .attention import AttentionConfig, DenseAttention, attend, full_attention
from .block_causal_config import BlockCausalConfig
from .foreign import read_any
from .layers import apply_rotary, rotary_table, sinusoidal_embedding
from .windows import TokenLayout

CONDITIONS = ("channel", "token")
CHUNK = 2**14  # tokens that are fed forward at a time where activations are recomputed
TIME_LAYERS = ("time_embedding.", "time_projection.", "head.head.")
STOCK_PREFIX = "model.diffusion_model."
# ends of names of weights that training begins with at zero
FIRST_ZERO = ("modulation", "condition_embedding", "cross_attn.o.weight", "time_embedding.2.weight", "time_projection.1.weight")
FIRST_ZERO += ("head.head.weight",)
HAS_FLOAT64 = ("cpu", "cuda", "meta")  # types of devices; others may lack it


@dataclass(frozen=True)
class DiTConfig:
    """Sizes of the network; the defaults are those of Wan 2.1 1.3B with the condition's 16 channels added.

    Args:
        in_dim: channels of the input, the noised latent's and the condition's.
        dim: D, width of a token.
        ffn_dim: width of the feed-forward layer.
        num_heads: n, attention heads; the head dim is dim / num_heads.
        num_layers: number of blocks.
        text_dim: width of the text features.
        freq_dim: width of the noise level's sinusoidal embedding.
        eps: of the norms.
        condition: "channel", the condition's channels beside the noised latent's; or "token", its tokens behind the
            noised latent's (the paper's ablation).
        exact_time: whether the timestep's sinusoid is float64, and its layers, modulation, gates, residual sums and the head are
            float32 in any dtype (Ultra Flash).
    """

    in_dim: int = 32
    dim: int = 1536
    ffn_dim: int = 8960
    num_heads: int = 12
    num_layers: int = 30
    text_dim: int = 4096
    freq_dim: int = 256
    eps: float = 1e-6
    condition: str = "channel"
    exact_time: bool = False

    def __post_init__(self):
        if self.condition not in CONDITIONS:
            raise ValueError(f"condition is {self.condition!r}, wanted one of {', '.join(CONDITIONS)}")
        if self.num_heads < 1 or self.dim % (2 * self.num_heads):
            raise ValueError(f"dim is {self.dim} and num_heads {self.num_heads}, wanted heads of an even number of channels")

    @property
    def patch_channels(self) -> int:
        """Channels of the latent pixels in a token."""
        return LATENT_CHANNELS if self.condition == "token" else self.in_dim

    def time_dtype(self, dtype: torch.dtype | None) -> torch.dtype | None:
        """Returns the dtype of the timestep's layers and of the head in a network of that dtype."""
        return torch.float32 if self.exact_time else dtype


class SelfAttention(Protocol):
    """Attention of one block among its tokens, in place of attention.attend: (B, L, n, d) of q, k and v."""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, *, layout: TokenLayout, block: int) -> Tensor: ...


class TokenOrder(Protocol):
    """The order in which a SelfAttention wants its tokens: (L,) raster numbers, None for raster order."""

    def __call__(self, grid: tuple[int, int, int], device: torch.device) -> Tensor | None: ...


class Attention(nn.Module):
    """Attention of tokens (B, L, D) to themselves, or to a context (B, S, D)."""

    def __init__(self, config: DiTConfig, device, dtype, operations):
        super().__init__()
        linear = partial(operations.Linear, config.dim, config.dim, device=device, dtype=dtype)
        norm = partial(operations.RMSNorm, config.dim, eps=config.eps, device=device, dtype=dtype)
        self.num_heads = config.num_heads
        self.q, self.k, self.v, self.o = linear(), linear(), linear(), linear()
        self.norm_q, self.norm_k = norm(), norm()

    def forward(self, x: Tensor, attention: DenseAttention, rotary: Tensor | None = None, context: Tensor | None = None) -> Tensor:
        source = x if context is None else context
        q, k, v = self.norm_q(self.q(x)), self.norm_k(self.k(source)), self.v(source)
        q, k, v = (rearrange(y, "B L (n d) -> B L n d", n=self.num_heads) for y in (q, k, v))
        if rotary is not None:
            q, k = apply_rotary(q, rotary), apply_rotary(k, rotary)
        return self.o(attention(q, k, v).flatten(2))


class Block(nn.Module):
    """One transformer block: self-attention, cross-attention to the text, feed-forward; modulated by the noise level."""

    def __init__(self, config: DiTConfig, device, dtype, operations):
        super().__init__()
        factory = {"device": device, "dtype": dtype}
        norm = partial(operations.LayerNorm, config.dim, config.eps, **factory)
        self.norm1, self.norm2 = norm(elementwise_affine=False), norm(elementwise_affine=False)
        self.norm3 = norm(elementwise_affine=True)
        self.self_attn = Attention(config, **factory, operations=operations)
        self.cross_attn = Attention(config, **factory, operations=operations)
        self.ffn = nn.Sequential(
            operations.Linear(config.dim, config.ffn_dim, **factory),
            nn.GELU(approximate="tanh"),
            operations.Linear(config.ffn_dim, config.dim, **factory),
        )
        self.modulation = nn.Parameter(torch.empty(1, 6, config.dim, **factory))

    def forward(
        self,
        x: Tensor,
        e: Tensor,
        rotary: Tensor,
        context: Tensor,
        self_attention: DenseAttention,
        cross_attention: DenseAttention,
        chunk: int | None = None,
    ) -> Tensor:
        """Returns the tokens (B, L, D) after the block.

        Args:
            x: (B, L, D).
            e: (B, 6, D) of the noise level.
            rotary: Of layers.rotary_table.
            context: (B, S, D), the embedded text.
            self_attention: Attention of the tokens to themselves.
            cross_attention: Attention of the tokens to the text.
            chunk: Tokens that are fed forward at a time, and again for their gradient; None is all, kept for the gradient.
        """
        shift1, scale1, gate1, *of_feed_forward = modulation(self.modulation, x, e)
        x = (x + gate1 * self.self_attn(modulate(self.norm1(x), shift1, scale1), self_attention, rotary=rotary)).to(x.dtype)
        x = x + self.cross_attn(self.norm3(x), cross_attention, context=context)
        if chunk is None or x.shape[1] <= chunk:
            return self.feed_forward(x, *of_feed_forward)
        parts = [recompute(self.feed_forward, part, *of_feed_forward, use_reentrant=False) for part in x.split(chunk, dim=1)]
        return torch.cat(cast("list[Tensor]", parts), dim=1)

    def feed_forward(self, x: Tensor, shift: Tensor, scale: Tensor, gate: Tensor) -> Tensor:
        """Returns tokens (B, L, D) after the feed-forward layer; each depends on itself alone."""
        return (x + gate * self.ffn(modulate(self.norm2(x), shift, scale))).to(x.dtype)


class Head(nn.Module):
    """The last layer: tokens (B, L, D) to the velocity of their latent pixels, (B, L, 4 * 16)."""

    def __init__(self, config: DiTConfig, device, dtype, operations):
        super().__init__()
        self.norm = operations.LayerNorm(config.dim, config.eps, elementwise_affine=False, device=device, dtype=dtype)
        self.head = operations.Linear(config.dim, 4 * LATENT_CHANNELS, device=device, dtype=config.time_dtype(dtype))
        self.modulation = nn.Parameter(torch.empty(1, 2, config.dim, device=device, dtype=dtype))

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        shift, scale = modulation(self.modulation, x, e)
        return self.head(modulate(self.norm(x).to(shift.dtype), shift, scale))


class SimpleGVRDiT(nn.Module):
    """The network: predicts the velocity of a noised latent, given its condition, the upsampled low-resolution latent.

    Args:
        config: sizes.
        attention: which tokens attend to which.
        device, dtype: of the weights.
        operations: module of Linear, Conv3d, LayerNorm and RMSNorm; ComfyUI gives its own.
    """

    def __init__(self, config: DiTConfig, attention: AttentionConfig, device=None, dtype=None, operations: Any = nn):
        super().__init__()
        factory = {"device": device, "dtype": dtype}
        self.config, self.attention, self.dtype = config, attention, dtype
        self.gradient_checkpointing = False
        dim = config.dim
        self.patch_embedding = operations.Conv3d(
            config.patch_channels, dim, (1, 2, 2), stride=(1, 2, 2), device=device, dtype=torch.float32
        )
        if config.condition == "token":
            self.condition_embedding = nn.Parameter(torch.empty(1, 1, dim, **factory))
        self.text_embedding = nn.Sequential(
            operations.Linear(config.text_dim, dim, **factory), nn.GELU(approximate="tanh"), operations.Linear(dim, dim, **factory)
        )
        time = {"device": device, "dtype": config.time_dtype(dtype)}
        self.time_embedding = nn.Sequential(operations.Linear(config.freq_dim, dim, **time), nn.SiLU(), operations.Linear(dim, dim, **time))
        self.time_projection = nn.Sequential(nn.SiLU(), operations.Linear(dim, 6 * dim, **time))
        self.blocks = nn.ModuleList(Block(config, **factory, operations=operations) for _ in range(config.num_layers))
        self.head = Head(config, **factory, operations=operations)

    def init_weights(self, generator: torch.Generator) -> None:
        """Samples fresh weights for training, with which the model starts as the guess velocity = z_t - condition.

        That is right at sigma 1 for a condition without error. Tokens begin with their latent pixels' values, beside
        constants that keep the last norm from rescaling them; blocks add nothing (adaLN-zero); the head takes the
        difference.

        Raises:
            ValueError: dim is less than 4 patch_channels.
        """
        values = 4 * self.config.patch_channels
        if self.config.dim < values:
            raise ValueError(f"dim is {self.config.dim}, wanted at least {values}, the values of a token")
        for name, parameter in self.named_parameters():
            if parameter.ndim > 1:
                nn.init.xavier_uniform_(parameter.flatten(1), generator=generator)
            elif name.endswith("weight"):
                nn.init.ones_(parameter)
            else:
                nn.init.zeros_(parameter)
        for name, parameter in self.named_parameters():
            if name.endswith(FIRST_ZERO):
                nn.init.zeros_(parameter)
        with torch.no_grad():
            self.patch_embedding.weight.flatten(1).copy_(torch.eye(self.config.dim, values))
            self.patch_embedding.bias[values::2], self.patch_embedding.bias[values + 1 :: 2] = 2.0, -2.0
            spread = (1 + 3 * (1 - values / self.config.dim)) ** 0.5  # of a token of unit values and the constants
            # (z_t and condition, channel, latent pixel of the token)
            token = torch.arange(min(values, 8 * LATENT_CHANNELS)).view(-1, LATENT_CHANNELS, 4)
            out = rearrange(torch.arange(4 * LATENT_CHANNELS), "(p C) -> C p", C=LATENT_CHANNELS)
            for source, sign in zip(token, (1, -1), strict=False):
                self.head.head.weight[out, source] = sign * spread

    def forward(
        self,
        z: Tensor,
        timestep: Tensor,
        context: Tensor,
        self_attention: SelfAttention | None = None,
        cross_attention: DenseAttention = full_attention,
        token_order: TokenOrder | None = None,
        first_frame: int = 0,
    ) -> Tensor:
        """Returns the velocity (B, 16, T, H, W). Odd sizes are padded circularly, then cropped.

        Args:
            z: (B, 32, T, H, W), 16 channels of the noised latent z_t, then 16 of the condition, both normalised.
            timestep: (B,) 1000 sigma.
            context: (B, S, text_dim) text features.
            self_attention: in place of the configured one.
            cross_attention: of the tokens to the text.
            token_order: of the tokens that self_attention gets, by default raster order.
            first_frame: number of z's first latent frame in its clip.
        """
        if self_attention is None:
            self_attention, token_order = partial(attend, config=self.attention), self.attention.token_order
        height, width = z.shape[3:]
        z = F.pad(z, (0, width % 2, 0, height % 2, 0, 0), mode="circular")
        grid = z.shape[2], z.shape[3] // 2, z.shape[4] // 2
        noised, *condition = z.split(self.config.patch_channels, dim=1)
        x = self.tokens(noised)
        e = self.time_embedding(self.timestep_features(timestep, x))[:, None]
        e_blocks = self.time_projection(e).unflatten(2, (6, -1)).squeeze(1)
        context = self.text_embedding(context)
        rotary = raster = rotary_table(grid, self.config.dim // self.config.num_heads, x.device, first_frame)
        order = token_order(grid, x.device) if token_order else None
        if order is not None:
            x, rotary = x[:, order], rotary[order]
        for part in condition:
            x, rotary = torch.cat((x, self.tokens(part) + self.condition_embedding), dim=1), torch.cat((rotary, raster))
        layout = TokenLayout(grid, order is not None, len(condition) * len(raster), first_frame)
        for index, block in enumerate(self.blocks):
            inputs = x, e_blocks, rotary, context, partial(self_attention, layout=layout, block=index), cross_attention
            x = cast("Tensor", recompute(block, *inputs, CHUNK, use_reentrant=False)) if self.gradient_checkpointing else block(*inputs)
        x = self.head(x[:, : len(raster)], e)
        if order is not None:
            x = x[:, order.argsort()]
        T, H, W = grid
        velocity = rearrange(x, "B (T H W) (h w C) -> B C T (H h) (W w)", T=T, H=H, W=W, h=2, w=2)
        return velocity[..., :height, :width]

    def timestep_features(self, timestep: Tensor, x: Tensor) -> Tensor:
        """Returns the sinusoid (B, freq_dim) of timestep (B,) for tokens x."""
        if self.config.exact_time:
            exact = timestep if timestep.device.type in HAS_FLOAT64 else timestep.cpu()
            return sinusoidal_embedding(self.config.freq_dim, exact.double()).to(x.device, torch.float32)
        return sinusoidal_embedding(self.config.freq_dim, timestep).to(x.dtype)

    def tokens(self, z: Tensor) -> Tensor:
        """Returns the tokens (B, L, D) of z (B, C, T, H, W), in raster order."""
        return rearrange(self.patch_embedding(z.float()).to(z.dtype), "B D T H W -> B (T H W) D")


def modulation(parameter: Tensor, x: Tensor, e: Tensor) -> tuple[Tensor, ...]:
    """Returns the sum of a layer's own modulation (1, n, D) and the timestep's, cut into n; in the wider dtype of x and e."""
    return (parameter.to(x.device, torch.promote_types(x.dtype, e.dtype)) + e).chunk(parameter.shape[1], dim=1)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Returns x (1 + scale) + shift in x's dtype. x: (B, L, D); shift, scale: (B, 1, D)."""
    return torch.addcmul(shift, x.to(shift.dtype), 1 + scale).to(x.dtype)


def time_in_float32(config: DiTConfig, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns the weights with those of the layers that DiTConfig.time_dtype keeps in float32 in that dtype."""
    if not config.exact_time:
        return state_dict
    return {name: tensor.float() if name.startswith(TIME_LAYERS) else tensor for name, tensor in state_dict.items()}


def widen(state_dict: dict[str, Tensor], in_dim: int = 2 * LATENT_CHANNELS) -> dict[str, Tensor]:
    """Returns a text-to-video state dict whose patch embedding takes in_dim channels; the new ones have zero weight.

    The widened model gives what the original gives, whatever the condition (paper: initialisation of stage 1).

    Args:
        state_dict: of a text-to-video model, without prefix.
        in_dim: channels wanted.
    """
    weight = state_dict["patch_embedding.weight"]
    new = weight.new_zeros(weight.shape[0], in_dim - weight.shape[1], *weight.shape[2:])
    return {**state_dict, "patch_embedding.weight": torch.cat((weight, new), dim=1)}


def load_dit(path: Path, family: str = "auto") -> tuple[SimpleGVRDiT, dict]:
    """Returns the model of a checkpoint, float32, on the CPU, and its configuration. Raises what foreign.read_any and load_strict raise."""
    state_dict, config = read_any(path, "dit", family)
    model = checkpoint.load_fitted(partial(SimpleGVRDiT, *parse_dit_config(config, path)), state_dict, path)
    return model.eval(), config


def read_dit(path: Path) -> tuple[DiTConfig, dict[str, Tensor]]:
    """Returns sizes and weights, float32, of a checkpoint of ours or of a stock Wan 2.1 text-to-video file, prefixed or not.

    Raises:
        ValueError: as read_dit_config.
    """
    config = read_dit_config(path)
    return config, {key.removeprefix(STOCK_PREFIX): tensor.float() for key, tensor in load_file(path).items()}


def read_dit_config(path: Path) -> DiTConfig:
    """Returns the sizes of a checkpoint of ours or of a stock Wan 2.1 text-to-video file; no tensor is read.

    Raises:
        ValueError: the file is neither; and what checkpoint.read_config raises.
    """
    if checkpoint.is_ours(path):
        return parse_dit_config(checkpoint.read_config(path, "dit"), path)[0]
    with safe_open(path, framework="pt") as file:
        shapes = {key.removeprefix(STOCK_PREFIX): file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118 (not a dict)
    try:
        dim, in_dim = shapes["patch_embedding.weight"][:2]
        config = DiTConfig(
            in_dim=in_dim,
            dim=dim,
            ffn_dim=shapes["blocks.0.ffn.0.weight"][0],
            num_heads=dim // 128,  # Wan's heads are 128 wide in every size
            num_layers=1 + max(int(key.split(".")[1]) for key in shapes if key.startswith("blocks.")),
            text_dim=shapes["text_embedding.0.weight"][1],
        )
    except KeyError as error:
        raise ValueError(f"{path} has no {error}: give a Wan 2.1 text-to-video model") from error
    if in_dim != LATENT_CHANNELS:
        raise ValueError(f"{path} takes {in_dim} channels, a text-to-video model {LATENT_CHANNELS}")
    return config


def parse_dit_config(config: dict, path: Path) -> tuple[DiTConfig, AttentionConfig]:
    """Returns the sizes and the attention in a checkpoint's configuration. Raises what parse_config raises."""
    attention = config.get("attention")
    is_block_causal = isinstance(attention, dict) and attention.get("kind") == "block_causal"
    return (
        checkpoint.parse_config(DiTConfig, config, "model", path),
        checkpoint.parse_config(BlockCausalConfig if is_block_causal else AttentionConfig, config, "attention", path),
    )
