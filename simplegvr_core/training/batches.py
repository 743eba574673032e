"""Batches of latent pairs: random crops of what simplegvr_core.training.build_pairs wrote.

B batch, T latent frames, h, w low-resolution latent pixels, H, W target latent pixels, S text tokens; latents are normalised
"""

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..latent_space import latent_frames
from ..planning.network_memory import TEXT_TOKENS
from ..sampling.context import Contexts, without_suffix
from .draws import READING, Batch, Draws, philox
from .pairs import Pairs

BUCKET, ORDER = 4, 5  # fields of the random numbers, after those of draws.py
BLOCK = 4096  # steps whose buckets are chosen at once

NoiseOf = Callable[[Tensor, Draws], Batch]
"""(z_hr (B, 16, T, H, W), draws) -> the objective's random tensors (B, ...), on the device of z_hr."""


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


class Sampler(Protocol):
    """What samples latent pairs."""

    crop: Crop

    def read(self, draws: Draws, text_dim: int) -> dict[str, Any]:
        """Returns Source.read's tensors, of them "context" (B, S, text_dim)."""
        ...

    def pairs_of(self, batch: Batch, draws: Draws) -> Batch:
        """Returns the batch with "z_lr" (B, 16, T, h, w) and "z_hr" (B, 16, T, H, W), on the training device."""
        ...


@dataclass(frozen=True)
class NoisedPairs:
    """A Source: pairs, and the noise of an objective.

    Attributes:
        sampler: What samples the pairs.
        text_dim: Width of the text features.
        noise: What samples the noise.
    """

    sampler: Sampler
    text_dim: int
    noise: NoiseOf

    @property
    def batch(self) -> int:
        return self.sampler.crop.batch

    def read(self, draws: Draws) -> dict[str, Any]:
        return self.sampler.read(draws, self.text_dim)

    def batch_on(self, device: torch.device, draws: Draws) -> Batch:
        """Returns a batch on a device, without a reader."""
        read = self.read(draws)
        return self.finish({name: entry.to(device) for name, entry in read.items() if isinstance(entry, Tensor)}, draws)

    def finish(self, batch: Batch, draws: Draws) -> Batch:
        batch = self.sampler.pairs_of(batch, draws)
        return batch | self.noise(batch["z_hr"], draws)


class PairSampler:
    """Samples batches from folders of pairs. The pairs of a step have one scale, and each pair is taken once in an epoch of its scale."""

    def __init__(self, folders: tuple[Path, ...], crop: Crop, contexts: Path | None = None, null_prompt: float = 1.0):
        """Reads the folders' indices.

        Args:
            folders: Folders that `simplegvr pairs` wrote.
            crop: What a batch is made of.
            contexts: Folder of text features of the videos' captions; None is the null prompt for all.
            null_prompt: Fraction of samples in [0, 1] whose text features are replaced by the null prompt.

        Raises:
            ValueError: The crops do not fit the pairs; names the option.
        """
        self.crop, self.null_prompt = crop, null_prompt
        self.contexts = None if contexts is None else Contexts(contexts)
        by_scale: dict[Fraction, list[tuple[Pairs, int]]] = {}
        for pairs in map(Pairs, folders):
            for i, scale in enumerate(pairs.scales):
                by_scale.setdefault(scale, []).append((pairs, i))
        self.buckets = list(by_scale.values())
        for scale in by_scale:
            if scale.denominator == 1 and any(side % scale for side in crop.size):
                raise ValueError(f"--crop.size is {crop.size} latent pixels, wanted multiples of {scale}, a scale of the pairs")
            if min(crop.size) < scale.numerator:
                raise ValueError(f"--crop.size is {crop.size} latent pixels, wanted at least {scale.numerator} for pairs of scale {scale}")
        if crop.num_frames % 4 != 1:
            raise ValueError(f"--crop.num-frames is {crop.num_frames}, wanted 4 times a number of latent frames plus 1, such as 17 or 77")

    def read(self, draws: Draws, text_dim: int) -> dict[str, Any]:
        """Returns {"z_lr" (B, 16, T, h, w), "z_hr" (B, 16, T, H, W), "context" (B, S, text_dim)}, float32, on the CPU, and "skipped".

        A pair that is not finite is skipped for the next of its epoch; "skipped" names the skipped ones. With captions S is
        TEXT_TOKENS, as in ComfyUI; without, 1.

        Args:
            draws: The samples.
            text_dim: Width of the text features.

        Raises:
            ValueError: A pair cannot be read, is smaller than a crop, or none of a scale is finite.
        """
        bucket, turn = bucket_of_step(tuple(map(len, self.buckets)), draws.seed, draws.step)
        latents, contexts, skipped = [], [], []
        for sample, generator in zip(draws.samples, draws.generators(READING), strict=True):
            is_null = bool(torch.rand((), generator=generator) < self.null_prompt)
            state = generator.get_state()
            for attempt in range(len(self.buckets[bucket])):
                pairs, i = self.pair(draws.seed, bucket, turn * draws.total + sample, attempt)
                crop = self.cut(pairs, i, generator.set_state(state))
                if all(z.isfinite().all() for z in crop):
                    break
                skipped.append(f"{pairs.folder / pairs.entries[i]['shard']} pair {pairs.entries[i]['id']}")
            else:
                raise ValueError(f"no pair of scale {pairs.scales[i]} is finite, such as {skipped[0]}: build the pairs again")
            latents.append(crop)
            contexts.append(self.context(pairs, i, text_dim, is_null))
        z_lr, z_hr = map(torch.stack, zip(*latents, strict=True))
        return {"z_lr": z_lr, "z_hr": z_hr, "context": torch.stack(contexts), "skipped": skipped}

    def pairs_of(self, batch: Batch, draws: Draws) -> Batch:
        """Returns the batch as it is: read has the pairs."""
        return batch

    def pair(self, seed: int, bucket: int, number: int, attempt: int = 0) -> tuple[Pairs, int]:
        """Returns the pair with a number in the endless sequence of a bucket, whose every epoch has an order of its own.

        Args:
            seed: Seed of the run.
            bucket: Number of the bucket.
            number: Number of the pair.
            attempt: Above 0, the pair so many places later in the same epoch.
        """
        pairs = self.buckets[bucket]
        epoch, place = divmod(number, len(pairs))
        return pairs[order_of_epoch(len(pairs), seed, bucket, epoch)[(place + attempt) % len(pairs)]]

    def cut(self, pairs: Pairs, i: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Returns the same random part of both latents of pair i, of which nothing else is read."""
        large, small = pairs.scales[i].as_integer_ratio()
        rows, columns = (side // large for side in self.crop.size)
        height, width, frames = rows * large, columns * large, self.crop.latent_frames
        with pairs.open(i) as (z_lr, z_hr):
            extent = z_hr.get_shape()[1:]
            if any(have < want for have, want in zip(extent, (frames, height, width), strict=True)):
                raise ValueError(
                    f"{pairs.folder} has a pair of {tuple(extent)} latent frames, rows, columns, crops want {(frames, height, width)}: "
                    "make --crop.size or --crop.num-frames smaller, or build pairs of larger or longer video"
                )
            y, x = (
                int(torch.randint((have - want) // large + 1, (), generator=generator))
                for have, want in zip(extent[1:], (height, width), strict=True)
            )
            low = z_lr[:, :frames, y * small : (y + rows) * small, x * small : (x + columns) * small]
            return low.float(), z_hr[:, :frames, y * large : y * large + height, x * large : x * large + width].float()

    def context(self, pairs: Pairs, i: int, text_dim: int, is_null: bool) -> Tensor:
        """Returns text features (S, text_dim); zeros are the null prompt. Raises ValueError when they cannot be read or are too long."""
        if self.contexts is None:
            return torch.zeros(1, text_dim)
        if is_null:
            return torch.zeros(TEXT_TOKENS, text_dim)
        name = without_suffix(pairs.entries[i]["video"])
        context = self.contexts.read(name, text_dim)
        if len(context) > TEXT_TOKENS:
            raise ValueError(
                f"{self.contexts.folder} has {name!r} with text features of {len(context)} tokens, wanted at most {TEXT_TOKENS}: "
                "shorten the caption"
            )
        return F.pad(context, (0, 0, 0, TEXT_TOKENS - len(context)))


def bucket_of_step(sizes: tuple[int, ...], seed: int, step: int) -> tuple[int, int]:
    """Returns the bucket of a step, with a probability in proportion to its size, and how many steps before had the same one."""
    block, place = divmod(step, BLOCK)
    chosen = buckets_of_block(sizes, seed, block)
    before = sum(int((buckets_of_block(sizes, seed, earlier) == chosen[place]).sum()) for earlier in range(block))
    return int(chosen[place]), before + int((chosen[:place] == chosen[place]).sum())


@lru_cache(maxsize=1024)
def buckets_of_block(sizes: tuple[int, ...], seed: int, block: int) -> np.ndarray:
    """Returns the buckets of BLOCK steps."""
    return philox(seed, BUCKET, 0, block).choice(len(sizes), BLOCK, p=np.array(sizes) / sum(sizes))


@lru_cache(maxsize=64)
def order_of_epoch(size: int, seed: int, bucket: int, epoch: int) -> np.ndarray:
    """Returns a random order of the pairs of a bucket."""
    return philox(seed, ORDER, bucket, epoch).permutation(size)
