"""One training step at full width on a small crop: seconds, share of the peak rate, and memory against `train --plan`."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import count, islice
from math import isfinite
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...networks.attention import AttentionConfig
from ...networks.dit import DiTConfig, SimpleGVRDiT
from ...networks.upsampler import LatentUpsampler
from ...training.cost import H100_FLOPS, Workload, flow_batch, memory_model
from ...training.step_memory import Step as TrainingStep
from .items import Bench, Item, Sizes, Stopwatch, compare_with_peak

if TYPE_CHECKING:
    from ...training.loss import FlowMatching

STEPS = 4  # the first one warms up


@dataclass(frozen=True)
class Step:
    """A kind of training step.

    Attributes:
        attention: Self-attention of the DiT.
        crop: Latent (T, H, W) of a sample.
        recompute: Whether activations are recomputed.
        lora_rank: Above 0, a LoRA is trained.
    """

    attention: AttentionConfig
    crop: tuple[int, int, int]
    recompute: bool
    lora_rank: int = 0


def training_items(sizes: Sizes) -> Iterator[Item]:
    """Yields a step of stage 1, of stage 3, and of a LoRA."""
    full, sparse = AttentionConfig(kind="full", unit=None), sizes.attention
    steps = {
        "full attention, activations recomputed": (10, Step(full, sizes.crop, recompute=True)),
        "sparse local attention, activations recomputed": (10, Step(sparse, sizes.long_crop, recompute=True)),
        "LoRA, sparse local attention": (7, Step(sparse, sizes.crop, recompute=False, lora_rank=sizes.lora_rank)),
    }
    for name, (seconds, step) in steps.items():
        yield Item("training", f"{name}, crop {'x'.join(map(str, step.crop))}", seconds, partial(measure, step))


def measure(step: Step, bench: Bench) -> dict[str, Any]:
    """Returns a step's seconds, shares of the H100's peak and of the machine's matrix rate, losses, and peak beside the plan."""
    bench.release()
    work = workload(step, bench)
    with bench.peak() as measured:
        seconds, losses, trainable = run_steps(step, bench)
    planned = memory_model(work)(1).total / 1e9
    del measured["seconds"]  # with the networks' making
    seconds_per_step = sorted(seconds[1:])[len(seconds[1:]) // 2]
    rate = work.useful_flops / seconds_per_step
    return {
        "seconds_per_step": seconds_per_step,
        "first_seconds": seconds[0],
        "tokens": work.tokens,
        "trainable_parameters": trainable,
        "tflops": rate / 1e12,
        "mfu_of_h100_peak": rate / H100_FLOPS,
        "mfu_of_matrix_rate": rate / 1e3 / bench.machine.flops_per_ms,
        "losses": losses,
        "finite": all(map(isfinite, losses)),
        **measured,
        "planned_gb": planned,
        **(compare_with_peak(planned, measured["peak_gb"]) if "peak_gb" in measured else {}),
    }


def workload(step: Step, bench: Bench) -> Workload:
    """Returns a step as its cost sees it."""
    sizes, is_lora = bench.sizes, step.lora_rank > 0

    def at_size(blocks: int, samples: int) -> TrainingStep:
        model = objective(step, bench, replace(sizes.dit, num_layers=blocks), torch.device("meta"))
        return TrainingStep(model, flow_batch(step.crop, samples, sizes.dit))

    return Workload(
        at_size,
        sizes.dit,
        step.attention,
        sizes.upsampler,
        step.crop,
        batch=1,
        steps=STEPS,
        recompute=step.recompute,
        frozen_matrices=is_lora,
        frozen_upsampler=is_lora,
    )


def run_steps(step: Step, bench: Bench) -> tuple[list[float], list[float], int]:
    """Returns the seconds and losses of some steps of the training loop, and the number of trained parameters."""
    from accelerate import Accelerator  # optional packages

    from ...training.loop import LoopConfig
    from ...training.optimizer_step import train_step
    from ...training.state import Progress

    model = objective(step, bench, bench.sizes.dit, bench.device)
    accelerator = Accelerator(cpu=not bench.is_gpu)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model, optimizer = accelerator.prepare(model, torch.optim.AdamW(trained, 1e-5, betas=LoopConfig.betas, fused=True))
    progress, seconds, losses = Progress(trained, LoopConfig.ema), [], []
    watch = Stopwatch(bench.machine)
    for batch in islice(batches(step, bench), STEPS):
        losses.append(train_step(accelerator, model, optimizer, [batch], LoopConfig.clip).loss.item())
        progress.advance()
        seconds.append(watch.lap())
    return seconds, losses, sum(parameter.numel() for parameter in trained)


def objective(step: Step, bench: Bench, sizes: DiTConfig, device: torch.device) -> "FlowMatching":
    """Returns what is trained: both networks, float32, with random weights, and their loss.

    Args:
        step: The kind of step.
        bench: The device that computes, and the upsampler's sizes.
        sizes: Those of the DiT.
        device: Of the weights.
    """
    from ...training.lora import add_lora  # optional packages
    from ...training.loss import FlowMatching, LossConfig, Pictures

    with device:
        upsampler, dit = LatentUpsampler(bench.sizes.upsampler), SimpleGVRDiT(sizes, step.attention)
    for parameter in [*upsampler.parameters(), *dit.parameters()]:
        torch.nn.init.normal_(parameter, std=0.02)
    dit.gradient_checkpointing = upsampler.gradient_checkpointing = step.recompute
    if step.lora_rank:
        upsampler.requires_grad_(False)
        add_lora(dit, step.lora_rank, torch.Generator(bench.device).manual_seed(0))
    return FlowMatching(upsampler, dit, Pictures(None, perceptual=False), LossConfig(bf16=bench.is_gpu)).train()


def batches(step: Step, bench: Bench) -> Iterator[dict[str, Tensor]]:
    """Yields batches of one sample of noise, on the device, read on the CPU and noised on the device as in the loop."""
    from ...training.draws import Draws
    from ...training.loss import FlowNoise

    generator, (T, H, W) = torch.Generator().manual_seed(0), step.crop
    for number in count():
        z_hr = torch.randn(1, 16, T, H, W, generator=generator)
        latents = {"z_lr": torch.randn(1, 16, T, H // 2, W // 2, generator=generator), "z_hr": z_hr}
        context = torch.randn(1, 512, bench.sizes.dit.text_dim, generator=generator)
        own = {name: tensor.to(bench.device) for name, tensor in {**latents, "context": context}.items()}
        yield own | FlowNoise((0.3, 0.6), None)(own["z_hr"], Draws(0, number, range(1), 1))
