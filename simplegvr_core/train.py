"""Training: `python scripts/run.py -m simplegvr_core.train {vae,upsampler,gvr} --help`.

One loop, `fit`, and a loss for each model. Everything random comes from one generator, whose state is saved with the
rest, so a killed run goes on with the losses it would have had (unless it is limited in minutes, which are the clock's).
"""

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
import tyro
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from . import checkpoint
from .attention import AttentionConfig
from .data import area_downscale, load_clips, random_crops
from .flow import interpolate, velocity_target
from .model import DiTConfig, SimpleGVRDiT, widen
from .sampling import SamplingConfig
from .upsampler import VARIANTS, LatentUpsampler, load_upsampler
from .vae import TinyVAE, TinyVAEConfig, load_tiny_vae


@dataclass(frozen=True)
class LoopConfig:
    """How long and how fast to train. Runs of the same folder continue where the last one stopped."""

    steps: int = 2000
    learning_rate: float = 1e-3
    warmup: int = 100
    ema: float = 0.998
    save_every: int = 200
    seed: int = 0
    device: str = "cpu"
    minutes: float = float("inf")
    """Stop after this long, however many steps are done; the learning rate follows time instead of steps."""


def fit(model: nn.Module, loss_of: Callable[[torch.Generator], Tensor], loop: LoopConfig, folder: Path) -> nn.Module:
    """Returns model's moving average after training. loss_of: generator -> scalar loss of one batch.

    folder receives state.pt (weights, optimiser, generator; for resuming only) and losses.jsonl.
    Raises FloatingPointError at the first loss that is not finite; the last saved state stays.
    """
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(loop.seed)
    optimizer = torch.optim.AdamW(model.parameters(), loop.learning_rate, betas=(0.9, 0.99))
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(loop.ema))
    parts = {"model": model, "average": average, "optimizer": optimizer}
    state_path, losses_path = folder / "state.pt", folder / "losses.jsonl"
    first, elapsed = 0, 0.0
    if state_path.exists():
        state = torch.load(state_path, map_location=loop.device, weights_only=True)
        for name, part in parts.items():
            part.load_state_dict(state[name])
        generator.set_state(state["generator"].cpu())
        first, elapsed = state["step"], state["elapsed"]
        losses_path.write_text("".join(losses_path.read_text().splitlines(keepends=True)[:first]))
    start = time.monotonic() - elapsed
    progress = tqdm(range(first, loop.steps), initial=first, total=loop.steps, unit="step", mininterval=5)
    for step in progress:
        done = max(step / loop.steps, (time.monotonic() - start) / 60 / loop.minutes)
        rate = loop.learning_rate * min(1.0, (step + 1) / loop.warmup) * (1 - min(done, 1.0)) ** 0.5
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = loss_of(generator)
        if not torch.isfinite(loss):
            raise FloatingPointError(f"loss is {loss.item()} at step {step}: lower learning_rate and start again from {state_path}")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        average.update_parameters(model)
        with losses_path.open("a") as file:
            file.write(json.dumps({"step": step, "loss": loss.item()}) + "\n")
        progress.set_postfix(loss=f"{loss.item():.5f}", refresh=False)
        if (step + 1) % loop.save_every == 0 or step + 1 == loop.steps or done >= 1:
            state = {name: part.state_dict() for name, part in parts.items()}
            elapsed = time.monotonic() - start
            torch.save({**state, "generator": generator.get_state(), "step": step + 1, "elapsed": elapsed}, folder / "state.partial")
            os.replace(folder / "state.partial", state_path)
        if done >= 1:
            break
    return average.module


@dataclass(frozen=True)
class Crops:
    """What a batch is made of. height: taller video is made this tall by area averaging, which hides its compression;
    spacing: frames from the start of one clip to the next."""

    num_frames: int = 17
    size: int = 192
    batch: int = 4
    height: int = 360
    spacing: int = 60


@dataclass(frozen=True)
class TrainVAE:
    """Trains TinyVAE's decoder on crops of a folder of video; its encoder is set once, in closed form."""

    videos: Path
    out: Path
    vae: TinyVAEConfig = TinyVAEConfig()
    loop: LoopConfig = LoopConfig()
    crops: Crops = Crops(num_frames=9, size=96, batch=8)

    def run(self) -> dict:
        clips = load_clips(self.videos, self.crops.num_frames, self.crops.spacing, self.crops.height)
        generator = torch.Generator().manual_seed(self.loop.seed)
        vae = TinyVAE(self.vae)
        vae.init_weights(generator)
        vae.fit_encoder(random_crops(clips, 512, self.crops.num_frames, self.crops.size, generator))
        vae.encoder.requires_grad_(False)
        vae.to(self.loop.device)

        def loss_of(generator: torch.Generator) -> Tensor:
            video = draw_batch(clips, self.crops, generator).to(self.loop.device)
            with torch.autocast(self.loop.device, torch.bfloat16):
                return F.smooth_l1_loss(vae.decode(vae.encode(video)).float(), video, beta=0.05)

        trained = fit(vae, loss_of, self.loop, self.out)
        return {"tiny_vae": save_half(self.out / "tiny_vae.safetensors", "tiny_vae", trained, model=self.vae)}


@dataclass(frozen=True)
class TrainUpsampler:
    """Trains a latent upsampler alone, on pairs made by area averaging."""

    videos: Path
    vae: Path
    out: Path
    variant: Literal["simplegvr", "channel_expansion", "cnn"] = "simplegvr"
    width: int = 64
    loop: LoopConfig = LoopConfig()
    crops: Crops = Crops()
    scales: tuple[int, ...] = (2, 3, 4)

    def run(self) -> dict:
        clips = load_clips(self.videos, self.crops.num_frames, self.crops.spacing, self.crops.height)
        vae = load_tiny_vae(self.vae).to(self.loop.device)
        config = replace(VARIANTS[self.variant], width=self.width)
        upsampler = LatentUpsampler(config)
        upsampler.init_weights(torch.Generator().manual_seed(self.loop.seed))
        upsampler.to(self.loop.device)

        def loss_of(generator: torch.Generator) -> Tensor:
            z_lr, z_hr = draw_pair(clips, self.crops, self.scales, vae, self.loop.device, generator)
            with torch.autocast(self.loop.device, torch.bfloat16):
                return upsampler_loss(upsampler(z_lr, z_hr.shape[3:]), z_hr, vae)

        trained = fit(upsampler, loss_of, self.loop, self.out)
        return {"upsampler": save_half(self.out / "upsampler.safetensors", "upsampler", trained, model=config)}


@dataclass(frozen=True)
class TrainGVR:
    """Trains DiT and upsampler jointly by conditional flow matching, with the null prompt, on pairs made by area
    averaging. The upsampler's own loss is kept beside it, so that its output stays a latent that decodes."""

    videos: Path
    vae: Path
    out: Path
    init_upsampler: Path
    init_t2v: Path | None = None
    """Text-to-video Wan checkpoint (safetensors, stock key names) to start from, widened; --dit must have its sizes."""
    dit: DiTConfig = DiTConfig(dim=256, ffn_dim=1024, num_heads=2, num_layers=4)
    attention: AttentionConfig = AttentionConfig()
    sampling: SamplingConfig = SamplingConfig(steps=4, shift=3.0, noise_augmentation=0.1, denoise=0.3)
    loop: LoopConfig = LoopConfig()
    crops: Crops = Crops()
    scales: tuple[int, ...] = (2, 3, 4)
    noise_range: tuple[float, float] = (0.0, 0.3)
    """Noise share of the condition, drawn evenly; the paper's is (0.3, 0.6)."""

    def run(self) -> dict:
        clips = load_clips(self.videos, self.crops.num_frames, self.crops.spacing, self.crops.height)
        device = self.loop.device
        vae = load_tiny_vae(self.vae).to(device)
        dit = SimpleGVRDiT(self.dit, self.attention)
        dit.init_weights(torch.Generator().manual_seed(self.loop.seed))
        if self.init_t2v is not None:
            checkpoint.load_strict(dit, widen(load_file(self.init_t2v)), self.init_t2v)
        models = nn.ModuleDict({"upsampler": load_upsampler(self.init_upsampler), "dit": dit}).to(device)
        null_context = torch.zeros(self.crops.batch, 1, self.dit.text_dim, device=device)

        def uniform(low: float, high: float, generator: torch.Generator) -> Tensor:
            return (low + (high - low) * torch.rand(self.crops.batch, 1, 1, 1, 1, generator=generator)).to(device)

        def loss_of(generator: torch.Generator) -> Tensor:
            z_lr, z_hr = draw_pair(clips, self.crops, self.scales, vae, device, generator)
            sigma, share = uniform(0, 1, generator), uniform(*self.noise_range, generator)
            noise, condition_noise = (torch.randn(z_hr.shape, generator=generator).to(device) for _ in range(2))
            with torch.autocast(device, torch.bfloat16):
                upsampled = models["upsampler"](z_lr, z_hr.shape[3:]).float()
                condition = interpolate(upsampled, condition_noise, share)
                z = torch.cat((interpolate(z_hr, noise, sigma), condition), dim=1)
                velocity = models["dit"](z, 1000 * sigma.flatten(), null_context).float()
                return F.mse_loss(velocity, velocity_target(z_hr, noise)) + 0.5 * upsampler_loss(upsampled, z_hr, vae)

        trained = fit(models, loss_of, self.loop, self.out)
        configs = {"model": self.dit, "attention": self.attention, "sampling": self.sampling}
        trained_on = {"noise_range": self.noise_range, "num_frames": self.crops.num_frames, "scales": self.scales}
        return {
            "dit": save_half(self.out / "dit.safetensors", "dit", trained["dit"], trained=trained_on, **configs),
            "upsampler": save_half(
                self.out / "upsampler.safetensors", "upsampler", trained["upsampler"], model=trained["upsampler"].config
            ),
        }


def draw_batch(clips: list[Tensor], crops: Crops, generator: torch.Generator) -> Tensor:
    """Returns video (B, 3, F, size, size) in [-1, 1]."""
    return random_crops(clips, crops.batch, crops.num_frames, crops.size, generator)


def draw_pair(clips: list[Tensor], crops: Crops, scales: tuple[int, ...], vae: TinyVAE, device: str, generator: torch.Generator):
    """Returns z_lr (B, 16, T, h, w) and z_hr (B, 16, T, H, W) of one random batch, at one of the scales, float32."""
    video = draw_batch(clips, crops, generator)
    scale = scales[int(torch.randint(len(scales), (), generator=generator))]
    return vae.encode(area_downscale(video, scale).to(device)), vae.encode(video.to(device))


def upsampler_loss(upsampled: Tensor, z_hr: Tensor, vae: TinyVAE) -> Tensor:
    """Returns the mean absolute error of the latent plus five times that of its linearly decoded pixels.

    The latent gives fine detail more weight than the picture does; the second term restores the balance.
    """
    upsampled = upsampled.float()
    return F.l1_loss(upsampled, z_hr) + 5 * F.l1_loss(vae.linear_decode(upsampled), vae.linear_decode(z_hr))


def save_half(path: Path, kind: str, network: nn.Module, **configs) -> str:
    """Writes the network's weights as float16 and returns the path."""
    checkpoint.save(path, kind, {key: tensor.half() for key, tensor in network.state_dict().items()}, **configs)
    return str(path)


if __name__ == "__main__":
    command = tyro.extras.subcommand_cli_from_dict({"vae": TrainVAE, "upsampler": TrainUpsampler, "gvr": TrainGVR})
    print(json.dumps(command.run()))
