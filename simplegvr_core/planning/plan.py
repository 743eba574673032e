"""The plan of a run before it starts: which boxes fit the memory with the least work, and what every part takes.

Extents and sizes are latent pixels along T, H, W; a token is (1, 2, 2) of them.
"""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter

import torch

from ..checks import amount
from ..latent_space import LATENT_CHANNELS, pixels, token_grid, video_frames
from ..networks.tiny_vae import TinyVAEConfig
from ..networks.upsampler import AnyUpsamplerConfig, make_upsampler, smaller_tiles
from ..sampling.refine import working_latents
from ..sampling.super_resolve import UPSAMPLER_FRAMES, SamplingConfig
from ..tiling import Box, Tiling, padded, spans
from .boxes import CURE, Machine, Networks, host_bytes, plan_tiling
from .flops import dit_flops
from .network_memory import decode_bytes, upsampler_bytes, weight_bytes

DECODER_FRAMES = 2  # latent, at a time


@dataclass(frozen=True)
class Job:
    """What is super-resolved, and how.

    Attributes:
        shape: (B, T, h, w) of the low-resolution latent.
        size: (H, W), target size in latent pixels.
        sampling: Steps, guidance and solver are read.
    """

    shape: tuple[int, int, int, int]
    size: tuple[int, int]
    sampling: SamplingConfig

    @property
    def target(self) -> tuple[int, int, int, int]:
        """Returns (B, T, H, W)."""
        return *self.shape[:2], *self.size


@dataclass(frozen=True)
class Plan:
    """What one run of the sampler takes. All bytes are counted, none is measured.

    Attributes:
        shape: (B, T, H, W) of the target latent.
        source: (h, w) of the low-resolution latent.
        unit: Latent frames of the attention's temporal units; None is the whole clip.
        tiling: The boxes.
        tokens: Tokens of all boxes of one pass through the clip; those of overlaps count in each box.
        clip_tokens: Tokens of the clip.
        forwards: Passes through the clip.
        free_bytes: Memory for weights and everything else.
        weights_bytes: The DiT's weights.
        resident_bytes: The part of the weights that stays on the device.
        dit_bytes: The largest box, beside the weights.
        host_bytes: A segment's frames in the host's memory, and the keys and values of those before that causal attention needs.
        upsampler_frames: Latent frames that the upsampler is given at a time.
        upsampler_tile: (H, W) of its tiles; None is the whole frame.
        upsampler_bytes: The upsampler's activations.
        decode_bytes: TinyVAE's activations.
        disk_bytes: The working files.
        flops: Operations of all passes.
        seconds_per_operation: Measured by trial; None is not measured.
    """

    shape: tuple[int, int, int, int]
    source: tuple[int, int]
    unit: int | None
    tiling: Tiling
    tokens: int
    clip_tokens: int
    forwards: int
    free_bytes: int
    weights_bytes: int
    resident_bytes: int
    dit_bytes: int
    host_bytes: int
    upsampler_frames: int
    upsampler_tile: tuple[int, int] | None
    upsampler_bytes: int
    decode_bytes: int
    disk_bytes: int
    flops: float
    seconds_per_operation: float | None = None

    @property
    def extent(self) -> tuple[int, int, int]:
        """Returns the clip's (T, H, W), its odd sides made even as the network does."""
        return padded(self.shape[1:])

    @property
    def boxes(self) -> list[Box]:
        """Returns the boxes of one pass through the clip."""
        return self.tiling.boxes(self.extent)

    @property
    def tile_size(self) -> tuple[int, int, int]:
        """Returns the largest box's extent."""
        return self.tiling.tile_size(self.extent)

    @property
    def trial_tile(self) -> tuple[int, int, int]:
        """Returns the extent of the small box that a trial runs."""
        T, H, W = (min(2 * shared or size, size) for shared, size in zip(self.tiling.overlap, self.tile_size, strict=True))
        return T, H, W

    @property
    def overhead(self) -> float:
        """Returns the tokens that are computed over the tokens there are."""
        return self.tokens / self.clip_tokens

    @property
    def seconds(self) -> float | None:
        """Returns the forecast of the sampling time: its operations times what one took in the trial."""
        return self.seconds_per_operation and self.flops * self.seconds_per_operation

    @property
    def counts(self) -> tuple[int, int, int]:
        """Returns how many boxes there are along T, H, W."""
        T, H, W = (len(spans(*axis)) for axis in zip(self.extent, self.tiling.size, self.tiling.overlap, strict=True))
        return T, H, W

    def text(self) -> str:
        """Returns the plan in plain words."""
        batch, frames, *_ = self.shape
        size, segment, tile = self.shape[2:], self.tile_size[0], self.tile_size[1:]
        overlap = self.tiling.overlap
        along, down, across = self.counts
        stay = ""
        if self.resident_bytes < self.weights_bytes:
            stay = f", of which {amount(self.resident_bytes)} stay and the others come and go"
        in_tiles = f" in tiles of {pixels(self.upsampler_tile)} pixels" if self.upsampler_tile else ""
        link = f"adjacent segments overlap by {overlap[0]}" if overlap[0] else "each attends to keys and values kept of those before"
        lines = [
            f"{pixels(self.source)} -> {pixels(size)} pixels, {frames} latent frames ({video_frames(frames)} frames), batch {batch}.",
            f"Segments: {along} of {segment} latent frames; {link}." if along > 1 else "Segments: the whole clip is one.",
            f"Tiles: {across} x {down} of {pixels(tile)} pixels; adjacent tiles overlap by {pixels(overlap[1:])}."
            if across * down > 1
            else "Tiles: the whole frame is one.",
            f"Boxes: {len(self.boxes)} in each of {self.forwards} passes, with {self.overhead:.2f} times the clip's tokens; "
            f"{self.flops:.2g} operations in all.",
            f"Memory, of {amount(self.free_bytes)}: weights {amount(self.weights_bytes)}{stay}; a box {amount(self.dit_bytes)}. "
            f"The host's: {amount(self.host_bytes)} for a segment.",
            f"Before it, the upsampler: {amount(self.upsampler_bytes)}, {self.upsampler_frames} latent frames at a time{in_tiles}. "
            f"After it, TinyVAE: {amount(self.decode_bytes)}. Working files: {amount(self.disk_bytes)}.",
            "Bytes are counted from the networks, not measured.",
        ]
        if self.seconds is not None:
            lines.append(f"Forecast from a trial on this machine: {duration(self.seconds)} of sampling.")
        return "\n".join(lines)


def plan_sampling(networks: Networks, job: Job, machine: Machine) -> Plan:
    """Returns the plan of a run, in the boxes of plan_tiling.

    Raises:
        ValueError: Not even the smallest box, or the upsampler's smallest tile, fits. The message has the cure.
    """
    batch, frames, *_ = job.shape
    tiling, box_bytes = plan_tiling(networks, job.target, machine)
    extent, dtype = padded(job.target[1:]), machine.upsampler_dtype or machine.dtype
    boxes = Counter(box.size for box in tiling.boxes(extent))
    forwards = job.sampling.steps * (1 if job.sampling.cfg == 1 else 2)
    files = working_latents(networks.dit.in_dim > LATENT_CHANNELS, job.sampling.solver)
    flops = sum(count * dit_flops(networks.dit, networks.attention, token_grid(box)).total for box, count in boxes.items())
    return Plan(
        shape=job.target,
        source=job.shape[2:],
        unit=networks.attention.unit,
        tiling=tiling,
        tokens=sum(count * tokens(box) for box, count in boxes.items()),
        clip_tokens=tokens(extent),
        forwards=forwards,
        free_bytes=machine.free_bytes,
        weights_bytes=machine.weights_bytes(networks),
        resident_bytes=machine.resident_bytes(networks),
        dit_bytes=box_bytes,
        host_bytes=host_bytes(networks, job.target, tiling.tile_size(extent), machine),
        **plan_upsampler(networks.upsampler, job, dtype, machine.usable_bytes),
        decode_bytes=decode_bytes(TinyVAEConfig(), DECODER_FRAMES, job.size, dtype),
        disk_bytes=files * 4 * batch * LATENT_CHANNELS * frames * job.size[0] * job.size[1],
        flops=batch * forwards * flops,
    )


def plan_upsampler(upsampler: AnyUpsamplerConfig, job: Job, dtype: torch.dtype, budget: int) -> dict:
    """Returns frames, tile and bytes, as Plan names them, of the upsampler: tiles are halved until one fits budget."""
    budget -= weight_bytes(make_upsampler(upsampler, device="meta", dtype=dtype))
    for tile in smaller_tiles(job.size):
        whole = None if tile == job.size else tile
        needed = upsampler_bytes(upsampler, job.shape[0], UPSAMPLER_FRAMES, job.shape[2:], job.size, whole, dtype)
        if needed <= budget:
            return {"upsampler_frames": UPSAMPLER_FRAMES, "upsampler_tile": whole, "upsampler_bytes": needed}
    raise ValueError(f"the upsampler takes {amount(needed)} in its smallest tiles, {amount(budget)} are free: {CURE}")


def trial(forward: Callable[[], torch.Tensor], flops: float) -> float:
    """Returns the seconds that forward(), one pass of the network with so many operations, takes for each, after a warm-up."""
    forward()
    synchronize()
    start = perf_counter()
    forward()
    synchronize()
    return (perf_counter() - start) / flops


def synchronize() -> None:
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()


def tokens(box: tuple[int, int, int]) -> int:
    return math.prod(token_grid(box))


def duration(seconds: float) -> str:
    """Returns seconds in the unit that suits them."""
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.1f} s"
