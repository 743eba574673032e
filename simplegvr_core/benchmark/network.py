"""Time of a forward pass of the network, and of the cascade."""

import gc
from dataclasses import dataclass, replace

import torch
from tqdm import tqdm

from ..latent_space import latent_frames
from ..networks.dit import DiTConfig, SimpleGVRDiT
from ..planning import flops
from . import baselines
from .attention import ATTENTIONS, baseline_row, nbytes
from .machine import Grid, Machine, Options, Row, Work, bars, report

WAN_14B = DiTConfig(in_dim=16, dim=5120, ffn_dim=13824, num_heads=40, num_layers=40)  # Wan 2.1's large text-to-video model


@dataclass(frozen=True)
class NetworkBenchmark(Options):
    """Times one forward pass of the SimpleGVR network at Wan 2.1 1.3B's widths, by attention, size and length."""

    sizes: tuple[tuple[int, int], ...] = ((480, 832), (720, 1280), (1088, 1920), (1152, 2016), (1440, 2560), (2160, 3840))
    """Height and width in pixels, of one or more videos."""
    num_frames: tuple[int, ...] = (17, 77)
    """Video frames; one or more lengths."""
    attention: tuple[str, ...] = tuple(ATTENTIONS)
    """Of: dense, dense units, swin, sparse local."""
    dit: DiTConfig = DiTConfig()
    """Sizes of the network."""

    def run(self) -> dict:
        """Returns the timings, and for each size and length the time of dense over that of sparse local attention."""
        machine, rows, ratios = self.machine(), [], {}
        model = random_model(self.dit, machine)
        for num_frames in self.num_frames:
            for size in tqdm(self.sizes, desc=f"{num_frames} frames", leave=False):
                grid, video = token_grid(num_frames, size), describe_video(num_frames, size)
                times = {}
                for name in self.attention:
                    rows.append(forward_row(machine, model, name, grid, f"{name}, {video}"))
                    times[name] = rows[-1].ms
                if times.get("dense") and times.get("sparse local"):
                    ratios[video] = times["dense"] / times["sparse local"]
        rows += self.one_block(machine, token_grid(self.num_frames[-1], self.sizes[0]))
        bars(self.out / "model.png", rows, f"one forward pass, {self.dit.num_layers} layers")
        return report(self.out / "model", machine, rows, {"dense_over_sparse": ratios})

    def one_block(self, machine: Machine, grid: Grid) -> list[Row]:
        """Returns timings of one block of ours and of ComfyUI's SeedVR2 3B at the same output size."""
        model = random_model(replace(self.dit, num_layers=1), machine)
        seedvr2 = Work("one block of SeedVR2 3B (width 2560)", grid)  # its useful operations are not counted
        return [
            forward_row(machine, model, "sparse local", grid, f"a network of one block of ours (width {self.dit.dim})"),
            baseline_row(machine, seedvr2, lambda: baselines.seedvr2_block(grid, machine.device, machine.dtype)),
        ]


@dataclass(frozen=True)
class CascadeBenchmark(Options):
    """Times video by a large text-to-video model alone, against that model at a small size and SimpleGVR after it.

    A forward pass is timed with 1 and with 3 layers; the time of the other layers, which are equal, is added. Both sides
    run without classifier-free guidance, which would double both.
    """

    size: tuple[int, int] = (1088, 1920)
    """Height and width in pixels of the result."""
    low_size: tuple[int, int] = (512, 896)
    """Height and width in pixels of the cascade's first stage."""
    num_frames: int = 77
    """Video frames."""
    steps: tuple[int, ...] = (50, 8)
    """Sampling steps that are compared. The first is the text-to-video model's in the cascade, whatever SimpleGVR's."""
    dit: DiTConfig = DiTConfig()
    """Sizes of the SimpleGVR network."""
    t2v: DiTConfig = WAN_14B
    """Sizes of the text-to-video model."""

    def run(self) -> dict:
        """Returns the timings, the seconds of a step of each part, and of both ways beside the paper's."""
        machine, rows = self.machine(), []
        high, low = token_grid(self.num_frames, self.size), token_grid(self.num_frames, self.low_size)
        parts = {
            "large, end to end": (self.t2v, "dense", high),
            "large, low resolution": (self.t2v, "dense", low),
            "SimpleGVR, dense": (self.dit, "dense", high),
            "SimpleGVR, dense units": (self.dit, "dense units", high),
            "SimpleGVR, sparse local": (self.dit, "sparse local", high),
        }
        seconds = {}
        for name, (config, attention, grid) in tqdm(parts.items(), leave=False):
            one, three = (
                forward_row(machine, random_model(replace(config, num_layers=layers), machine), attention, grid, f"{name}, {layers} layers")
                for layers in (1, 3)
            )
            rows += [one, three]
            if one.ms and three.ms:
                seconds[name] = (one.ms + (three.ms - one.ms) / 2 * (config.num_layers - 1)) / 1e3
        summary: dict[str, dict | float] = {"seconds_per_step": seconds}
        compared = "large, end to end", "large, low resolution", "SimpleGVR, sparse local"
        if set(compared) <= seconds.keys():
            end_to_end, first, second = (seconds[name] for name in compared)
            summary["end_to_end_s"] = {steps: steps * end_to_end for steps in self.steps}
            summary["cascade_s"] = {f"{self.steps[0]} + {steps}": self.steps[0] * first + steps * second for steps in self.steps}
            summary["end_to_end_over_cascade"] = end_to_end / (first + second)
        summary["paper"] = {"end_to_end_s": 950, "cascade_s": 283, "end_to_end_over_cascade": 950 / 283}
        bars(self.out / "cascade.png", rows, f"layers of a forward pass, {describe_video(self.num_frames, self.size)}")
        return report(self.out / "cascade", machine, rows, summary)


def token_grid(num_frames: int, size: tuple[int, int]) -> Grid:
    """Returns the tokens of a video of so many frames and pixels (height, width)."""
    return latent_frames(num_frames), -(-size[0] // 16), -(-size[1] // 16)


def describe_video(num_frames: int, size: tuple[int, int]) -> str:
    return f"{size[1]} x {size[0]}, {num_frames} frames"


def random_model(config: DiTConfig, machine: Machine) -> SimpleGVRDiT:
    """Returns a network with random weights on the machine."""
    gc.collect()  # the model before it
    with torch.device(machine.device):
        model = SimpleGVRDiT(config, ATTENTIONS["dense"], dtype=machine.dtype)
    for parameter in model.requires_grad_(False).parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    return model


def forward_row(machine: Machine, model: SimpleGVRDiT, attention: str, grid: Grid, name: str) -> Row:
    """Returns the timing of one forward pass.

    Args:
        machine: Where it runs.
        model: The network; its attention is exchanged.
        attention: Of ATTENTIONS.
        grid: Video tokens along time, height and width.
        name: Name of the row.
    """
    model.attention = ATTENTIONS[attention]
    factory = {"device": machine.device, "dtype": machine.dtype}
    z = torch.randn(1, model.config.in_dim, grid[0], 2 * grid[1], 2 * grid[2], **factory)
    context, timestep = torch.randn(1, 512, model.config.text_dim, **factory), torch.tensor([500.0], device=machine.device)
    work = Work(name, grid, flops.dit_flops(model.config, model.attention, grid).total, sum(map(nbytes, model.parameters())))
    return machine.row(work, lambda: model(z, timestep, context))
