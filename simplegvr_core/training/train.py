"""Training of SimpleGVR: `python3 scripts/run.py train --preset stage1 --pairs DIR --init-dit FILE`.

Upsampler and DiT are trained jointly on latent pairs by conditional flow matching (paper, sections 3 and 5.1). Presets are
data: the paper's three stages, those of the bundled gvr_tiny, and a smoke test. Every option of a preset can be given anew.

B batch, T latent frames, h, w low-resolution cells, H, W target cells; latents are normalised
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from pathlib import Path

import torch
from accelerate import PartialState
from torch import Tensor

from ..latent_space import LATENT_CHANNELS, PREVIEW_FACTORS
from ..networks import checkpoint
from ..networks.attention import AttentionConfig
from ..networks.dit import DiTConfig, SimpleGVRDiT, read_dit, read_dit_config, widen
from ..networks.tiny_vae import TinyVAE
from ..networks.upsampler import VARIANTS, LatentUpsampler, UpsamplerConfig, load_upsampler
from ..networks.wan_vae import WanVAE, load_vae
from ..sampling.super_resolve import SamplingConfig, super_resolve
from ..sampling.timesteps import Curve, load_curve
from ..video.frames import resize_frames, to_images
from ..video.write import write_video
from .batches import Crop, PairSampler
from .cost import training_plan
from .loop import LoopConfig, fit, read_losses
from .lora import add_lora, lora_state_dict
from .loss import FlowMatching, Pictures, draw_training_noise


@dataclass(frozen=True)
class Train:
    """Trains upsampler and DiT jointly, on folders of latent pairs that `simplegvr pairs` built."""

    pairs: tuple[Path, ...]
    """Each pair of each folder is drawn equally often."""
    out: Path
    init_dit: Path | None = None
    """What the DiT starts from: a SimpleGVR checkpoint of an earlier stage, or a stock text-to-video Wan 2.1 of any size
    (safetensors, original key names), which is widened. Without it weights are drawn."""
    init_upsampler: Path | None = None
    dit: DiTConfig = DiTConfig()
    """Sizes of the DiT when its weights are drawn."""
    attention: AttentionConfig = AttentionConfig(kind="full", unit=None)
    upsampler: UpsamplerConfig = VARIANTS["simplegvr"]
    """Kind of the upsampler when it does not start from a checkpoint."""
    sampling: SamplingConfig = SamplingConfig()
    """How the trained model wants to be sampled; it is written into the checkpoint and used for previews."""
    noise_range: tuple[float, float] = (0.3, 0.6)
    """Noise share of the condition, drawn evenly."""
    curve: Path | None = None
    """Curve of simplegvr_core.training.measure_curve: noise levels are drawn where detail appears. Without it they are drawn evenly."""
    contexts: Path | None = None
    """Folder with a file VIDEO.safetensors for each video of the pairs, tensor "context" (S, text_dim): the text encoder's
    features of its caption. Without it every sample has the null prompt."""
    null_prompt: float = 0.1
    """Share of samples that get the null prompt in place of their caption."""
    upsampler_loss: float = 0.0
    """Weight of the upsampler's own error beside the flow's; with TinyVAE as --vae it is measured on pixels too."""
    perceptual_loss: float = 0.0
    """Weight of the perceptual error (ST-LPIPS, VGG) of what the upsampled and the predicted clean latent decode to; needs
    --vae. The paper has none; a small model that is trained shortly is sharper with it."""
    lora_rank: int = 0
    """Above 0: the weights stay as they are and a LoRA of this rank is trained, for ComfyUI's LoRA loader."""
    gradient_checkpointing: bool = False
    bf16: bool = True
    """Products in bfloat16; weights and their moments are float32 in any case."""
    vae: Path | None = None
    """Autoencoder of the pairs, TinyVAE's or Wan's: it decodes the previews. Without it they show latents as colors."""
    crop: Crop = Crop()
    loop: LoopConfig = LoopConfig(steps=20_000, learning_rate=5e-5, warmup=500, decay=False, ema=0.9995)

    def run(self) -> dict:
        """Returns {"dit", "upsampler" or "lora": files, "loss_first", "loss_last": means over the first and last tenth, "steps"}.

        Raises ValueError for options that do not go together, and what fit raises.
        """
        self.check()
        sampler = PairSampler(self.pairs, self.crop, self.contexts, self.null_prompt)
        vae = load_vae(self.vae) if self.vae else None
        pictures = Pictures(vae, perceptual=self.perceptual_loss > 0)
        model = FlowMatching(*self.networks(), pictures, self.upsampler_loss, self.perceptual_loss, self.bf16)
        curve = load_curve(self.curve) if self.curve else None

        def draw(generator: torch.Generator) -> dict[str, Tensor]:
            batch = sampler.draw(generator, model.dit.config.text_dim)
            return batch | draw_training_noise(batch["z_hr"], self.noise_range, curve, generator)

        trained = fit(model, draw, self.loop, self.out, self.preview(vae), self.lasting_options())
        if not PartialState().is_main_process:
            return {}
        losses = read_losses(self.out / "losses.jsonl")
        tenth = max(1, len(losses) // 10)
        means = {"loss_first": sum(losses[:tenth]) / tenth, "loss_last": sum(losses[-tenth:]) / tenth}
        return self.save(model, trained, curve, vae) | means | {"steps": len(losses)}

    def lasting_options(self) -> dict[str, str]:
        """Returns the options that a resumed run must share with its beginning, by name."""
        free = {"out", "vae", "loop"}
        return {name: repr(value) for name, value in vars(self).items() if name not in free} | {"loop.seed": repr(self.loop.seed)}

    def check(self) -> None:
        """Raises ValueError for options that do not go together."""
        low, high = self.noise_range
        if not 0 <= low <= high <= 1:
            raise ValueError(f"--noise-range is {low} {high}, wanted two shares in [0, 1], the smaller first: the paper's are 0.3 0.6")
        if not 0 <= self.null_prompt <= 1:
            raise ValueError(f"--null-prompt is {self.null_prompt}, wanted a share in [0, 1]")
        if self.perceptual_loss and self.vae is None:
            raise ValueError(f"--perceptual-loss is {self.perceptual_loss}, but latents are compared as pictures only with --vae")
        if self.init_dit is not None and self.dit.condition == "token":
            raise ValueError("--dit.condition token starts from drawn weights only: leave --init-dit out")
        if self.lora_rank and (self.init_dit is None or self.init_upsampler is None):
            raise ValueError("--lora-rank adapts a trained SimpleGVR: give its two files with --init-dit and --init-upsampler")

    def plan(self) -> dict:
        """Returns what simplegvr_core.training.cost says of this training."""
        dit = self.dit
        if self.init_dit is not None and self.init_dit.exists():
            dit = replace(read_dit_config(self.init_dit), in_dim=dit.in_dim)
        grid = (self.crop.latent_frames, *self.crop.size)
        batch = self.crop.batch * self.loop.accumulate
        return training_plan(dit, self.attention, grid, batch, self.loop.steps, self.gradient_checkpointing)

    def networks(self) -> tuple[LatentUpsampler, SimpleGVRDiT]:
        """Returns both networks as training starts."""
        generator = torch.Generator().manual_seed(self.loop.seed)
        dit = self.initial_dit(generator)
        dit.gradient_checkpointing = self.gradient_checkpointing
        if self.init_upsampler is not None:
            upsampler = load_upsampler(self.init_upsampler)
        else:
            upsampler = LatentUpsampler(self.upsampler)
            upsampler.init_weights(generator)
        if self.lora_rank:
            upsampler.requires_grad_(False)
            add_lora(dit, self.lora_rank, generator)
        return upsampler, dit

    def initial_dit(self, generator: torch.Generator) -> SimpleGVRDiT:
        """Returns the DiT as training starts. Raises ValueError when --init-dit does not fit."""
        if self.init_dit is None:
            dit = SimpleGVRDiT(self.dit, self.attention)
            dit.init_weights(generator)
            return dit
        config, weights = read_dit(self.init_dit)
        if config.in_dim == LATENT_CHANNELS < self.dit.in_dim:  # text-to-video
            config, weights = replace(config, in_dim=self.dit.in_dim), widen(weights, self.dit.in_dim)
        dit = SimpleGVRDiT(config, self.attention)
        checkpoint.load_strict(dit, weights, self.init_dit)
        return dit

    def preview(self, vae: TinyVAE | WanVAE | None) -> Callable[[FlowMatching, int], None]:
        """Returns a function that writes preview_STEP.mp4: low resolution, result, target, side by side, of one training crop."""
        batch = PairSampler(self.pairs, replace(self.crop, batch=1)).draw(torch.Generator().manual_seed(self.loop.seed), text_dim=1)
        z_lr, z_hr = batch["z_lr"], batch["z_hr"]

        def show(model: FlowMatching, step: int) -> None:
            device = next(model.dit.parameters()).device
            model.eval()
            z = super_resolve(model.dit, model.upsampler, z_lr.to(device), z_hr.shape[3:], sampling=self.sampling, noise_seed=1).cpu()
            model.train()
            videos = [decode_preview(latent, vae) for latent in (z_lr, z, z_hr)]
            videos = [resize_frames(video, videos[-1].shape[3:], "nearest-exact") for video in videos]
            write_video(self.out / f"preview_{step:06d}.mp4", to_images(torch.cat(videos, dim=4)), Fraction(12))

        return show

    def save(self, model: FlowMatching, trained: dict[str, Tensor], curve: Curve | None, vae: TinyVAE | WanVAE | None) -> dict:
        """Returns the files written: both networks as float16, or the LoRA. vae: whose latents they are; TinyVAE's have own colors."""
        if self.lora_rank:
            path = self.out / "lora.safetensors"
            checkpoint.save(path, "lora", checkpoint.half(lora_state_dict(trained)), sampling=self.sampling)
            return {"lora": str(path)}
        noise = {"noise_range": self.noise_range, "curve": asdict(curve) if curve else None}
        data = {"num_frames": self.crop.num_frames, "size": self.crop.size, "pairs": [folder.name for folder in self.pairs]}
        configs = {"model": model.dit.config, "attention": self.attention, "sampling": self.sampling, "trained": noise | data}
        if isinstance(vae, TinyVAE):
            configs["preview"] = vae.preview_colors()
        dit, upsampler = self.out / "dit.safetensors", self.out / "upsampler.safetensors"
        checkpoint.save(dit, "dit", checkpoint.half(checkpoint.part(trained, "dit.")), **configs)
        checkpoint.save(upsampler, "upsampler", checkpoint.half(checkpoint.part(trained, "upsampler.")), model=model.upsampler.config)
        return {"dit": str(dit), "upsampler": str(upsampler)}


def decode_preview(z: Tensor, vae: TinyVAE | WanVAE | None) -> Tensor:
    """Returns video (1, 3, F, H, W) in [-1, 1] of a latent: decoded, or as ComfyUI's preview colors without an autoencoder."""
    if vae is not None:
        return vae.decode(z)
    return torch.einsum("BCTHW, Cc -> BcTHW", z, torch.tensor(PREVIEW_FACTORS, dtype=z.dtype))
