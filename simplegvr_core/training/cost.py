"""What a training run takes, before it starts: tokens, memory, floating-point operations and time."""

from ..latent_space import token_grid
from ..networks.attention import AttentionConfig
from ..networks.dit import DiTConfig, SimpleGVRDiT
from ..planning.flops import dit_flops

BYTES_PER_PARAMETER = 20  # float32: weight, gradient, two moments, moving average
H100_FLOPS = 990e12  # a second, bfloat16, dense
UTILISATION = 0.4  # of that peak, usual for transformers of this size


def training_plan(
    dit: DiTConfig, attention: AttentionConfig, crop_grid: tuple[int, int, int], batch: int, steps: int, recompute: bool
) -> dict:
    """Returns tokens of a sample, parameters, bytes and hours of a training run of the DiT, all estimated, none measured.

    crop_grid: T, H, W in cells. batch: of one step, over all devices. recompute: gradient checkpointing.
    "state_bytes" are shared among the devices of FSDP; "activation_bytes" are one sample's.
    """
    grid = token_grid(crop_grid)
    tokens = grid[0] * grid[1] * grid[2]
    parameters = sum(p.numel() for p in SimpleGVRDiT(dit, attention, device="meta").parameters())
    block = tokens * (34 * dit.dim + 4 * dit.ffn_dim)  # bytes that one block keeps for its gradient, in bfloat16
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
