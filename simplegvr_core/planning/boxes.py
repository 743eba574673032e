"""The boxes of a run: those that fit the memory with the least work.

Extents and sizes are latent pixels along T, H, W.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product

import torch

from ..checks import amount
from ..latent_space import LATENT_CHANNELS, pixels
from ..networks.attention import AttentionConfig
from ..networks.dit import DiTConfig, SimpleGVRDiT
from ..networks.upsampler import AnyUpsamplerConfig, UpsamplerConfig
from ..tiling import Tiling, padded, spans
from .network_memory import dit_bytes, past_bytes, weight_bytes

TRAINED_FRAMES = 21  # latent, of Wan 2.1's dense attention
UNCOUNTED = 0.1  # of the free memory: workspaces of kernels, and what an allocator cannot reuse
SEGMENT_COPIES = 5.5  # float32, of a segment's whole frames: what refine has on the host at most
CURE = "use a smaller target size, a smaller batch, or weights in a smaller dtype, or free memory"

Extent = tuple[int, int, int]


@dataclass(frozen=True)
class Networks:
    """The networks of a run."""

    dit: DiTConfig
    attention: AttentionConfig
    upsampler: AnyUpsamplerConfig = UpsamplerConfig()

    @property
    def longest_segment(self) -> int | None:
        """Returns TRAINED_FRAMES for a stock model whose attention spans the whole clip, else None, no limit."""
        return TRAINED_FRAMES if self.attention.unit is None and self.dit.in_dim == LATENT_CHANNELS else None


@dataclass(frozen=True)
class Machine:
    """What the networks run on.

    Attributes:
        free_bytes: Memory for weights and everything else.
        dtype: Of the DiT's activations.
        kernel: Of window attention, "triton" or "sdpa".
        weights: Bytes of the DiT's weights; None counts them in dtype. Where they are more than half of usable_bytes, ComfyUI
            loads the rest of them layer by layer, and half is left to boxes.
        upsampler_dtype: Of the upsampler and the decoder; None is dtype.
        on_host: Whether the DiT runs on the CPU, so that a segment's frames are in the same memory.
    """

    free_bytes: int
    dtype: torch.dtype
    kernel: str = "sdpa"
    weights: int | None = None
    upsampler_dtype: torch.dtype | None = None
    on_host: bool = False

    @property
    def usable_bytes(self) -> int:
        return int(self.free_bytes * (1 - UNCOUNTED))

    def weights_bytes(self, networks: Networks) -> int:
        if self.weights is not None:
            return self.weights
        return weight_bytes(SimpleGVRDiT(networks.dit, networks.attention, device="meta", dtype=self.dtype))

    def resident_bytes(self, networks: Networks) -> int:
        """Returns the part of the weights that stays on the device: all, or half the memory."""
        return min(self.weights_bytes(networks), self.usable_bytes // 2)


def plan_tiling(networks: Networks, shape: tuple[int, int, int, int], machine: Machine) -> tuple[Tiling, int]:
    """Returns the tiling with the least work whose largest box fits, and the bytes of that box.

    Args:
        networks: The networks.
        shape: (B, T, H, W) of the target.
        machine: The machine.

    Raises:
        ValueError: Not even the smallest box fits. The message has the cure.
    """
    batch, *_ = shape
    budget = machine.usable_bytes - machine.resident_bytes(networks)

    def need(box: Extent) -> int:
        return dit_bytes(networks.dit, networks.attention, batch, box, machine.dtype, machine.kernel)

    def left(box: Extent) -> int:
        return budget - host_bytes(networks, shape, box, machine) if machine.on_host else budget

    overlap = networks.attention.tiling((None, None, None)).overlap
    return least_work(padded(shape[1:]), networks.attention.alignment, overlap, networks.longest_segment, need, left)


def segment_bytes(shape: tuple[int, int, int, int], frames: int) -> int:
    """Returns the bytes that a segment of so many latent frames takes on the host while a clip of shape (B, T, H, W) is refined."""
    batch, _, height, width = shape
    return int(SEGMENT_COPIES * 4 * batch * LATENT_CHANNELS * frames * height * width)


def host_bytes(networks: Networks, shape: tuple[int, int, int, int], box: Extent, machine: Machine) -> int:
    """Returns the bytes that a clip of shape (B, T, H, W) takes on the host: a segment's frames, and the past of causal attention.

    The past is that of whole frames, and a box's, which replaces its old one only when the box is done.
    """
    segment = segment_bytes(shape, box[0])
    if box[0] >= shape[1]:
        return segment
    pasts = ((box[0], *shape[2:]), box)
    return segment + sum(past_bytes(networks.dit, networks.attention, shape[0], past, machine.dtype) for past in pasts)


def least_work(
    extent: Extent,
    alignment: Extent,
    overlap: Extent,
    longest: int | None,
    need: Callable[[Extent], int],
    left: Callable[[Extent], int],
) -> tuple[Tiling, int]:
    """Returns the tiling with the least work, see work, of those whose largest box needs no more than is left; and what it needs.

    Args:
        extent: Of the clip, with even sides.
        alignment: Multiples at which boxes begin.
        overlap: What neighbouring boxes have in common.
        longest: Most latent frames of a box; None is no limit.
        need: Bytes of a box. It rises with the box, almost as a straight line with its volume.
        left: Bytes that are left for a box.

    Raises:
        ValueError: None fits.
    """
    T, H, W = (list(sizes(*axis)) for axis in zip(extent, overlap, alignment, (longest, None, None), strict=True))
    smallest, larger = (Tiling((T[i:][0], H[i:][0], W[i:][0]), overlap).tile_size(extent) for i in (-1, -2))
    at_least = lower_bound(need, smallest, larger)
    for tiling in sorted((Tiling(size, overlap) for size in product(T, H, W)), key=lambda tiling: work(tiling, extent)):
        box = tiling.tile_size(extent)
        if at_least(box) <= left(box) and need(box) <= left(box):
            return tiling, need(box)
    raise ValueError(
        f"the smallest box, {smallest[0]} latent frames of {pixels(smallest[1:])} pixels, takes {amount(need(smallest))} "
        f"and {amount(max(0, left(smallest)))} are left for it: {CURE}"
    )


def lower_bound(need: Callable[[Extent], int], smallest: Extent, larger: Extent) -> Callable[[Extent], float]:
    """Returns what a box needs at least, by 0.97 times the straight line through two small boxes: counting a large one takes seconds."""
    least, volume = need(smallest), math.prod(smallest)
    slope = least / volume
    if larger != smallest:
        slope = (need(larger) - least) / (math.prod(larger) - volume)
    return lambda box: least + 0.97 * slope * (math.prod(box) - volume)


def sizes(extent: int, overlap: int, align: int, limit: int | None) -> Iterator[int | None]:
    """Yields sizes of a box along one axis, largest first: for each number of boxes the smallest aligned one, None for the whole.

    So many boxes compute extent + (boxes - 1) overlap latent pixels, whatever their size: a larger one would only need more memory.
    """
    smallest = {len(spans(extent, size, overlap)): size for size in reversed(range(max(2 * overlap, align), extent, align))}
    if limit is None or extent <= limit:
        yield None
    yield from (size for _, size in sorted(smallest.items()) if limit is None or size <= limit)


def work(tiling: Tiling, extent: tuple[int, int, int]) -> tuple[int, int]:
    """Returns the latent pixels that a tiling computes, and its number of boxes."""
    counts = [len(spans(*axis)) for axis in zip(extent, tiling.size, tiling.overlap, strict=True)]
    latent_pixels = math.prod(e + (count - 1) * shared for e, count, shared in zip(extent, counts, tiling.overlap, strict=True))
    return latent_pixels, math.prod(counts)
