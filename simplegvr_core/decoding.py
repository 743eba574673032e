"""Decoding of a clip of any length, a few latent frames at a time, in tiles where a whole frame does not fit.

A causal decoder needs, for a clip's next frames, a little of what it made of those before: its past. Each tile of the
frame has its own. Neighbouring tiles share OVERLAP cells, over which one fades into the other.

z latent chunk (1, 16, t, H, W) as the decoder takes it; video (1, 3, f, 8H, 8W) in [-1, 1]; f is 4t - 3 for the clip's
first chunk and 4t for the others
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .tiling import Box, share

OVERLAP = 8  # cells that neighbouring tiles share
PIXELS = 8  # along each side of a cell

Past = dict[str, Tensor]  # the last two axes of each are rows and columns of the tile, at any resolution; or it is empty
DecodeChunk = Callable[[Tensor, Past], tuple[Tensor, Past]]  # (z, past) -> (video, new past); leaves the given past as it is


@dataclass(frozen=True)
class Tile:
    """A part of the frame, and what the clip's frames so far leave to its next ones. box: one cell long along T."""

    box: Box
    past: Past = field(default_factory=dict)

    def halves(self) -> list["Tile"]:
        """Returns the two tiles that cover this one, cut across its longer side; none when they would be too small."""
        axis = 1 if self.box.size[1] > self.box.size[2] else 2
        cells, start = self.box.size[axis], self.box.start[axis]
        if cells < 3 * OVERLAP:
            return []
        ends = (0, cells // 2 + OVERLAP // 2), (cells // 2 - OVERLAP // 2, cells)
        return [
            Tile(
                Box(put(self.box.start, axis, start + first), put(self.box.stop, axis, start + last)),
                {name: crop(past, axis, cells, first, last) for name, past in self.past.items()},
            )
            for first, last in ends
        ]


def put(values: tuple[int, int, int], axis: int, value: int) -> tuple[int, int, int]:
    return (*values[:axis], value, *values[axis + 1 :])


def crop(past: Tensor, axis: int, cells: int, first: int, last: int) -> Tensor:
    """Returns the part of a tile's past that belongs to its cells first to last along axis 1 (rows) or 2 (columns).

    The past has a whole number of values for each cell, and may have a margin around them.
    """
    if not past.numel():
        return past
    dim = axis - 3
    a_cell = past.shape[dim] // cells
    margin = past.shape[dim] - a_cell * cells
    return past.narrow(dim, a_cell * first, a_cell * (last - first) + margin)


def in_pixels(box: Box) -> Box:
    """Returns a box of cells in pixels; its first axis stays."""
    (t, *start), (end, *stop) = box.start, box.stop
    return Box((t, *(PIXELS * cells for cells in start)), (end, *(PIXELS * cells for cells in stop)))


def inside(box: Box) -> tuple:
    """Returns the index of a box's rows and columns in a tensor that ends with these two axes."""
    return (..., *box.slices[2:])


def tiles_of_frame(size: tuple[int, int], fits: Callable[[int, int], bool]) -> list[Tile]:
    """Returns the tiles of a frame of (H, W) cells, halved until each fits(h, w), or no smaller ones can be made."""

    def cut(tile: Tile) -> list[Tile]:
        halves = [] if fits(*tile.box.size[1:]) else tile.halves()
        return [small for half in halves for small in cut(half)] or [tile]

    return cut(Tile(Box((0, 0, 0), (1, *size))))


@dataclass
class StreamDecoder:
    """Decodes the chunks of a clip in order. A tile for which memory runs out is halved, and stays so.

    tiles: of the frame, with their past. waiting_room: the device for the past of tiles that are not at work.
    on_out_of_memory(box): called with the tile that did not fit.
    """

    decode: DecodeChunk
    tiles: list[Tile]
    is_out_of_memory: Callable[[Exception], bool]
    waiting_room: torch.device | str = "cpu"
    on_out_of_memory: Callable[[Box], None] = lambda box: None

    def __call__(self, z: Tensor) -> Tensor:
        """Returns the video of the next chunk, float32: on the decoder's device if the frame is one tile, else waiting.

        Raises what decode raises, also for want of memory when a tile cannot be halved. The tiles are then as they were.
        """
        todo, done, video = list(self.tiles), [], None
        while todo:
            tile = todo.pop(0)
            halves = tile.halves()
            part = self.attempt(z, tile, bool(halves))
            if part is None:
                self.on_out_of_memory(tile.box)
                todo = halves + todo
                continue
            picture, past = part
            if not todo and not done:
                self.tiles = [Tile(tile.box, past)]
                return picture.float()
            done.append(Tile(tile.box, {name: values.to(self.waiting_room) for name, values in past.items()}))
            if video is None:
                extent = (1, *(PIXELS * cells for cells in z.shape[3:]))
                video = torch.zeros(*picture.shape[:3], *extent[1:], device=self.waiting_room)
            box = in_pixels(tile.box)
            weight = share(box, extent, (0, PIXELS * OVERLAP, PIXELS * OVERLAP)).to(video)
            video[inside(box)] += weight * picture.to(video)
        self.tiles = done
        return video

    def attempt(self, z: Tensor, tile: Tile, halvable: bool) -> tuple[Tensor, Past] | None:
        """Returns a tile's video and new past; None when there was no memory for it and it can be halved."""
        try:
            return self.decode(z[inside(tile.box)], tile.past)
        except Exception as error:
            if not (halvable and self.is_out_of_memory(error)):
                raise
        return None


def chunks(latent_frames: int) -> list[tuple[int, int]]:
    """Returns (start, stop) of a clip's chunks: its first latent frame, then two at a time, as Wan 2.1's decoder cuts them."""
    return [(0, 1)] + [(start, min(start + 2, latent_frames)) for start in range(1, latent_frames, 2)]
