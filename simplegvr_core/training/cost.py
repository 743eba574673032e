"""Cost of a training run before it starts: tokens, memory by part, floating-point operations, data rates and time."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ..latent_space import LATENT_CHANNELS, token_grid
from ..networks import checkpoint
from ..networks.attention import AttentionConfig
from ..networks.block_causal_config import BlockCausalConfig
from ..networks.dit import CHUNK, DiTConfig
from ..networks.upsampler import AnyUpsamplerConfig, make_upsampler, parse_upsampler_config
from ..planning.flops import dit_flops
from ..planning.network_memory import TEXT_TOKENS, meta
from .moments import Moments
from .rates import H100_FLOPS, RTX_4090_FLOPS, Work
from .step_memory import Step, StepMemory, split_weights, step_memory

H100_BYTES, CARD_BYTES = 80e9, 24e9
UTILISATION = 0.4  # of that peak, usual for transformers of this size
GPUS = (1, 8, 16)  # H100s that a plan is made for
COUNTED = (2, 4)  # blocks: what a step takes is linear in them, and in the samples
READ_BYTES, LEAST_SCALE = 2, 1.5  # of a number of a pair, float16; the scale whose low resolution is largest


@dataclass(frozen=True)
class Workload:
    """A training run, as its cost sees it.

    Attributes:
        step: (blocks, samples) -> the step, on the "meta" device.
        dit: Sizes of the DiT.
        attention: Its attention.
        upsampler: Sizes of the upsampler.
        crop: (T, H, W) of a sample in latent pixels.
        batch: Samples of a step, over all GPUs.
        steps: Optimizer steps.
        recompute: Whether activations are recomputed, which is a forward pass more where there is a gradient.
        shard: Whether several GPUs share weights, gradients, moments and average (FSDP2); otherwise each has them all (DDP).
        gradient_passes: Passes of the DiT, forward and backward, that a sample takes.
        forward_passes: Passes of the DiT without a gradient.
        frozen_matrices: Whether the DiT's own matrices are frozen and a LoRA is trained.
        frozen_upsampler: Whether the upsampler has no gradient.
        noises: Numbers of noise over those of the target latent.
        text: Whether text features are read.
        moments: Data type of AdamW's moments.
        average: Whether there is a moving average of the weights.
    """

    step: Callable[[int, int], Step]
    dit: DiTConfig
    attention: AttentionConfig | BlockCausalConfig
    upsampler: AnyUpsamplerConfig
    crop: tuple[int, int, int]
    batch: int
    steps: int
    recompute: bool
    shard: bool = False
    gradient_passes: float = 1.0
    forward_passes: float = 0.0
    frozen_matrices: bool = False
    frozen_upsampler: bool = False
    noises: int = 2
    text: bool = False
    moments: Moments = "float32"
    average: bool = True

    @property
    def tokens(self) -> int:
        T, H, W = token_grid(self.crop)
        return T * H * W

    @property
    def useful_flops(self) -> float:
        """Operations of a sample's forward and backward passes; neither what is recomputed nor the selection of windows is counted.

        A backward pass is two forward ones: the gradients of both factors of each product. A frozen matrix has no gradient, which
        leaves one; the products of q, k and v have both.
        """
        forward = dit_flops(self.dit, self.attention, token_grid(self.crop))
        both = 3 * forward.self_attention + (3 - self.frozen_matrices) * forward.linear
        upsampler = (1 if self.frozen_upsampler else 3) * upsampler_flops(self.upsampler, self.crop)
        return self.forward_passes * forward.total + self.gradient_passes * both + upsampler

    @property
    def flops(self) -> float:
        """Operations of a sample, with what is recomputed: a forward pass for each gradient, in which long feed-forward layers are, too."""
        if not self.recompute:
            return self.useful_flops
        again = dit_flops(self.dit, self.attention, token_grid(self.crop)).total
        if self.tokens > CHUNK:
            again += 4 * self.tokens * self.dit.dim * self.dit.ffn_dim * self.dit.num_layers
        upsampler = 0.0 if self.frozen_upsampler else upsampler_flops(self.upsampler, self.crop)
        return self.useful_flops + self.gradient_passes * again + upsampler

    @property
    def work(self) -> Work:
        """What a step computes, for the reported rates."""
        return Work(self.batch, self.batch * self.tokens, self.batch * self.useful_flops)

    @property
    def numbers(self) -> int:
        """Numbers of a target latent."""
        T, H, W = self.crop
        return LATENT_CHANNELS * T * H * W

    @property
    def read_bytes(self) -> float:
        """Bytes of a sample that are read from shards."""
        text = TEXT_TOKENS * self.dit.text_dim if self.text else 0
        return READ_BYTES * (self.numbers * (1 + LEAST_SCALE**-2) + text)


def load(config: Any) -> dict[str, Any]:
    """Returns the fields of a Workload that follow from the crop and the loop.

    Args:
        config: Options of a training, "crop", "loop" and "gradient_checkpointing" among them.
    """
    crop, loop = config.crop, config.loop
    return {
        "crop": (crop.latent_frames, *crop.size),
        "batch": crop.batch * loop.accumulate,
        "steps": loop.steps,
        "recompute": config.gradient_checkpointing,
        "shard": loop.shard,
        "moments": loop.moments,
        "average": loop.ema > 0,
    }


def upsampler_config(path: Path | None, otherwise: AnyUpsamplerConfig) -> AnyUpsamplerConfig:
    """Returns the sizes of the upsampler in a file; the other ones where there is no file."""
    if path is None or not path.exists():
        return otherwise
    return parse_upsampler_config(checkpoint.read_config(path, "upsampler"), path)


def memory_model(work: Workload) -> Callable[[int], StepMemory]:
    """Returns samples at once -> bytes of a step on one device, counted for a few blocks and samples and extrapolated."""
    layers = work.dit.num_layers
    blocks = COUNTED if layers > max(COUNTED) else (layers,)

    @cache
    def counted(number: int, samples: int) -> StepMemory:
        return step_memory(work.step(number, samples), work.moments, work.average)

    def memory(samples: int) -> StepMemory:
        if samples == 1:
            of_samples = [counted(number, 1) for number in blocks]
        else:
            of_samples = [line(samples, (1, counted(number, 1)), (2, counted(number, 2))) for number in blocks]
        return of_samples[0] if len(blocks) == 1 else line(layers, *zip(blocks, of_samples, strict=True))

    return memory


def line(x: float, first: tuple[int, StepMemory], second: tuple[int, StepMemory]) -> StepMemory:
    """Returns the value at x of the line through two points, part by part."""
    (x1, y1), (x2, y2) = first, second
    at = (x - x1) / (x2 - x1)
    parts = ((getattr(y1, field.name), getattr(y2, field.name)) for field in fields(StepMemory))
    return StepMemory(*(low + at * (high - low) for low, high in parts))


def training_cost(work: Workload) -> dict:
    """Returns the cost of a run.

    "memory_bytes" is of one sample at once on one device, by part. "per_gpu" is, for each number of H100s (SXM, 80 GB) that divides a
    step's samples, what card_plan returns; "card_24gb" the same of one GeForce RTX 4090. Operations are counted; hours assume 40 % of the
    peak of bfloat16. Neither autoencoder nor text encoder is counted.
    """
    memory, model = memory_model(work), work.step(work.dit.num_layers, 1)
    parts, flops, split = memory(1), work.batch * work.flops, split_weights(model)

    def device_bytes(samples: int, gpus: int) -> float:
        return split.device_bytes(memory(samples), gpus) if work.shard and gpus > 1 else memory(samples).total

    gpus = [number for number in GPUS if work.batch % number == 0]
    return {
        "tokens": work.tokens,
        "parameters": sum(map(Tensor.numel, model.weights)),
        "trained_parameters": sum(map(Tensor.numel, model.trained)),
        "memory_bytes": {field.name: round(getattr(parts, field.name)) for field in fields(StepMemory)},
        "flops_per_step": flops,
        "read_bytes_per_step": round(work.batch * work.read_bytes),
        "noise_per_step": work.batch * work.noises * work.numbers,
        "h100_hours": work.steps * flops / (H100_FLOPS * UTILISATION) / 3600,
        "per_gpu": {number: card_plan(work, device_bytes, number, (H100_FLOPS, H100_BYTES)) for number in gpus},
        "card_24gb": card_plan(work, device_bytes, 1, (RTX_4090_FLOPS, CARD_BYTES)),
    }


def card_plan(work: Workload, device_bytes: Callable[[int, int], float], gpus: int, card: tuple[float, float]) -> dict[str, float]:
    """Returns the most samples at once that fit, batch and accumulation for them, bytes of a GPU, hours, and rates over all GPUs.

    "sharded" is whether the GPUs share weights, gradients, moments and average.

    Args:
        work: The run.
        device_bytes: (samples at once, number of GPUs) -> bytes of one GPU.
        gpus: Number of GPUs.
        card: Operations a second and bytes of one.
    """
    peak, capacity = card
    each = -(-work.batch // gpus)
    samples = max((n for n in range(1, each + 1) if each % n == 0 and device_bytes(n, gpus) <= capacity), default=1)
    taken = device_bytes(samples, gpus)
    seconds = work.batch * work.flops / (gpus * peak * UTILISATION)
    return {
        "samples_at_once": samples,
        "crop_batch": samples * gpus,
        "accumulate": -(-work.batch // (samples * gpus)),
        "sharded": work.shard and gpus > 1,
        "memory_bytes": round(taken),
        "fits": taken <= capacity,
        "hours": work.steps * seconds / 3600,
        "read_mb_per_s": work.batch * work.read_bytes / 1e6 / seconds,
        "noise_per_s": work.batch * work.noises * work.numbers / seconds,
    }


def upsampler_flops(config: AnyUpsamplerConfig, crop: tuple[int, int, int]) -> float:
    """Returns the operations of one forward pass of an upsampler, at the scale whose low resolution is largest.

    Args:
        config: Its sizes.
        crop: (T, H, W) of the target in latent pixels.
    """
    T, *size = crop
    low = (round(side / LEAST_SCALE) for side in size) if config.scale is None else (side // config.scale for side in size)
    with FlopCounterMode(display=False) as count:
        make_upsampler(config, device="meta")(meta(1, LATENT_CHANNELS, T, *low), (size[0], size[1]))
    return count.get_total_flops()


def latent_batch(crop: tuple[int, int, int], samples: int, dit: DiTConfig) -> dict[str, Tensor]:
    """Returns z_lr, z_hr and context of a batch, on the "meta" device.

    Args:
        crop: (T, H, W) of the target in latent pixels.
        samples: Number of them.
        dit: Sizes of the DiT.
    """
    T, H, W = crop
    latent = partial(meta, samples, LATENT_CHANNELS, T)
    low = latent(round(H / LEAST_SCALE), round(W / LEAST_SCALE))
    return {"z_lr": low, "z_hr": latent(H, W), "context": meta(samples, TEXT_TOKENS, dit.text_dim)}


def flow_batch(crop: tuple[int, int, int], samples: int, dit: DiTConfig) -> dict[str, Tensor]:
    """Returns a batch of flow matching, on the "meta" device. Arguments as of latent_batch."""
    batch = latent_batch(crop, samples, dit)
    noises = {name: torch.empty_like(batch["z_hr"]) for name in ("noise", "condition_noise")}
    levels = {name: meta(samples, 1, 1, 1, 1) for name in ("sigma", "noise_augmentation")}
    return batch | noises | levels
