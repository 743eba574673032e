"""Evaluation: `python scripts/run.py -m simplegvr_core.evaluate --clips DIR --methods gvr,latent_bilinear,bicubic`.

Each clip is the high-resolution truth; area averaging makes the low-resolution input. A method is a function
(video_lr, scale, models) -> video of scale times the size. video: (1, 3, F, H, W) in [-1, 1].
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import tyro
from torch import Tensor
from tqdm import tqdm

from . import metrics
from .checkpoint import parse_config
from .data import area_downscale, find_videos, read_video, resize_frames, shrink, to_images, to_video, write_video
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
    decoded = models.vae.decode(models.vae.encode(video_lr))[..., : video_lr.shape[3], : video_lr.shape[4]]
    return bilinear(decoded, scale, models)


def bilinear(video_lr: Tensor, scale: int, models: Models) -> Tensor:
    """Bilinear resize of the pixels."""
    return resize_frames(video_lr, scaled_size(video_lr.shape[3:], scale), "bilinear")


def bicubic(video_lr: Tensor, scale: int, models: Models) -> Tensor:
    """Bicubic resize of the pixels."""
    return resize_frames(video_lr, scaled_size(video_lr.shape[3:], scale), "bicubic")


METHODS = {method.__name__: method for method in (gvr, upsampler, latent_bilinear, decoded_bilinear, bilinear, bicubic)}


@dataclass(frozen=True)
class Evaluate:
    """Compares methods on a folder of clips: PSNR and SSIM of each, and their videos."""

    clips: Path
    out: Path
    methods: str = "gvr,upsampler,latent_bilinear,bicubic"
    """Names with commas, of: gvr, upsampler, latent_bilinear, decoded_bilinear, bilinear, bicubic."""
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
        """Returns {"clips": {name: {method: {"psnr", "ssim"}}}, "mean": {method: {...}}}."""
        methods = self.methods.split(",")
        if unknown := set(methods) - METHODS.keys():
            raise ValueError(f"--methods has unknown {', '.join(sorted(unknown))}; known are {', '.join(METHODS)}")
        if self.out.resolve().is_relative_to(self.clips.resolve()):
            raise ValueError(f"--out {self.out} is inside --clips {self.clips}: its videos would be taken for clips")
        models = self.load_models()
        results = {}
        for path in tqdm(find_videos(self.clips), unit="clip"):
            original, rate = self.read_original(path)
            video_lr = area_downscale(original, self.scale)
            name = "_".join(path.relative_to(self.clips).with_suffix("").parts)
            results[name] = {}
            for method in methods:
                with torch.inference_mode():
                    video = METHODS[method](video_lr, self.scale, models)
                video = video[:, :, : original.shape[2], : original.shape[3], : original.shape[4]]
                results[name][method] = {"psnr": metrics.psnr(video, original), "ssim": metrics.ssim(video, original)}
                write_video(self.out / f"{name}_{method}.mp4", to_images(video.cpu()), rate)
        mean = {
            method: {metric: sum(clip[method][metric] for clip in results.values()) / len(results) for metric in ("psnr", "ssim")}
            for method in methods
        }
        return {"clips": results, "mean": mean}

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

    def read_original(self, path: Path) -> tuple[Tensor, object]:
        """Returns a clip's video, cut to multiples of scale, and its frame rate."""
        images, rate = read_video(path, self.num_frames)
        video = to_video(torch.stack([shrink(image, self.height) for image in images])).to(self.device)
        height, width = (extent // self.scale * self.scale for extent in video.shape[3:])
        return video[..., :height, :width], rate


def print_table(results: dict) -> None:
    """Prints PSNR in dB and SSIM of every clip and method."""
    methods = list(results["mean"])
    print("| clip | " + " | ".join(methods) + " |\n" + "|---" * (1 + len(methods)) + "|")
    for name, clip in [*results["clips"].items(), ("mean", results["mean"])]:
        print(f"| {name} | " + " | ".join(f"{clip[m]['psnr']:.2f} dB, {clip[m]['ssim']:.3f}" for m in methods) + " |")


if __name__ == "__main__":
    results = tyro.cli(Evaluate).run()
    print_table(results)
    print(json.dumps(results))
