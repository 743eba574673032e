"""One training step at full width on a small crop: seconds, share of the peak rate, and memory against `train --plan`."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import count, islice
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...latent_space import video_frames
from ...networks.attention import AttentionConfig
from ...networks.dit import SimpleGVRDiT
from ...networks.upsampler import LatentUpsampler
from ...training.batches import Crop
from ...training.cost import H100_FLOPS, Workload, memory_model
from .items import Bench, Item, Sizes, Stopwatch, compare_with_peak

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
    rate = work.flops / seconds_per_step
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
    from ...training.train import Train  # optional packages

    frames, *size = step.crop
    return Train(
        (),
        Path(),
        dit=bench.sizes.dit,
        attention=step.attention,
        upsampler=bench.sizes.upsampler,
        gradient_checkpointing=step.recompute,
        lora_rank=step.lora_rank,
        crop=Crop(video_frames(frames), (size[0], size[1]), 1),
    ).workload()


def run_steps(step: Step, bench: Bench) -> tuple[list[float], list[float], int]:
    """Returns the seconds and losses of some steps of the training loop, and the number of trained parameters."""
    from accelerate import Accelerator  # optional packages

    from ...training.loop import LoopConfig, train_step
    from ...training.lora import add_lora
    from ...training.loss import FlowMatching, LossConfig, Pictures
    from ...training.state import Progress

    upsampler, dit = networks(step, bench)
    if step.lora_rank:
        upsampler.requires_grad_(False)
        add_lora(dit, step.lora_rank, torch.Generator(bench.device).manual_seed(0))
    model = FlowMatching(upsampler, dit, Pictures(None, perceptual=False), LossConfig(bf16=bench.is_gpu)).train()
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


def networks(step: Step, bench: Bench) -> tuple[LatentUpsampler, SimpleGVRDiT]:
    """Returns both networks, float32, with random weights, on the device."""
    with torch.device(bench.device):
        upsampler, dit = LatentUpsampler(bench.sizes.upsampler), SimpleGVRDiT(bench.sizes.dit, step.attention)
    for parameter in [*upsampler.parameters(), *dit.parameters()]:
        torch.nn.init.normal_(parameter, std=0.02)
    dit.gradient_checkpointing = upsampler.gradient_checkpointing = step.recompute
    return upsampler, dit


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
