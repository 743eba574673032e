"""Batches of latent pairs: random crops of what simplegvr_core.training.build_pairs wrote.

B batch, T latent frames, h, w low-resolution latent pixels, H, W target latent pixels, S text tokens; latents are normalised
"""

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ..latent_space import latent_frames
from .pairs import Pairs


@dataclass(frozen=True)
class Crop:
    """Size of the random crops of pairs, and number of crops in a batch."""

    num_frames: int = 17
    """Video frames, from the start of a pair."""
    size: tuple[int, int] = (132, 240)
    """Height and width in latent pixels (8 x 8 pixels), multiples of every whole scale of the pairs. A batch of a fractional scale
    a / b has the largest multiple of a that fits."""
    batch: int = 32
    """Crops in a batch."""

    @property
    def latent_frames(self) -> int:
        return latent_frames(self.num_frames)


class PairSampler:
    """Samples batches from folders of pairs. Pairs of one batch have one scale."""

    def __init__(self, folders: tuple[Path, ...], crop: Crop, contexts: Path | None = None, null_prompt: float = 1.0):
        """Reads the folders' indices.

        Args:
            folders: Folders that `simplegvr pairs` wrote.
            crop: What a batch is made of.
            contexts: Folder of text features, one file for each video; None is the null prompt for all.
            null_prompt: Fraction of samples in [0, 1] whose text features are replaced by the null prompt.

        Raises:
            ValueError: The crops do not fit the pairs; names the option.
        """
        self.crop, self.contexts, self.null_prompt = crop, contexts, null_prompt
        self.pairs = [(pairs, i) for pairs in map(Pairs, folders) for i in range(len(pairs))]
        self.by_scale: dict[Fraction, list[int]] = {}
        for index, (pairs, i) in enumerate(self.pairs):
            self.by_scale.setdefault(pairs.scales[i], []).append(index)
        for scale in self.by_scale:
            if scale.denominator == 1 and any(side % scale for side in crop.size):
                raise ValueError(f"--crop.size is {crop.size} latent pixels, wanted multiples of {scale}, a scale of the pairs")
            if min(crop.size) < scale.numerator:
                raise ValueError(f"--crop.size is {crop.size} latent pixels, wanted at least {scale.numerator} for pairs of scale {scale}")
        if crop.num_frames % 4 != 1:
            raise ValueError(f"--crop.num-frames is {crop.num_frames}, wanted 4 times a number of latent frames plus 1, such as 17 or 77")

    def sample(self, generator: torch.Generator, text_dim: int) -> dict[str, Tensor]:
        """Returns {"z_lr" (B, 16, T, h, w), "z_hr" (B, 16, T, H, W), "context" (B, S, text_dim)}, float32, on the CPU.

        Args:
            generator: Source of all randomness.
            text_dim: Width of the text features.
        """

        def below(limit: int) -> int:
            return int(torch.randint(limit, (), generator=generator))

        pairs, i = self.pairs[below(len(self.pairs))]
        same_scale = self.by_scale[pairs.scales[i]]
        chosen = [self.pairs[same_scale[below(len(same_scale))]] for _ in range(self.crop.batch)]
        z_lr, z_hr = zip(*(self.cut(*pair, below) for pair in chosen), strict=True)
        null = torch.rand(self.crop.batch, generator=generator) < self.null_prompt
        contexts = [self.context(*pair, text_dim, is_null) for pair, is_null in zip(chosen, null.tolist(), strict=True)]
        return {"z_lr": torch.stack(z_lr), "z_hr": torch.stack(z_hr), "context": pad_sequence(contexts, batch_first=True)}

    def cut(self, pairs: Pairs, i: int, below: Callable[[int], int]) -> tuple[Tensor, Tensor]:
        """Returns the same random part of both latents of pair i. below: limit -> random integer below it."""
        z_lr, z_hr = pairs[i]
        large, small = pairs.scales[i].as_integer_ratio()
        rows, columns = (side // large for side in self.crop.size)
        height, width, frames = rows * large, columns * large, self.crop.latent_frames
        if any(have < want for have, want in zip(z_hr.shape[1:], (frames, height, width), strict=True)):
            raise ValueError(
                f"{pairs.folder} has a pair of {tuple(z_hr.shape[1:])} latent frames, rows, columns, crops want {(frames, height, width)}: "
                "make --crop.size or --crop.num-frames smaller, or build pairs of larger or longer video"
            )
        y, x = (below((have - want) // large + 1) for have, want in zip(z_hr.shape[2:], (height, width), strict=True))
        low = z_lr[:, :frames, y * small : (y + rows) * small, x * small : (x + columns) * small]
        return low, z_hr[:, :frames, y * large : y * large + height, x * large : x * large + width]

    def context(self, pairs: Pairs, i: int, text_dim: int, is_null: bool) -> Tensor:
        """Returns text features (S, text_dim); one row of zeros is the null prompt."""
        if is_null or self.contexts is None:
            return torch.zeros(1, text_dim)
        path = (self.contexts / pairs.entries[i]["video"]).with_suffix(".safetensors")
        context = load_file(path)["context"].float()
        if context.ndim != 2 or context.shape[1] != text_dim:
            raise ValueError(f"{path} has a context of shape {tuple(context.shape)}, wanted (tokens, {text_dim})")
        return context
