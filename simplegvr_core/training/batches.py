"""Batches of latent pairs: random crops of what simplegvr_core.training.build_pairs wrote.

B batch, T latent frames, h, w low-resolution cells, H, W target cells, S text tokens; latents are normalised
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ..latent_space import latent_frames
from .pairs import Pairs


@dataclass(frozen=True)
class Crop:
    """What a batch is made of. num_frames: video frames, from the start of a pair; size: H, W in cells of 8 pixels, multiples
    of every scale of the pairs."""

    num_frames: int = 17
    size: tuple[int, int] = (132, 240)
    batch: int = 32

    @property
    def latent_frames(self) -> int:
        return latent_frames(self.num_frames)


class PairSampler:
    """Draws batches. Pairs of one batch have one scale.

    contexts: folder of text features, one file for each video, or None; null_prompt: share of samples without them.
    Raises ValueError that names the option when crops do not fit the pairs.
    """

    def __init__(self, folders: tuple[Path, ...], crop: Crop, contexts: Path | None = None, null_prompt: float = 1.0):
        self.crop, self.contexts, self.null_prompt = crop, contexts, null_prompt
        self.pairs = [(pairs, i) for pairs in map(Pairs, folders) for i in range(len(pairs))]
        self.by_scale = {}
        for index, (pairs, i) in enumerate(self.pairs):
            self.by_scale.setdefault(pairs.scales[i], []).append(index)
        for scale in self.by_scale:
            if any(side % scale for side in crop.size):
                raise ValueError(f"--crop.size is {crop.size} cells, wanted multiples of {scale}, a scale of the pairs")
        if crop.num_frames % 4 != 1:
            raise ValueError(f"--crop.num-frames is {crop.num_frames}, wanted 4 times a number of latent frames plus 1, such as 17 or 77")

    def draw(self, generator: torch.Generator, text_dim: int) -> dict[str, Tensor]:
        """Returns {"z_lr" (B, 16, T, h, w), "z_hr" (B, 16, T, H, W), "context" (B, S, text_dim)}, float32."""

        def draw(limit: int) -> int:
            return int(torch.randint(limit, (), generator=generator))

        pairs, i = self.pairs[draw(len(self.pairs))]
        same_scale = self.by_scale[pairs.scales[i]]
        chosen = [self.pairs[same_scale[draw(len(same_scale))]] for _ in range(self.crop.batch)]
        z_lr, z_hr = zip(*(self.cut(*pair, draw) for pair in chosen), strict=True)
        null = torch.rand(self.crop.batch, generator=generator) < self.null_prompt
        contexts = [self.context(*pair, text_dim, is_null) for pair, is_null in zip(chosen, null.tolist(), strict=True)]
        return {"z_lr": torch.stack(z_lr), "z_hr": torch.stack(z_hr), "context": pad_sequence(contexts, batch_first=True)}

    def cut(self, pairs: Pairs, i: int, draw) -> tuple[Tensor, Tensor]:
        """Returns the same random part of both latents of a pair. draw: limit -> integer below it."""
        z_lr, z_hr = pairs[i]
        scale, (height, width), frames = pairs.scales[i], self.crop.size, self.crop.latent_frames
        if any(have < want for have, want in zip(z_hr.shape[1:], (frames, height, width), strict=True)):
            raise ValueError(
                f"{pairs.folder} has a pair of {tuple(z_hr.shape[1:])} latent frames, rows, columns, crops want {(frames, height, width)}: "
                "make --crop.size or --crop.num-frames smaller, or build pairs of larger or longer video"
            )
        y, x = (draw((have - want) // scale + 1) for have, want in zip(z_hr.shape[2:], self.crop.size, strict=True))
        low = z_lr[:, :frames, y : y + height // scale, x : x + width // scale]
        return low, z_hr[:, :frames, y * scale : y * scale + height, x * scale : x * scale + width]

    def context(self, pairs: Pairs, i: int, text_dim: int, is_null: bool) -> Tensor:
        """Returns text features (S, text_dim); one row of zeros is the null prompt."""
        if is_null or self.contexts is None:
            return torch.zeros(1, text_dim)
        path = (self.contexts / pairs.entries[i]["video"]).with_suffix(".safetensors")
        context = load_file(path)["context"].float()
        if context.ndim != 2 or context.shape[1] != text_dim:
            raise ValueError(f"{path} has a context of shape {tuple(context.shape)}, wanted (tokens, {text_dim})")
        return context
