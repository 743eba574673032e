"""A training run of SimpleGVR: upsampler and DiT, jointly, on latent pairs, by conditional flow matching (paper, sections 3, 5.1).

B batch, T latent frames, h, w low-resolution latent pixels, H, W target latent pixels; latents are normalised
"""

from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from accelerate import PartialState
from torch import Tensor

from ..checks import check_folder
from ..latent_space import LATENT_CHANNELS
from ..networks import checkpoint
from ..networks.attention import AttentionConfig
from ..networks.dit import DiTConfig, SimpleGVRDiT, read_dit, read_dit_config, widen
from ..networks.tiny_vae import TinyVAE
from ..networks.upsampler import (
    VARIANTS,
    Upsampler,
    UpsamplerConfig,
    make_upsampler,
)
from ..networks.wan_vae import WanVAE, load_vae
from ..sampling.super_resolve import SamplingConfig
from ..sampling.timesteps import Curve, load_curve
from .batches import Crop, NoisedPairs, PairSampler
from .cost import Workload, flow_batch, load, training_cost, upsampler_config
from .frozen import Frozen, store_frozen
from .loop import LoopConfig, fit, lasting_options
from .lora import add_lora, lora_state_dict
from .loss import FlowMatching, FlowNoise, LossConfig, Pictures
from .losses import summarize_losses
from .online_pairs import check_source, chosen_pairs
from .step_memory import Step
from .train_upsampler import initial_upsampler
from .validation import Validation


@dataclass(frozen=True)
class Train:
    """Trains upsampler and DiT jointly, on folders of latent pairs that `simplegvr pairs` built."""

    pairs: tuple[Path, ...]
    """Folders of pairs. All pairs are sampled equally often. Empty with --footage."""
    out: Path
    """Folder of the run: networks, losses, previews and the state to resume from."""
    init_dit: Path | None = None
    """Initial weights of the DiT: a SimpleGVR checkpoint of an earlier stage, or a stock text-to-video Wan 2.1 of any size
    (safetensors, original key names), whose input is widened. Without it the weights are random."""
    init_upsampler: Path | None = None
    """Initial weights of the upsampler, from an earlier stage. Without it the weights are random."""
    dit: DiTConfig = DiTConfig()
    """Sizes of the DiT when its weights are random."""
    attention: AttentionConfig = AttentionConfig(kind="full", unit=None)
    """Self-attention of the DiT."""
    upsampler: UpsamplerConfig = VARIANTS["simplegvr"]
    """Kind of the upsampler when its weights are random."""
    sampling: SamplingConfig = SamplingConfig()
    """Recommended sampling of the trained model, written to the checkpoint and used for previews. The noise of the condition has its
    noise_order in training, too."""
    noise_range: tuple[float, float] = (0.3, 0.6)
    """Lowest and highest noise augmentation level of the condition in [0, 1], sampled uniformly between them."""
    curve: Path | None = None
    """Curve of `simplegvr curve`, whose timestep density is highest where detail appears. Without it the density is uniform."""
    footage: tuple[Path, ...] = ()
    """Folders of video and photographs, of which pairs are made at every step, in place of --pairs; needs TinyVAE as --vae."""
    held_out: tuple[Path, ...] = ()
    """Folders of pairs that are not trained on. With every saved state their loss is reported and, with --vae, the ST-LPIPS of samples;
    previews show one of them in place of a training crop."""
    contexts: Path | None = None
    """Folder of the text features of the videos' captions, as `simplegvr contexts` writes it, or with a file VIDEO.safetensors for each
    video, tensor "context" (S, text_dim). Without it every sample has the null prompt."""
    null_prompt: float = 0.1
    """Fraction of samples in [0, 1] that have the null prompt in place of their caption."""
    upsampler_loss: float = 0.0
    """Weight of the upsampled latent's own error; with TinyVAE as --vae its pixels are compared too."""
    perceptual_loss: float = 0.0
    """Weight of the perceptual error (ST-LPIPS, VGG) of the decoded upsampled latent and the decoded predicted clean latent;
    needs --vae. The paper has none; it makes a small model with a short training sharper."""
    lora_rank: int = 0
    """Above 0: the weights do not change and a LoRA of this rank is trained, for ComfyUI's LoRA loader."""
    frozen: Frozen = "float32"
    """Data type of the frozen linear layers beside a LoRA. bfloat16 takes half the memory; float8 (e4m3 with a scale for each row, outside
    of blocks bfloat16) a quarter, with --gradient-checkpointing, without which each layer's product remembers them in bfloat16. Both want
    --bf16."""
    gradient_checkpointing: bool = False
    """Recompute activations of both networks: less memory, a third more operations."""
    bf16: bool = True
    """Matrix products in bfloat16; weights and their moments are always float32."""
    vae: Path | None = None
    """Autoencoder of the pairs, TinyVAE's or Wan's, which decodes the previews. Without it previews show latents as colors."""
    crop: Crop = Crop()
    """Crops of the pairs in a batch."""
    loop: LoopConfig = LoopConfig(steps=20_000, learning_rate=5e-5, warmup=500, schedule="constant", ema=0.9995)

    def run(self) -> dict:
        """Trains, or resumes from the state in the folder.

        Returns:
            {"dit", "upsampler" or "lora": files, "loss_first", "loss_last": means over the first and last tenth, "steps"} on
            the main process, {} on others.

        Raises:
            ValueError: Options do not go together or do not fit the pairs or the state.
            FloatingPointError: A loss is not finite.
            tiling.OutOfMemory: Memory ran out.
            OSError: A file cannot be read or written.
        """
        self.check()
        vae = load_vae(self.vae) if self.vae else None
        model = self.objective(*self.networks(), vae)
        curve = load_curve(self.curve) if self.curve else None
        pairs = chosen_pairs(self, vae, self.contexts, self.null_prompt)
        source = NoisedPairs(pairs, model.dit.config.text_dim, FlowNoise(self.noise_range, curve))
        options, work = lasting_options(self, {"vae", "held_out"}), self.workload().work
        validation = self.validation(source, vae)
        validation.check()
        trained = fit(model, source, self.loop, self.out, show=validation, options=options, work=work)
        if not PartialState().is_main_process:
            return {}
        return self.save(model, trained, curve, vae) | summarize_losses(self.out)

    def check(self) -> None:
        """Raises ValueError for options that do not go together, OSError unless --out can be written."""
        low, high = self.noise_range
        if not 0 <= low <= high <= 1:
            raise ValueError(f"--noise-range is {low} {high}, wanted two levels in [0, 1], the smaller first: the paper's are 0.3 0.6")
        if not 0 <= self.null_prompt <= 1:
            raise ValueError(f"--null-prompt is {self.null_prompt}, wanted a fraction in [0, 1]")
        if self.perceptual_loss and self.vae is None:
            raise ValueError(f"--perceptual-loss is {self.perceptual_loss}, but latents are compared as pictures only with --vae")
        check_source(self.pairs, self.footage, self.contexts)
        if self.init_dit is not None and self.dit.condition == "token":
            raise ValueError("--dit.condition token starts from random weights only: leave --init-dit out")
        if self.lora_rank and (self.init_dit is None or self.init_upsampler is None):
            raise ValueError("--lora-rank adapts a trained SimpleGVR: give its two files with --init-dit and --init-upsampler")
        if self.frozen != "float32" and not (self.lora_rank and self.bf16):
            raise ValueError(f"--frozen is {self.frozen}, but only a LoRA leaves weights frozen, and needs --bf16 then: give --lora-rank")
        check_folder(self.out)

    def plan(self) -> dict:
        """Returns the estimated cost of this training, as training_cost does."""
        return training_cost(self.workload())

    def workload(self) -> Workload:
        """Returns this training as its cost sees it. Without the files of the networks their sizes are the options'."""
        sizes, upsampler, frozen = self.dit, upsampler_config(self.init_upsampler, self.upsampler), self.lora_rank > 0
        if self.init_dit is not None and self.init_dit.exists():
            sizes = replace(read_dit_config(self.init_dit), in_dim=self.dit.in_dim)
        crop = (self.crop.latent_frames, *self.crop.size)

        def step(blocks: int, samples: int) -> Step:
            dit = SimpleGVRDiT(replace(sizes, num_layers=blocks), self.attention, device="meta")
            model = self.objective(*self.prepared(make_upsampler(upsampler, device="meta"), dit, torch.Generator()), None)
            return Step(model, flow_batch(crop, samples, sizes))

        return Workload(
            step,
            sizes,
            self.attention,
            upsampler,
            **load(self),
            frozen_matrices=frozen,
            frozen_upsampler=frozen,
            text=self.contexts is not None,
        )

    def networks(self) -> tuple[Upsampler, SimpleGVRDiT]:
        """Returns both networks with their initial weights."""
        generator = torch.Generator().manual_seed(self.loop.seed)
        dit = self.initial_dit(generator)
        upsampler = initial_upsampler(self.init_upsampler, self.upsampler, self.vae, generator)
        return self.prepared(upsampler, dit, generator)

    def prepared(self, upsampler: Upsampler, dit: SimpleGVRDiT, generator: torch.Generator) -> tuple[Upsampler, SimpleGVRDiT]:
        """Returns both networks as they are trained: recomputed where that was asked for, frozen with a LoRA where that is trained."""
        dit.gradient_checkpointing = upsampler.gradient_checkpointing = self.gradient_checkpointing
        if self.lora_rank:
            upsampler.requires_grad_(False)
            store_frozen(dit, self.frozen)
            add_lora(dit, self.lora_rank, generator)
        return upsampler, dit

    def objective(self, upsampler: Upsampler, dit: SimpleGVRDiT, vae: TinyVAE | WanVAE | None) -> FlowMatching:
        """Returns both networks with their loss; without an autoencoder latents are not compared as pictures."""
        config = LossConfig(self.upsampler_loss, self.perceptual_loss if vae else 0.0, self.bf16, self.sampling.noise_order)
        return FlowMatching(upsampler, dit, Pictures(vae, perceptual=config.perceptual > 0), config)

    def initial_dit(self, generator: torch.Generator) -> SimpleGVRDiT:
        """Returns the DiT with its initial weights. Raises ValueError when --init-dit does not fit."""
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

    def validation(self, source: NoisedPairs, vae: TinyVAE | WanVAE | None) -> Validation:
        """Returns what shows the model in training, on the held-out pairs or else on crops of the training's."""
        if self.held_out:
            source = replace(source, sampler=PairSampler(self.held_out, self.crop, self.contexts, self.null_prompt))
        return Validation(source, bool(self.held_out), self.sampling, vae, self.out, self.loop.seed)

    def save(self, model: FlowMatching, trained: dict[str, Tensor], curve: Curve | None, vae: TinyVAE | WanVAE | None) -> dict:
        """Writes both networks as float16, or the LoRA.

        Args:
            model: The network that was trained.
            trained: Its state dict after training.
            curve: Curve of the timestep density, None for a uniform one.
            vae: Autoencoder of the latents; TinyVAE's preview colors go into the checkpoint.

        Returns:
            The files, by "dit" and "upsampler", or by "lora".
        """
        noise = {"noise_range": self.noise_range, "curve": asdict(curve) if curve else None}
        data = {"num_frames": self.crop.num_frames, "size": self.crop.size, "pairs": [folder.name for folder in self.pairs or self.footage]}
        trained_with = noise | data | {"optimizer": self.loop.optimizer()}
        if self.lora_rank:
            path = self.out / "lora.safetensors"
            checkpoint.save(path, "lora", checkpoint.half(lora_state_dict(trained)), sampling=self.sampling, trained=trained_with)
            return {"lora": str(path)}
        configs = {"model": model.dit.config, "attention": self.attention, "sampling": self.sampling, "trained": trained_with}
        if isinstance(vae, TinyVAE):
            configs["preview"] = vae.preview_colors()
        dit, upsampler = self.out / "dit.safetensors", self.out / "upsampler.safetensors"
        checkpoint.save(dit, "dit", checkpoint.half(checkpoint.part(trained, "dit.")), **configs)
        checkpoint.save(upsampler, "upsampler", checkpoint.half(checkpoint.part(trained, "upsampler.")), model=model.upsampler.config)
        return {"dit": str(dit), "upsampler": str(upsampler)}
