"""The plan of a run before it starts: which boxes fit the memory at the least work, and what everything takes.

Extents and sizes are latent cells along T, H, W; a token is (1, 2, 2) of them.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from time import perf_counter

import torch

from ..latent_space import LATENT_CHANNELS, pixels, token_grid, video_frames
from ..networks.attention import AttentionConfig
from ..networks.dit import DiTConfig, SimpleGVRDiT
from ..networks.tiny_vae import TinyVAEConfig
from ..networks.upsampler import LatentUpsampler, UpsamplerConfig, smaller_tiles
from ..sampling.super_resolve import UPSAMPLER_FRAMES, SamplingConfig
from ..tiling import LEAST_OVERLAP, Box, Tiling, padded, round_up, spans
from .flops import dit_flops
from .network_memory import decode_bytes, dit_bytes, upsampler_bytes, weight_bytes

TRAINED_FRAMES = 21  # latent, of Wan 2.1: what its dense attention knows
DECODER_FRAMES = 2  # latent, at a time
UNCOUNTED = 0.1  # of the free memory: kernels' workspaces, and what an allocator cannot reuse
SEGMENT_COPIES = 5.5  # float32, of a segment's whole frames: what refine keeps on the host at most
WORKING_FILES = 4  # the upsampled latent, the condition of a model that has one, z, and the z of the next step
SOON_COUNTED = 8  # a clip of fewer smallest boxes is counted whole before anything else; a long one's windows fill the host's memory
CURE = "use a smaller target size, a smaller batch, or weights in a smaller dtype, or free memory"


@dataclass(frozen=True)
class Plan:
    """What one run of the sampler takes. All bytes are counted, none is measured.

    shape: (B, T, H, W) of the target latent. source: (h, w). tokens: of all boxes of a forward pass through the clip,
    what boxes share counted in each; clip_tokens: without. weights_bytes: the DiT's; resident_bytes: the part of them that
    stays on the device beside a box of dit_bytes. host_bytes: of a segment's frames, in the host's memory.
    upsampler_tile: None is the whole frame. decode_bytes: TinyVAE's.
    disk_bytes: the working files. forwards: passes through the clip. seconds_per_operation: measured by trial; None
    is not measured. unit: frames of the attention's temporal units.
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
        return tuple(min(2 * shared, size) for shared, size in zip(self.tiling.overlap, self.tile_size, strict=True))

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
        return tuple(len(spans(*axis)) for axis in zip(self.extent, self.tiling.size, self.tiling.overlap, strict=True))

    def text(self) -> str:
        """Returns the plan in plain words."""
        batch, frames, *size = self.shape
        segment, *tile = self.tile_size
        shared, *shared_cells = self.tiling.overlap
        along, down, across = self.counts
        stay = ""
        if self.resident_bytes < self.weights_bytes:
            stay = f", of which {amount(self.resident_bytes)} stay and the others come and go"
        in_tiles = f" in tiles of {pixels(self.upsampler_tile)} pixels" if self.upsampler_tile else ""
        lines = [
            f"{pixels(self.source)} -> {pixels(size)} pixels, {frames} latent frames ({video_frames(frames)} frames), batch {batch}.",
            f"Segments: {along} of {segment} latent frames; neighbours share {shared}."
            if along > 1
            else "Segments: the whole clip is one.",
            f"Tiles: {across} x {down} of {pixels(tile)} pixels; neighbours share {pixels(shared_cells)}."
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


def plan_sampling(
    dit: DiTConfig,
    attention: AttentionConfig,
    upsampler: UpsamplerConfig,
    shape: tuple[int, int, int, int],
    size: tuple[int, int],
    sampling: SamplingConfig,
    free_bytes: int,
    dtype: torch.dtype,
    max_frames: int | None = None,
    *,
    implementation: str = "sdpa",
    weights_bytes: int | None = None,
    upsampler_dtype: torch.dtype | None = None,
    on_host: bool = False,
) -> Plan:
    """Returns the plan of a run in plan_tiling' boxes, whose arguments have the same names here.

    shape: (B, T, h, w) of the latent to upsample; size: (H, W) to make of it. weights_bytes: the DiT's, by default in dtype.
    upsampler_dtype: dtype by default. Raises ValueError with the cure when not even the smallest box fits.
    """
    batch, frames, *source = shape
    target = (batch, frames, *size)
    if weights_bytes is None:
        weights_bytes = weight_bytes(SimpleGVRDiT(dit, attention, device="meta", dtype=dtype))
    tiling, needed = plan_tiling(dit, attention, target, free_bytes, dtype, max_frames, implementation, weights_bytes, on_host)
    extent = padded(target[1:])
    boxes = Counter(box.size for box in tiling.boxes(extent))
    forwards = sampling.steps * (1 if sampling.cfg == 1 else 2)
    return Plan(
        shape=target,
        source=tuple(source),
        unit=attention.unit,
        tiling=tiling,
        tokens=sum(count * tokens(box) for box, count in boxes.items()),
        clip_tokens=tokens(extent),
        forwards=forwards,
        free_bytes=free_bytes,
        weights_bytes=weights_bytes,
        resident_bytes=resident_bytes(weights_bytes, free_bytes),
        dit_bytes=needed,
        host_bytes=segment_bytes(target, tiling.tile_size(extent)[0]),
        **plan_upsampler(upsampler, batch, tuple(source), size, upsampler_dtype or dtype, usable(free_bytes)),
        decode_bytes=decode_bytes(TinyVAEConfig(), DECODER_FRAMES, size, upsampler_dtype or dtype),
        disk_bytes=(WORKING_FILES - (dit.in_dim == LATENT_CHANNELS)) * 4 * batch * 16 * frames * size[0] * size[1],
        flops=batch * forwards * sum(count * dit_flops(dit, attention, token_grid(box)).total for box, count in boxes.items()),
    )


def plan_tiling(
    dit: DiTConfig,
    attention: AttentionConfig,
    shape: tuple[int, int, int, int],
    free_bytes: int,
    dtype: torch.dtype,
    max_frames: int | None,
    implementation: str,
    weights_bytes: int,
    on_host: bool,
) -> tuple[Tiling, int]:
    """Returns the tiling with the least tokens whose boxes fit, and of those the one with the fewest boxes; and a box's bytes.

    shape: (B, T, H, W) of the target. free_bytes: for weights and everything else. dtype: of the DiT's activations. max_frames:
    longest segment; see longest_segment. implementation: of window attention, "triton" or "sdpa". weights_bytes: where they
    are more than half of free_bytes, half of it is left to boxes and the rest of the weights comes and goes, as ComfyUI does
    it. on_host: the model runs on the CPU, so a segment's frames take of the same memory. Raises ValueError with the cure
    when not even the smallest box fits.
    """
    extent, align = padded(shape[1:]), attention.alignment
    overlap = tuple(round_up(cells, a) for cells, a in zip(LEAST_OVERLAP, align, strict=True))
    budget = usable(free_bytes) - resident_bytes(weights_bytes, free_bytes)

    def need(box: tuple[int, int, int]) -> int:
        return dit_bytes(dit, attention, shape[0], box, dtype, implementation)

    def left(frames: int) -> int:
        return budget - on_host * segment_bytes(shape, frames)

    return least_work(extent, overlap, align, max_frames, need, left)


def usable(free_bytes: int) -> int:
    return int(free_bytes * (1 - UNCOUNTED))


def resident_bytes(weights_bytes: int, free_bytes: int) -> int:
    """Returns the part of the weights that stays on the device: all, or what half the memory holds."""
    return min(weights_bytes, usable(free_bytes) // 2)


def segment_bytes(shape: tuple[int, int, int, int], frames: int) -> int:
    """Returns the bytes that a segment of so many latent frames takes on the host while a clip of shape (B, T, H, W) is refined."""
    batch, _, height, width = shape
    return int(SEGMENT_COPIES * 4 * batch * LATENT_CHANNELS * frames * height * width)


def least_work(
    extent: tuple[int, int, int],
    overlap: tuple[int, int, int],
    align: tuple[int, int, int],
    max_frames: int | None,
    need: Callable[[tuple[int, int, int]], int],
    left: Callable[[int], int],
) -> tuple[Tiling, int]:
    """Returns the tiling with the least tokens, then the fewest boxes, of those whose box needs no more than is left; and its need.

    left(frames of the box) -> bytes. need(box) -> bytes; it grows with the box as a straight line, nearly: two small boxes tell
    which larger ones are worth counting. Raises ValueError when none fits.
    """
    limits = max_frames, None, None
    axes = [list(sizes(*axis)) for axis in zip(extent, overlap, align, limits, strict=True)]
    tilings = sorted((Tiling(size, overlap) for size in product(*axes)), key=lambda tiling: work(tiling, extent))
    whole, small, larger = (
        tiling.tile_size(extent)
        for tiling in (tilings[0], *(Tiling(tuple(axis[max(index, -len(axis))] for axis in axes), overlap) for index in (-1, -2)))
    )
    if math.prod(whole) <= SOON_COUNTED * math.prod(small) and need(whole) <= left(whole[0]):
        return tilings[0], need(whole)
    least = need(small)
    if least > left(small[0]):
        raise ValueError(
            f"the smallest box, {small[0]} latent frames of {pixels(small[1:])} pixels, takes {amount(least)} "
            f"and {amount(max(0, left(small[0])))} are left for it: {CURE}"
        )
    per_cell = least / math.prod(small)
    if larger != small:
        per_cell = (need(larger) - least) / (math.prod(larger) - math.prod(small))
    for tiling in tilings:
        box = tiling.tile_size(extent)
        if least + 0.97 * per_cell * (math.prod(box) - math.prod(small)) <= left(box[0]) and need(box) <= left(box[0]):
            return tiling, need(box)
    raise AssertionError("the smallest box fits")


def sizes(extent: int, overlap: int, align: int, limit: int | None) -> Iterator[int | None]:
    """Yields sizes of a box along one axis, largest first: for each number of boxes the smallest aligned one, None for the whole.

    So many boxes compute extent + (boxes - 1) overlap cells, whatever their size: a larger one would only need more memory.
    """
    smallest = {len(spans(extent, size, overlap)): size for size in reversed(range(2 * overlap, extent, align))}
    if limit is None or extent <= limit:
        yield None
    yield from (size for _, size in sorted(smallest.items()) if limit is None or size <= limit)


def work(tiling: Tiling, extent: tuple[int, int, int]) -> tuple[int, int]:
    """Returns the cells that a tiling computes, and its number of boxes."""
    counts = [len(spans(*axis)) for axis in zip(extent, tiling.size, tiling.overlap, strict=True)]
    cells = math.prod(e + (count - 1) * shared for e, count, shared in zip(extent, counts, tiling.overlap, strict=True))
    return cells, math.prod(counts)


def plan_upsampler(
    upsampler: UpsamplerConfig, batch: int, source: tuple[int, int], size: tuple[int, int], dtype: torch.dtype, budget: int
) -> dict:
    """Returns frames, tile and bytes, as Plan names them, of the upsampler: tiles are halved until one fits budget."""
    budget -= weight_bytes(LatentUpsampler(upsampler, device="meta", dtype=dtype))
    for tile in smaller_tiles(size):
        whole = None if tile == size else tile
        needed = upsampler_bytes(upsampler, batch, UPSAMPLER_FRAMES, source, size, whole, dtype)
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


def longest_segment(dit: DiTConfig, attention: AttentionConfig) -> int | None:
    """Returns TRAINED_FRAMES for a stock model whose attention spans the whole clip, else None, no limit."""
    return TRAINED_FRAMES if attention.unit is None and dit.in_dim == 16 else None


def tokens(box: tuple[int, int, int]) -> int:
    return math.prod(token_grid(box))


def amount(count: float) -> str:
    """Returns a number of bytes in MB or GB, of 10^6 and 10^9, to three digits."""
    return f"{count / 1e9:.3g} GB" if count >= 0.9995e9 else f"{count / 1e6:.3g} MB"


def duration(seconds: float) -> str:
    """Returns seconds in the unit that suits them."""
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.1f} s"
