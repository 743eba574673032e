"""Prompts of parts of the video: areas and masks are found for the whole frame, and cut as the latent is cut into boxes."""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ...simplegvr_core.tiling import Box

RAMP = 8  # latent pixels over which ComfyUI lets a prompt's weight rise at the edge of its area


@dataclass(frozen=True)
class Region:
    """The part of a clip that a prompt applies to, as ComfyUI's samplers find it for a latent that is not cut.

    Attributes:
        area: The latent pixels that the prompt applies to.
        mask: Weights (n, T or 1, H, W); None for 1 inside the area that falls to its edges over RAMP latent pixels.
        extent: Of the clip, in latent pixels along T, H, W.
        causal: Whether the model looks back on earlier segments: then it is given the prompt in each of them, with weight 0 where the
            prompt does not apply.
    """

    area: Box
    mask: Tensor | None
    extent: tuple[int, int, int]
    causal: bool = False

    def made_causal(self) -> "Region":
        """Returns the region for a model that looks back on earlier segments: an area of all frames, with the same weights."""
        (_, top, left), (_, bottom, right), T = self.area.start, self.area.stop, self.extent[0]
        whole = Box((0, 0, 0), self.extent)
        return replace(self, area=Box((0, top, left), (T, bottom, right)), mask=self.weights(whole), causal=True)

    @property
    def tokens(self) -> Box:
        """Returns the latent pixels that the model is given with the prompt: the area in whole tokens, which no box cuts differently."""
        (start, top, left), (stop, bottom, right) = self.area.start, self.area.stop
        return Box((start, top - top % 2, left - left % 2), (stop, bottom + bottom % 2, right + right % 2))

    def cut(self, box: Box) -> tuple[Box, Tensor] | None:
        """Returns what the model is given in a box, counted from its start, and the box's weights (n, t, h, w); None without any."""
        part = self.tokens.intersection(box)
        weights = self.weights(box)
        of_tile = replace(box, start=(0, *box.start[1:]), stop=(self.extent[0], *box.stop[1:]))
        if part is None or not (self.weights(of_tile) if self.causal else weights).any():
            return None
        t, h, w = box.start
        return part.moved((-t, -h, -w)), weights

    def weights(self, box: Box) -> Tensor:
        """Returns the prompt's weights (n, t, h, w) in a box."""
        if self.mask is not None:
            (start, top, left), (stop, bottom, right) = box.start, box.stop
            frames = slice(start, stop) if self.mask.shape[1] > 1 else slice(None)
            part = self.mask[:, frames, top:bottom, left:right]
            return part.expand(-1, box.size[0], -1, -1)
        weights = torch.ones(1)
        for axis in range(3):
            weights = weights[..., None] * self.ramps(axis)[box.start[axis] : box.stop[axis]]
        return weights

    def ramps(self, axis: int) -> Tensor:
        """Returns the weights along one axis of the clip: 0 outside the area, rising inside it from the edges that are not the clip's."""
        start, stop, end = self.area.start[axis], self.area.stop[axis], self.extent[axis]
        weights, length = torch.zeros(end), min(RAMP, (stop - start) // 4)
        weights[start:stop] = 1
        rise = torch.arange(1, length + 1) / max(1, length)
        if start > 0:
            weights[start : start + length] *= rise
        if stop < end:
            weights[stop - length : stop] *= rise.flip(0)
        return weights


def region_of(prompt: dict, extent: tuple[int, int, int], padded: tuple[int, int, int]) -> Region | None:
    """Returns the region of a prompt, None where it applies everywhere.

    Args:
        prompt: ComfyUI's dictionary of one prompt; area, mask, mask_strength and set_area_to_bounds are read.
        extent: Of the clip, in latent pixels along T, H, W, for which ComfyUI resolves areas and masks.
        padded: That of the latent that is sampled, with even sides. What reaches the clip's edge reaches the latent's.
    """
    if "area" not in prompt and "mask" not in prompt:
        return None
    mask = resized_mask(prompt["mask"], extent) * prompt.get("mask_strength", 1.0) if "mask" in prompt else None
    area = prompt.get("area")
    if mask is not None and prompt.get("set_area_to_bounds"):
        area = bounds(mask, extent)
    box = Box((0, 0, 0), extent) if area is None else area_box(area, extent)
    stop = [p if edge == e else edge for edge, e, p in zip(box.stop, extent, padded, strict=True)]
    if mask is not None:
        mask = F.pad(mask, (0, padded[2] - extent[2], 0, padded[1] - extent[1]), mode="replicate")
    return Region(Box(box.start, (stop[0], stop[1], stop[2])), mask, padded)


def area_box(area: tuple, extent: tuple[int, int, int]) -> Box:
    """Returns the box of ComfyUI's area: sizes, then starts, along H and W or T, H and W, in latent pixels or as parts of the extent."""
    is_percentage = area[0] == "percentage"
    values = list(area[1:] if is_percentage else area)
    axes = len(values) // 2
    of = extent[-axes:]
    sizes, starts = values[:axes], values[axes:]
    if is_percentage:
        sizes = [max(1, round(part * e)) for part, e in zip(sizes, of, strict=True)]
        starts = [round(part * e) for part, e in zip(starts, of, strict=True)]
    starts = [min(start, e - 1) for start, e in zip(starts, of, strict=True)]
    stops = [min(start + size, e) for start, size, e in zip(starts, sizes, of, strict=True)]
    before = 3 - axes  # axes that the area does not name are whole
    start, stop = [0] * before + starts, [*extent[:before], *stops]
    return Box((start[0], start[1], start[2]), (stop[0], stop[1], stop[2]))


def resized_mask(mask: Tensor, extent: tuple[int, int, int]) -> Tensor:
    """Returns a MASK (H, W), (F, H, W) or (n, F, H, W), of any size, as weights (n, T or 1, H, W): bilinear in space, nearest in time."""
    T, H, W = extent
    mask = mask.float().cpu()
    mask = mask[(None,) * (4 - mask.ndim)]
    frames = mask.shape[1] if mask.shape[1] in (1, T) else T
    if frames != mask.shape[1]:
        mask = mask[:, torch.arange(T) * mask.shape[1] // T]
    n = len(mask)
    return F.interpolate(mask.flatten(0, 1)[:, None], (H, W), mode="bilinear", align_corners=False).view(n, frames, H, W)


def bounds(mask: Tensor, extent: tuple[int, int, int]) -> tuple[int, int, int, int]:
    """Returns the area (height, width, top, left) of what a mask is not zero in, at least 8 latent pixels a side, as ComfyUI finds it."""
    rows, columns = mask.abs().amax((0, 1)).nonzero(as_tuple=True)
    if not len(rows):
        return 8, 8, 0, 0
    top, left = int(rows.min()), int(columns.min())
    return max(8, int(rows.max()) - top + 1), max(8, int(columns.max()) - left + 1), top, left
