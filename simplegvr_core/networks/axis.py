"""One axis of a tile that an upsampler resizes: which part of the frame it reads, computes and keeps."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Axis:
    """One axis of a tile. Ranges are (start, stop) in the whole frame, in latent pixels.

    Args:
        small: extent of the low-resolution frame.
        large: extent of the target frame.
        source: range of the small extent that the tile reads.
        target: range of the large extent that it computes.
        kept: range of target that does not see beyond the tile's edge.
    """

    small: int
    large: int
    source: tuple[int, int]
    target: tuple[int, int]
    kept: tuple[int, int]

    @property
    def inner(self) -> tuple[int, int]:
        """The range that is kept, counted from the tile's own edge."""
        start, stop = self.kept
        return start - self.target[0], stop - self.target[0]

    @property
    def centres(self) -> Tensor:
        """Where the centres of the target's latent pixels lie in the frame, in source latent pixels, float64."""
        return (2 * torch.arange(*self.target, dtype=torch.float64) + 1) * self.small / (2 * self.large)


Tile = tuple[Axis, Axis]  # rows, columns
