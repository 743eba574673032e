"""The paper's ablations at toy scale: `python3 scripts/run.py ablate --videos DIR --held-out DIR --out DIR`.

Each variant is trained from drawn weights with several seeds and measured on clips it never saw. A small model on one CPU
cannot decide what the paper's found out on sixteen GPUs; the table says for each comparison whether the direction held.
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

from ..evaluation import metrics
from ..evaluation.result import EvaluationClip, Result
from ..files import sha256, write_text
from ..networks.attention import AttentionConfig
from ..networks.dit import DiTConfig, load_dit
from ..networks.tiny_vae import TinyVAE, load_tiny_vae
from ..networks.upsampler import VARIANTS, load_upsampler
from ..sampling.super_resolve import SamplingConfig, super_resolve
from ..training.batches import Crop
from ..training.build_pairs import BuildPairs
from ..training.loop import LoopConfig
from ..training.measure_curve import MeasureCurve
from ..training.pairs import Pairs
from ..training.presets import PRESETS
from ..training.train import Train

BASE = replace(
    PRESETS["tiny_stage1"],
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
    "degradation": {
        "+ model-guided": {"pairs": ("classical", "flow_based", "model_guided")},
        "+ flow-based": {},
        "classical": {"pairs": ("classical",)},
    },
    "condition": {"channels": {}, "tokens": {"dit": replace(BASE.dit, condition="token")}},
    "attention": {"sparse local": {}, "swin": {"attention": SWIN}, "full": {"attention": FULL}},
}
# What the paper orders from better to worse, by axis (its Tables 2 and 3, Fig. 7 and 10); full attention is its upper bound.
PAPER = {axis: list(variants) for axis, variants in AXES.items()} | {"attention": ["full", "sparse local", "swin"]}


@dataclass(frozen=True)
class Ablate:
    """Trains every variant with every seed; writes ablation.json and ablation.md."""

    videos: Path
    held_out: Path
    """Folder of videos to measure on, none of them in --videos."""
    out: Path
    t2v: Path
    """Text-to-video checkpoint for the model-guided degradation."""
    vae: Path = PRESETS["tiny_stage1"].vae
    axes: tuple[str, ...] = tuple(AXES)
    seeds: int = 3
    steps: int = BASE.loop.steps
    height: int = 240
    spacing: int = 240
    """Frames from the start of one training clip to the next."""
    clips: int = 6
    """Unseen clips that each model is measured on."""

    def run(self) -> dict:
        """Returns {axis: {variant: {metric: {"mean", "spread", "runs"}}}, ...} with what became of the paper's direction."""
        if unknown := set(self.axes) - AXES.keys():
            raise ValueError(f"--axes has unknown {', '.join(sorted(unknown))}; known are {', '.join(AXES)}")
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
        """Builds the training pairs of each degradation, and pairs of what is held out, by each in turn."""
        shared = {"num_frames": BASE.crop.num_frames, "height": self.height, "scales": (2,), "t2v": self.t2v}
        for recipe in ("classical", "flow_based", "model_guided"):
            BuildPairs(self.videos, self.vae, self.out / "pairs" / recipe, recipe, spacing=self.spacing, **shared).run()
            BuildPairs(self.held_out, self.vae, self.out / "held_out" / recipe, recipe, spacing=24, **shared).run()

    def options(self, change: dict, seed: int) -> Train:
        """Returns the training of BASE with a change. Its folder is named after all that decides what comes out."""
        pairs = tuple(self.out / "pairs" / recipe for recipe in change.get("pairs", ("classical", "flow_based")))
        loop = replace(BASE.loop, steps=self.steps, seed=seed)
        train = replace(BASE, **change | {"pairs": pairs, "loop": loop, "vae": None})
        if "curve" in change:
            train = replace(train, curve=self.curve(seed))
        decisive = repr((train, self.files, self.videos, self.height, self.spacing))
        return replace(train, out=self.out / "runs" / hashlib.sha256(decisive.encode()).hexdigest()[:16])

    @cached_property
    def files(self) -> dict[Path, str]:
        """The checksums of what pairs are made with."""
        return {path: sha256(path) for path in (self.vae, self.t2v)}

    def trained(self, change: dict, seed: int) -> Train:
        """Returns the finished training of BASE with a change. What was trained with the very same options is taken as it is."""
        train = self.options(change, seed)
        if not (train.out / "dit.safetensors").exists():
            train.run()
        return train

    def curve(self, seed: int) -> Path:
        """Returns the curve of the model that was trained with even noise levels, over training clips."""
        uniform = self.trained({}, seed).out
        path = uniform / "curve.json"
        if not path.exists():
            files = {"model": uniform / "dit.safetensors", "upsampler": uniform / "upsampler.safetensors"}
            MeasureCurve(self.out / "pairs" / "flow_based", path, **files, clips=self.clips, steps=20).run()
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
            z = super_resolve(dit, upsampler, z_lr, z_hr.shape[3:], sampling=train.sampling, noise_seed=1)
            video, original = vae.decode(z), vae.decode(z_hr).clamp(-1, 1)
            result = Result(video, EvaluationClip(tuple(original.shape[3:]), original))
            measured.append({name: metrics.measure(name, result).value for name in ("psnr", "st_lpips", "warping_error")})
        return {name: mean(clip[name] for clip in measured) for name in measured[0]}


def summarise(variants: dict[str, list[dict]], paper: list[str]) -> dict:
    """Returns mean and spread (standard deviation over seeds) of each variant's metrics, and what became of the paper's order.

    The measure is ST-LPIPS, of detail. "held": it rises from each variant to the next by more than both spreads together;
    "did not hold": somewhere it falls by more; "undecided": neither.
    """
    table = {}
    for variant, runs in variants.items():
        columns = {name: [run[name] for run in runs] for name in runs[0]}
        table[variant] = {name: {"mean": mean(v), "spread": stdev(v) if len(v) > 1 else 0.0, "runs": v} for name, v in columns.items()}
    distance = [table[variant]["st_lpips"] for variant in paper]
    gaps = [(worse["mean"] - better["mean"], worse["spread"] + better["spread"]) for better, worse in pairwise(distance)]
    direction = "undecided"
    if all(gap > spread for gap, spread in gaps):
        direction = "held"
    elif any(gap < -spread for gap, spread in gaps):
        direction = "did not hold"
    return {"variants": table, "paper": " > ".join(paper), "direction": direction}


def as_markdown(table: dict) -> str:
    """Returns the table of all axes."""
    lines = ["| axis | variant | PSNR (dB) | ST-LPIPS | warping error (1e-3) | paper's order | here |", "|---|---|---|---|---|---|---|"]
    for axis, entry in table.items():
        for i, (variant, columns) in enumerate(entry["variants"].items()):
            cells = [f"{column['mean']:.3f} ± {column['spread']:.3f}" for column in columns.values()]
            lines.append("| " + " | ".join([axis, variant, *cells, *((entry["paper"], entry["direction"]) if i == 0 else ("", ""))]) + " |")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str]) -> dict:
    results = tyro.cli(Ablate, prog="simplegvr ablate", args=arguments).run()
    print(as_markdown(results))
    return results
