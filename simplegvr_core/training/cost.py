"""Cost of a training run before it starts: tokens, memory by part, floating-point operations, data rates and time."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cache, partial

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ..latent_space import LATENT_CHANNELS, token_grid
from ..networks.attention import AttentionConfig
from ..networks.block_causal_config import BlockCausalConfig
from ..networks.dit import CHUNK, DiTConfig
from ..networks.upsampler import AnyUpsamplerConfig, make_upsampler
from ..planning.flops import dit_flops
from ..planning.network_memory import TEXT_TOKENS, meta
from .step_memory import Step, StepMemory, step_memory

H100_FLOPS, CARD_FLOPS = 990e12, 165e12  # a second, bfloat16, dense: H100, and GeForce RTX 4090 with sums in float32
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
        passes: Forward passes of the DiT that a sample takes; a gradient is two, or one where the weights are frozen.
        upsampler_passes: The same of the upsampler.
        recompute: Whether activations are recomputed, which is a pass more.
        noises: Numbers of noise over those of the target latent.
        text: Whether text features are read.
    """

    step: Callable[[int, int], Step]
    dit: DiTConfig
    attention: AttentionConfig | BlockCausalConfig
    upsampler: AnyUpsamplerConfig
    crop: tuple[int, int, int]
    batch: int
    steps: int
    passes: float
    upsampler_passes: float
    recompute: bool
    noises: int = 2
    text: bool = False

    @property
    def tokens(self) -> int:
        T, H, W = token_grid(self.crop)
        return T * H * W

    @property
    def flops(self) -> float:
        """Operations of a sample. The selection of windows is not counted."""
        forward = dit_flops(self.dit, self.attention, token_grid(self.crop)).total
        again = 4 * self.tokens * self.dit.dim * self.dit.ffn_dim * self.dit.num_layers  # a forward pass of the feed-forward layers
        chunked = again if self.recompute and self.tokens > CHUNK else 0.0
        return self.passes * forward + chunked + self.upsampler_passes * upsampler_flops(self.upsampler, self.crop)

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


def memory_model(work: Workload) -> Callable[[int], StepMemory]:
    """Returns samples at once -> bytes of a step on one device, counted for a few blocks and samples and extrapolated."""
    layers = work.dit.num_layers
    blocks = COUNTED if layers > max(COUNTED) else (layers,)

    @cache
    def counted(number: int, samples: int) -> StepMemory:
        return step_memory(work.step(number, samples))

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

    "memory_bytes" is of one sample at once on one device, by part. "per_gpu" is, for each number of H100s (80 GB) that divides a step's
    samples, what card_plan returns; "card_24gb" the same of one GeForce RTX 4090. Operations are counted; hours assume 40 % of the peak of
    bfloat16. Neither autoencoder nor text encoder is counted.
    """
    memory = memory_model(work)
    parts, flops = memory(1), work.batch * work.flops
    model = work.step(work.dit.num_layers, 1)
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
        "per_gpu": {number: card_plan(work, memory, number, (H100_FLOPS, H100_BYTES)) for number in gpus},
        "card_24gb": card_plan(work, memory, 1, (CARD_FLOPS, CARD_BYTES)),
    }


def card_plan(work: Workload, memory: Callable[[int], StepMemory], gpus: int, card: tuple[float, float]) -> dict[str, float]:
    """Returns the most samples at once that fit, batch and accumulation for them, bytes of a GPU, hours, and rates over all GPUs.

    Args:
        work: The run.
        memory: Its bytes by the samples at once.
        gpus: Number of GPUs; several share weights, gradients, moments and average by FSDP2, which gathers two blocks at a time.
        card: Operations a second and bytes of one.
    """
    peak, capacity = card
    each = -(-work.batch // gpus)

    def total(samples: int) -> float:
        parts = memory(samples)
        if gpus == 1:
            return parts.total
        frozen = parts.weights - parts.gradients
        gathered = 2 * parts.weights / work.dit.num_layers
        return frozen + gathered + parts.activations + (parts.total - frozen - parts.activations) / gpus

    samples = max((n for n in range(1, each + 1) if each % n == 0 and total(n) <= capacity), default=1)
    seconds = work.batch * work.flops / (gpus * peak * UTILISATION)
    return {
        "samples_at_once": samples,
        "crop_batch": samples * gpus,
        "accumulate": -(-work.batch // (samples * gpus)),
        "memory_bytes": round(total(samples)),
        "fits": total(samples) <= capacity,
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
