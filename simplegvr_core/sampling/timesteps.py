"""The detail-aware timestep sampler: the timestep density follows where detail appears (paper, section 4.3).

N sampling steps; sigma in [0, 1]: 1 is noise.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

FLOOR = 0.1  # weight of the uniform distribution, which the paper does not have
Change = Literal["coefficients", "energy"]


@dataclass(frozen=True)
class Curve:
    """High frequencies of the predicted clean latent over the steps of sampling, as measure_curve measures them.

    Attributes:
        sigma: N noise levels that fall, one for each step.
        energy: N, the mean square of the high-frequency coefficients, mean over clips.
        clips: Number of clips.
        variation: N - 1, the mean absolute difference of the high-frequency coefficients between a step and the next, mean over clips: the
            paper's pairwise differences. () in files from before it was measured.
        change: What the density follows: the "coefficients", or the "energy", whose differences leave out what changes without becoming
            stronger.
        floor: Weight of the uniform distribution in the density, in [0, 1].
    """

    sigma: tuple[float, ...]
    energy: tuple[float, ...]
    clips: int
    variation: tuple[float, ...] = ()
    change: Change = "energy"
    floor: float = FLOOR

    def __post_init__(self):
        if self.change not in get_args(Change) or not 0 <= self.floor <= 1:
            raise ValueError(f"a curve has change {self.change!r} and floor {self.floor}, wanted coefficients or energy, and 0 to 1")
        if self.change == "coefficients" and len(self.variation) != len(self.sigma) - 1:
            raise ValueError("the curve has no variation of the coefficients: measure it anew, or take the change of the energy")
        if not self.changes.any():
            raise ValueError("the high frequencies never change: measure a trained model, over at least 2 steps")

    @property
    def changes(self) -> np.ndarray:
        """N - 1 changes of the high frequencies between a step and the next, 0 or more."""
        return np.array(self.variation) if self.change == "coefficients" else np.abs(np.diff(self.energy))

    def density(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns N + 1 noise levels that rise from 0 to 1, and the probability of each of the N intervals between them.

        It is the change between two steps, its sum made 1, mixed with the uniform distribution, so that every noise level of
        sampling is trained. Below the last noise level nothing was measured: the floor alone.
        """
        sigma, change = np.array([*self.sigma, 0.0])[::-1], np.array([*self.changes, 0.0])[::-1]
        return sigma, (1 - self.floor) * change / change.sum() + self.floor * np.diff(sigma) / (sigma[-1] - sigma[0])

    def sample(self, uniform: Tensor) -> Tensor:
        """Returns noise levels of uniform's shape, float32, by the inverse of the cumulative distribution.

        Args:
            uniform: Samples of the uniform distribution on [0, 1].
        """
        sigma, density = self.density()
        drawn = np.interp(uniform.numpy(), np.concatenate(([0], density.cumsum())) / density.sum(), sigma)
        return torch.from_numpy(drawn).float()


def load_curve(path: Path) -> Curve:
    """Returns the curve of a JSON file. Raises ValueError that names the file when it has none."""
    try:
        values = json.loads(Path(path).read_text())
        lists = {name: tuple(values[name]) for name in ("sigma", "energy", "variation") if name in values}
        return Curve(**lists, **{name: values[name] for name in ("clips", "change", "floor") if name in values})
    except (FileNotFoundError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no curve ({error!r}): measure one with `simplegvr curve`") from error
