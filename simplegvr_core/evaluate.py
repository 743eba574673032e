"""Evaluation: `python scripts/run.py -m simplegvr_core.evaluate --clips DIR --methods gvr,latent_bilinear,bicubic --scale 3 --out DIR`.

Each clip is the high-resolution truth; area averaging makes the low-resolution input. A method is a function
(video_lr, scale, models) -> video of scale times the size. video: (1, 3, F, H, W) in [-1, 1].
"""

import json
import time
from collections import Counter
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from pathlib import Path

import torch
import tyro
from torch import Tensor
from tqdm import tqdm

from . import metrics, peers, report
from .checkpoint import parse_config
from .command_line import plain_errors
from .data import area_downscale, find_videos, read_video, resize_frames, shrink, to_images, to_video, write_video
from .files import write_text
from .model import SimpleGVRDiT, load_dit
from .sampling import SamplingConfig, scaled_size, super_resolve
from .upsampler import LatentUpsampler, load_upsampler, resize
from .vae import TinyVAE, load_tiny_vae

BUNDLE = Path(__file__).resolve().parents[1] / "models"


@dataclass(frozen=True)
class Models:
    """The networks that methods share, on one device."""

    vae: TinyVAE
    upsampler: LatentUpsampler
    dit: SimpleGVRDiT
    sampling: SamplingConfig
    seed: int


def gvr(video_lr: Tensor, scale: int, models: Models) -> Tensor:
    """SimpleGVR: encode, upsample the latent, refine it, decode."""
    z_lr = models.vae.encode(video_lr)
    null = torch.zeros(len(z_lr), 1, models.dit.config.text_dim, device=z_lr.device)
    size = scaled_size(z_lr.shape[3:], scale)
    z = super_resolve(models.dit, models.upsampler, z_lr, size, models.sampling, null, null, models.seed, models.seed + 1)
    return models.vae.decode(z)


def upsampler(video_lr: Tensor, scale: int, models: Models) -> Tensor:
    """The latent upsampler alone: encode, upsample the latent, decode."""
    z_lr = models.vae.encode(video_lr)
    return models.vae.decode(models.upsampler(z_lr, scaled_size(z_lr.shape[3:], scale)))


def latent_bilinear(video_lr: Tensor, scale: int, models: Models) -> Tensor:
    """Encode, resize the latent bilinearly, decode."""
    z_lr = models.vae.encode(video_lr)
    return models.vae.decode(resize(z_lr, scaled_size(z_lr.shape[3:], scale)))


def decoded_bilinear(video_lr: Tensor, scale: int, models: Models) -> Tensor:
    """Encode, decode, bilinear resize of the pixels: what there is to gain over, since the autoencoder costs quality too."""
    return bilinear(vae(video_lr, 1, models), scale, models)


def decoded_bicubic(video_lr: Tensor, scale: int, models: Models) -> Tensor:
    """Encode, decode, bicubic resize of the pixels."""
    return bicubic(vae(video_lr, 1, models), scale, models)


def bilinear(video_lr: Tensor, scale: int, models: Models) -> Tensor:
    """Bilinear resize of the pixels."""
    return resize_frames(video_lr, scaled_size(video_lr.shape[3:], scale), "bilinear")


def bicubic(video_lr: Tensor, scale: int, models: Models) -> Tensor:
    """Bicubic resize of the pixels."""
    return resize_frames(video_lr, scaled_size(video_lr.shape[3:], scale), "bicubic")


def vae(video: Tensor, scale: int, models: Models) -> Tensor:
    """Encode and decode the original: what the autoencoder keeps, which a method in its latents can hardly exceed."""
    return cut(models.vae.decode(models.vae.encode(video)), video)


def vae_linear(video: Tensor, scale: int, models: Models) -> Tensor:
    """The same with the autoencoder's closed form alone."""
    return cut(models.vae.linear_decode(models.vae.encode(video)), video)


def cut(video: Tensor, original: Tensor) -> Tensor:
    """Returns video without what the autoencoder's whole blocks have beyond original's frames and size."""
    return video[:, :, : original.shape[2], : original.shape[3], : original.shape[4]]


OURS = {method.__name__: method for method in (gvr, upsampler, latent_bilinear, decoded_bilinear, decoded_bicubic, bilinear, bicubic)}
RECONSTRUCTIONS = {method.__name__: method for method in (vae, vae_linear)}  # of the original; scale is 1
METHODS = OURS | RECONSTRUCTIONS | peers.PEERS


@dataclass(frozen=True)
class Evaluate:
    """Compares methods on a folder of clips: quality and time of each, their videos, a picture of each clip, tables."""

    clips: Path
    out: Path
    methods: str = "gvr,upsampler,latent_bilinear,bicubic"
    """Names with commas, of: gvr, upsampler, latent_bilinear, decoded_bilinear, decoded_bicubic, bilinear, bicubic; vae,
    vae_linear (the original encoded and decoded); basicvsr, animesr, span, animevideo (fetch them: simplegvr_core.peers)."""
    scale: int = 3
    num_frames: int = 17
    """How many frames of each clip, from its start."""
    height: int = 360
    """Taller clips are made this tall by area averaging."""
    steps: int | None = None
    """Sampling steps of gvr; by default what its checkpoint says."""
    seed: int = 0
    device: str = "cpu"
    vae: Path = BUNDLE / "simplegvr_tiny_vae" / "gvr_tiny_vae.safetensors"
    upsampler: Path = BUNDLE / "latent_upscale_models" / "gvr_tiny_upsampler.safetensors"
    model: Path = BUNDLE / "diffusion_models" / "gvr_tiny.safetensors"

    def run(self) -> dict:
        """Returns {"clips": {name: {method: {metric: value}}}, "mean": {method: {...}}, "original": {name: {"warping_error"}}}.

        Writes out/results.json and out/results.md, and for each clip out/NAME/METHOD.mp4 and out/NAME/side_by_side.png. The metrics
        are those of metrics.py and seconds_per_frame. Raises ValueError and FileNotFoundError for arguments and clips of no use.
        """
        methods = self.check()
        models = self.load_models()
        blank = torch.zeros(1, 3, 5, 40 * self.scale, 40 * self.scale)
        for method in methods:  # loads its network, so that no clip's time includes that
            self.apply(method, blank, models)
        results = {"clips": {}, "mean": {}, "original": {}}
        for name, path in tqdm(name_clips(self.clips).items(), unit="clip"):
            original, rate = self.read_original(path)
            results["clips"][name], videos = {}, {}
            motion = metrics.visible_motions(original)
            measures = metrics.METRICS | {"warping_error": partial(metrics.warping_error, motion=motion)}
            for method in methods:
                videos[method], seconds = self.apply(method, original, models)
                values = {metric: measure(videos[method], original) for metric, measure in measures.items()}
                results["clips"][name][method] = values | {"seconds_per_frame": seconds / original.shape[2]}
            results["original"][name] = {"warping_error": metrics.warping_error(original, original, motion)}
            self.write_clip(name, original, videos, results["clips"][name], rate)
        for method in methods:
            values = [clip[method] for clip in results["clips"].values()]
            results["mean"][method] = {metric: sum(value[metric] for value in values) / len(values) for metric in values[0]}
        write_text(self.out / "results.json", json.dumps(results, indent=1))
        write_text(self.out / "results.md", report.markdown(results, self.describe()))
        return results

    def check(self) -> list[str]:
        """Returns the methods' names. Raises ValueError or FileNotFoundError for what would fail later."""
        methods = self.methods.split(",")
        if unknown := set(methods) - METHODS.keys():
            raise ValueError(f"--methods has unknown {', '.join(sorted(unknown))}; known are {', '.join(METHODS)}")
        if self.out.resolve().is_relative_to(self.clips.resolve()):
            raise ValueError(f"--out {self.out} is inside --clips {self.clips}: its videos would be taken for clips")
        for method in set(methods) & peers.PEERS.keys():
            peers.find(method)
        return methods

    def load_models(self) -> Models:
        dit, config = load_dit(self.model)
        sampling = parse_config(SamplingConfig, config, "sampling", self.model)
        return Models(
            load_tiny_vae(self.vae).to(self.device),
            load_upsampler(self.upsampler).to(self.device),
            dit.to(self.device),
            replace(sampling, steps=self.steps or sampling.steps),
            self.seed,
        )

    def read_original(self, path: Path) -> tuple[Tensor, Fraction]:
        """Returns a clip's video, cut to multiples of scale, and its frame rate. Raises ValueError when it is one frame or tiny."""
        images, rate = read_video(path, self.num_frames)
        video = to_video(torch.stack([shrink(image, self.height) for image in images])).to(self.device)
        height, width = (extent // self.scale * self.scale for extent in video.shape[3:])
        if len(images) < 2 or min(height, width) < metrics.SMALLEST:
            raise ValueError(
                f"{path} has {len(images)} frames of {width} x {height}, wanted at least 2 of {metrics.SMALLEST} x {metrics.SMALLEST}"
            )
        return video[..., :height, :width], rate

    def apply(self, method: str, original: Tensor, models: Models) -> tuple[Tensor, float]:
        """Returns the method's video of original's size, and the seconds that it took."""
        original = original.to(self.device)
        source, scale = (original, 1) if method in RECONSTRUCTIONS else (area_downscale(original, self.scale), self.scale)
        start = time.perf_counter()
        with torch.inference_mode():
            video = METHODS[method](source, scale, models)
        video.sum().item()  # waits for the device
        return cut(video, original).clamp(-1, 1), time.perf_counter() - start

    def write_clip(self, name: str, original: Tensor, videos: dict[str, Tensor], values: dict[str, dict], rate: Fraction) -> None:
        """Writes the clip's videos, the original's too, and a picture of its middle frame."""
        images = {"original": to_images(original.cpu())} | {method: to_images(video.cpu()) for method, video in videos.items()}
        for method, frames in images.items():
            write_video(self.out / name / f"{method}.mp4", frames, rate)
        labels = {"original": "original"} | {method: f"{method}  ST-LPIPS {value['st_lpips']:.3f}" for method, value in values.items()}
        middle = original.shape[2] // 2
        report.side_by_side(self.out / name / "side_by_side.png", {labels[method]: frames[middle] for method, frames in images.items()})

    def describe(self) -> str:
        """Returns the command and what it left to defaults, for the tables."""
        command = f"python3 scripts/run.py -m simplegvr_core.evaluate --clips CLIPS --methods {self.methods} --scale {self.scale} --out DIR"
        steps = f"{self.steps} steps" if self.steps else "the checkpoint's steps"
        frames = f"the first {self.num_frames} frames of each clip, at most {self.height} lines"
        return f"```\n{command}\n```\nHere: {frames}, seed {self.seed}, {steps}, on {self.device}."


def name_clips(folder: Path) -> dict[str, Path]:
    """Returns {name: path} of a folder's videos: the path in it, without the suffix where that tells all of them apart."""
    paths = [path.relative_to(folder) for path in find_videos(folder)]
    count = Counter(path.with_suffix("") for path in paths)
    unique = max(count.values()) == 1
    return {(path.with_suffix("") if unique else path).as_posix(): folder / path for path in paths}


if __name__ == "__main__":
    with plain_errors():
        run = tyro.cli(Evaluate)
        results = run.run()
        print((run.out / "results.md").read_text())
        print(json.dumps(results))
