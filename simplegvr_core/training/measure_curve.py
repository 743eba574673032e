"""Measures the curve of the detail-aware timestep density: `simplegvr curve --pairs DIR --out curve.json`.

During sampling, the predicted clean latent gains fine detail, more in some steps than in others (paper, section 4.3, figure 5).

B batch, N sampling steps; sigma in [0, 1]: 1 is noise; latents are normalised
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import scipy.fft
import tyro
from torch import Tensor
from tqdm import tqdm

from ..checks import check_file
from ..files import GVR_TINY, GVR_TINY_UPSAMPLER, atomic_write, write_text
from ..flow import shifted_sigmas
from ..networks.checkpoint import parse_config
from ..networks.dit import SimpleGVRDiT, load_dit
from ..networks.layers import default_device, mixed_precision
from ..networks.upsampler import Upsampler, load_upsampler
from ..sampling.super_resolve import SamplingConfig, super_resolve
from ..sampling.timesteps import FLOOR, Change, Curve
from .pairs import Pairs


def high_frequencies(z: Tensor) -> np.ndarray:
    """Returns the cosine coefficients (B, C, T, K) in the upper half of either axis: detail that half the size would lose.

    Args:
        z: Latent (B, C, T, H, W); each latent frame is transformed alone (orthonormal DCT-II).
    """
    coefficients = np.asarray(scipy.fft.dctn(z.cpu().double().numpy(), axes=(-2, -1), norm="ortho"))
    height, width = z.shape[-2:]
    rows, columns = np.arange(height)[:, None] >= height / 2, np.arange(width) >= width / 2
    return coefficients[..., rows | columns]


def measure_curve(
    model: SimpleGVRDiT,
    upsampler: Upsampler,
    latents: Iterable[tuple[Tensor, tuple[int, int]]],
    *,
    sampling: SamplingConfig,
    seed: int,
    change: Change = "coefficients",
    floor: float = FLOOR,
) -> Curve:
    """Returns the curve of a model over the sampling of clips, for the null prompt.

    Args:
        model: The DiT.
        upsampler: The latent upsampler.
        latents: Low-resolution latent (1, 16, T, h, w) and target size (H, W) in latent pixels of each clip.
        sampling: Its sampling; denoise is set to 1, so that all noise levels occur.
        seed: Seed of the first clip's noise; each clip has its own.
        change: What the density follows, see Curve.
        floor: Weight of the uniform distribution in the density.
    """
    sampling = replace(sampling, denoise=1.0)
    device = next(model.parameters()).device
    sigma, energies, variations = shifted_sigmas(sampling.steps, sampling.shift)[:-1], [], []
    for i, (z_lr, size) in enumerate(tqdm(latents, unit="clip")):
        energy: list[float] = []
        variation: list[float] = []
        last: list[np.ndarray] = []

        def record(
            step: int,
            z_t: Tensor,
            z_0: Tensor,
            energy: list[float] = energy,
            variation: list[float] = variation,
            last: list[np.ndarray] = last,
        ) -> None:
            now = high_frequencies(z_0)
            energy.append(float(np.square(now).mean()))
            variation.extend(float(np.abs(now - before).mean()) for before in last)
            last[:] = [now]

        super_resolve(
            model, upsampler, z_lr.to(device), size, sampling=sampling, seed=seed + 2 * i, noise_seed=seed + 2 * i + 1, on_step=record
        )
        energies.append(energy)
        variations.append(variation)
    means = (tuple(np.mean(rows, axis=0).tolist()) for rows in (energies, variations))
    energy_mean, variation_mean = means
    return Curve(tuple(sigma.tolist()), energy_mean, len(energies), variation_mean, change, floor)


@dataclass(frozen=True)
class MeasureCurve:
    """Measures the curve of a trained model over the sampling of many clips; writes it as JSON and as a picture."""

    pairs: Path
    """Folder of pairs; their low-resolution latents are sampled from."""
    out: Path
    """JSON file of the curve; its picture has the same name and the suffix .png."""
    model: Path = GVR_TINY
    """Checkpoint of the DiT."""
    upsampler: Path = GVR_TINY_UPSAMPLER
    """Checkpoint of the latent upsampler."""
    clips: int = 200
    """Number of pairs, spread over the folder; at most all of them."""
    steps: int = 50
    """Sampling steps."""
    change: Change = "coefficients"
    """What the density follows: the change of the high-frequency coefficients, as the paper has it, or that of their mean energy."""
    floor: float = FLOOR
    """Weight of the uniform distribution in the density, in [0, 1]; the paper has none."""
    seed: int = 0
    """Seed of the first clip's noise."""
    device: str = default_device()
    """Device of the networks: cpu, cuda, cuda:1 and so on."""

    def run(self) -> Curve:
        """Writes and returns the curve.

        Raises:
            ValueError: --out is no .json file, or the pairs cannot be read.
            OSError: --out cannot be written.
        """
        if self.out.suffix != ".json":
            raise ValueError(f"--out is {self.out}, wanted the name of a .json file")
        check_file(self.out)
        pairs = Pairs(self.pairs)
        clips = min(self.clips, len(pairs))
        dit, config = load_dit(self.model)
        dit, upsampler = dit.to(self.device), load_upsampler(self.upsampler).to(self.device)
        sampling = parse_config(SamplingConfig, config, "sampling", self.model)
        chosen = (pairs[i * len(pairs) // clips] for i in range(clips))
        latents = ((z_lr[None], (z_hr.shape[-2], z_hr.shape[-1])) for z_lr, z_hr in chosen)
        sampling = replace(sampling, steps=self.steps)
        with mixed_precision(self.device):
            curve = measure_curve(dit, upsampler, latents, sampling=sampling, seed=self.seed, change=self.change, floor=self.floor)
        write_curve(self.out, curve)
        return curve


def write_curve(path: Path, curve: Curve) -> None:
    """Writes a curve as JSON, and beside it a picture of the energy during sampling and of the timestep density."""
    from matplotlib.figure import Figure  # slow to import; training does not need it

    sigma, density = curve.density()
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    left = figure.add_subplot(1, 2, 1, xlabel="noise level sigma", ylabel="energy of high frequencies", title="predicted clean latent")
    left.plot(curve.sigma, curve.energy, marker=".")
    right = figure.add_subplot(1, 2, 2, xlabel="noise level sigma", ylabel="density", title="detail-aware timestep density")
    right.stairs(density / np.diff(sigma), sigma, fill=True, alpha=0.5)
    right.axhline(1 / (sigma[-1] - sigma[0]), color="0.5", linestyle="--", label="uniform")
    right.legend()
    for axes in (left, right):
        axes.invert_xaxis()  # sampling goes from noise to picture
    with atomic_write(path.with_suffix(".png")) as partial:
        figure.savefig(partial, dpi=120)
    write_text(path, json.dumps(asdict(curve)))


def main(arguments: Sequence[str]) -> dict:
    """Measures a curve as the command line asks and returns it."""
    return asdict(tyro.cli(MeasureCurve, prog="simplegvr curve", args=arguments).run())
