"""Latents in files, written and read a few frames at a time: what is in memory does not depend on the clip's length.

A safetensors file with one float32 tensor "latent", (T, B, C, H, W): frames outermost, so that some frames are one
stretch of the file.
"""

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from einops import rearrange
from safetensors import safe_open
from torch import Tensor

from ..files import atomic_write


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


@contextmanager
def write_latent(path: Path, shape: tuple[int, ...], metadata: dict[str, str]) -> Iterator[Callable[[Tensor], None]]:
    """Yields append, which writes further frames (B, C, t, H, W) of a latent of shape (B, C, T, H, W) to path.

    The file appears at path when it is whole. Raises what files.atomic_write raises, and ValueError when frames are missing.
    """
    batch, channels, frames, height, width = shape
    nbytes = 4 * math.prod(shape)
    latent = {"dtype": "F32", "shape": [frames, batch, channels, height, width], "data_offsets": [0, nbytes]}
    header = json.dumps({"__metadata__": metadata, "latent": latent}).encode()
    header += b" " * (-len(header) % 8)
    with atomic_write(path) as partial, partial.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)

        def append(z: Tensor) -> None:
            file.write(np.ascontiguousarray(rearrange(z.float().cpu(), "B C T H W -> T B C H W")).data)

        yield append
        missing = nbytes - (file.tell() - 8 - len(header))
        if missing:
            raise ValueError(f"{path}: {missing} of {nbytes} bytes of the latent were not written")
