"""The state of a run: weights, moments, the moving average and the step, from which a killed run resumes.

The main process writes it as one file, state.pt. Of a sharded network each process writes its own part, by PyTorch's distributed
checkpoints: state_STEP/. Either is read by any number of processes, sharded or not.
"""

import errno
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import cast

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn
from torch.serialization import get_unsafe_globals_in_checkpoint

from ..files import atomic_write, write_text

FULL_STATE = StateDictOptions(full_state_dict=True, cpu_offload=True)
WHOLE, PARTS = "state.pt", "state_[0-9]*"
DAMAGE = (
    RuntimeError, EOFError, OSError, UnpicklingError, LookupError, ValueError, TypeError, AttributeError, ImportError, CheckpointException,
)  # fmt: skip
BEFORE = {"loop.moments": repr("float32"), "loop.ema > 0": repr(True)}  # of states without these options, which are older
LAST_WRITTEN, RUN = ".metadata", "run.json"  # in a folder of parts


class Progress:
    """Progress of a run: step, seconds and the moving average of the trained parameters."""

    def __init__(self, parameters: list[nn.Parameter], ema: float):
        """Starts the average, of decay ema, from the parameters; with 0 there is none."""
        self.step, self.elapsed = 0, 0.0
        self.parameters: list[Tensor] = [*parameters]
        self.ema = ema
        self.average = [parameter.detach().clone() for parameter in parameters] if ema else []

    @property
    def is_sharded(self) -> bool:
        return isinstance(self.parameters[0], DTensor)

    @torch.no_grad()
    def advance(self) -> None:
        """Counts a finished step and updates the average, whose decay is lower in the first steps."""
        self.step += 1
        if self.average:
            get_ema_multi_avg_fn(min(self.ema, self.step / (self.step + 10)))(self.average, self.parameters, None)

    @torch.no_grad()
    def take_average(self) -> None:
        """Gives the parameters the values of their average, if there is one."""
        for parameter, average in zip(self.parameters, self.average, strict=bool(self.average)):
            parameter.copy_(average)

    def state_dict(self) -> dict:
        return {"step": self.step, "elapsed": self.elapsed, "average": self.average}

    @torch.no_grad()
    def load_state_dict(self, state: dict) -> None:
        self.step, self.elapsed = state["step"], state["elapsed"]
        for own, saved in zip(self.average, state["average"], strict=True):
            own.copy_(distribute_tensor(saved, own.device_mesh, own.placements) if isinstance(own, DTensor) else saved)


@dataclass(frozen=True)
class TrainingState:
    """What the state has of a run.

    Attributes:
        model: The network, prepared by accelerate or sharded.
        optimizer: Its optimizer.
        progress: Its progress.
        options: Options that must not change when the run is resumed, by name.
        folder: Folder of the run.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    progress: Progress
    options: dict[str, str]
    folder: Path

    @property
    def bytes(self) -> int:
        """Least bytes of the state without moments: the weights, and the average of the trained ones."""
        return sum(parameter.numel() * parameter.element_size() for parameter in (*self.model.parameters(), *self.progress.average))

    def saved(self) -> Path | None:
        """Returns the last saved state, a file or a folder; None before the first. A folder counts when all its parts are written."""
        found = [(path, path) for path in self.folder.glob(WHOLE)]
        found += [(path.parent, path) for path in self.folder.glob(f"{PARTS}/{LAST_WRITTEN}")]
        return max(found, key=lambda pair: pair[1].stat().st_mtime_ns, default=(None, None))[0]

    def save(self, is_main: bool) -> None:
        """Writes the state, then removes those before; called on all processes. Raises OSError with the cure."""
        path = self.folder / f"state_{self.progress.step:06d}" if self.progress.is_sharded else self.folder / WHOLE
        if self.progress.is_sharded:
            self.save_parts(path, is_main)
        else:
            self.save_whole(path, is_main)
        if is_main:
            self.remove_all_but(path)

    def remove_all_but(self, path: Path | None) -> None:
        """Removes states and parts of states."""
        for other in self.folder.glob(PARTS):
            if other != path:
                shutil.rmtree(other)
        if path != self.folder / WHOLE:
            (self.folder / WHOLE).unlink(missing_ok=True)

    def save_whole(self, path: Path, is_main: bool) -> None:
        weights, moments = get_state_dict(self.model, self.optimizer, options=FULL_STATE)
        state = {"model": weights, "optimizer": moments, "progress": self.progress.state_dict(), "options": self.options}
        if not is_main:
            return
        with atomic_write(path) as partial:
            try:
                torch.save(state, partial)
            except (OSError, RuntimeError) as error:  # torch's archive writer turns a full disk into a RuntimeError
                raise OSError(errno.EIO, f"at step {self.progress.step}: {error}") from error

    def save_parts(self, path: Path, is_main: bool) -> None:
        run = {"step": self.progress.step, "elapsed": self.progress.elapsed, "options": self.options}
        try:
            if is_main:
                write_text(path / RUN, json.dumps(run))
            save(self.parts(), checkpoint_id=path)
        except CheckpointException as error:
            if is_main:
                shutil.rmtree(path, ignore_errors=True)
            cure = "free space there or choose another folder, and run the same command again; the state before is kept"
            raise OSError(f"{path} cannot be written (at step {self.progress.step}: {first_failure(error)}): {cure}") from error

    def parts(self) -> dict:
        """Returns this process' part of all tensors, which save writes, or into which load reads."""
        weights, moments = get_state_dict(self.model, self.optimizer)
        return {"model": weights, "optimizer": moments, "average": dict(enumerate(self.progress.average))}

    def load(self) -> None:
        """Reads the last saved state, if there is one. Raises ValueError when it is damaged, of another network or of other options."""
        path = self.saved()
        if path is None:
            return
        with explained_damage(path):
            (self.load_whole if path.name == WHOLE else self.load_parts)(path)

    def load_whole(self, path: Path) -> None:
        if any(name.startswith("torchao.") for name in get_unsafe_globals_in_checkpoint(path)):  # which is imported for moments of 8 bits
            self.check_options(path, {"loop.moments": repr("8bit")})
        state = torch.load(path, map_location="cpu", weights_only=True)
        self.check_options(path, state["options"])
        own, _ = get_state_dict(self.model, [], options=StateDictOptions(full_state_dict=True))
        own, saved = cast("dict[str, Tensor]", own), state["model"]
        self.check_shapes(path, *({name: tensor.shape for name, tensor in tensors.items()} for tensors in (own, saved)))
        if self.progress.is_sharded:
            self.cut_moments(state["optimizer"]["state"])
        set_state_dict(self.model, self.optimizer, model_state_dict=saved, optim_state_dict=state["optimizer"], options=FULL_STATE)
        self.progress.load_state_dict(state["progress"])

    def cut_moments(self, moments: dict[str, dict[str, Tensor]]) -> None:
        """Cuts each moment of parameters, by their names, to this process' rows; those of 8 bits cannot be sent from one to all."""
        parameters = dict(self.model.named_parameters())
        for name, own in moments.items():
            parameter = cast("DTensor", parameters[name])
            mesh, placements = parameter.device_mesh, parameter.placements
            rows = -(-len(parameter) // mesh.size())
            first = min(len(parameter), mesh.get_local_rank() * rows)
            for key, moment in own.items():
                if moment.shape == parameter.shape:
                    part = moment[first : min(len(parameter), first + rows)].to(parameter.device)
                    like = {"shape": parameter.shape, "stride": parameter.stride()}
                    own[key] = DTensor.from_local(part, mesh, placements, run_check=False, **like)

    def load_parts(self, path: Path) -> None:
        run = json.loads((path / RUN).read_text())
        self.check_options(path, run["options"])
        parts, metadata = self.parts(), FileSystemReader(path).read_metadata().state_dict_metadata
        saved = {name: entry.size for name, entry in metadata.items() if isinstance(entry, TensorStorageMetadata)}
        own = {f"model.{name}": cast("Tensor", tensor).shape for name, tensor in parts["model"].items()}
        self.check_shapes(path, own, {name: size for name, size in saved.items() if name.startswith("model.")})
        load(parts, checkpoint_id=path)
        set_state_dict(self.model, self.optimizer, model_state_dict=parts["model"], optim_state_dict=parts["optimizer"])
        self.progress.step, self.progress.elapsed = run["step"], run["elapsed"]

    def check_options(self, path: Path, saved: dict[str, str]) -> None:
        saved = BEFORE | saved
        for name, value in self.options.items():
            if name in saved and saved[name] != value:
                raise OtherRun(
                    f"{path} was begun with {name} = {saved[name]}, now it is {value}: "
                    "run with the options it was begun with, or choose another --out"
                )

    def check_shapes(self, path: Path, own: dict[str, torch.Size], saved: dict[str, torch.Size]) -> None:
        differing = {name for name in own.keys() | saved.keys() if own.get(name) != saved.get(name)}
        if differing:
            raise OtherRun(
                f"{path} is the state of another network ({len(differing)} tensors differ, {min(differing)!r} for one): "
                "run with the options it was begun with, or choose another --out"
            )


class OtherRun(ValueError):
    """A state is whole, but of another run."""


@contextmanager
def explained_damage(path: Path) -> Iterator[None]:
    """Raises ValueError with the cure when a state cannot be read."""
    try:
        yield
    except OtherRun:
        raise
    except DAMAGE as error:
        reason = first_failure(error) if isinstance(error, CheckpointException) else error
        raise ValueError(f"{path} is damaged ({reason}): delete it to begin anew, or put a copy in its place") from error


def first_failure(error: CheckpointException) -> BaseException:
    """Returns what failed in one of the processes."""
    return next(iter(error.failures.values()))[0]
