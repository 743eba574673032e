"""Cost of a training run, estimated before it starts: tokens, memory, floating-point operations and time."""

from ..latent_space import token_grid
from ..networks.attention import AttentionConfig
from ..networks.dit import DiTConfig, SimpleGVRDiT
from ..planning.flops import dit_flops

BYTES_PER_PARAMETER = 20  # float32: weight, gradient, two moments, moving average
H100_FLOPS = 990e12  # a second, bfloat16, dense
UTILISATION = 0.4  # of that peak, usual for transformers of this size


def training_cost(
    dit: DiTConfig, attention: AttentionConfig, crop: tuple[int, int, int], *, batch: int, steps: int, recompute: bool
) -> dict[str, float]:
    """Returns the tokens of a sample, and parameters, bytes and hours of a training run of the DiT, all estimated.

    "state_bytes" are divided among the devices of FSDP; "activation_bytes" are one sample's.

    Args:
        dit: Sizes of the DiT.
        attention: Its attention.
        crop: Latent frames, height and width of a sample in latent pixels.
        batch: Samples of one step, over all devices.
        steps: Optimizer steps.
        recompute: Whether activations are recomputed (gradient checkpointing).
    """
    grid = token_grid(crop)
    tokens = grid[0] * grid[1] * grid[2]
    parameters = sum(p.numel() for p in SimpleGVRDiT(dit, attention, device="meta").parameters())
    block = tokens * (34 * dit.dim + 4 * dit.ffn_dim)  # bytes that one block saves for its gradient, in bfloat16
    kept = tokens * 2 * dit.dim * dit.num_layers + block if recompute else block * dit.num_layers
    flops = (4 if recompute else 3) * batch * dit_flops(dit, attention, grid).total  # forward, twice that back, forward again
    return {
        "tokens": tokens,
        "parameters": parameters,
        "state_bytes": BYTES_PER_PARAMETER * parameters,
        "activation_bytes": kept,
        "flops_per_step": flops,
        "h100_hours": steps * flops / (H100_FLOPS * UTILISATION) / 3600,
    }
