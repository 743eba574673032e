"""The state of a run, state.pt: weights, moments, the moving average and the step, from which a killed run resumes."""

import errno
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import cast

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from ..files import atomic_write

FULL_STATE = StateDictOptions(full_state_dict=True, cpu_offload=True)


class Progress:
    """Progress of a run: step, seconds and the moving average of the trained parameters."""

    def __init__(self, parameters: list[nn.Parameter], ema: float):
        self.step, self.elapsed = 0, 0.0
        self.parameters: list[Tensor] = [*parameters]
        self.ema = ema
        self.average = [parameter.detach().clone() for parameter in parameters]

    @torch.no_grad()
    def advance(self) -> None:
        """Counts a finished step and updates the average, whose decay is lower in the first steps."""
        self.step += 1
        get_ema_multi_avg_fn(min(self.ema, self.step / (self.step + 10)))(self.average, self.parameters, None)

    def state_dict(self) -> dict:
        average = [part.full_tensor() if isinstance(part, DTensor) else part for part in self.average]
        return {"step": self.step, "elapsed": self.elapsed, "average": average}

    @torch.no_grad()
    def load_state_dict(self, state: dict) -> None:
        self.step, self.elapsed = state["step"], state["elapsed"]
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
