"""The paper's ablations at toy scale: `simplegvr ablate --videos DIR --held-out DIR --t2v FILE --out DIR`.

Each variant is trained from random weights with several seeds and measured on clips outside its training data. A small model on
one CPU cannot decide what the paper measured on sixteen GPUs; the table has, for each comparison, whether the order is the paper's.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from statistics import mean, stdev

import torch
import tyro
from tqdm import tqdm

from ..checks import check_folder
from ..evaluation import metrics
from ..evaluation.result import EvaluationClip, Result
from ..files import GVR_TINY_VAE, sha256, write_text
from ..networks.attention import AttentionConfig
from ..networks.dit import DiTConfig, load_dit
from ..networks.tiny_vae import TinyVAE, load_tiny_vae
from ..networks.upsampler import VARIANTS, load_upsampler
from ..sampling.solvers import Solver
from ..sampling.super_resolve import SamplingConfig, super_resolve
from ..training.batches import Crop
from ..training.build_pairs import BuildPairs
from ..training.loop import LoopConfig
from ..training.measure_curve import MeasureCurve
from ..training.pairs import Pairs
from ..training.presets import TINY
from ..training.train import Train

BASE = replace(
    TINY,
    dit=DiTConfig(dim=128, ffn_dim=256, num_heads=2, num_layers=2),
    attention=AttentionConfig(window=(1, 3, 3)),
    upsampler=replace(VARIANTS["simplegvr"], width=16, latents="tiny_vae"),
    sampling=SamplingConfig(steps=6, shift=3.0, noise_augmentation=0.45),
    noise_range=(0.3, 0.6),
    upsampler_loss=0.0,
    perceptual_loss=0.0,
    crop=Crop(num_frames=9, size=(12, 12), batch=2),
    loop=LoopConfig(steps=250, learning_rate=2e-3, warmup=20, ema=0.98, save_every=1000),
)
SWIN, FULL = AttentionConfig(kind="swin", window=(1, 3, 3)), AttentionConfig(kind="full", unit=None)

# Axis -> {variant: what it changes of BASE}, the paper's choice first; "curve" and "pairs" are filled in by name.
AXES = {
    "upsampler": {
        "temporal expansion": {},
        "channel expansion": {"upsampler": replace(VARIANTS["channel_expansion"], width=16, latents="tiny_vae")},
        "bilinear": {"upsampler": replace(VARIANTS["bilinear"], latents="tiny_vae")},
    },
    "timesteps": {"detail-aware": {"curve": "curve"}, "uniform": {}},
    "noise range": {
        "middle": {},
        "small": {"noise_range": (0.0, 0.3), "sampling": replace(BASE.sampling, noise_augmentation=0.15)},
        "large": {"noise_range": (0.6, 0.9), "sampling": replace(BASE.sampling, noise_augmentation=0.75)},
    },
    "noise order": {
        "after upsampler": {},
        "before upsampler": {"sampling": replace(BASE.sampling, noise_order="before_upsampler")},
    },
    "degradation": {
        "+ model-guided": {"pairs": ("classical", "aigc")},
        "+ flow-based": {},
        "classical": {"pairs": ("classical",)},
    },
    "condition": {"channels": {}, "tokens": {"dit": replace(BASE.dit, condition="token")}},
    "attention": {"sparse local": {}, "swin": {"attention": SWIN}, "full": {"attention": FULL}},
}
# What the paper has: groups of variants from better to worse, equal inside a group; no group where it compares without an order.
PAPER: dict[str, list[list[str]]] = {
    "upsampler": [["temporal expansion"], ["channel expansion", "bilinear"]],  # DOVER 61.25, 59.43, 59.43 (ICLR)
    "timesteps": [["detail-aware"], ["uniform"]],  # 69.64, 68.94 (figure 6)
    "noise range": [["middle"], ["small", "large"]],  # the middle one is best; the others fail in different ways (figure 7)
    "noise order": [["after upsampler", "before upsampler"]],  # version 1 has the first, the ICLR formula the second; no comparison
    "degradation": [["+ model-guided"], ["+ flow-based"], ["classical"]],  # 69.64, 63.41, 61.25 (ICLR)
    "condition": [["channels"], ["tokens"]],  # 61.25, 58.03 (ICLR)
    "attention": [["full"], ["sparse local"], ["swin"]],  # 69.64, 69.11, 67.95 (table 2); full is the upper bound
}


@dataclass(frozen=True)
class Ablate:
    """Trains every variant with every seed; writes ablation.json and ablation.md."""

    videos: Path
    """Folder of videos to train on."""
    held_out: Path
    """Folder of videos to measure on, none of them in --videos."""
    out: Path
    """Folder for pairs, runs and results. Finished runs with the same options are used again."""
    t2v: Path
    """Text-to-video checkpoint for the model-guided degradation."""
    vae: Path = GVR_TINY_VAE
    """TinyVAE of all latents."""
    axes: tuple[str, ...] = tuple(AXES)
    """Axes to compare."""
    seeds: int = 3
    """Runs of each variant."""
    steps: int = BASE.loop.steps
    """Optimizer steps of each run."""
    height: int = 240
    """Height in pixels to which taller video is reduced by area averaging."""
    spacing: int = 240
    """Video frames from the start of one training clip to that of the next."""
    solver: Solver = "euler"
    """Solver of the measured models."""
    clips: int = 6
    """Held-out clips that each model is measured on."""

    def run(self) -> dict:
        """Trains and measures all variants.

        Returns:
            {axis: {"variants": {variant: {metric: {"mean", "spread", "runs"}}}, "paper": its order, "direction",
            "seeds_in_favor"}}, as summarise does.

        Raises:
            ValueError: An axis is unknown, or what the runs raise.
            OSError: --out cannot be written.
        """
        if unknown := set(self.axes) - AXES.keys():
            raise ValueError(f"--axes has unknown {', '.join(sorted(unknown))}; known are {', '.join(AXES)}")
        check_folder(self.out)
        self.build_pairs()
        vae = load_tiny_vae(self.vae)
        runs = [(axis, variant, seed) for axis in self.axes for variant in AXES[axis] for seed in range(self.seeds)]
        results = {axis: {variant: [] for variant in AXES[axis]} for axis in self.axes}
        for axis, variant, seed in tqdm(runs, unit="run"):
            results[axis][variant].append(self.measure(self.trained(AXES[axis][variant], seed), vae))
        table = {axis: summarise(variants, PAPER[axis]) for axis, variants in results.items()}
        write_text(self.out / "ablation.json", json.dumps(table, indent=1))
        write_text(self.out / "ablation.md", as_markdown(table))
        return table

    def build_pairs(self) -> None:
        """Builds training pairs and held-out pairs by each degradation."""
        for recipe in ("classical", "flow_based", "aigc"):
            for videos, kind, spacing in ((self.videos, "pairs", self.spacing), (self.held_out, "held_out", 24)):
                BuildPairs(
                    videos,
                    self.vae,
                    self.out / kind / recipe,
                    recipe,
                    t2v=self.t2v,
                    num_frames=BASE.crop.num_frames,
                    spacing=spacing,
                    height=self.height,
                    scales=(2,),
                ).run()

    def options(self, change: dict, seed: int) -> Train:
        """Returns the training of BASE with a change. Its folder is named after all options and files that decide its result."""
        pairs = tuple(self.out / "pairs" / recipe for recipe in change.get("pairs", ("classical", "flow_based")))
        loop = replace(BASE.loop, steps=self.steps, seed=seed)
        train = replace(BASE, **change | {"pairs": pairs, "loop": loop, "vae": None})
        if "curve" in change:
            train = replace(train, curve=self.curve(seed))
        decisive = repr((train, self.files, self.videos, self.height, self.spacing))
        return replace(train, out=self.out / "runs" / hashlib.sha256(decisive.encode()).hexdigest()[:16])

    @cached_property
    def files(self) -> dict[Path, str]:
        """Checksums of the networks that make pairs."""
        return {path: sha256(path) for path in (self.vae, self.t2v)}

    def trained(self, change: dict, seed: int) -> Train:
        """Returns the finished training of BASE with a change. A finished run with the same options is used again."""
        train = self.options(change, seed)
        if not (train.out / "dit.safetensors").exists():
            train.run()
        return train

    def curve(self, seed: int) -> Path:
        """Returns the file of the curve, over training clips, of the model with a uniform timestep density."""
        uniform = self.trained({}, seed).out
        path = uniform / "curve.json"
        if not path.exists():
            model, upsampler = uniform / "dit.safetensors", uniform / "upsampler.safetensors"
            MeasureCurve(self.out / "pairs" / "flow_based", path, model, upsampler, clips=self.clips, steps=20).run()
        return path

    @torch.inference_mode()
    def measure(self, train: Train, vae: TinyVAE) -> dict[str, float]:
        """Returns PSNR, ST-LPIPS and warping error of the decoded results against the decoded targets."""
        dit, upsampler = load_dit(train.out / "dit.safetensors")[0], load_upsampler(train.out / "upsampler.safetensors")
        folders, measured = [Pairs(folder) for folder in sorted((self.out / "held_out").iterdir())], []
        for i in range(self.clips):
            pairs = folders[i % len(folders)]
            z_lr, z_hr = pairs[i * len(pairs) // self.clips]
            z_lr, z_hr = z_lr[None, :, :, :8, :8], z_hr[None, :, :, :16, :16]
            height, width = z_hr.shape[3:]
            z = super_resolve(dit, upsampler, z_lr, (height, width), sampling=replace(train.sampling, solver=self.solver), noise_seed=1)
            video, original = vae.decode(z), vae.decode(z_hr).clamp(-1, 1)
            result = Result(video, EvaluationClip((original.shape[3], original.shape[4]), original))
            measured.append({name: metrics.measure(name, result).value for name in ("psnr", "st_lpips", "warping_error")})
        return {name: mean(clip[name] for clip in measured) for name in measured[0]}


def summarise(variants: dict[str, list[dict]], paper: list[list[str]]) -> dict:
    """Returns the mean and spread (standard deviation over seeds) of each variant's metrics, and whether the paper's order held.

    Runs of one seed start alike and, with the same pairs, see the same crops in the same order, so ST-LPIPS is compared seed by seed,
    between variants of neighboring groups: the paper has no order inside a group. "held": each variant is better than each of the next
    group with every seed; "did not hold": somewhere it is worse with every seed; "undecided": neither. "no order": the paper has one
    group.

    Args:
        variants: Metrics of each run, by variant, seeds in one order.
        paper: Groups of variants from better to worse, as the paper has them.
    """
    table = {}
    for variant, runs in variants.items():
        columns = {name: [run[name] for run in runs] for name in runs[0]}
        table[variant] = {name: {"mean": mean(v), "spread": stdev(v) if len(v) > 1 else 0.0, "runs": v} for name, v in columns.items()}
    neighbors = [(better, worse) for group, below in pairwise(paper) for better in group for worse in below]
    seeds = [
        [b < w for b, w in zip(table[better]["st_lpips"]["runs"], table[worse]["st_lpips"]["runs"], strict=True)]
        for better, worse in neighbors
    ]
    direction = "undecided" if neighbors else "no order"
    if neighbors and all(map(all, seeds)):
        direction = "held"
    elif not all(map(any, seeds)):
        direction = "did not hold"
    counts = {f"{better} > {worse}": sum(wins) for (better, worse), wins in zip(neighbors, seeds, strict=True)}
    return {"variants": table, "paper": " > ".join(" = ".join(group) for group in paper), "direction": direction, "seeds_in_favor": counts}


def as_markdown(table: dict) -> str:
    """Returns a table of all axes in Markdown. table: as Ablate.run returns it."""
    lines = ["| axis | variant | PSNR (dB) | ST-LPIPS | warping error (1e-3) | paper's order | here |", "|---|---|---|---|---|---|---|"]
    for axis, entry in table.items():
        for i, (variant, columns) in enumerate(entry["variants"].items()):
            cells = [f"{column['mean']:.3f} ± {column['spread']:.3f}" for column in columns.values()]
            lines.append("| " + " | ".join([axis, variant, *cells, *((entry["paper"], verdict(entry)) if i == 0 else ("", ""))]) + " |")
    return "\n".join(lines) + "\n"


def verdict(entry: dict) -> str:
    """Returns whether the paper's order of an axis held, and for each pair of its variants with how many of the seeds.

    Args:
        entry: As summarise returns it; files of earlier versions have no seeds_in_favor.
    """
    pairs = entry.get("seeds_in_favor")
    if not pairs:
        return entry["direction"]
    seeds = len(next(iter(entry["variants"].values()))["st_lpips"]["runs"])
    return f"{entry['direction']} ({'; '.join(f'{pair}: {wins} of {seeds}' for pair, wins in pairs.items())})"


def main(arguments: Sequence[str]) -> dict:
    """Runs the ablations that the command line asks for and returns Ablate.run's results."""
    results = tyro.cli(Ablate, prog="simplegvr ablate", args=arguments).run()
    print(as_markdown(results))
    return results
