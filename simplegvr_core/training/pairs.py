"""Latent pairs that build_pairs.py wrote, read for training.

T latent frames; h, w low-resolution latent pixels, H = scale h, W = scale w; latents are normalised. A scale is a fraction of small whole
numbers, a / b: every crop of b latent pixels of the low resolution is one of a latent pixels of the target.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..files import read_json

DENOMINATOR = 6  # largest, of a scale: neighbors differ by at most 1/6


class Pairs:
    """The pairs of a folder, read one at a time.

    Attributes:
        folder: Folder that `simplegvr pairs` wrote.
        entries: Record of each pair: its number, shard, video, first frame and scale.
        scales: Scale of each pair; a whole number or a fraction.
    """

    def __init__(self, folder: Path):
        """Reads the folder's index. Raises ValueError when the folder has no finished pairs."""
        self.folder = Path(folder)
        index = self.folder / "pairs.json"
        if not index.is_file():
            raise ValueError(f"{folder} holds no pairs.json: give a folder of pairs, or run the command that builds it to its end")
        self.entries = read_json(index, "run the command that builds the pairs again")["pairs"]
        self.scales = [Fraction(entry["scale"]).limit_denominator(DENOMINATOR) for entry in self.entries]

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        """Returns z_lr (16, T, h, w) and z_hr (16, T, H, W) of pair i, float32. Raises ValueError when its shard cannot be read."""
        with self.open(i) as (z_lr, z_hr):
            return z_lr[:].float(), z_hr[:].float()

    @contextmanager
    def open(self, i: int) -> Iterator[tuple[Any, Any]]:
        """Yields slices of z_lr and z_hr of pair i, as safetensors names what reads only the parts that are indexed.

        Raises ValueError when its shard cannot be read.
        """
        entry = self.entries[i]
        try:
            with safe_open(self.folder / entry["shard"], framework="pt") as shard:
                z_lr, z_hr = (shard.get_slice(f"{entry['id']:05d}.{name}") for name in ("z_lr", "z_hr"))
                yield z_lr, z_hr
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{self.folder / entry['shard']} cannot be read ({error}): delete {self.folder} and build it again") from error
