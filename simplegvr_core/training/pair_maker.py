"""Makes one latent pair of a clip: filters, degradation, a text-to-video model's part in it, encoding.

F video frames, T latent frames, S text tokens; h, w low-resolution latent pixels, H = scale h, W = scale w; latents are normalised
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from time import monotonic
from uuid import uuid4

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..degradations import Recipe, degrade_latent, degrade_video
from ..latent_space import SPATIAL_FACTOR
from ..networks.dit import SimpleGVRDiT
from ..networks.layers import mixed_precision
from ..networks.tiny_vae import TinyVAE
from ..networks.wan_vae import WanVAE
from ..sampling.context import Contexts, without_suffix
from ..sampling.super_resolve import guided_network
from ..video.frames import crop_centre, to_video
from .clips import Clip
from .filters import Drop, FilterConfig, judge
from .pairs import DENOMINATOR


def fractions(smallest: float, largest: float) -> list[Fraction]:
    """Returns the scales in a range whose denominator is at most DENOMINATOR, from small to large."""
    found = {Fraction(a, b) for b in range(1, DENOMINATOR + 1) for a in range(1, int(largest * b) + 1)}
    return sorted(scale for scale in found if smallest <= scale <= largest)


@dataclass(frozen=True)
class Pair:
    """A latent pair.

    Attributes:
        scale: Ratio of the two sizes.
        alpha: Noise level of the model-guided degradation, None without it.
        z_lr: Low-resolution latent (16, T, h, w), float16.
        z_hr: Target latent (16, T, H, W), float16.
    """

    scale: Fraction
    alpha: float | None
    z_lr: Tensor
    z_hr: Tensor


@dataclass(frozen=True)
class Base:
    """The text-to-video model of a model-guided recipe, and how it is guided.

    Attributes:
        model: The network, with full attention.
        contexts: Text features of the videos' captions; None is the null prompt.
        negative: Text features (S, text_dim) of the negative prompt; None is the null prompt.
        cfg: Guidance scale; 1 is none.
        text_tokens: Rows that text features are padded to with zeros; 0 pads nothing.
    """

    model: SimpleGVRDiT
    contexts: Contexts | None
    negative: Tensor | None
    cfg: float
    text_tokens: int

    def velocity(self, video: str, device: str) -> Callable[[Tensor, Tensor], Tensor]:
        """Returns (z_t, sigma) -> velocity for the prompt of a video. Raises ValueError when its features cannot be read."""
        text_dim = self.model.config.text_dim
        context = None if self.contexts is None else self.contexts.read(without_suffix(video), text_dim)
        context, negative = (None if text is None else self.padded(text)[None].to(device) for text in (context, self.negative))
        network = guided_network(self.model, self.cfg, context, negative, like=torch.zeros((), device=device))
        return lambda z_t, sigma: network(z_t, None, sigma)

    def padded(self, context: Tensor) -> Tensor:
        return F.pad(context, (0, 0, 0, max(0, self.text_tokens - len(context))))


@dataclass(frozen=True)
class PairMaker:
    """Makes pairs of clips.

    Attributes:
        recipe: Degradation of the low resolution.
        scales: Scales, of which each clip gets one at random.
        filters: Limits that a clip must meet.
        seed: Seed of all clips; each clip's own follows from it, its video and its first frame.
        device: Device of the networks.
        vae: Autoencoder of both latents.
        base: Text-to-video model of a model-guided recipe.
        musiq: Quality metric among the filters, None where it is not available.
    """

    recipe: Recipe
    scales: Sequence[Fraction]
    filters: FilterConfig
    seed: int
    device: str
    vae: TinyVAE | WanVAE
    base: Base | None
    musiq: nn.Module | None

    @torch.inference_mode()
    def make(self, clip: Clip) -> Pair | Drop:
        """Returns the clip's pair, or the reason why there is none."""
        if isinstance(clip.images, Drop):
            return clip.images
        if drop := judge(clip.images, self.filters, self.musiq):
            return drop
        digest = hashlib.sha256(json.dumps([self.seed, clip.video, clip.frame]).encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
        scale = self.scales[int(torch.randint(len(self.scales), (), generator=generator))]
        smallest = SPATIAL_FACTOR * scale.numerator
        images = crop_centre(clip.images, smallest)
        if not images.numel():
            height, width = clip.images.shape[1:3]
            return Drop("too small", f"{width} x {height} pixels, scale {scale} wants at least {smallest} x {smallest}")
        video = to_video(images)
        z_lr = self.vae.encode(degrade_video(video, scale, self.recipe, generator).to(self.device))
        levels: list[float] = []  # of the steps of the model-guided degradation; the first is alpha
        if self.base is not None:
            velocity = self.base.velocity(clip.video, self.device)
            with mixed_precision(self.device):
                z_lr = degrade_latent(z_lr, self.recipe, lambda z, sigma: levels.append(float(sigma)) or velocity(z, sigma), generator)
        z_hr = self.vae.encode(video.to(self.device))
        stored = [z[0].half().cpu() for z in (z_lr, z_hr)]
        if not all(z.isfinite().all() for z in stored):
            return Drop("not finite", "a latent has values beyond float16: the autoencoder or the text-to-video model failed")
        return Pair(scale, levels[0] if levels else None, *stored)


@dataclass(frozen=True)
class Made:
    """What became of a clip.

    Attributes:
        outcome: Its pair, or the reason why there is none.
        reading: Seconds that its reading took.
        making: Seconds that its making took.
        worker: Name of the process that made it.
    """

    outcome: Pair | Drop
    reading: float
    making: float
    worker: str


class Worker:
    """A process that makes pairs, on one thread: the same bits on every machine."""

    def __init__(self, maker: PairMaker):
        torch.set_num_threads(1)
        for model in filter(None, (maker.vae, maker.base and maker.base.model, maker.musiq)):
            model.to(maker.device)
        self.maker, self.name = maker, uuid4().hex

    def make(self, clip: Clip, reading: float) -> Made:
        start = monotonic()
        return Made(self.maker.make(clip), reading, monotonic() - start, self.name)


def timed(clips: Iterator[Clip]) -> Iterator[tuple[Clip, float]]:
    """Yields each clip and the seconds that its reading took."""
    start = monotonic()
    for clip in clips:
        yield clip, monotonic() - start
        start = monotonic()
