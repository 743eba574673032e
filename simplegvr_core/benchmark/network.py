"""Time of a forward pass of the network, and of the cascade."""

import gc
from dataclasses import dataclass, replace

import torch
from tqdm import tqdm

from ..latent_space import latent_frames
from ..networks.dit import DiTConfig, SimpleGVRDiT
from ..planning import flops
from . import baselines
from .attention import ATTENTIONS, nbytes
from .machine import Machine, Options, Row, bars, report

SIZES = {
    "480p": (480, 832),
    "720p": (720, 1280),
    "1080p": (1088, 1920),
    "1152p": (1152, 2016),
    "1440p": (1440, 2560),
    "2160p": (2160, 3840),
}
GVR = DiTConfig()
LARGE = DiTConfig(in_dim=16, dim=5120, ffn_dim=13824, num_heads=40, num_layers=40)  # Wan 2.1 14B


@dataclass(frozen=True)
class Model(Options):
    """One forward pass of the SimpleGVR network at Wan 2.1 1.3B's widths, by attention, size and length."""

    sizes: tuple[str, ...] = tuple(SIZES)
    frames: tuple[int, ...] = (17, 77)
    layers: int = 30
    attention: tuple[str, ...] = tuple(ATTENTIONS)

    def run(self) -> dict:
        machine, rows, ratios = self.machine(), [], {}
        model = random_model(replace(GVR, num_layers=self.layers), machine)
        for frames in self.frames:
            for size in tqdm(self.sizes, desc=f"{frames} frames", leave=False):
                grid = token_grid(frames, SIZES[size])
                own = [forward_row(model, name, grid, machine, f"{name}, {size}, {frames} frames") for name in self.attention]
                rows += own
                times = dict(zip(self.attention, (row.ms for row in own), strict=True))
                if times.get("dense") and times.get("sparse local"):
                    ratios[f"{size}, {frames} frames"] = times["dense"] / times["sparse local"]
        rows += self.one_block(machine, token_grid(self.frames[-1], SIZES[self.sizes[0]]))
        bars(self.out / "model.png", [row for row in rows if row.ms], f"one forward pass, {self.layers} layers")
        return report(self.out, "model", machine, rows, {"dense_over_sparse": ratios})

    def one_block(self, machine: Machine, grid: tuple) -> list[Row]:
        """Returns timings of one block of ours and of ComfyUI's SeedVR2 3B at the same output size."""
        ours = random_model(replace(GVR, num_layers=1), machine)
        name, count = "one block of SeedVR2 3B (width 2560)", 0.0  # its useful operations are not counted
        try:
            theirs = machine.row(name, grid, baselines.seedvr2_block(grid, machine.device, machine.dtype), count)
        except baselines.Unavailable as reason:
            theirs = Row(name, grid, None, 0.0, None, note=f"not run: {reason}")
        return [forward_row(ours, "sparse local", grid, machine, "a network of one block of ours (width 1536)"), theirs]


@dataclass(frozen=True)
class Cascade(Options):
    """DiT seconds of 1080p video: a large model alone, against the large model at 512p and SimpleGVR after it.

    A forward pass is timed with 1 and with 3 layers, and the rest of its equal layers added. Without guidance, which
    doubles both sides alike.
    """

    size: str = "1080p"
    frames: int = 77
    steps: tuple[int, ...] = (50, 8)

    def run(self) -> dict:
        machine, rows = self.machine(), []
        high, low = token_grid(self.frames, SIZES[self.size]), token_grid(self.frames, (512, 896))
        parts = {
            "large, end to end": (LARGE, "dense", high),
            "large, 512p": (LARGE, "dense", low),
            "SimpleGVR, dense": (GVR, "dense", high),
            "SimpleGVR, dense units": (GVR, "dense units", high),
            "SimpleGVR, sparse local": (GVR, "sparse local", high),
        }
        seconds = {}
        for name, (config, attention, grid) in tqdm(parts.items(), leave=False):
            own = [self.layers_row(config, layers, attention, grid, machine, name) for layers in (1, 3)]
            rows += own
            if all(row.ms for row in own):
                seconds[name] = (own[0].ms + (own[1].ms - own[0].ms) / 2 * (config.num_layers - 1)) / 1e3
        summary = {"seconds_per_step": seconds}
        if {"large, end to end", "large, 512p", "SimpleGVR, sparse local"} <= seconds.keys():
            end_to_end, first, second = (seconds[name] for name in ("large, end to end", "large, 512p", "SimpleGVR, sparse local"))
            summary["end_to_end_s"] = {steps: steps * end_to_end for steps in self.steps}
            summary["cascade_s"] = {f"{self.steps[0]} + {steps}": self.steps[0] * first + steps * second for steps in self.steps}
            summary["end_to_end_over_cascade"] = end_to_end / (first + second)
        summary["paper"] = {"end_to_end_s": 950, "cascade_s": 283, "end_to_end_over_cascade": 950 / 283}
        bars(self.out / "cascade.png", [row for row in rows if row.ms], f"layers of a forward pass, {self.size}, {self.frames} frames")
        return report(self.out, "cascade", machine, rows, summary)

    def layers_row(self, config: DiTConfig, layers: int, attention: str, grid: tuple, machine: Machine, name: str) -> Row:
        model = random_model(replace(config, num_layers=layers), machine)
        return forward_row(model, attention, grid, machine, f"{name}, {layers} layers")


def token_grid(frames: int, size: tuple[int, int]) -> tuple[int, int, int]:
    """Returns the tokens of a video of so many frames and pixels."""
    return (latent_frames(frames), -(-size[0] // 16), -(-size[1] // 16))


def random_model(config: DiTConfig, machine: Machine) -> SimpleGVRDiT:
    gc.collect()  # the model before it
    with torch.device(machine.device):
        model = SimpleGVRDiT(config, ATTENTIONS["dense"], dtype=machine.dtype)
    for parameter in model.requires_grad_(False).parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    return model


def forward_row(model: SimpleGVRDiT, attention: str, grid: tuple[int, int, int], machine: Machine, name: str) -> Row:
    """Returns the timing of one forward pass over a grid of tokens."""
    model.attention = ATTENTIONS[attention]
    factory = {"device": machine.device, "dtype": machine.dtype}
    z = torch.randn(1, model.config.in_dim, grid[0], 2 * grid[1], 2 * grid[2], **factory)
    context, timestep = torch.randn(1, 512, model.config.text_dim, **factory), torch.tensor([500.0], device=machine.device)
    count = flops.dit_flops(model.config, model.attention, grid).total
    weights = sum(nbytes(parameter) for parameter in model.parameters())
    return machine.row(name, grid, lambda: model(z, timestep, context), count, weights)
