"""Distillation of a trained SimpleGVR to few steps: `simplegvr distil --preset tiny --pairs DIR --init-dit FILE --init-upsampler FILE`."""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from accelerate import PartialState
from torch import Tensor

from ..checks import check_folder
from ..files import GVR_TINY_VAE
from ..networks import checkpoint
from ..networks.attention import AttentionConfig
from ..networks.dit import DiTConfig, SimpleGVRDiT, parse_dit_config, read_dit, read_dit_config
from ..networks.tiny_vae import TinyVAE
from ..networks.upsampler import (
    VARIANTS,
    Upsampler,
    load_upsampler,
    make_upsampler,
)
from ..networks.wan_vae import WanVAE, load_vae
from ..planning.network_memory import meta
from ..sampling.super_resolve import SamplingConfig
from .batches import Crop, NoisedPairs, NoiseOf
from .cost import Workload, latent_batch, load, training_cost, upsampler_config
from .dmd2 import DMD2, DMD2Config, sample_matching_noise
from .loop import LoopConfig, fit, lasting_options
from .lora import lora_copy, lora_state_dict
from .loss import Pictures
from .losses import summarize_losses
from .one_step import STUDENT, OneStep, OneStepConfig, sample_frame
from .online_pairs import check_source, chosen_pairs
from .step_memory import Step

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
    """Self-attention of the student and of dmd2's fake score. The teacher has that of its checkpoint."""
    contexts: Path | None = None
    """Folder of the text features of the videos' captions, as `simplegvr contexts` writes it, or with a file VIDEO.safetensors for each
    video, tensor "context" (S, text_dim). Without it every sample has the null prompt."""
    null_prompt: float = 0.1
    """Fraction of samples in [0, 1] that have the null prompt in place of their caption."""
    guidance: float = 1.0
    """Classifier-free guidance scale of the teacher, which a dmd2 student learns; 1 is none."""
    fake_updates: int = 5
    """Updates of dmd2's fake score per update of the student."""
    perceptual_loss: float = 0.0
    """Weight of the perceptual error (ST-LPIPS, VGG) of regression; needs --vae."""
    lora_rank: int = 0
    """Above 0: the teacher's weights do not change, and student and fake score are LoRAs of this rank on them; the student's is the
    result, for ComfyUI's LoRA loader. The upsampler is frozen."""
    bf16: bool = True
    """Matrix products in bfloat16."""
    gradient_checkpointing: bool = False
    """Recompute activations of the networks."""
    vae: Path | None = None
    """Autoencoder of the pairs."""
    crop: Crop = Crop()
    """Crops of the pairs in a batch."""
    loop: LoopConfig = LoopConfig(steps=10_000, learning_rate=5e-6, warmup=100, schedule="constant", ema=0.995)

    def run(self) -> dict:
        """Distils, or resumes from the state in the folder.

        Returns:
            {"dit", "upsampler" or "lora": files, "loss_first", "loss_last": means over the first and last tenth, "steps"} on the main
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
        source = NoisedPairs(chosen_pairs(self, vae, self.contexts, self.null_prompt), model.dit.config.text_dim, sample_noise)
        takes_turns = self.objective == "dmd2"
        options, work = lasting_options(self, {"vae"}), self.workload().work
        trained = fit(model, source, self.loop, self.out, options=options, takes_turns=takes_turns, work=work)
        if not PartialState().is_main_process:
            return {}
        return self.save(model, trained, vae) | summarize_losses(self.out)

    def check(self) -> None:
        """Raises ValueError for options that do not go together, OSError unless --out can be written."""
        check_source(self.pairs, self.footage, self.contexts)
        if not 0 <= self.null_prompt <= 1:
            raise ValueError(f"--null-prompt is {self.null_prompt}, wanted a fraction in [0, 1]")
        if self.objective == "regression" and (self.sampling.steps, self.sampling.start) != (1, "condition"):
            raise ValueError(
                f"--sampling has {self.sampling.steps} steps and start {self.sampling.start!r}, but regression trains 1 step from "
                '"condition": set both, or choose --objective dmd2'
            )
        if self.perceptual_loss and (self.vae is None or self.objective != "regression"):
            raise ValueError(f"--perceptual-loss is {self.perceptual_loss}, which needs --objective regression and --vae")
        if self.fake_updates < 1:
            raise ValueError(f"--fake-updates is {self.fake_updates}, wanted at least 1")
        check_folder(self.out)

    def model(self, vae: TinyVAE | WanVAE | None) -> tuple[OneStep | DMD2, NoiseOf]:
        """Returns the objective's network, and what samples the noise of a batch."""
        config, weights = read_dit(self.init_dit)
        dit = SimpleGVRDiT(config, teacher_attention(self.init_dit))
        checkpoint.load_strict(dit, weights, self.init_dit)
        return self.networks(load_upsampler(self.init_upsampler).train(), dit, vae)

    def networks(self, upsampler: Upsampler, dit: SimpleGVRDiT, vae: TinyVAE | WanVAE | None) -> tuple[OneStep | DMD2, NoiseOf]:
        """Returns the objective's network, and what samples the noise of a batch.

        Args:
            upsampler: The teacher's upsampler.
            dit: The teacher.
            vae: Autoencoder of the latents; without it latents are not compared as pictures.
        """
        dit.gradient_checkpointing = upsampler.gradient_checkpointing = self.gradient_checkpointing
        generator = torch.Generator().manual_seed(self.loop.seed)
        if self.lora_rank:
            upsampler.requires_grad_(False)

        def copy(teacher: SimpleGVRDiT) -> SimpleGVRDiT:
            student = lora_copy(teacher, self.lora_rank, generator) if self.lora_rank else deepcopy(teacher)
            student.attention = self.attention
            return student

        perceptual = self.perceptual_loss if vae else 0.0
        pictures = Pictures(vae, perceptual=perceptual > 0)
        if self.objective == "regression":
            sizes = OneStepConfig(self.sampling.denoise, perceptual=perceptual, bf16=self.bf16)
            return OneStep(upsampler, copy(dit), pictures, sizes), sample_frame
        sizes = DMD2Config(self.sampling, self.guidance, self.fake_updates, bf16=self.bf16)
        return DMD2(upsampler, dit, pictures, sizes, copy), sample_matching_noise

    def plan(self) -> dict:
        """Returns the estimated cost of this distillation, as training_cost does, and "networks": those trained and those frozen."""
        dmd2, upsampler_is_frozen = self.objective == "dmd2", self.upsampler_is_frozen
        trained = ["student", *(["fake score"] if dmd2 else []), *([] if upsampler_is_frozen else ["upsampler"])]
        frozen = [*(["teacher"] if dmd2 else []), *(["upsampler"] if upsampler_is_frozen else [])]
        return training_cost(self.workload()) | {"networks": {"trained": trained, "frozen": frozen}}

    @property
    def upsampler_is_frozen(self) -> bool:
        return self.objective == "dmd2" or self.lora_rank > 0

    def workload(self) -> Workload:
        """Returns this distillation as its cost sees it, with the step that takes the most: the student's last one, which is updated.

        Without the files of the networks their sizes are Wan 2.1 1.3B's and the paper's.
        """
        config, attention = DiTConfig(), self.attention
        if self.init_dit.exists():
            config, attention = read_dit_config(self.init_dit), teacher_attention(self.init_dit)
        upsampler, crop = upsampler_config(self.init_upsampler, VARIANTS["simplegvr"]), (self.crop.latent_frames, *self.crop.size)
        gradient_passes, forward_passes = self.passes()

        def step(blocks: int, samples: int) -> Step:
            dit = SimpleGVRDiT(replace(config, num_layers=blocks), attention, device="meta")
            model, _ = self.networks(make_upsampler(upsampler, device="meta"), dit, None)
            batch: dict[str, Any] = latent_batch(crop, samples, config)
            noise = torch.empty_like(batch["z_hr"])
            if isinstance(model, OneStep):
                return Step(model, batch | {"frame": 0})
            last = (1 - 1e-6) / self.fake_updates  # the student's turn, at the end of its sampling
            batch |= {"turn": last, "level": meta(samples, 1, 1, 1, 1), "noise": torch.cat((noise, noise), dim=1), "fresh": noise}
            return Step(model, batch, model.frozen)

        return Workload(
            step,
            config,
            self.attention,
            upsampler,
            **load(self),
            gradient_passes=gradient_passes,
            forward_passes=forward_passes,
            frozen_matrices=self.lora_rank > 0,
            frozen_upsampler=self.upsampler_is_frozen,
            noises=3 if self.objective == "dmd2" else 0,
            text=self.contexts is not None,
        )

    def passes(self) -> tuple[float, float]:
        """Returns the passes of a DiT that a sample takes, with and without a gradient, the mean over the turns of dmd2.

        The fake score is trained in each step, the student in its turn, where the teacher is asked, too. The student's steps up to the
        trained one, and that one in the other turns, are forward passes alone.
        """
        if self.objective == "regression":
            return 1, 0
        turn = 1 / self.fake_updates
        simulated = (self.sampling.steps - 1) / 2 + (1 - turn)
        asked = (2 if self.guidance != 1 else 1) * turn
        return 1 + turn, simulated + asked

    def save(self, model: OneStep | DMD2, trained: dict[str, Tensor], vae: TinyVAE | WanVAE | None) -> dict[str, str]:
        """Writes both networks as float16, or the student's LoRA, and returns their files. The student's has its sampling."""
        dit, upsampler = self.out / "dit.safetensors", self.out / "upsampler.safetensors"
        data = {"num_frames": self.crop.num_frames, "size": self.crop.size, "pairs": [folder.name for folder in self.pairs or self.footage]}
        trained_with = data | {"objective": self.objective, "curve": None, "optimizer": self.loop.optimizer()}
        if self.lora_rank:
            path = self.out / "lora.safetensors"
            checkpoint.save(path, "lora", checkpoint.half(lora_state_dict(trained)), sampling=self.sampling, trained=trained_with)
            return {"lora": str(path)}
        configs = {"model": model.dit.config, "attention": self.attention, "sampling": self.sampling, "trained": trained_with}
        if isinstance(vae, TinyVAE):
            configs["preview"] = vae.preview_colors()
        checkpoint.save(dit, "dit", checkpoint.half(checkpoint.part(trained, "dit.")), **configs)
        checkpoint.save(upsampler, "upsampler", checkpoint.half(checkpoint.part(trained, "upsampler.")), model=model.upsampler.config)
        return {"dit": str(dit), "upsampler": str(upsampler)}


def teacher_attention(path: Path) -> AttentionConfig:
    """Returns the self-attention in a checkpoint of ours; the full one of a stock Wan's."""
    if checkpoint.is_ours(path):
        return parse_dit_config(checkpoint.read_config(path, "dit"), path)[1]
    return AttentionConfig(kind="full", unit=None)


WAN = Distil(
    pairs=(Path("pairs/aigc"),),
    out=Path("runs/distil"),
    init_dit=Path("runs/stage3/dit.safetensors"),
    init_upsampler=Path("runs/stage3/upsampler.safetensors"),
    objective="dmd2",
    sampling=FEW_STEPS,
    attention=AttentionConfig(scope="video"),
    gradient_checkpointing=True,
    loop=replace(Distil.loop, shard=True),  # three networks of Wan's size fit no GPU of 80 GB
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
        sampling=replace(STUDENT, strength=1.75, patch_filter=5),
        attention=AttentionConfig(),
        perceptual_loss=1.0,
        gradient_checkpointing=False,
        vae=GVR_TINY_VAE,
        crop=Crop(num_frames=9, size=(24, 24), batch=32),
        loop=LoopConfig(steps=10_000, learning_rate=5e-4, warmup=100, ema=0.998),
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
    process = PartialState(cpu=distil.loop.cpu)  # chooses the device of this process, on which footage is read
    result = distil.run()
    return result if process.is_main_process else None
