"""Distillation of a trained SimpleGVR to few steps: `simplegvr distil --preset tiny --pairs DIR --init-dit FILE --init-upsampler FILE`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
import tyro
from accelerate import PartialState
from torch import Tensor

from ..files import GVR_TINY_VAE
from ..networks import checkpoint
from ..networks.attention import AttentionConfig
from ..networks.dit import SimpleGVRDiT, read_dit, read_dit_config
from ..networks.tiny_vae import TinyVAE
from ..networks.upsampler import load_upsampler
from ..networks.wan_vae import WanVAE, load_vae
from ..sampling.super_resolve import SamplingConfig
from .batches import Crop, PairSampler
from .cost import training_cost
from .dmd2 import DMD2, DMD2Config, sample_matching_noise
from .loop import LoopConfig, fit, summarize_losses
from .loss import Pictures
from .one_step import STUDENT, OneStep, OneStepConfig, sample_frame
from .online_pairs import check_source, online_pairs

FEW_STEPS = SamplingConfig(steps=4)


@dataclass(frozen=True)
class Distil:
    """Distils a trained SimpleGVR to a student of few steps, on folders of latent pairs."""

    pairs: tuple[Path, ...]
    """Folders of pairs. Empty with --footage."""
    out: Path
    """Folder of the run: networks, losses and the state to resume from."""
    init_dit: Path
    """The teacher, a SimpleGVR checkpoint; the student starts from its weights."""
    init_upsampler: Path
    """Its upsampler."""
    footage: tuple[Path, ...] = ()
    """Folders of video and photographs, of which pairs are made at every step, in place of --pairs; needs TinyVAE as --vae."""
    objective: Literal["regression", "dmd2"] = "regression"
    """regression: one step from the upsampled latent, errors against the target, upsampler and student together (DOVE). dmd2: the
    student's distribution is matched to the teacher's, upsampler frozen (DMD2)."""
    sampling: SamplingConfig = STUDENT
    """How the student is sampled; written to its checkpoint."""
    attention: AttentionConfig = AttentionConfig()
    """Self-attention of the student."""
    guidance: float = 1.0
    """Classifier-free guidance scale of the teacher, which a dmd2 student learns; 1 is none."""
    fake_updates: int = 5
    """Updates of dmd2's fake score per update of the student."""
    perceptual_loss: float = 0.0
    """Weight of the perceptual error (ST-LPIPS, VGG) of regression; needs --vae."""
    strength: float = 1.0
    """Factor of the student's velocity in its checkpoint. Above 1 the result is sharper than what the objective balances."""
    bf16: bool = True
    """Matrix products in bfloat16."""
    gradient_checkpointing: bool = False
    """Recompute activations of the DiT."""
    vae: Path | None = None
    """Autoencoder of the pairs."""
    crop: Crop = Crop()
    """Crops of the pairs in a batch."""
    loop: LoopConfig = LoopConfig(steps=10_000, learning_rate=5e-6, warmup=100, decay=False, ema=0.995)

    def run(self) -> dict:
        """Distils, or resumes from the state in the folder.

        Returns:
            {"dit", "upsampler": files, "loss_first", "loss_last": means over the first and last tenth, "steps"} on the main
            process, {} on others.

        Raises:
            ValueError: Options do not go together or do not fit the pairs or the state.
            FloatingPointError: A loss is not finite.
            RuntimeError: Memory ran out.
            OSError: A file cannot be read or written.
        """
        self.check()
        vae = load_vae(self.vae) if self.vae else None
        model, sample_noise = self.model(vae)
        sampler = online_pairs(self.footage, vae, self.crop, self.loop) if self.footage else PairSampler(self.pairs, self.crop)

        def sample_batch(generator: torch.Generator) -> dict[str, Tensor]:
            batch = sampler.sample(generator, model.dit.config.text_dim)
            return batch | sample_noise(batch["z_hr"], generator)

        trained = fit(model, sample_batch, self.loop, self.out, options=self.lasting_options())
        if not PartialState().is_main_process:
            return {}
        return self.save(model, trained, vae) | summarize_losses(self.out)

    def check(self) -> None:
        """Raises ValueError for options that do not go together."""
        check_source(self.pairs, self.footage)
        if self.objective == "regression" and (self.sampling.steps, self.sampling.start) != (1, "condition"):
            raise ValueError(
                f"--sampling has {self.sampling.steps} steps and start {self.sampling.start!r}, but regression trains 1 step from "
                '"condition": set both, or choose --objective dmd2'
            )
        if self.perceptual_loss and (self.vae is None or self.objective != "regression"):
            raise ValueError(f"--perceptual-loss is {self.perceptual_loss}, which needs --objective regression and --vae")
        if self.fake_updates < 1:
            raise ValueError(f"--fake-updates is {self.fake_updates}, wanted at least 1")

    def lasting_options(self) -> dict[str, str]:
        """Returns the options that must not change when the run is resumed, by name."""
        free = {"out", "vae", "loop", "strength"}
        return {name: repr(value) for name, value in vars(self).items() if name not in free} | {"loop.seed": repr(self.loop.seed)}

    def model(self, vae: TinyVAE | WanVAE | None) -> tuple[OneStep | DMD2, Callable[[Tensor, torch.Generator], dict[str, Tensor]]]:
        """Returns the objective's network, and what samples the noise of a batch."""
        config, weights = read_dit(self.init_dit)
        dit = SimpleGVRDiT(config, self.attention)
        checkpoint.load_strict(dit, weights, self.init_dit)
        dit.gradient_checkpointing = self.gradient_checkpointing
        upsampler = load_upsampler(self.init_upsampler).train()
        pictures = Pictures(vae, perceptual=self.perceptual_loss > 0)
        if self.objective == "regression":
            sizes = OneStepConfig(self.sampling.denoise, perceptual=self.perceptual_loss, bf16=self.bf16)
            return OneStep(upsampler, dit, pictures, sizes), sample_frame
        sizes = DMD2Config(self.sampling, self.guidance, self.fake_updates, bf16=self.bf16)
        return DMD2(upsampler, dit, pictures, sizes), sample_matching_noise

    def plan(self) -> dict:
        """Returns the estimated cost: training_cost of the student, with the state of all networks of the objective.

        "frozen_bytes" is the teacher's in float32. A fake score has the same state as the student.
        """
        config = read_dit_config(self.init_dit)
        batch, grid = self.crop.batch * self.loop.accumulate, (self.crop.latent_frames, *self.crop.size)
        recompute = self.gradient_checkpointing
        cost = training_cost(config, self.attention, grid, batch=batch, steps=self.loop.steps, recompute=recompute)
        if self.objective == "regression":
            return cost | {"frozen_bytes": 0}
        passes = (1 + 1 / self.fake_updates) + (self.sampling.steps - 1) / 2 / 3 + (2 if self.guidance != 1 else 1) / 3 / self.fake_updates
        return cost | {
            "state_bytes": 2 * cost["state_bytes"],
            "frozen_bytes": 4 * cost["parameters"],
            "flops_per_step": passes * cost["flops_per_step"],
            "h100_hours": passes * cost["h100_hours"],
        }

    def save(self, model: OneStep | DMD2, trained: dict[str, Tensor], vae: TinyVAE | WanVAE | None) -> dict[str, str]:
        """Writes both networks as float16 and returns their files; the student's checkpoint has its sampling."""
        dit, upsampler = self.out / "dit.safetensors", self.out / "upsampler.safetensors"
        data = {"num_frames": self.crop.num_frames, "size": self.crop.size, "pairs": [folder.name for folder in self.pairs or self.footage]}
        configs = {"model": model.dit.config, "attention": self.attention, "sampling": self.sampling}
        configs["trained"] = data | {"objective": self.objective, "curve": None}
        if isinstance(vae, TinyVAE):
            configs["preview"] = vae.preview_colors()
        weights = checkpoint.part(trained, "dit.")
        weights |= {name: self.strength * tensor for name, tensor in weights.items() if name.startswith("head.head.")}
        checkpoint.save(dit, "dit", checkpoint.half(weights), **configs)
        checkpoint.save(upsampler, "upsampler", checkpoint.half(checkpoint.part(trained, "upsampler.")), model=model.upsampler.config)
        return {"dit": str(dit), "upsampler": str(upsampler)}


WAN = Distil(
    pairs=(Path("pairs/aigc"),),
    out=Path("runs/distil"),
    init_dit=Path("runs/stage3/dit.safetensors"),
    init_upsampler=Path("runs/stage3/upsampler.safetensors"),
    objective="dmd2",
    sampling=FEW_STEPS,
    gradient_checkpointing=True,
)
PRESETS = {
    "wan": WAN,
    "tiny": replace(
        WAN,
        pairs=(),
        footage=(Path("footage"),),
        out=Path("runs/tiny_student"),
        init_dit=Path("runs/tiny_teacher/dit.safetensors"),
        init_upsampler=Path("runs/tiny_teacher/upsampler.safetensors"),
        objective="regression",
        sampling=STUDENT,
        perceptual_loss=0.6,
        strength=2.0,
        gradient_checkpointing=False,
        vae=GVR_TINY_VAE,
        crop=Crop(num_frames=9, size=(24, 24), batch=32),
        loop=LoopConfig(steps=10_000, learning_rate=5e-4, warmup=40, ema=0.995),
    ),
}


@dataclass(frozen=True)
class Command:
    """The options of `simplegvr distil` that choose the others' defaults or replace the run."""

    preset: Literal[tuple(PRESETS)] = "wan"  # pyright: ignore[reportInvalidTypeForm]: names from the table
    """Run whose values are the defaults of all other options."""
    plan: bool = False
    """Print the estimated memory and time of all networks, and stop."""


def main(arguments: Sequence[str]) -> dict | None:
    """Distils as the command line asks and returns the result; None on every process but the first."""
    command, rest = tyro.cli(Command, prog="simplegvr distil", args=arguments, return_unknown_args=True, add_help=False)
    description = f"{Distil.__doc__} --preset: {', '.join(PRESETS)}; the defaults below are those of {command.preset!r}. "
    description += "--plan: print the estimated memory and time of all networks, and stop."
    distil = tyro.cli(Distil, prog="simplegvr distil", args=rest, default=PRESETS[command.preset], description=description)
    if command.plan:
        return distil.plan()
    result = distil.run()
    return result if PartialState(cpu=distil.loop.cpu).is_main_process else None
