"""Small video decoders for Wan 2.1's latents, frame by frame with memory: TAEHV's layout (taew2_1, lighttaew2_1) and Ultra Flash's.

B batch, C channels, F frames, T latent frames, F = 4 (T - 1) + 1; z normalised latent (B, 16, T, H, W); video (B, 3, F, 8H, 8W) in [-1, 1]
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..latent_space import LATENT_CHANNELS, WAN_MEAN, WAN_STD
from . import checkpoint
from .foreign import read_tensors, unprefixed
from .layers import CausalState

WIDTHS = (256, 128, 64)  # channels at the latent's resolution and at two and four times it
GROWTH = (1, 2, 2)  # frames that each of the three stages makes of one
TRIM = 3  # frames before the first of a clip
FAMILIES = ("auto", "lighttaew2_1")
OTHER_LATENTS = {32: "HunyuanVideo 1.5", 48: "Wan 2.2 5B", 128: "LTX-2"}  # of files with TAEHV's layout, by channels

Layout = Literal["taehv", "ultra_flash"]


@dataclass(frozen=True)
class VideoDecoderConfig:
    """What a file contains.

    Attributes:
        layout: "taehv", with nearest upsampling; "ultra_flash", with pixel shuffle and values in [-1, 1].
        normalized: Whether the network takes normalised latents; lighttaew2_1 takes the values of Wan's own autoencoder.
        encoder: Whether there is an encoder.
    """

    layout: Layout = "taehv"
    normalized: bool = True
    encoder: bool = True


class MemoryBlock(nn.Module):
    """A residual block of a frame that also sees its own input for the frame before.

    Args:
        width: C.
        repeats: Whether the first frame of a clip sees itself there; else it sees zeros.
        conv: Makes a 3 x 3 convolution.
    """

    def __init__(self, width: int, repeats: bool, conv: Any):
        super().__init__()
        self.conv = nn.Sequential(conv(2 * width, width), nn.ReLU(), conv(width, width), nn.ReLU(), conv(width, width))
        self.repeats = repeats

    def forward(self, x: Tensor, past: Tensor | None) -> Tensor:
        """Returns (B, C, H, W) of a frame x of that shape. past: x of the frame before; None at the clip's beginning."""
        if past is None:
            past = x if self.repeats else torch.zeros_like(x)
        return F.relu(self.conv(torch.cat((x, past.to(x)), dim=1)) + x)


class Grow(nn.Module):
    """Makes several frames of one."""

    def __init__(self, width: int, frames: int, conv1x1: Any):
        super().__init__()
        self.conv, self.frames = conv1x1(width, frames * width), frames

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.conv(x).chunk(self.frames, dim=1)


class Pool(nn.Module):
    """Makes one frame of several."""

    def __init__(self, width: int, frames: int, conv1x1: Any):
        super().__init__()
        self.conv, self.frames = conv1x1(frames * width, width), frames

    def forward(self, x: Tensor) -> Tensor:
        """Returns (B, C, H, W). x: (B, frames * C, H, W)."""
        return self.conv(x)


class Shuffle(nn.Module):
    """Doubles height and width by a convolution and pixel shuffle."""

    def __init__(self, width: int, conv: Any):
        super().__init__()
        self.block = nn.Sequential(conv(width, 4 * width), nn.PixelShuffle(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)


class Clamp(nn.Module):
    """Limits the latent softly to 3 standard deviations."""

    def forward(self, x: Tensor) -> Tensor:
        return 3 * torch.tanh(x / 3)


class VideoDecoder(nn.Module):
    """A small decoder, and for some files an encoder. It never has more than one frame of each resolution in work.

    Args:
        config: Layout of the file.
        device, dtype: Of the weights.
        operations: Module of Conv2d; ComfyUI gives its own.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: VideoDecoderConfig, device=None, dtype=None, operations: Any = nn):
        super().__init__()
        self.config = config
        conv = partial(operations.Conv2d, kernel_size=3, padding=1, device=device, dtype=dtype)
        conv1x1 = partial(operations.Conv2d, kernel_size=1, bias=False, device=device, dtype=dtype)
        if config.layout == "ultra_flash":
            self.net = ultra_flash_layers(conv, conv1x1)
        else:
            self.decoder = taehv_layers(conv, conv1x1)
            if config.encoder:
                self.encoder = taehv_encoder_layers(conv, conv1x1)
        for name, values in (("mean", WAN_MEAN), ("std", WAN_STD)):
            self.register_buffer(name, torch.tensor(values, device=device).view(1, -1, 1, 1, 1), persistent=False)

    def decode(self, z: Tensor) -> Tensor:
        """Returns the video (B, 3, 4 (T - 1) + 1, 8H, 8W) of z (B, 16, T, H, W)."""
        return self.decode_chunk(z, {})[0]

    @torch.no_grad()
    def decode_chunk(self, z: Tensor, past: CausalState) -> tuple[Tensor, CausalState]:
        """Returns the video of one chunk of a clip, and the state for the next chunk.

        Args:
            z: (B, 16, t, H, W).
            past: The state that the chunk before left, empty at the clip's beginning. It is not changed.
        """
        layers, state = self.net if self.config.layout == "ultra_flash" else self.decoder, dict(past)
        frames = [frame for x in self.to_network(z).unbind(2) for frame in apply(layers, x, state)]
        video = torch.stack(frames if past else frames[TRIM:], dim=2)
        return (video if self.config.layout == "ultra_flash" else video.mul_(2).sub_(1)), state

    @torch.no_grad()
    def encode(self, video: Tensor) -> Tensor:
        """Returns z (B, 16, T, H, W) of video (B, 3, F, 8H, 8W), whose last frame is repeated up to whole latent frames.

        Raises:
            ValueError: The file has no encoder.
        """
        if not hasattr(self, "encoder"):
            raise ValueError("this video decoder has no encoder: encode with Wan 2.1's VAE (Load VAE), whose latents are the same")
        video = F.pad((video + 1) / 2, (0, 0, 0, 0, 0, -video.shape[2] % 4), mode="replicate")
        state: CausalState = {}
        return self.from_network(torch.stack([z for x in video.unbind(2) for z in apply(self.encoder, x, state)], dim=2))

    def to_network(self, z: Tensor) -> Tensor:
        """Returns what the network takes of normalised latents z."""
        return z if self.config.normalized else (z * self.std + self.mean).to(z.dtype)

    def from_network(self, values: Tensor) -> Tensor:
        """Returns normalised latents of what the encoder gives."""
        return values if self.config.normalized else ((values - self.mean) / self.std).to(values.dtype)


def taehv_layers(conv: Any, conv1x1: Any) -> nn.Sequential:
    """Returns the decoder of TAEHV's layout, pixels in [0, 1]."""
    layers: list[nn.Module] = [Clamp(), conv(LATENT_CHANNELS, WIDTHS[0]), nn.ReLU()]
    for width, frames, following in zip(WIDTHS, GROWTH, (*WIDTHS[1:], WIDTHS[-1]), strict=True):
        layers += [MemoryBlock(width, False, conv) for _ in range(3)]
        layers += [nn.Upsample(scale_factor=2), Grow(width, frames, conv1x1), conv(width, following, bias=False)]
    return nn.Sequential(*layers, nn.ReLU(), conv(WIDTHS[-1], 3))


def taehv_encoder_layers(conv: Any, conv1x1: Any) -> nn.Sequential:
    """Returns the encoder of TAEHV's layout."""
    width = WIDTHS[-1]
    layers: list[nn.Module] = [conv(3, width), nn.ReLU()]
    for frames in reversed(GROWTH):
        layers += [Pool(width, frames, conv1x1), conv(width, width, stride=2, bias=False)]
        layers += [MemoryBlock(width, False, conv) for _ in range(3)]
    return nn.Sequential(*layers, conv(width, LATENT_CHANNELS))


def ultra_flash_layers(conv: Any, conv1x1: Any) -> nn.Sequential:
    """Returns the decoder of Ultra Flash (arXiv 2606.09150), pixels in [-1, 1]."""
    layers: list[nn.Module] = [conv(LATENT_CHANNELS, WIDTHS[0]), nn.ReLU()]
    for width, frames, following in zip(WIDTHS, GROWTH, (*WIDTHS[1:], None), strict=True):
        layers += [MemoryBlock(width, True, conv) for _ in range(3)]
        layers += [Shuffle(width, conv), Grow(width, frames, conv1x1)]
        layers += [] if following is None else [conv(width, following, bias=False)]
    return nn.Sequential(*layers, nn.ReLU(), conv(WIDTHS[-1], 3))


def apply(layers: nn.Sequential, x: Tensor, state: CausalState, start: int = 0) -> Iterator[Tensor]:
    """Yields the frames (B, C, H, W) that layers make of one frame x.

    Args:
        layers: The network.
        x: Input of layer start.
        state: By layer, the inputs that the next frame needs; updated.
        start: Number of the first layer.
    """
    for i in range(start, len(layers)):
        layer, name = layers[i], str(i)
        if isinstance(layer, Grow):
            for frame in layer(x):
                yield from apply(layers, frame, state, i + 1)
            return
        if isinstance(layer, Pool):
            x = torch.cat((state.pop(name), x), dim=1) if name in state else x
            if x.shape[1] < layer.conv.in_channels:
                state[name] = x
                return
        if isinstance(layer, MemoryBlock):
            x, state[name] = layer(x, state.get(name)), x
        else:
            x = layer(x)
    yield x


def read_video_decoder(path: Path, family: str = "auto") -> tuple[dict[str, Tensor], VideoDecoderConfig]:
    """Returns the tensors of a file and what they are, recognised by names and shapes; they fit the network exactly.

    Args:
        path: .safetensors or pickled file; the latter is read as foreign.read_tensors does.
        family: Of FAMILIES. lighttaew2_1 has the layout of taew2_1, but takes latents that are not normalised; auto is all others.

    Raises:
        FileNotFoundError: There is no file.
        ValueError: It is incomplete, unsafe to read, or no such decoder; the message says what it is and the cure.
    """
    tensors = unprefixed(read_tensors(path), path)
    config = recognized(tensors, path, family)
    checkpoint.check_fit(VideoDecoder(config, device="meta"), tensors, path)
    return tensors, config


def recognized(tensors: dict[str, Tensor], path: Path, family: str) -> VideoDecoderConfig:
    """Returns the layout of a file's tensors. Raises ValueError when it is none of those above."""
    if "net.0.weight" in tensors:
        if family != "auto":
            raise ValueError(f"{path} is a decoder of Ultra Flash, not {family}: choose family auto")
        return VideoDecoderConfig("ultra_flash", encoder=False)
    if "decoder.1.weight" in tensors and "decoder.22.bias" in tensors:
        channels = tensors["decoder.1.weight"].shape[1]
        if channels != LATENT_CHANNELS:
            whose = OTHER_LATENTS.get(channels, "another model")
            raise ValueError(
                f"{path} decodes latents of {channels} channels, those of {whose}, wanted Wan 2.1's {LATENT_CHANNELS}: use taew2_1"
            )
        has_encoder = any(name.startswith("encoder.") for name in tensors)
        return VideoDecoderConfig("taehv", normalized=family != "lighttaew2_1", encoder=has_encoder)
    if "decoder.middle.0.residual.0.gamma" in tensors:
        raise ValueError(f"{path} is an autoencoder with the layout of Wan 2.1's: load it with Load VAE")
    raise ValueError(
        f"{path} is no video decoder with TAEHV's layout nor one of Ultra Flash; its first names are {', '.join(list(tensors)[:3])}: "
        "load other autoencoders with Load VAE"
    )


def load_video_decoder(path: Path, family: str = "auto") -> VideoDecoder:
    """Returns the network of a file, float32, on the CPU, not trainable. Arguments and errors are those of read_video_decoder."""
    tensors, config = read_video_decoder(path, family)
    decoder = VideoDecoder(config)
    decoder.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    return decoder.eval().requires_grad_(False)
