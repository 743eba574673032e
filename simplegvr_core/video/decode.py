"""Decoding of a clip of any length: a few latent frames at a time, in tiles where a whole frame does not fit, to memory or to files.

A causal decoder needs, for the next frames of a clip, some activations of the frames before: its state. Each tile of the frame has
its own state. Adjacent tiles overlap by OVERLAP latent pixels, where their blend weights ramp.

z latent chunk (1, 16, t, H, W) as the decoder takes it; video (1, 3, f, 8H, 8W) in [-1, 1]; f is 4t - 3 for the first chunk of a clip
and 4t for the others. Latent frame t > 0 is frames 4t - 3 to 4t of the clip.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..files import atomic_write, sha256
from ..latent_space import SPATIAL_FACTOR, first_frame, latent_frames
from ..tiling import Box, blend_weights, with_less_memory
from .frames import to_images
from .write import Encoding, write_frames

OVERLAP = 8  # latent pixels
PROGRESS = ("progress.safetensors", "progress_odd.safetensors")  # after the last two parts: when one is damaged, the other is left
PART = "part_{:05}.mp4"

CausalState = dict[str, Tensor]  # the last two axes of each are rows and columns of the tile, at any resolution; at first empty
DecodeChunk = Callable[[Tensor, CausalState], tuple[Tensor, CausalState]]  # (z, state) -> (video, next state); state is not changed


@dataclass(frozen=True)
class StatefulTile:
    """A part of the frame with the decoder's state there.

    Attributes:
        box: Rows and columns of the tile in latent pixels; its first axis has length 1.
        state: Activations that the next chunk needs.
    """

    box: Box
    state: CausalState = field(default_factory=dict)

    def halves(self) -> list["StatefulTile"]:
        """Returns the two tiles that cover this one, cut across its longer side; an empty list when they would be too small."""
        axis = 1 if self.box.size[1] > self.box.size[2] else 2
        extent, start = self.box.size[axis], self.box.start[axis]
        if extent < 3 * OVERLAP:
            return []
        ends = (0, extent // 2 + OVERLAP // 2), (extent // 2 - OVERLAP // 2, extent)
        return [
            StatefulTile(
                Box(replaced(self.box.start, axis, start + first), replaced(self.box.stop, axis, start + last)),
                {name: crop(values, axis, extent, (first, last)) for name, values in self.state.items()},
            )
            for first, last in ends
        ]


def replaced(values: tuple[int, int, int], axis: int, value: int) -> tuple[int, int, int]:
    """Returns the values with that of one axis replaced."""
    first, second, third = (value if each == axis else old for each, old in enumerate(values))
    return first, second, third


def crop(values: Tensor, axis: int, extent: int, span: tuple[int, int]) -> Tensor:
    """Returns the part of a tensor of a tile's state that belongs to a span of its latent pixels.

    Args:
        values: Tensor with a whole number of values per latent pixel along the axis, and possibly a margin around them; or empty.
        axis: 1 for rows, 2 for columns.
        extent: Latent pixels of the tile along the axis.
        span: First latent pixel, and the one after the last.
    """
    if not values.numel():
        return values
    dim, (first, last) = axis - 3, span
    per_pixel = values.shape[dim] // extent
    margin = values.shape[dim] - per_pixel * extent
    return values.narrow(dim, per_pixel * first, per_pixel * (last - first) + margin)


def in_pixels(box: Box) -> Box:
    """Returns a box with rows and columns in pixels of the video."""
    (t, top, left), (end, bottom, right) = box.start, box.stop
    return Box((t, SPATIAL_FACTOR * top, SPATIAL_FACTOR * left), (end, SPATIAL_FACTOR * bottom, SPATIAL_FACTOR * right))


def spatial_index(box: Box) -> tuple:
    """Returns the index of a box's rows and columns in a tensor whose last two axes they are."""
    return (..., *box.slices[2:])


def tiles_of_frame(size: tuple[int, int], fits: Callable[[int, int], bool]) -> list[StatefulTile]:
    """Returns the tiles of a frame, halved until each fits or none can be halved again.

    Args:
        size: Height and width of the frame in latent pixels.
        fits: Maps the height and width of a tile to whether there is memory to decode it.
    """
    return cut(StatefulTile(Box((0, 0, 0), (1, *size))), fits)


def cut(tile: StatefulTile, fits: Callable[[int, int], bool]) -> list[StatefulTile]:
    """Returns a tile halved until each part fits or none can be halved again."""
    _, height, width = tile.box.size
    halves = [] if fits(height, width) else tile.halves()
    return [small for half in halves for small in cut(half, fits)] or [tile]


@dataclass
class StreamDecoder:
    """Decodes the chunks of a clip in order. When memory runs out, it changes for good to a plan that takes less.

    Attributes:
        decode: Decodes a chunk of a tile.
        tiles: Tiles of the frame with their states.
        is_out_of_memory: Maps an exception of decode to whether it means that memory ran out.
        host: Device for decoded tiles, and for states between chunks.
        keeps_state: Whether both stay on the device of decode, which is faster, until memory runs out.
        on_out_of_memory: Called with the tile's box that did not fit and the tiles that are tried instead: first the tile itself with
            its state on the host, then its halves.
        fits: Maps the height and width of a tile in latent pixels to whether there is memory to decode it.
        most_tiles: Largest number of tiles that a frame was decoded in so far.
    """

    decode: DecodeChunk
    tiles: list[StatefulTile]
    is_out_of_memory: Callable[[Exception], bool]
    host: torch.device | str = "cpu"
    keeps_state: bool = False
    on_out_of_memory: Callable[[Box, list[StatefulTile]], None] = lambda box, tiles: None
    fits: Callable[[int, int], bool] = lambda height, width: True
    most_tiles: int = 0

    def reset(self) -> None:
        """Clears the states, for the next clip. The tiles stay."""
        self.tiles = [StatefulTile(tile.box) for tile in self.tiles]

    def restore(self, tiles: list[StatefulTile]) -> None:
        """Continues from the tiles of an earlier run. Tiles that do not fit are cut."""
        self.tiles = [small for tile in tiles for small in cut(tile, self.fits)]

    def __call__(self, z: Tensor) -> Tensor:
        """Returns the video of the next chunk, float32 on the host or, where the state stays on it, on the device of decode.

        Args:
            z: (1, 16, t, H, W), on any device that decode accepts.

        Raises:
            tiling.OutOfMemory: There is not enough memory for the smallest tile. The states are then those before the chunk.
        """
        extent = (1, SPATIAL_FACTOR * z.shape[3], SPATIAL_FACTOR * z.shape[4])
        overlap = (0, SPATIAL_FACTOR * OVERLAP, SPATIAL_FACTOR * OVERLAP)
        done, video = [], None
        for whole in self.tiles:
            for picture, tile in self.decoded(z, whole):
                done.append(tile)
                box = in_pixels(tile.box)
                if box.size == extent:
                    video = picture
                    continue
                if video is None:
                    video = torch.zeros(*picture.shape[:3], *extent[1:])
                video[spatial_index(box)] += blend_weights(box, extent, overlap) * picture.to(video)
        self.tiles, self.most_tiles = done, max(self.most_tiles, len(done))
        assert video is not None  # a frame has at least one tile
        return video.float()

    def decoded(self, z: Tensor, tile: StatefulTile) -> Iterator[tuple[Tensor, StatefulTile]]:
        """Yields the video of a tile and the tile with its next state, or those of its halves where memory runs out."""
        pieces = with_less_memory(
            lambda tiles: [self.attempt(z, tiles[0])] if len(tiles) == 1 else tiles,
            [tile],
            smaller=self.smaller,
            on_out_of_memory=lambda tiles, smaller: self.on_out_of_memory(tiles[0].box, smaller),
            give_up=lambda tiles: "out of memory with the smallest tile: close other programs, or unload other models",
            is_out_of_memory=self.is_out_of_memory,
        )
        for piece in pieces:
            if isinstance(piece, StatefulTile):
                yield from self.decoded(z, piece)
            else:
                yield piece

    def attempt(self, z: Tensor, tile: StatefulTile) -> tuple[Tensor, StatefulTile]:
        """Returns the video of a tile, and the tile with its next state."""
        video, state = self.decode(z[spatial_index(tile.box)], tile.state)
        return self.store(video), StatefulTile(tile.box, {name: self.store(values) for name, values in state.items()})

    def store(self, values: Tensor) -> Tensor:
        return values if self.keeps_state else values.to(self.host)

    def smaller(self, tiles: list[StatefulTile]) -> list[StatefulTile] | None:
        """Returns the tiles to try in place of one for which memory ran out: the same after its state is on the host, then its halves."""
        if self.keeps_state:
            self.keeps_state = False
            for tile in self.tiles:  # in place, so that no reference keeps a state on the device
                tile.state.update({name: self.store(values) for name, values in tile.state.items()})
            return tiles
        return tiles[0].halves() or None


def chunks(latent_frames: int) -> list[tuple[int, int]]:
    """Returns (start, stop) of the chunks of a clip: its first latent frame, then two at a time, as Wan 2.1's decoder cuts them."""
    return [(0, 1)] + [(start, min(start + 2, latent_frames)) for start in range(1, latent_frames, 2)]


def decode_to_parts(
    z: Tensor,
    decoder: StreamDecoder,
    *,
    frames: int,
    encoding: Encoding,
    folder: Path,
    part_length: int | None = None,
    on_chunk: Callable[[int, int], None] = lambda start, stop: None,
    note: Callable[[str], None] = lambda text: None,
) -> list[Path]:
    """Decodes a latent to video files. Resumes after the last finished file when rerun with the same arguments.

    Args:
        z: (1, 16, T, H, W); also an object that reads a file when it is sliced.
        decoder: Decoder, reset.
        frames: Frames of the video, from the start of the clip.
        encoding: Size, rate and quality. Frames are cut to its size at the top left.
        folder: Folder of the files and of the progress.
        part_length: Chunks in each file; None makes one file.
        on_chunk: Called after each chunk with its first latent frame and the one after its last.
        note: Called with a sentence on what an earlier run left damaged.

    Returns:
        The files, in order.

    Raises:
        ValueError: The latent contains NaN or infinite values.
        OSError: What `files.atomic_write` raises.
    """
    schedule = chunks(latent_frames(frames))
    length = part_length or len(schedule)
    paths = [folder / PART.format(i) for i in range(-(-len(schedule) // length))]
    finished = resume(folder, decoder, note)
    for i, path in list(enumerate(paths))[len(finished) :]:
        with write_frames(path, encoding) as add:
            for start, stop in schedule[i * length : (i + 1) * length]:
                chunk = z[:, :, start:stop]
                if not torch.isfinite(chunk).all():
                    raise ValueError(
                        f"latent frames {start} to {stop - 1} contain NaN or infinite values: look for the cause in the sampler"
                    )
                wanted = (..., slice(frames - first_frame(start)), slice(encoding.height), slice(encoding.width))
                add(to_images(decoder(chunk)[wanted]).cpu())
                on_chunk(start, stop)
        finished.append(sha256(path))
        save_progress(folder, finished, decoder.tiles if path != paths[-1] else [])
    return paths


def save_progress(folder: Path, parts: list[str], tiles: list[StatefulTile]) -> None:
    """Writes what the next part needs.

    Args:
        folder: Folder of the parts.
        parts: Checksums of the finished parts, in order.
        tiles: Tiles of the frame with their states.
    """
    boxes = json.dumps([(tile.box.start, tile.box.stop) for tile in tiles])
    states = {f"{i}/{name}": values.contiguous() for i, tile in enumerate(tiles) for name, values in tile.state.items()}
    metadata = {"parts": json.dumps(parts), "boxes": boxes, "states": checksum(states)}
    with atomic_write(folder / PROGRESS[len(parts) % 2]) as partial:
        save_file(states, partial, metadata)


def checksum(states: CausalState) -> str:
    """Returns the SHA-256 of tensors by name, 64 hexadecimal digits."""
    digest = hashlib.sha256()
    for name in sorted(states):
        digest.update(name.encode())
        digest.update(states[name].detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def resume(folder: Path, decoder: StreamDecoder, note: Callable[[str], None] = lambda text: None) -> list[str]:
    """Returns the checksums of the finished parts in a folder, in order, and restores the decoder for the next part.

    Args:
        folder: Folder of the parts, or of a run that has not begun.
        decoder: Decoder, reset.
        note: Called with a sentence on what an earlier run left damaged. Damaged parts are decoded again.
    """
    found = [progress for name in PROGRESS if (progress := read_progress(folder / name, note)) is not None]
    for parts, tiles in sorted(found, key=lambda progress: -len(progress[0])):
        paths = [folder / PART.format(i) for i in range(len(parts))]
        damaged = [path.name for path, part in zip(paths, parts, strict=True) if not path.exists() or sha256(path) != part]
        if not damaged:
            if tiles:  # a part is missing
                decoder.restore(tiles)
            return parts
        note(f"{', '.join(damaged)} of an earlier run: damaged, decoded again.")
    return []


def read_progress(path: Path, note: Callable[[str], None]) -> tuple[list[str], list[StatefulTile]] | None:
    """Returns what `save_progress` wrote to a file: parts and tiles; None where there is no file or, after a note, a damaged one."""
    if not path.exists():
        return None
    try:
        with safe_open(path, "pt") as file:
            metadata, states = file.metadata(), {name: file.get_tensor(name) for name in file.offset_keys()}
        parts, boxes = json.loads(metadata["parts"]), json.loads(metadata["boxes"])
        if checksum(states) != metadata["states"]:
            raise ValueError("the states are not those that were written")
        tiles = [StatefulTile(Box(tuple(start), tuple(stop)), {}) for start, stop in boxes]
        for name, values in states.items():
            tile, layer = name.split("/", 1)
            tiles[int(tile)].state[layer] = values
    except (OSError, SafetensorError, LookupError, ValueError, TypeError, RecursionError):
        note(f"{path.name} of an earlier run was damaged and is not used.")
        return None
    return parts, tiles
