"""Solvers of rectified flow's equation dz / d sigma = v(z, sigma). Each evaluates the network once a step.

A solver is a function (v, v_before, ratio) -> slope, of latents (B, C, T, H, W): a step is z + (sigma_next - sigma) slope.
v is the velocity in this step and v_before that in the step before, None in the first; ratio is step_ratio.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Literal

from torch import Tensor

from ..flow import clean_from_velocity

Solver = Literal["euler", "ab2"]


def euler(v: Tensor, v_before: Tensor | None, ratio: float) -> Tensor:
    """Euler's method (equation 2 of the paper), of first order."""
    return v


def ab2(v: Tensor, v_before: Tensor | None, ratio: float) -> Tensor:
    """The Adams-Bashforth method of second order with steps of unequal length, Euler's in the first step.

    Hairer, Norsett and Wanner, Solving Ordinary Differential Equations I, section III.5. For rectified flow it is tAB-DEIS of order 1
    (Zhang and Chen, arXiv 2204.13902), whose linear part is zero.
    """
    return v if v_before is None else v + ratio / 2 * (v - v_before)


SOLVERS: dict[Solver, Callable[[Tensor, Tensor | None, float], Tensor]] = {"euler": euler, "ab2": ab2}


def step_ratio(sigmas: Tensor, step: int) -> float:
    """Returns the length of a step over that of the step before; 0 in the first.

    Args:
        sigmas: Noise levels that fall, one more than there are steps.
        step: Number of the step.
    """
    return ((sigmas[step + 1] - sigmas[step]) / (sigmas[step] - sigmas[step - 1])).item() if step else 0.0


def integrate(
    velocity: Callable[[Tensor, Tensor], Tensor],
    z: Tensor,
    sigmas: Tensor,
    on_step: Callable[[int, Tensor, Tensor], None] = lambda step, z_t, z_0: None,
    solver: Solver = "euler",
) -> Tensor:
    """Returns z integrated along the velocity through the noise levels.

    Args:
        velocity: (z_t, sigma) -> velocity.
        z: Latent at noise level sigmas[0].
        sigmas: Noise levels that fall, one more than there are steps.
        on_step: Called in each step with its number, z_t and the clean latent z_0 that the velocity predicts.
        solver: Name of the solver.
    """
    v_before = None
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        v = velocity(z, sigma)
        on_step(i, z, clean_from_velocity(z, v, sigma))
        z = z + (sigma_next - sigma) * SOLVERS[solver](v, v_before, step_ratio(sigmas, i))
        v_before = v
    return z
