"""Latents in files, written and read a few frames at a time: what is in memory does not depend on the clip's length.

A safetensors file with one float32 tensor "latent", (T, B, C, H, W): frames outermost, so that some frames are one
stretch of the file. The metadata has the checksum of the values.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from einops import rearrange
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..files import atomic_write

CHECKSUM = "sha256"  # metadata: of the tensor's bytes
BLOCK = 2**20  # bytes that are read at once


class LatentFrames(Protocol):
    """A latent of shape (B, C, T, H, W) that is read by its frames: latent[a:b] is (B, C, b - a, H, W)."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, frames: slice) -> Tensor: ...


class TensorFrames:
    """A latent tensor, read by its frames."""

    def __init__(self, z: Tensor):
        self.z, self.shape = z, tuple(z.shape)

    def __getitem__(self, frames: slice) -> Tensor:
        return self.z[:, :, frames]


class LatentFile:
    """A latent in a finished file, read by its frames."""

    def __init__(self, path: Path):
        self.path = path
        with safe_open(path, "pt") as file:
            frames, batch, *channels_and_size = file.get_slice("latent").get_shape()
            self.metadata = file.metadata()
        self.shape = (batch, channels_and_size[0], frames, *channels_and_size[1:])

    def __getitem__(self, frames: slice) -> Tensor:
        with safe_open(self.path, "pt") as file:  # anew each time: what it has read stays in memory until it is closed
            return rearrange(file.get_slice("latent")[frames], "T B C H W -> B C T H W").clone(memory_format=torch.contiguous_format)


def undamaged(path: Path, note: Callable[[str], None]) -> LatentFile | None:
    """Returns the latent in a file of an earlier run whose size, header and checksum are right, else None.

    Args:
        path: File of `write_latent`. A damaged one is deleted.
        note: Called with a sentence about a damaged file.
    """
    if not path.exists():
        return None
    try:
        latent = LatentFile(path)
        if latent.metadata.get(CHECKSUM) in (None, checksum(path)):  # None: written by a version without checksums
            return latent
    except (OSError, SafetensorError, KeyError, ValueError, AttributeError):
        pass
    note(f"{path.name} of an earlier run was damaged and is made again.")
    path.unlink()
    return None


def checksum(path: Path) -> str:
    """Returns the SHA-256 of the values in a safetensors file, 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        file.seek(int.from_bytes(file.read(8), "little"), 1)
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def header(shape: tuple[int, ...], metadata: dict[str, str]) -> bytes:
    """Returns the start of the file of a latent of shape (B, C, T, H, W)."""
    batch, channels, frames, height, width = shape
    latent = {"dtype": "F32", "shape": [frames, batch, channels, height, width], "data_offsets": [0, 4 * math.prod(shape)]}
    text = json.dumps({"__metadata__": metadata, "latent": latent}).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


@contextmanager
def write_latent(path: Path, shape: tuple[int, ...], metadata: dict[str, str]) -> Iterator[Callable[[Tensor], None]]:
    """Yields append, which writes further frames (B, C, t, H, W) of a latent of shape (B, C, T, H, W) to path.

    The file appears at path when it is whole. Raises what files.atomic_write raises, and ValueError when frames are missing.
    """
    digest = hashlib.sha256()
    start = header(shape, {**metadata, CHECKSUM: digest.hexdigest()})  # the digits are replaced at the end
    with atomic_write(path) as partial, partial.open("wb") as file:
        file.write(start)

        def append(z: Tensor) -> None:
            values = np.ascontiguousarray(rearrange(z.float().cpu(), "B C T H W -> T B C H W")).reshape(-1).data
            digest.update(values)
            file.write(values)

        yield append
        nbytes = 4 * math.prod(shape)
        missing = nbytes - (file.tell() - len(start))
        if missing:
            raise ValueError(f"{path}: {missing} of {nbytes} bytes of the latent were not written")
        file.seek(0)
        file.write(header(shape, {**metadata, CHECKSUM: digest.hexdigest()}))
