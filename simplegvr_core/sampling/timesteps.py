"""The detail-aware timestep sampler: the timestep density follows where detail appears (paper, section 4.3).

N sampling steps; sigma in [0, 1]: 1 is noise.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

FLOOR = 0.1  # weight of the uniform distribution


@dataclass(frozen=True)
class Curve:
    """High-frequency energy of the predicted clean latent over the steps of sampling, as measure_curve measures it.

    Attributes:
        sigma: N noise levels that fall, one for each step.
        energy: N, the mean over clips.
        clips: Number of clips.
    """

    sigma: tuple[float, ...]
    energy: tuple[float, ...]
    clips: int

    def __post_init__(self):
        if len(set(self.energy)) < 2:
            raise ValueError("the energy of high frequencies never changes: measure a trained model, over at least 2 steps")

    def density(self, floor: float = FLOOR) -> tuple[np.ndarray, np.ndarray]:
        """Returns N + 1 noise levels that rise from 0 to 1, and the probability of each of the N intervals between them.

        It is the change of energy between two steps, its sum made 1, mixed with the uniform distribution, so that every noise level of
        sampling is trained. Below the last noise level nothing was measured: the floor alone.

        Args:
            floor: Weight of the uniform distribution, in [0, 1].
        """
        sigma, change = np.array([*self.sigma, 0.0])[::-1], np.abs(np.diff(self.energy, append=self.energy[-1]))[::-1]
        return sigma, (1 - floor) * change / change.sum() + floor * np.diff(sigma) / (sigma[-1] - sigma[0])

    def sample(self, uniform: Tensor, floor: float = FLOOR) -> Tensor:
        """Returns noise levels of uniform's shape, float32, by the inverse of the cumulative distribution.

        Args:
            uniform: Samples of the uniform distribution on [0, 1].
            floor: See density.
        """
        sigma, density = self.density(floor)
        drawn = np.interp(uniform.numpy(), np.concatenate(([0], density.cumsum())) / density.sum(), sigma)
        return torch.from_numpy(drawn).float()


def load_curve(path: Path) -> Curve:
    """Returns the curve of a JSON file. Raises ValueError that names the file when it has none."""
    try:
        values = json.loads(Path(path).read_text())
        return Curve(tuple(values["sigma"]), tuple(values["energy"]), values["clips"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is no curve ({error!r}): measure one with `simplegvr curve`") from error
