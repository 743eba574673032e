"""Latent pairs that simplegvr_core.training.build_pairs wrote, read for training.

T latent frames; h, w low-resolution cells, H = scale h, W = scale w; latents are normalised
"""

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor


class Pairs:
    """The pairs of a folder, read one at a time. scales: of each pair, in their order.

    Raises ValueError that names the folder when it holds no finished pairs, or a shard is missing or damaged.
    """

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        index = self.folder / "pairs.json"
        if not index.is_file():
            raise ValueError(f"{folder} holds no pairs.json: give a folder of pairs, or run the command that builds it to its end")
        self.entries = json.loads(index.read_text())["pairs"]
        self.scales = [entry["scale"] for entry in self.entries]

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        """Returns z_lr (16, T, h, w) and z_hr (16, T, H, W) of pair i, float32."""
        entry = self.entries[i]
        try:
            with safe_open(self.folder / entry["shard"], framework="pt") as shard:
                return tuple(shard.get_tensor(f"{entry['id']:05d}.{name}").float() for name in ("z_lr", "z_hr"))
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{self.folder / entry['shard']} cannot be read ({error}): delete {self.folder} and build it again") from error
