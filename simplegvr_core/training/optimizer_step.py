"""The optimizer, and one step of it, in which the host waits for the device only where moments of 8 bits want it."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import extract_model_from_parallel
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from .draws import Batch
from .moments import Moments, has_8_bits


def adamw(parameters: list[nn.Parameter], moments: Moments, **options: Any) -> torch.optim.Optimizer:
    """Returns AdamW, which changes nothing in a step whose `found_inf`, a tensor on the device, is 1.

    Args:
        parameters: What is trained.
        moments: Data type of its two moments.
        options: Rate (lr), betas and weight_decay.

    Raises:
        ValueError: The moments have 8 bits, and no parameter is large enough for them.
        ImportError: The moments have 8 bits and torchao is missing.
    """
    if moments == "float32":
        return torch.optim.AdamW(parameters, **options, fused=True)
    if not any(has_8_bits(parameter.shape) for parameter in parameters):
        raise ValueError(
            "--loop.moments is 8bit, but no trained parameter is a matrix of at least 256 rows of whole 256s, "
            "so that nothing would be saved: leave the option out, as for a LoRA"
        )
    try:
        from .adamw_8bit import AdamW8bit
    except ImportError as error:
        raise ImportError(
            f"--loop.moments 8bit needs torchao ({error}): install it by `pip install torchao`, or leave the option out"
        ) from error
    return AdamW8bit(parameters, **options)


@dataclass(frozen=True)
class Outcome:
    """Result of a step.

    Attributes:
        loss: Mean loss over batches and processes.
        norm: Norm of the gradient before it is clipped.
        levels: (B, 2), noise level and error of each sample of all processes; None where the objective has none.
    """

    loss: Tensor
    norm: Tensor
    levels: Tensor | None

    def on_host(self) -> "Outcome":
        """Returns the same on the host, where it arrives later."""
        return Outcome(to_host(self.loss), to_host(self.norm), None if self.levels is None else to_host(self.levels))


def train_step(
    accelerator: Accelerator, model: nn.Module, optimizer: AcceleratedOptimizer, batches: Iterable[Batch], clip: float
) -> Outcome:
    """Returns the outcome of one step. Where the loss or its gradient is not finite, the weights do not change.

    Args:
        accelerator: As fit made it.
        model: The network, prepared by accelerate.
        optimizer: Its optimizer, as adamw makes it.
        batches: Batches of the step, on the device.
        clip: Largest norm of the gradient.
    """
    total = norm = torch.zeros((), device=accelerator.device)
    levels, network = [], extract_model_from_parallel(model)
    for batch in batches:
        with accelerator.accumulate(model):
            loss = model(**batch)
            total = total + mean_of_processes(loss.detach(), accelerator) / accelerator.gradient_accumulation_steps
            levels += [accelerator.gather(network.levels)] if hasattr(network, "levels") else []
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                norm = cast("Tensor", accelerator.clip_grad_norm_(model.parameters(), clip))
                norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
                optimizer.optimizer.found_inf = (~(total.isfinite() & norm.isfinite())).float()  # pyright: ignore[reportAttributeAccessIssue]
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    return Outcome(total, norm, torch.cat(levels) if levels else None)


def to_host(tensor: Tensor) -> Tensor:
    """Returns a tensor on the host; that of a GPU arrives later, in pinned memory."""
    return tensor.to("cpu", non_blocking=tensor.is_cuda)


def event(device: torch.device) -> torch.cuda.Event | None:
    """Returns what a GPU passes when all is done that was queued until now; None on the CPU."""
    if device.type != "cuda":
        return None
    passed = torch.cuda.Event()
    passed.record()
    return passed


def mean_of_processes(loss: Tensor, accelerator: Accelerator) -> Tensor:
    mean = accelerator.reduce(loss, "mean")
    assert isinstance(mean, Tensor)  # as its argument is
    return mean
