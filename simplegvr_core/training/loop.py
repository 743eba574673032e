"""The training loop: every network of the pack is trained by `fit`, on one device or, by accelerate, on many.

The random numbers of a sample follow from the seed, the step and its number (draws.py): each process reads its own samples only,
and the number of processes, workers and accumulated batches changes no loss. A killed run resumes from its step with the losses
that it would have had, unless it is limited in minutes. Inside a step the host does not wait for the device, but for moments of 8
bits: whether a loss is finite is known a step later, and an update that is not finite changes no weight.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any, Literal, cast

import torch
from accelerate import Accelerator, PartialState
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import DistributedDataParallelKwargs, broadcast
from filelock import FileLock, Timeout
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_model_state_dict
from tqdm import tqdm

from ..checks import check_folder
from ..tiling import OutOfMemory
from .draws import Source
from .losses import append_line, keep_steps, plot_losses
from .moments import Moments, moment_bytes
from .optimizer_step import Outcome, adamw, event, to_host, train_step
from .reader import Batches, Reader
from .sharding import blocks, shard
from .state import FULL_STATE, Progress, TrainingState
from .tracking import Reported, Tracker, TrackerName, Work, chosen_tracker

Schedule = Literal["constant", "sqrt", "linear", "cosine"]
SCHEDULES: dict[Schedule, Callable[[float], float]] = {  # factor of the learning rate by the fraction of the run that is left
    "constant": lambda left: 1.0,
    "sqrt": lambda left: left**0.5,
    "linear": lambda left: left,
    "cosine": lambda left: 0.5 - 0.5 * torch.cos(torch.tensor(torch.pi * left)).item(),
}


@dataclass(frozen=True)
class LoopConfig:
    """How long and how fast to train. A run resumes from the state in its folder."""

    steps: int = 2000
    """Optimizer steps."""
    learning_rate: float = 1e-3
    """Learning rate of AdamW after the warm-up."""
    betas: tuple[float, float] = (0.9, 0.99)
    """Decay of AdamW's two moments."""
    weight_decay: float = 0.01
    """Weight decay of AdamW."""
    moments: Moments = "float32"
    """Data type of AdamW's two moments. 8bit takes a quarter of their memory, for matrices of at least 256 rows of whole 256s, which LoRAs
    do not have; it needs torchao, and lets the host wait once a step."""
    clip: float = 1.0
    """Largest norm of the gradient; a larger one is scaled down to it."""
    warmup: int = 100
    """Steps in which the learning rate rises from zero."""
    schedule: Schedule = "sqrt"
    """How the learning rate falls to zero with the fraction of the run that is left; constant does not fall."""
    ema: float = 0.998
    """Decay of the moving average of the weights, which is the result; with 0 there is none, and the result is the last weights."""
    accumulate: int = 1
    """Batches of one step: their sizes add up."""
    workers: int = 0
    """Processes that read batches ahead, for each training process; 0 reads between steps."""
    shard: bool = False
    """Give each process a part of every weight, gradient and moment (FSDP2), in place of all of them."""
    compile: bool = False
    """Compile each block of the networks (torch.compile)."""
    save_every: int = 200
    """Steps from one saved state to the next."""
    tracker: TrackerName = "tensorboard"
    """Where losses, rates and samples are reported: into the folder's tensorboard/, to wandb, or nowhere but losses.jsonl."""
    report_every: int = 10
    """Steps from one report to the next, which has their means."""
    seed: int = 0
    """Seed of all randomness."""
    cpu: bool = False
    """Train on the CPU even where there is an accelerator."""
    minutes: float = float("inf")
    """Stop after this time, whatever the number of steps; the learning rate then follows time."""

    def optimizer(self) -> dict:
        """Returns the options of the optimizer, by name, for the checkpoint."""
        names = ("steps", "learning_rate", "betas", "weight_decay", "moments", "clip", "warmup", "schedule", "ema", "accumulate")
        return {name: getattr(self, name) for name in names}

    def done(self, progress: Progress) -> float:
        """Returns the finished fraction of a run; it ends at 1."""
        return max(progress.step / self.steps, progress.elapsed / 60 / self.minutes)

    def rate(self, progress: Progress) -> float:
        """Returns the learning rate of the next step."""
        return self.learning_rate * min(1.0, (progress.step + 1) / max(1, self.warmup)) * SCHEDULES[self.schedule](1 - self.done(progress))


def lasting_options(config: Any, free: set[str]) -> dict[str, str]:
    """Returns the options of a run that must not change when it is resumed, by name. A batch may be divided otherwise.

    Args:
        config: Options of the run, "crop" and "loop" among them.
        free: Names of options that may change.
    """
    crop, loop = config.crop, config.loop
    options = {name: value for name, value in vars(config).items() if name not in free | {"out", "loop", "crop", "gradient_checkpointing"}}
    options |= {"crop.num_frames": crop.num_frames, "crop.size": crop.size, "loop.seed": loop.seed}
    return {name: repr(value) for name, value in {**options, "crop.batch * loop.accumulate": crop.batch * loop.accumulate}.items()}


@dataclass(frozen=True)
class Shown:
    """What a model gives for fixed samples.

    Attributes:
        values: Measured values by name, of this process' samples; their means over the processes are reported.
        images: A video (F, H, W, 3), uint8, for the tracker, on the main process; None on others.
    """

    values: dict[str, float]
    images: Tensor | None


Show = Callable[[nn.Module, int], Shown]


@dataclass(frozen=True)
class Unsettled:
    """A step whose result is on its way to the host.

    Attributes:
        step: Its number.
        rate: Its learning rate.
        waited: Seconds from the begin of the run in which this process waited for data.
        outcome: Its result.
        seconds: Seconds from the begin of the run to that of the step, (1,), of the main process.
        skipped: Names of the pairs that were skipped in it.
        arrived: Event of a GPU after which outcome and seconds are there; None on the CPU.
    """

    step: int
    rate: float
    waited: float
    outcome: Outcome
    seconds: Tensor
    skipped: list[str]
    arrived: torch.cuda.Event | None


class Run:
    """A run in progress: network, optimizer, data and files."""

    def __init__(
        self,
        model: nn.Module,
        source: Source,
        loop: LoopConfig,
        folder: Path,
        *,
        options: dict[str, str],
        takes_turns: bool = False,
        work: Work | None = None,
    ):
        """Prepares a run, or resumes it from the state in the folder. Arguments and errors are those of fit."""
        self.loop, self.folder = loop, folder
        unused = DistributedDataParallelKwargs(find_unused_parameters=takes_turns, gradient_as_bucket_view=True)
        name = chosen_tracker(loop.tracker)
        self.accelerator = accelerator = Accelerator(
            cpu=loop.cpu,
            gradient_accumulation_steps=loop.accumulate,
            kwargs_handlers=[unused],
            log_with=None if name == "none" else name,
            project_dir=folder,
        )
        place = {"process": accelerator.process_index, "processes": accelerator.num_processes}
        reader = Reader(source, accelerator.device, seed=loop.seed, accumulate=loop.accumulate, **place)
        for block in blocks(model) if loop.compile else ():
            block.compile()
        sharded = loop.shard and accelerator.num_processes > 1
        if sharded:
            shard(model, accelerator.device, accelerator.num_processes)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.model = model if sharded else accelerator.prepare_model(model)
        optimizer = adamw(trained, loop.moments, lr=loop.learning_rate, betas=loop.betas, weight_decay=loop.weight_decay)
        self.optimizer = cast("AcceleratedOptimizer", accelerator.prepare_optimizer(optimizer))
        self.progress = Progress([parameter for parameter in self.model.parameters() if parameter.requires_grad], loop.ema)
        options = options | {"loop.moments": repr(loop.moments), "loop.ema > 0": repr(loop.ema > 0)}
        self.state = TrainingState(self.model, self.optimizer.optimizer, self.progress, options, folder)
        if self.is_main:
            check_folder(folder, self.state.bytes + sum(moment_bytes(parameter, loop.moments) for parameter in trained))
        self.state.load()
        for group in self.optimizer.param_groups:
            group |= {"betas": loop.betas, "weight_decay": loop.weight_decay}
        accelerator.wait_for_everyone()
        if self.is_main:
            self.state.remove_all_but(self.state.saved())
            for path in (self.losses_path, self.skipped_path):
                keep_steps(path, self.progress.step)
        self.model.train()
        self.batches = Batches(reader, range(self.progress.step, loop.steps), loop.workers)
        self.started = time.monotonic() - self.progress.elapsed
        self.unsettled: Unsettled | None = None
        work = work or Work(source.batch * loop.accumulate)
        self.tracker = Tracker(accelerator, name, work, every=loop.report_every, finished=self.progress.step)
        bar = {"total": loop.steps, "initial": self.progress.step, "unit": "step", "mininterval": 5, "dynamic_ncols": True}
        self.bar = tqdm(**bar, disable=not self.is_main)

    @property
    def is_main(self) -> bool:
        return self.accelerator.is_main_process

    @property
    def losses_path(self) -> Path:
        return self.folder / "losses.jsonl"

    @property
    def skipped_path(self) -> Path:
        return self.folder / "skipped.jsonl"

    def step(self) -> None:
        """Runs a step, and settles the one before while the device computes."""
        progress, rate = self.progress, self.loop.rate(self.progress)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        seconds = self.seconds()
        with explained_memory(progress.step, self.state):
            batches = (next(self.batches) for _ in range(self.loop.accumulate))
            outcome = train_step(self.accelerator, self.model, self.optimizer, batches, self.loop.clip)
        outcome, seconds = outcome.on_host(), to_host(seconds)
        arrived = event(self.accelerator.device)
        self.settle()
        self.unsettled = Unsettled(progress.step, rate, self.batches.waited, outcome, seconds, self.batches.take_skipped(), arrived)
        progress.advance()

    def seconds(self) -> Tensor:
        """Returns the seconds since the run began, (1,); those of the main process on all, as they decide the run's end and rate."""
        seconds = torch.tensor([time.monotonic() - self.started])
        return cast("Tensor", broadcast(seconds.to(self.accelerator.device))) if self.accelerator.num_processes > 1 else seconds

    def settle(self) -> None:
        """Waits for the last step's result, checks it and writes it down. Raises FloatingPointError."""
        if self.unsettled is None:
            return
        last, self.unsettled = self.unsettled, None
        if last.arrived:
            last.arrived.synchronize()
        self.progress.elapsed = last.seconds.item()
        loss, norm = last.outcome.loss.item(), last.outcome.norm.item()
        if not (isfinite(loss) and isfinite(norm)):
            raise FloatingPointError(
                f"loss is {loss}, the norm of its gradient {norm} at step {last.step}: lower loop.learning_rate and start again; "
                f"{saved_state(self.state)}"
            )
        self.bar.set_postfix(loss=f"{loss:.5f}", refresh=False)
        self.bar.update()
        if self.is_main:
            append_line(self.losses_path, {"step": last.step, "loss": loss})
            self.tracker.report(Reported(last.step, loss, norm, last.rate, last.waited, last.outcome.levels))
        for pair in last.skipped:
            append_line(self.skipped_path, {"step": last.step, "pair": pair})

    def save(self, show: Show) -> None:
        """Writes the state, after the check of the last step, and shows the model."""
        self.settle()
        self.state.save(self.is_main)
        if self.is_main:
            plot_losses(self.losses_path, self.folder / "loss.png")
        with torch.no_grad(), explained_memory(self.progress.step, self.state):
            shown = show(self.accelerator.unwrap_model(self.model), self.progress.step)
        if names := sorted(shown.values):
            means = self.accelerator.reduce(torch.tensor([shown.values[name] for name in names], device=self.accelerator.device), "mean")
            self.tracker.log(dict(zip(names, cast("Tensor", means).tolist(), strict=True)), self.progress.step)
        if shown.images is not None:
            self.tracker.show("sample", shown.images, self.progress.step)

    @torch.no_grad()
    def result(self) -> dict[str, Tensor]:
        """Returns the state dict with the trained parameters' average, if there is one, on the CPU of the main process; the run ends."""
        self.progress.take_average()
        self.bar.close()
        self.tracker.close()
        state_dict = cast("dict[str, Tensor]", get_model_state_dict(self.model, options=FULL_STATE))
        self.accelerator.free_memory()
        return state_dict


def fit(
    model: nn.Module,
    source: Source,
    loop: LoopConfig,
    folder: Path,
    *,
    show: Show = lambda model, step: Shown({}, None),
    options: dict[str, str] | None = None,
    takes_turns: bool = False,
    work: Work | None = None,
) -> dict[str, Tensor]:
    """Returns the state dict of the trained model with the moving average of its trained parameters.

    The tensors are on the CPU of the main process. The folder gets the state (for resuming only, see state.py), losses.jsonl, loss.png
    and, where pairs were skipped, skipped.jsonl.

    Args:
        model: Its call model(**batch) is the mean loss of a batch, a scalar.
        source: What makes the batches.
        loop: How long and how fast to train.
        folder: Folder of the run; a state there is resumed.
        show: Called with the model and the number of steps when the state is saved, on all processes.
        options: Options that must not change when the run is resumed, by name.
        takes_turns: Whether some steps leave trained parameters out.
        work: What a step computes, for the reported rates.

    Raises:
        FloatingPointError: A loss or its gradient is not finite. The last saved state stays, as below.
        tiling.OutOfMemory: Memory ran out.
        OSError: The folder cannot be written, has no room for the state or is another run's, or the state cannot be written.
        ValueError: The folder has the state of another network or of other options.
    """
    with exclusive(folder) if PartialState(cpu=loop.cpu).is_main_process else nullcontext():
        run = Run(model, source, loop, folder, options=options or {}, takes_turns=takes_turns, work=work)
        while loop.done(run.progress) < 1:
            run.step()
            if run.progress.step % loop.save_every == 0 or loop.done(run.progress) >= 1:
                run.save(show)
        return run.result()


@contextmanager
def explained_memory(step: int, state: TrainingState) -> Iterator[None]:
    """Raises tiling.OutOfMemory with the cure when memory runs out."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise OutOfMemory(
            f"out of memory at step {step}: {saved_state(state)}. Halve the batch and double loop.accumulate, "
            "make the crops smaller, or use gradient checkpointing; then run again"
        ) from error


def saved_state(state: TrainingState) -> str:
    path = state.saved()
    return f"{path} has the last saved state" if path else "nothing was saved yet"


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Lets one run at a time use a folder. Raises OSError when another does, or the folder cannot be written."""
    check_folder(folder)
    lock = FileLock(folder / "run.lock", timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise OSError(f"another run trains into {folder}: wait for its end, or choose another --out") from error
    with lock:
        yield
