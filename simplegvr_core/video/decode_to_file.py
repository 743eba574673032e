"""A latent decoded to parts of a video, such that a run that was killed goes on after its last whole part.

z latent (1, 16, T, H, W) as the decoder takes it, also one that is read from a file as it is sliced; frames are counted
from 0, and latent frame t > 0 is frames 4t - 3 to 4t
"""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..files import atomic_write
from ..latent_space import first_frame, latent_frames
from ..tiling import Box
from .decode import StreamDecoder, Tile, chunks
from .read import to_images
from .write import Encoding, write_frames

PROGRESS = "progress.safetensors"


def decode_to_parts(
    z: Tensor,
    decoder: StreamDecoder,
    frames: int,
    encoding: Encoding,
    folder: Path,
    part_length: int | None = None,
    on_chunk: Callable[[int, int], None] = lambda start, stop: None,
) -> list[Path]:
    """Returns the files in folder that hold the clip's first frames, in order, cut to the encoding's size at the top left.

    Each holds part_length chunks, or all. Parts that folder has from an earlier run with the same arguments are kept, and the
    decoder goes on from there. on_chunk(start, stop): called after the chunk of those latent frames.
    Raises ValueError for a latent that is not finite, and what files.atomic_write raises.
    """
    schedule = chunks(latent_frames(frames))
    length = part_length or len(schedule)
    paths = [folder / f"part_{i:05}.mp4" for i in range(-(-len(schedule) // length))]
    for i, path in list(enumerate(paths))[resume(folder, decoder) :]:
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
        save_progress(folder, i + 1, decoder.tiles if path != paths[-1] else [])
    return paths


def save_progress(folder: Path, parts: int, tiles: list[Tile]) -> None:
    """Writes what the next part needs: how many parts are whole, and the tiles with their past."""
    boxes = json.dumps([(tile.box.start, tile.box.stop) for tile in tiles])
    past = {f"{i}/{name}": values.contiguous() for i, tile in enumerate(tiles) for name, values in tile.past.items()}
    with atomic_write(folder / PROGRESS) as partial:
        save_file(past, partial, {"parts": str(parts), "boxes": boxes})


def resume(folder: Path, decoder: StreamDecoder) -> int:
    """Returns how many parts in folder are whole, 0 for a new one, and gives decoder the tiles that go on from there."""
    if not (folder / PROGRESS).exists():
        return 0
    with safe_open(folder / PROGRESS, "pt") as file:
        done = int(file.metadata()["parts"])
        if len(list(folder.glob("part_?????.mp4"))) < done:  # a clean-up that failed left the progress without its parts
            return 0
        tiles = [Tile(Box(tuple(start), tuple(stop)), {}) for start, stop in json.loads(file.metadata()["boxes"])]
        for name in file.offset_keys():
            tile, layer = name.split("/", 1)
            tiles[int(tile)].past[layer] = file.get_tensor(name)
        if tiles:  # there are parts to come
            decoder.go_on(tiles)
        return done
