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

from ..tiling import Box, blend_weights

OVERLAP = 8  # cells that neighbouring tiles share
PIXELS = 8  # along each side of a cell

CausalState = dict[str, Tensor]  # the last two axes of each are rows and columns of the tile, at any resolution; or it is empty
DecodeChunk = Callable[[Tensor, CausalState], tuple[Tensor, CausalState]]  # (z, past) -> (video, new past); leaves the given past as it is


@dataclass(frozen=True)
class Tile:
    """A part of the frame, and what the clip's frames so far leave to its next ones. box: one cell long along T."""

    box: Box
    past: CausalState = field(default_factory=dict)

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

    return cut(Tile(Box((0, 0, 0), (1, *size))), fits)


def cut(tile: Tile, fits: Callable[[int, int], bool]) -> list[Tile]:
    """Returns a tile, halved until each part fits(h, w), or no smaller ones can be made."""
    halves = [] if fits(*tile.box.size[1:]) else tile.halves()
    return [small for half in halves for small in cut(half, fits)] or [tile]


@dataclass
class StreamDecoder:
    """Decodes the chunks of a clip in order, and makes do with less memory when it runs out, from there on.

    tiles: of the frame, with their past. host: the device for pictures of tiles, and for the past between chunks; with
    keeps_past, both stay where they are made, which is faster. on_out_of_memory(box, tiles): called with the tile that did
    not fit and those that are tried instead: itself while the past is on the host, then its halves. fits(h, w): whether there is
    memory for a tile. most_tiles: in which a frame was decoded so far.
    """

    decode: DecodeChunk
    tiles: list[Tile]
    is_out_of_memory: Callable[[Exception], bool]
    host: torch.device | str = "cpu"
    keeps_past: bool = False
    on_out_of_memory: Callable[[Box, list[Tile]], None] = lambda box, tiles: None
    fits: Callable[[int, int], bool] = lambda height, width: True
    most_tiles: int = 0

    def begin_anew(self) -> None:
        """Forgets the clip, for the next one, which gets the same tiles."""
        self.tiles = [Tile(tile.box) for tile in self.tiles]

    def go_on(self, tiles: list[Tile]) -> None:
        """Takes the tiles of an earlier run, with their past; those that do not fit are cut."""
        self.tiles = [small for tile in tiles for small in cut(tile, self.fits)]

    def __call__(self, z: Tensor) -> Tensor:
        """Returns the video of the next chunk, float32.

        Raises what decode raises, also for want of memory when there is no smaller tile. The past is then as it was.
        """
        todo, done, video = list(self.tiles), [], None
        extent = (1, *(PIXELS * cells for cells in z.shape[3:]))
        while todo:
            decoded = self.attempt(z, todo[0])
            if decoded is None:
                todo = self.smaller(todo[0]) + todo[1:]
                continue
            picture, tile = decoded
            done.append(tile)
            if len(todo) == len(done) == 1:
                video = picture
                break
            if video is None:
                video = torch.zeros(*picture.shape[:3], *extent[1:])
            box = in_pixels(tile.box)
            video[inside(box)] += blend_weights(box, extent, (0, PIXELS * OVERLAP, PIXELS * OVERLAP)) * picture.to(video)
            todo = todo[1:]
        self.tiles, self.most_tiles = done, max(self.most_tiles, len(done))
        return video.float()

    def attempt(self, z: Tensor, tile: Tile) -> tuple[Tensor, Tile] | None:
        """Returns a tile's video, and the tile with its new past; None when memory runs out and less of it may do."""
        try:
            video, past = self.decode(z[inside(tile.box)], tile.past)
            return self.put_by(video), Tile(tile.box, {name: self.put_by(values) for name, values in past.items()})
        except Exception as error:
            if not self.is_out_of_memory(error) or not (self.keeps_past or tile.halves()):
                raise
        return None

    def put_by(self, values: Tensor) -> Tensor:
        return values if self.keeps_past else values.to(self.host)

    def smaller(self, tile: Tile) -> list[Tile]:
        """Returns what to try instead of a tile for which memory ran out."""
        if self.keeps_past:
            self.keeps_past = False
            self.tiles = tiles = [Tile(tile.box, {name: self.put_by(values) for name, values in tile.past.items()})]
        else:
            tiles = tile.halves()
        self.on_out_of_memory(tile.box, tiles)
        return tiles


def chunks(latent_frames: int) -> list[tuple[int, int]]:
    """Returns (start, stop) of a clip's chunks: its first latent frame, then two at a time, as Wan 2.1's decoder cuts them."""
    return [(0, 1)] + [(start, min(start + 2, latent_frames)) for start in range(1, latent_frames, 2)]
