"""The training loop: every network of the pack is trained by `fit`, on one device or, by accelerate, on many.

All randomness comes from one generator, whose state is saved with the weights. A killed run therefore resumes with the losses
that it would have had, unless it is limited in minutes. All processes sample the same global batch and each takes its part of
it, so their number changes no loss.
"""

import errno
import json
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import cast

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn
from tqdm import tqdm

from ..checks import check_folder
from ..files import atomic_write, write_text
from ..tiling import OutOfMemory

FULL_STATE = StateDictOptions(full_state_dict=True, cpu_offload=True)

Batch = dict[str, Tensor]
SampleBatch = Callable[[torch.Generator], Batch]


@dataclass(frozen=True)
class LoopConfig:
    """How long and how fast to train. A run resumes from the state in its folder."""

    steps: int = 2000
    """Optimizer steps."""
    learning_rate: float = 1e-3
    """Learning rate of AdamW after the warm-up."""
    warmup: int = 100
    """Steps in which the learning rate rises from zero."""
    decay: bool = True
    """Lower the learning rate to zero by the end, as the square root of the fraction of the run that is left."""
    ema: float = 0.998
    """Decay of the moving average of the weights, which is the result."""
    accumulate: int = 1
    """Batches of one step: their sizes add up."""
    save_every: int = 200
    """Steps from one saved state to the next."""
    seed: int = 0
    """Seed of all randomness."""
    cpu: bool = False
    """Train on the CPU even where there is an accelerator."""
    minutes: float = float("inf")
    """Stop after this time, whatever the number of steps; the learning rate then follows time."""


class Progress:
    """Progress of a run: step, seconds, the generator and the moving average of the trained parameters."""

    def __init__(self, parameters: list[nn.Parameter], loop: LoopConfig):
        self.step, self.elapsed = 0, 0.0
        self.generator = torch.Generator().manual_seed(loop.seed)
        self.parameters: list[Tensor] = [*parameters]
        self.ema = loop.ema
        self.average = [parameter.detach().clone() for parameter in parameters]

    @torch.no_grad()
    def advance(self) -> None:
        """Counts a finished step and updates the average, whose decay is lower in the first steps."""
        self.step += 1
        get_ema_multi_avg_fn(min(self.ema, self.step / (self.step + 10)))(self.average, self.parameters, None)

    def fraction(self, loop: LoopConfig) -> float:
        """Returns the finished fraction of the run; the run ends at 1."""
        return max(self.step / loop.steps, self.elapsed / 60 / loop.minutes)

    def state_dict(self) -> dict:
        average = [part.full_tensor() if isinstance(part, DTensor) else part for part in self.average]
        return {"step": self.step, "elapsed": self.elapsed, "generator": self.generator.get_state(), "average": average}

    @torch.no_grad()
    def load_state_dict(self, state: dict) -> None:
        self.step, self.elapsed = state["step"], state["elapsed"]
        self.generator.set_state(state["generator"].cpu())
        for own, saved in zip(self.average, state["average"], strict=True):
            own.copy_(distribute_tensor(saved, own.device_mesh, own.placements) if isinstance(own, DTensor) else saved)


@dataclass(frozen=True)
class TrainingState:
    """What state.pt has of a run.

    Attributes:
        model: The network, prepared by accelerate.
        optimizer: Its optimizer.
        progress: Its progress.
        options: Options that must not change when the run is resumed, by name.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    progress: Progress
    options: dict[str, str]

    @property
    def bytes(self) -> int:
        """Least bytes of the file: the weights, and of each trained parameter the two moments and the average."""
        weights = sum(parameter.numel() * parameter.element_size() for parameter in self.model.parameters())
        return weights + 3 * sum(parameter.numel() * parameter.element_size() for parameter in self.progress.parameters)

    def save(self, path: Path, is_main: bool) -> None:
        """Writes the state; called on all processes, of which the main one writes. Raises OSError with the cure."""
        weights, moments = get_state_dict(self.model, self.optimizer, options=FULL_STATE)
        state = {"model": weights, "optimizer": moments, "progress": self.progress.state_dict(), "options": self.options}
        if not is_main:
            return
        with atomic_write(path) as partial:
            try:
                torch.save(state, partial)
            except (OSError, RuntimeError) as error:  # torch's archive writer turns a full disk into a RuntimeError
                raise OSError(errno.EIO, f"at step {self.progress.step}: {error}") from error

    def load(self, path: Path) -> None:
        """Reads the state. Raises ValueError when it is damaged, of another network or of other options."""
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except (RuntimeError, EOFError, OSError, UnpicklingError) as error:
            raise ValueError(f"{path} is damaged ({error}): delete it to begin anew, or put a copy in its place") from error
        for name, value in self.options.items():
            if state["options"].get(name) != value:
                raise ValueError(
                    f"{path} was begun with {name} = {state['options'].get(name)}, now it is {value}: "
                    "run with the options it was begun with, or choose another --out"
                )
        own, _ = get_state_dict(self.model, [], options=StateDictOptions(full_state_dict=True))
        own, saved = cast("dict[str, Tensor]", own), state["model"]
        differing = {name for name in own.keys() | saved.keys() if shape_of(own.get(name)) != shape_of(saved.get(name))}
        if differing:
            raise ValueError(
                f"{path} is the state of another network ({len(differing)} tensors differ, {min(differing)!r} for one): "
                "run with the options it was begun with, or choose another --out"
            )
        set_state_dict(self.model, self.optimizer, model_state_dict=saved, optim_state_dict=state["optimizer"], options=FULL_STATE)
        self.progress.load_state_dict(state["progress"])


def shape_of(tensor: Tensor | None) -> torch.Size | None:
    return None if tensor is None else tensor.shape


def fit(
    model: nn.Module,
    sample_batch: SampleBatch,
    loop: LoopConfig,
    folder: Path,
    *,
    show: Callable[[nn.Module, int], None] = lambda model, step: None,
    options: dict[str, str] | None = None,
    takes_turns: bool = False,
) -> dict[str, Tensor]:
    """Returns the state dict of the trained model with the moving average of its trained parameters.

    The tensors are on the CPU of the main process. The folder gets state.pt (for resuming only), losses.jsonl and loss.png.

    Args:
        model: Its call model(**batch) is the mean loss of a batch, a scalar.
        sample_batch: generator -> batch: tensors whose first axis is the global batch, on the CPU.
        loop: How long and how fast to train.
        folder: Folder of the run; a state there is resumed.
        show: Called on the main process with the model and the number of steps when the state is saved, unless the model
            is sharded.
        options: Options that must not change when the run is resumed, by name.
        takes_turns: Whether some steps leave trained parameters out.

    Raises:
        FloatingPointError: A loss or its gradient is not finite. The last saved state stays, as below.
        tiling.OutOfMemory: Memory ran out.
        OSError: The folder cannot be written or has no room for the state, or the state cannot be written.
        ValueError: The folder has the state of another network or of other options.
    """
    unused = DistributedDataParallelKwargs(find_unused_parameters=takes_turns)
    accelerator = Accelerator(cpu=loop.cpu, gradient_accumulation_steps=loop.accumulate, kwargs_handlers=[unused])
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model, optimizer = accelerator.prepare(model, torch.optim.AdamW(trained, loop.learning_rate, betas=(0.9, 0.99)))
    progress = Progress([parameter for parameter in model.parameters() if parameter.requires_grad], loop)
    state = TrainingState(model, optimizer.optimizer, progress, options or {})
    state_path, losses_path = folder / "state.pt", folder / "losses.jsonl"
    if accelerator.is_main_process:
        check_folder(folder, state.bytes)
    if state_path.exists():
        state.load(state_path)
    if accelerator.is_main_process:
        keep_lines(losses_path, progress.step)
    accelerator.wait_for_everyone()
    model.train()
    start = time.monotonic() - progress.elapsed
    bar = tqdm(
        total=loop.steps, initial=progress.step, unit="step", mininterval=5, disable=not accelerator.is_main_process, dynamic_ncols=True
    )
    while (done := progress.fraction(loop)) < 1:
        rate = loop.learning_rate * min(1.0, (progress.step + 1) / max(1, loop.warmup)) * ((1 - done) ** 0.5 if loop.decay else 1.0)
        for group in optimizer.param_groups:
            group["lr"] = rate
        with explained_memory(progress.step, state_path):
            loss = train_step(accelerator, model, optimizer, (sample_batch(progress.generator) for _ in range(loop.accumulate)))
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"loss is {loss.item()} at step {progress.step}: lower loop.learning_rate and start again; {saved_state(state_path)}"
            )
        progress.advance()
        progress.elapsed = time.monotonic() - start
        bar.set_postfix(loss=f"{loss.item():.5f}", refresh=False)
        bar.update()
        if accelerator.is_main_process:
            with losses_path.open("a") as file:
                file.write(json.dumps({"step": progress.step - 1, "loss": loss.item()}) + "\n")
        if progress.step % loop.save_every == 0 or progress.fraction(loop) >= 1:
            state.save(state_path, accelerator.is_main_process)
            if accelerator.is_main_process:
                plot_losses(losses_path, folder / "loss.png")
                if not isinstance(progress.parameters[0], DTensor):
                    with torch.no_grad():
                        show(accelerator.unwrap_model(model), progress.step)
    bar.close()
    with torch.no_grad():
        for parameter, average in zip(progress.parameters, progress.average, strict=True):
            parameter.copy_(average)
    state_dict = cast("dict[str, Tensor]", accelerator.get_state_dict(model))
    accelerator.free_memory()
    return {name: tensor.cpu() for name, tensor in state_dict.items()}


def train_step(accelerator: Accelerator, model: nn.Module, optimizer: torch.optim.Optimizer, batches: Iterable[Batch]) -> Tensor:
    """Returns the loss of one step, the mean over its batches and processes.

    Where the loss or its gradient is not finite, the result is NaN or infinity, and the weights do not change.
    """
    total = torch.zeros((), device=accelerator.device)
    for batch in batches:
        own = {name: part_of_process(tensor, accelerator).to(accelerator.device) for name, tensor in batch.items()}
        with accelerator.accumulate(model):
            loss = model(**own)
            total += mean_of_processes(loss.detach(), accelerator) / accelerator.gradient_accumulation_steps
            if not torch.isfinite(total):
                return total
            accelerator.backward(loss)
            if accelerator.sync_gradients and not gradient_is_finite(model, accelerator):
                return total.fill_(torch.nan)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    return total


def mean_of_processes(loss: Tensor, accelerator: Accelerator) -> Tensor:
    mean = accelerator.reduce(loss, "mean")
    assert isinstance(mean, Tensor)  # as its argument is
    return mean


def gradient_is_finite(model: nn.Module, accelerator: Accelerator) -> bool:
    """Clips the gradient's norm to 1; returns whether the norm was finite."""
    norm = accelerator.clip_grad_norm_(model.parameters(), 1.0)
    return norm is not None and bool(torch.isfinite(norm))


def part_of_process(batch: Tensor, accelerator: Accelerator) -> Tensor:
    """Returns this process' part of a batch (B, ...). Raises ValueError when the batch cannot be divided evenly."""
    processes = accelerator.num_processes
    if len(batch) % processes:
        raise ValueError(f"a batch of {len(batch)} cannot be divided among {processes} processes: choose a multiple of {processes}")
    return batch.chunk(processes)[accelerator.process_index]


@contextmanager
def explained_memory(step: int, state_path: Path) -> Iterator[None]:
    """Raises tiling.OutOfMemory with the cure when memory runs out."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise OutOfMemory(
            f"out of memory at step {step}: {saved_state(state_path)}. Halve the batch and double loop.accumulate, "
            "make the crops smaller, or use gradient checkpointing; then run again"
        ) from error


def saved_state(state_path: Path) -> str:
    return f"{state_path} has the last saved state" if state_path.exists() else "nothing was saved yet"


def keep_lines(path: Path, number: int) -> None:
    """Cuts a file, which may be missing, to its first lines."""
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    write_text(path, "".join(lines[:number]))


def read_losses(path: Path) -> list[float]:
    """Returns the loss of every step so far."""
    return [json.loads(line)["loss"] for line in path.read_text().splitlines()]


def summarize_losses(folder: Path) -> dict[str, float]:
    """Returns {"loss_first", "loss_last": means over the first and last tenth of a run, "steps": its number of steps}."""
    losses = read_losses(folder / "losses.jsonl")
    tenth = max(1, len(losses) // 10)
    return {"loss_first": sum(losses[:tenth]) / tenth, "loss_last": sum(losses[-tenth:]) / tenth, "steps": len(losses)}


def plot_losses(losses_path: Path, path: Path) -> None:
    """Plots the losses and their moving average over a twentieth of the run."""
    from matplotlib.figure import Figure  # slow to import, and only the main process plots

    losses = read_losses(losses_path)
    width = max(1, len(losses) // 20)
    total, number = np.cumsum([0.0, *losses]), np.arange(1, len(losses) + 1)
    start = np.maximum(0, number - 1 - width)
    smooth = (total[number] - total[start]) / (number - start)
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot(xlabel="step", ylabel="loss", yscale="log")
    axes.plot(losses, color="0.8", linewidth=0.8)
    axes.plot(smooth, color="tab:blue")
    with atomic_write(path) as partial:
        figure.savefig(partial, dpi=120)
