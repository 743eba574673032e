"""Plans a run, or tabulates what fits where: `python3 scripts/run.py plan {clip,table} --help`."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import torch
import tyro
from tqdm import tqdm

from ..checks import amount
from ..files import GVR_TINY, GVR_TINY_UPSAMPLER, atomic_write, write_text
from ..latent_space import pixel_size, pixels, short_side_size, token_grid
from ..networks import checkpoint
from ..networks.attention import AttentionConfig
from ..networks.dit import DiTConfig, load_dit, parse_dit_config
from ..networks.foreign import read_any
from ..networks.layers import default_device
from ..networks.tiny_vae import TinyVAEConfig
from ..networks.upsampler import AnyUpsamplerConfig, UpsamplerConfig, parse_upsampler_config
from ..sampling.super_resolve import UPSAMPLER_FRAMES, SamplingConfig
from .boxes import Machine, Networks
from .flops import dit_flops
from .network_memory import TEXT_TOKENS, decode_bytes, upsampler_bytes
from .picture import draw_plan
from .plan import DECODER_FRAMES, Job, Plan, plan_sampling, trial

SIZES = {"wan-1.3b": DiTConfig(), "wan-14b": DiTConfig(dim=5120, ffn_dim=13824, num_heads=40, num_layers=40)}
CARDS = (8, 12, 16, 24, 80)  # GB, of 10^9: what they have above that is for the desktop and the driver
CLIPS = [(size, frames) for size in (1080, 1440, 2160) for frames in (21, 81, 241)]


@dataclass(frozen=True)
class PlanClip:
    """The plan of one run: segments, tiles, bytes and operations; with --trial also the time."""

    source: tuple[int, int] = (640, 360)
    """Width and height of the video to super-resolve, in pixels, multiples of 8."""
    target: tuple[int, int] = (1920, 1080)
    """Width and height to make of it."""
    latent_frames: int = 21
    """21 are 81 frames of video."""
    batch: int = 1
    model: str = "wan-1.3b"
    """A SimpleGVR checkpoint, or the size of one: wan-1.3b or wan-14b, with the paper's attention."""
    upsampler: Path | None = None
    """An upsampler's checkpoint; by default one of the paper's widths."""
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    memory_gb: float = 16
    """Memory for weights and everything else, in 10^9 bytes."""
    kernel: Literal["triton", "sdpa"] = "triton"
    """What runs the attention in windows: Triton's kernels, or PyTorch's attention, which gathers."""
    trial: bool = False
    """Also run the checkpoint on one small box, twice, and forecast the time from it."""
    device: str = default_device()
    """Where to run the trial."""
    out: Path | None = None
    """PNG to draw the plan in."""

    def run(self) -> Plan:
        """Returns the plan, after printing it."""
        dit, attention, sampling = describe(self.model)
        source, target = (pixel_size(*size) for size in (self.source, self.target))
        networks = Networks(dit, attention, read_upsampler(self.upsampler))
        job = Job((self.batch, self.latent_frames, *source), target, sampling)
        plan = plan_sampling(networks, job, Machine(int(1e9 * self.memory_gb), getattr(torch, self.dtype), self.kernel))
        if self.trial:
            plan = replace(plan, seconds_per_operation=self.seconds_per_operation(plan))
        print(plan.text())
        if self.out:
            with atomic_write(self.out) as partial:
                draw_plan(plan).save(partial, "PNG")
        return plan

    @torch.inference_mode()
    def seconds_per_operation(self, plan: Plan) -> float:
        """Returns the seconds that an operation of the checkpoint's forward pass takes, timed on a small box."""
        if self.model in SIZES:
            raise ValueError(f"--model is {self.model}, a size without weights: give a checkpoint to run a trial")
        factory = {"device": self.device, "dtype": getattr(torch, self.dtype)}
        model, _ = load_dit(Path(self.model))
        model = model.to(**factory)
        box = plan.trial_tile
        z, context = torch.zeros(1, model.config.in_dim, *box, **factory), torch.zeros(1, TEXT_TOKENS, model.config.text_dim, **factory)
        timestep = torch.tensor([500.0], device=self.device)
        return trial(lambda: model(z, timestep, context), dit_flops(model.config, model.attention, token_grid(box)).total)


@dataclass(frozen=True)
class Table:
    """What fits on which card: a table in Markdown, of a model of Wan 1.3B's size and of gvr_tiny."""

    out: Path = Path("docs/memory.md")

    def run(self) -> None:
        """Writes the table."""
        models = {
            "a SimpleGVR model of Wan 1.3B's size": ("wan-1.3b", UpsamplerConfig()),
            "the bundled gvr_tiny": (str(GVR_TINY), read_upsampler(GVR_TINY_UPSAMPLER)),
        }
        sections = []
        for name, (model, upsampler) in models.items():
            dit, attention, sampling = describe(model)
            sections.append(section(name, Networks(dit, attention, upsampler), sampling))
        write_text(self.out, "\n\n".join([INTRODUCTION, *sections]) + "\n")


INTRODUCTION = f"""# What fits where

Written by `python3 scripts/run.py plan table`. **All figures are counted; none was measured on a GPU.** They are the peak bytes of
live tensors, counted by running the networks on PyTorch's "meta" device, which allocates nothing. On a CPU these counts are within 10
% of the growth of a process ([test_memory.py](../tests/test_memory.py)).

- **Assumptions**: bfloat16, batch 1, a target three times the source, Triton's window kernels, a prompt of {TEXT_TOKENS} tokens.
- **Cards**: a card's gigabytes are 10^9 bytes; the rest is reserved for the desktop and the driver. A tenth is reserved for what is
  not counted: workspaces of kernels and fragmentation of the allocator. When that is not enough, the sampler halves its boxes and
  continues.
- **Length**: memory does not grow with the length of a clip; [long_video.md](long_video.md#memory-over-the-length-of-a-clip) has the
  measurement, on a CPU.
- **Cells**: latent frames and pixels of one box; bytes of that box above the weights; number of tokens computed, relative to the
  tokens of the clip, because neighbouring boxes overlap.

For another size, model or memory: `python3 scripts/run.py plan clip --help`, or the node *SimpleGVR Plan* ([nodes](nodes.md))."""


def describe(model: str) -> tuple[DiTConfig, AttentionConfig, SamplingConfig]:
    """Returns the configuration of a checkpoint, or of a size of SIZES. Raises what foreign.read_any raises."""
    if model in SIZES:
        return SIZES[model], AttentionConfig(), SamplingConfig()
    _, config = read_any(Path(model), "dit")
    return *parse_dit_config(config, Path(model)), checkpoint.parse_config(SamplingConfig, config, "sampling", Path(model))


def read_upsampler(path: Path | None) -> AnyUpsamplerConfig:
    """Returns the widths of an upsampler's checkpoint, the paper's for None."""
    if path is None:
        return UpsamplerConfig()
    return parse_upsampler_config(read_any(path, "upsampler")[1], path)


def section(name: str, networks: Networks, sampling: SamplingConfig) -> str:
    """Returns the tables of one model in Markdown."""
    lines = [f"| target | latent frames | {' | '.join(f'{card} GB' for card in CARDS)} |", "|---" * (2 + len(CARDS)) + "|"]
    for side, frames in tqdm(CLIPS, desc=name, leave=False):
        size, source = landscape(side)
        plans = []
        for card in CARDS:
            job, machine = Job((1, frames, *source), size, sampling), Machine(card * 10**9, torch.bfloat16, "triton")
            plans.append(plan_sampling(networks, job, machine))
        lines.append(f"| {pixels(size)} | {frames} | {' | '.join(map(cell, plans))} |")
    around = ["| target | upsampler | TinyVAE |", "|---|---|---|"]
    for side in dict.fromkeys(side for side, _ in CLIPS):
        size, source = landscape(side)
        up = upsampler_bytes(networks.upsampler, 1, UPSAMPLER_FRAMES, source, size, None, torch.bfloat16)
        decode = decode_bytes(TinyVAEConfig(), DECODER_FRAMES, size, torch.bfloat16)
        around.append(f"| {pixels(size)} | {amount(up)} | {amount(decode)} |")
    return "\n".join(
        [
            f"## {name[0].upper()}{name[1:]}",
            f"Weights: {amount(plans[0].weights_bytes)}.\n",
            *lines,
            "\nUpsampler and decoder, whole frames, two latent frames at a time, for a clip of any length:\n",
            *around,
        ]
    )


def landscape(side: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Returns (H, W) in latent pixels of 16:9 frames with a short side of so many pixels, and of the source of a third of it."""
    H, W = short_side_size((9, 16), side)
    return (H, W), (-(-H // 3), -(-W // 3))


def cell(plan: Plan) -> str:
    """Returns a plan in a cell of a table."""
    segment, *tile = plan.tiling.size
    clip = "all" if segment is None else segment
    frames = "whole frames" if tile == [None, None] else f"frames of {pixels(plan.tile_size[1:])}"
    return f"{clip} {frames}, {amount(plan.dit_bytes)}, {plan.overhead:.2f} x"


def main(arguments: Sequence[str]) -> dict | None:
    """Runs `plan` with the arguments of the command line; returns its results."""
    plan = tyro.extras.subcommand_cli_from_dict({"clip": PlanClip, "table": Table}, prog="simplegvr plan", args=arguments).run()
    return plan and asdict(plan)
