"""The training loop: every network of the pack is trained by `fit`, on one device or, by accelerate, on many.

Everything random comes from one generator, whose state is saved with the rest, so a killed run goes on with the losses it
would have had (unless it is limited in minutes, which are the clock's). All processes draw the same global batch and take
their share of it, so their number changes no loss.
"""

import errno
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn
from tqdm import tqdm

from ..files import atomic_write, write_text

WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


@dataclass(frozen=True)
class LoopConfig:
    """How long and how fast to train. Runs of the same folder continue where the last one stopped."""

    steps: int = 2000
    learning_rate: float = 1e-3
    warmup: int = 100
    decay: bool = True
    """Lower the learning rate to zero by the end, as the square root of what is left."""
    ema: float = 0.998
    accumulate: int = 1
    """Batches that make one step: their sizes add up."""
    save_every: int = 200
    seed: int = 0
    cpu: bool = False
    """Train on the CPU even where there is an accelerator."""
    minutes: float = float("inf")
    """Stop after this long, however many steps are done; the learning rate follows time instead of steps."""


class Progress:
    """How far a run is: step, seconds, the generator and the moving average of the trained parameters."""

    def __init__(self, parameters: list[Tensor], loop: LoopConfig):
        self.step, self.elapsed = 0, 0.0
        self.generator = torch.Generator().manual_seed(loop.seed)
        self.parameters, self.ema = parameters, loop.ema
        self.average = [parameter.detach().clone() for parameter in parameters]

    @torch.no_grad()
    def advance(self) -> None:
        """One step is done: the average follows the parameters, faster at first."""
        self.step += 1
        get_ema_multi_avg_fn(min(self.ema, self.step / (self.step + 10)))(self.average, self.parameters, None)

    def share(self, loop: LoopConfig) -> float:
        """Returns how much of the run is done; 1 or more is all."""
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


def fit(
    model: nn.Module,
    draw: Callable[[torch.Generator], dict[str, Tensor]],
    loop: LoopConfig,
    folder: Path,
    show: Callable[[nn.Module, int], None] = lambda model, step: None,
    options: dict[str, str] | None = None,
) -> dict[str, Tensor]:
    """Returns the state dict of model with the moving average of its trained parameters, on the CPU of the main process.

    model: its call gives the mean loss of a batch, model(**batch) -> scalar. draw: generator -> batch, tensors with the
    whole batch in front, on the CPU. show: called on the main process with the model and the number of steps
    when the state is saved, unless the model is sharded.
    options: what must not change when a run is resumed, by name.
    folder receives state.pt (for resuming only), losses.jsonl and loss.png.
    Raises FloatingPointError at the first loss that is not finite, RuntimeError when memory runs out, OSError when the
    state cannot be written, ValueError when the folder holds the state of another network or of other options; the last
    saved state stays.
    """
    accelerator = Accelerator(cpu=loop.cpu, gradient_accumulation_steps=loop.accumulate)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model, optimizer = accelerator.prepare(model, torch.optim.AdamW(trained, loop.learning_rate, betas=(0.9, 0.99)))
    progress = Progress([parameter for parameter in model.parameters() if parameter.requires_grad], loop)
    state_path, losses_path = folder / "state.pt", folder / "losses.jsonl"
    if accelerator.is_main_process:
        make_folder(folder)
    options = options or {}
    if state_path.exists():
        load_state(state_path, model, optimizer.optimizer, progress, options)
    if accelerator.is_main_process:
        keep_lines(losses_path, progress.step)
    accelerator.wait_for_everyone()
    model.train()
    start = time.monotonic() - progress.elapsed
    bar = tqdm(
        total=loop.steps, initial=progress.step, unit="step", mininterval=5, disable=not accelerator.is_main_process, dynamic_ncols=True
    )
    while (done := progress.share(loop)) < 1:
        rate = loop.learning_rate * min(1.0, (progress.step + 1) / max(1, loop.warmup)) * ((1 - done) ** 0.5 if loop.decay else 1.0)
        for group in optimizer.param_groups:
            group["lr"] = rate
        with explained_memory(progress.step, state_path):
            loss = train_step(accelerator, model, optimizer, draw, progress.generator, loop.accumulate)
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"loss is {loss.item()} at step {progress.step}: lower loop.learning_rate and start again; {what_is_kept(state_path)}"
            )
        progress.advance()
        progress.elapsed = time.monotonic() - start
        bar.set_postfix(loss=f"{loss.item():.5f}", refresh=False)
        bar.update()
        if accelerator.is_main_process:
            with losses_path.open("a") as file:
                file.write(json.dumps({"step": progress.step - 1, "loss": loss.item()}) + "\n")
        if progress.step % loop.save_every == 0 or progress.share(loop) >= 1:
            save_state(state_path, model, optimizer.optimizer, progress, options, accelerator.is_main_process)
            if accelerator.is_main_process:
                plot_losses(losses_path, folder / "loss.png")
                if not isinstance(progress.parameters[0], DTensor):
                    with torch.no_grad():
                        show(accelerator.unwrap_model(model), progress.step)
    bar.close()
    with torch.no_grad():
        for parameter, average in zip(progress.parameters, progress.average, strict=True):
            parameter.copy_(average)
    state_dict = {name: tensor.cpu() for name, tensor in accelerator.get_state_dict(model).items()}
    accelerator.free_memory()
    return state_dict


def train_step(accelerator: Accelerator, model, optimizer, draw: Callable, generator: torch.Generator, accumulate: int) -> Tensor:
    """Returns the loss of one step, the mean over its batches and processes. If that or its gradient is not finite: NaN or
    infinity, and the step is left out."""
    total = torch.zeros((), device=accelerator.device)
    for _ in range(accumulate):
        batch = {name: share(tensor, accelerator).to(accelerator.device) for name, tensor in draw(generator).items()}
        with accelerator.accumulate(model):
            loss = model(**batch)
            total += accelerator.reduce(loss.detach(), "mean") / accumulate
            if not torch.isfinite(total):
                return total
            accelerator.backward(loss)
            if accelerator.sync_gradients and not torch.isfinite(accelerator.clip_grad_norm_(model.parameters(), 1.0)):
                return total.fill_(torch.nan)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    return total


def share(batch: Tensor, accelerator: Accelerator) -> Tensor:
    """Returns this process' part of a batch (B, ...). Raises ValueError when it cannot be divided evenly."""
    processes = accelerator.num_processes
    if len(batch) % processes:
        raise ValueError(f"a batch of {len(batch)} cannot be divided among {processes} processes: choose a multiple of {processes}")
    return batch.chunk(processes)[accelerator.process_index]


def save_state(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, progress: Progress, options: dict, is_main: bool) -> None:
    """Writes path whole or not at all. Called on all processes, written by the main one. Raises OSError with the cure."""
    weights, moments = get_state_dict(model, optimizer, options=WHOLE)
    state = {"model": weights, "optimizer": moments, "progress": progress.state_dict(), "options": options}
    if not is_main:
        return
    with atomic_write(path) as partial:
        try:
            torch.save(state, partial)
        except (OSError, RuntimeError) as error:  # torch's archive writer turns a full disk into a RuntimeError
            raise OSError(errno.EIO, f"at step {progress.step}: {error}") from error


def load_state(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, progress: Progress, options: dict) -> None:
    """Sets all three to what path holds. Raises ValueError when it is of another network or of other options."""
    state = torch.load(path, map_location="cpu", weights_only=True)
    for name, value in options.items():
        if state["options"].get(name) != value:
            raise ValueError(
                f"{path} was begun with {name} = {state['options'].get(name)}, now it is {value}: "
                "run with the options it was begun with, or choose another --out"
            )
    own, saved = get_state_dict(model, [], options=StateDictOptions(full_state_dict=True))[0], state["model"]
    differing = {name for name in own.keys() | saved.keys() if name not in own or name not in saved or own[name].shape != saved[name].shape}
    if differing:
        raise ValueError(
            f"{path} is the state of another network ({len(differing)} tensors differ, {min(differing)!r} for one): "
            "run with the options it was begun with, or choose another --out"
        )
    set_state_dict(model, optimizer, model_state_dict=saved, optim_state_dict=state["optimizer"], options=WHOLE)
    progress.load_state_dict(state["progress"])


@contextmanager
def explained_memory(step: int, state_path: Path) -> Iterator[None]:
    """Raises RuntimeError with the cure when memory runs out."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise RuntimeError(
            f"out of memory at step {step}: {what_is_kept(state_path)}. Halve the batch and double loop.accumulate, "
            "make the crops smaller, or use gradient checkpointing; then run again"
        ) from error


def what_is_kept(state_path: Path) -> str:
    return f"{state_path} keeps the last saved state" if state_path.exists() else "nothing was saved yet"


def make_folder(folder: Path) -> None:
    """Raises OSError with the cure when folder cannot be made or written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "losses.jsonl").touch()
    except OSError as error:
        raise OSError(f"--out {folder} cannot be written to ({error.strerror}): choose another folder") from error


def keep_lines(path: Path, number: int) -> None:
    """Cuts a file to its first lines."""
    write_text(path, "".join(path.read_text().splitlines(keepends=True)[:number]))


def read_losses(path: Path) -> list[float]:
    """Returns the loss of every step so far."""
    return [json.loads(line)["loss"] for line in path.read_text().splitlines()]


def plot_losses(losses_path: Path, path: Path) -> None:
    """Draws the losses, and their moving average over a twentieth of the run, as a picture."""
    from matplotlib.figure import Figure  # slow to import, and only the main process draws

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
