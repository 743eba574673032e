"""Training of an upsampler alone, without a transformer: `simplegvr train-upsampler --pairs DIR --out DIR`.

For a card that has no room for both networks, and as a start of their joint training. The loss is regression, as of DOVE's first stage
(arXiv:2505.16239): the upsampled latent is compared with the target.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from accelerate import PartialState
from torch import Tensor, nn

from ..checks import check_folder
from ..networks import checkpoint
from ..networks.attention import AttentionConfig
from ..networks.dit import DiTConfig
from ..networks.tiny_vae import TinyVAE, load_tiny_vae
from ..networks.upsampler import (
    VARIANTS,
    LatentUpsampler,
    Upsampler,
    UpsamplerConfig,
    load_upsampler,
    make_upsampler,
)
from ..networks.wan_vae import WanVAE, load_vae
from .batches import Crop, NoisedPairs
from .cost import Workload, latent_batch, load, training_cost, upsampler_config
from .draws import Batch, Draws
from .loop import LoopConfig, Show, Shown, fit, lasting_options
from .loss import Pictures
from .losses import summarize_losses
from .online_pairs import check_source, chosen_pairs
from .step_memory import Step
from .validation import decode, side_by_side


@dataclass(frozen=True)
class TrainUpsampler:
    """Trains an upsampler alone, on folders of latent pairs that `simplegvr pairs` built, or on footage."""

    out: Path
    """Folder of the run: the network, losses, previews and the state to resume from."""
    pairs: tuple[Path, ...] = ()
    """Folders of pairs. Empty with --footage."""
    footage: tuple[Path, ...] = ()
    """Folders of video and photographs, of which pairs are made at every step, in place of --pairs; needs TinyVAE as --vae."""
    init_upsampler: Path | None = None
    """Initial weights. Without it the weights are random."""
    upsampler: UpsamplerConfig = VARIANTS["simplegvr"]
    """Kind of the upsampler when its weights are random."""
    perceptual_loss: float = 0.0
    """Weight of the perceptual error (ST-LPIPS, VGG) of the decoded upsampled latent; needs --vae."""
    gradient_checkpointing: bool = False
    """Recompute activations: less memory, a third more operations."""
    bf16: bool = True
    """Matrix products in bfloat16; weights and their moments are always float32."""
    vae: Path | None = None
    """Autoencoder of the pairs, TinyVAE's or Wan's, which decodes the previews. Without it previews show latents as colors. With TinyVAE
    pixels are compared, too."""
    crop: Crop = Crop()
    """Crops of the pairs in a batch."""
    loop: LoopConfig = LoopConfig(steps=20_000, learning_rate=2e-4, warmup=500, ema=0.9995)

    def run(self) -> dict:
        """Trains, or resumes from the state in the folder.

        Returns:
            {"upsampler": file, "loss_first", "loss_last": means over the first and last tenth, "steps"} on the main process, {} on others.

        Raises:
            ValueError: Options do not go together or do not fit the pairs or the state.
            FloatingPointError: A loss is not finite.
            tiling.OutOfMemory: Memory ran out.
            OSError: A file cannot be read or written.
        """
        if self.perceptual_loss and self.vae is None:
            raise ValueError(f"--perceptual-loss is {self.perceptual_loss}, but latents are compared as pictures only with --vae")
        check_source(self.pairs, self.footage, None)
        check_folder(self.out)
        vae = load_vae(self.vae) if self.vae else None
        generator = torch.Generator().manual_seed(self.loop.seed)
        model = self.objective(initial_upsampler(self.init_upsampler, self.upsampler, self.vae, generator), vae)
        source = NoisedPairs(chosen_pairs(self, vae), 1, no_noise)
        options = lasting_options(self, {"vae"})
        trained = fit(model, source, self.loop, self.out, show=self.previews(source, vae), options=options, work=self.workload().work)
        if not PartialState().is_main_process:
            return {}
        path = self.out / "upsampler.safetensors"
        checkpoint.save(path, "upsampler", checkpoint.half(checkpoint.part(trained, "upsampler.")), model=model.upsampler.config)
        return {"upsampler": str(path)} | summarize_losses(self.out)

    def plan(self) -> dict:
        """Returns the estimated cost of this training, as training_cost does."""
        return training_cost(self.workload())

    def workload(self) -> Workload:
        """Returns this training as its cost sees it, without a DiT."""
        crop, config = (self.crop.latent_frames, *self.crop.size), upsampler_config(self.init_upsampler, self.upsampler)

        def step(_: int, samples: int) -> Step:
            return Step(self.objective(make_upsampler(config, device="meta"), None), latent_batch(crop, samples, DiTConfig()))

        return Workload(
            step,
            DiTConfig(),
            AttentionConfig(),
            config,
            **load(self),
            gradient_passes=0,
            noises=0,
        )

    def objective(self, upsampler: Upsampler, vae: TinyVAE | WanVAE | None) -> "Regression":
        """Returns the upsampler with its loss."""
        upsampler.gradient_checkpointing = self.gradient_checkpointing
        perceptual = self.perceptual_loss if vae else 0.0
        return Regression(upsampler, Pictures(vae, perceptual=perceptual > 0), perceptual, bf16=self.bf16)

    def previews(self, source: NoisedPairs, vae: TinyVAE | WanVAE | None) -> Show:
        """Returns what writes preview_STEP.mp4, on the main process: low resolution, result, target of a crop of the training's."""

        def show(model: nn.Module, step: int) -> Shown:
            assert isinstance(model, Regression)
            if not PartialState().is_main_process:
                return Shown({}, None)
            device, draws = next(model.parameters()).device, Draws(self.loop.seed, 0, range(1), 1)
            batch = source.batch_on(device, draws)
            z_lr, z_hr = batch["z_lr"], batch["z_hr"]
            z = model.upsampler(z_lr, (z_hr.shape[3], z_hr.shape[4])).float()
            videos = decode(z_lr, vae), decode(z, vae), decode(z_hr, vae)
            return Shown({}, side_by_side(self.out / f"preview_{step:06d}.mp4", videos))

        return show


class Regression(nn.Module):
    """An upsampler with its loss."""

    upsampler: Upsampler

    def __init__(self, upsampler: Upsampler, pictures: Pictures, perceptual: float, *, bf16: bool):
        super().__init__()
        self.upsampler, self.pictures, self.perceptual, self.bf16 = upsampler, pictures, perceptual, bf16

    def forward(self, *, z_lr: Tensor, z_hr: Tensor, context: Tensor) -> Tensor:
        """Returns the error of the upsampled latent, plus the perceptual one by its weight; a scalar.

        Args:
            z_lr: Low-resolution latent (B, 16, T, h, w).
            z_hr: Target latent (B, 16, T, H, W).
            context: Not used.
        """
        pictures = self.pictures.to(z_hr.device)
        with torch.autocast(z_hr.device.type, torch.bfloat16, enabled=self.bf16):
            z = self.upsampler(z_lr, (z_hr.shape[3], z_hr.shape[4])).float()
            loss = pictures.linear_error(z, z_hr)
            if self.perceptual:
                loss = loss + self.perceptual * pictures.perceptual_error(z, pictures.perceived(z_hr)).mean()
        return loss


def no_noise(z_hr: Tensor, draws: Draws) -> Batch:
    return {}


def initial_upsampler(init: Path | None, config: UpsamplerConfig, vae: Path | None, generator: torch.Generator) -> Upsampler:
    """Returns an upsampler with its initial weights.

    Args:
        init: File of the weights; None makes random ones.
        config: Its kind where the weights are random.
        vae: File of TinyVAE, from whose closed form the grid of pixels starts.
        generator: Source of random weights.

    Raises:
        ValueError: A file does not fit, or vae is needed and None.
    """
    if init is not None:
        return load_upsampler(init)
    upsampler = LatentUpsampler(config)
    upsampler.init_weights(generator)
    if upsampler.grid is not None:
        if vae is None:
            raise ValueError("--upsampler.resize pixels starts from TinyVAE's closed form: give its file with --vae")
        upsampler.grid.copy_closed_form(load_tiny_vae(vae))
    return upsampler


@dataclass(frozen=True)
class Command:
    """The option of `simplegvr train-upsampler` that replaces the training."""

    plan: bool = False
    """Print the estimated memory and time of the training, and stop."""


def main(arguments: Sequence[str]) -> dict | None:
    """Trains the upsampler as the command line asks and returns the result; None on every process but the first."""
    command, rest = tyro.cli(Command, prog="simplegvr train-upsampler", args=arguments, return_unknown_args=True, add_help=False)
    description = f"{TrainUpsampler.__doc__} --plan: print the estimated memory and time of the training, and stop."
    train = tyro.cli(TrainUpsampler, prog="simplegvr train-upsampler", args=rest, description=description)
    if command.plan:
        return train.plan()
    process = PartialState(cpu=train.loop.cpu)
    result = train.run()
    return result if process.is_main_process else None
