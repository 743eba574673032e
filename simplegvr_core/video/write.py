"""H.264 files: written frame by frame, and joined without encoding them again.

Files are BT.709 with limited range (luma 16 to 235, chroma 16 to 240), converted and tagged so, as players expect of video.
f frames, H, W pixels; images uint8 (f, H, W, 3) RGB
"""

import heapq
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
from av.video.reformatter import ColorRange, Colorspace
from torch import Tensor

from ..files import atomic_write
from .sound import Sound, sound_packets

BT709 = 1  # in ITU-T H.273
VISUALLY_LOSSLESS = 12.0  # crf
DELAY = 2  # frames by which x264, at its defaults, decodes one before it is shown


@dataclass(frozen=True)
class Encoding:
    """How frames are encoded.

    Attributes:
        width: Width of a frame in pixels.
        height: Height of a frame in pixels.
        rate: Frames per second.
        crf: Constant rate factor of x264, from 0 (lossless in 8-bit YCbCr) to 51.
        full_chroma: Whether chroma has one sample per pixel (4:4:4) in place of one per 2 x 2 pixels (4:2:0). Odd sizes always have.
    """

    width: int
    height: int
    rate: Fraction
    crf: float = VISUALLY_LOSSLESS
    full_chroma: bool = False

    @property
    def pixel_format(self) -> str:
        return "yuv444p" if self.full_chroma or self.width % 2 or self.height % 2 else "yuv420p"


def configure(codec: av.VideoCodecContext, encoding: Encoding) -> None:
    """Sets size, quality and colors of an encoder that is not open."""
    codec.options = {"crf": f"{encoding.crf:g}"}
    codec.width, codec.height, codec.pix_fmt = encoding.width, encoding.height, encoding.pixel_format
    codec.colorspace = codec.color_primaries = codec.color_trc = BT709
    codec.color_range = ColorRange.MPEG


@contextmanager
def write_frames(path: Path, encoding: Encoding) -> Iterator[Callable[[Tensor], None]]:
    """Yields a function that appends images (f, H, W, 3) uint8 to a file. The file appears at path when the block ends.

    Args:
        path: File to write; its suffix selects the container.
        encoding: Size, rate and quality.

    Raises:
        OSError: What `files.atomic_write` raises.
    """
    with atomic_write(path) as partial, av.open(partial, "w") as container:
        stream = container.add_stream("libx264", rate=encoding.rate)
        configure(stream.codec_context, encoding)

        def add(images: Tensor) -> None:
            for image in images:
                frame = av.VideoFrame.from_ndarray(image.contiguous().numpy(), format="rgb24")
                bt709 = frame.reformat(format=encoding.pixel_format, dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG)
                container.mux(stream.encode(bt709))

        yield add
        container.mux(stream.encode())


def write_video(path: Path | str, images: Tensor, rate: Fraction, lossless: bool = False) -> None:
    """Writes a clip, visually lossless.

    Args:
        path: File to write; its suffix selects the container.
        images: (F, H, W, 3) uint8 RGB.
        rate: Frames per second.
        lossless: Whether the encoding adds no loss to that of 8-bit YCbCr, with full chroma.

    Raises:
        OSError: What `files.atomic_write` raises.
    """
    height, width = images.shape[1:3]
    encoding = Encoding(width, height, rate, crf=0, full_chroma=True) if lossless else Encoding(width, height, rate)
    with write_frames(Path(path), encoding) as add:
        add(images)


def join(path: Path, parts: list[Path], rate: Fraction, *, sound: Sound | None = None, metadata: dict | None = None) -> None:
    """Concatenates files without encoding their frames again.

    Args:
        path: File to write.
        parts: Files of `write_frames` with one encoding, in order.
        rate: Frames per second.
        sound: Sound of the length of the video or shorter.
        metadata: JSON values by name, written as container tags.

    Raises:
        OSError: What `files.atomic_write` raises.
    """
    options = {"movflags": "use_metadata_tags+faststart"}
    with atomic_write(path) as partial, av.open(partial, "w", options=options) as container:
        for name, value in (metadata or {}).items():
            container.metadata[name] = json.dumps(value)
        with av.open(parts[0]) as first:
            video = container.add_stream_from_template(first.streams.video[0])
        video.time_base = 1 / rate
        streams = [video_packets(parts, video, rate)]
        if sound is not None:
            streams.append(sound_packets(container, sound))
        container.mux(heapq.merge(*streams, key=lambda packet: (packet.dts or 0) * packet.time_base))


def video_packets(parts: Iterable[Path], stream: av.VideoStream, rate: Fraction) -> Iterator[av.Packet]:
    """Yields the packets of all parts with the times of one video."""
    first = count = 0
    for part in parts:
        with av.open(part) as container:
            for packet in container.demux(video=0):
                if packet.size:
                    packet.pts = first + round(packet.pts * packet.time_base * rate)
                    packet.dts = count - DELAY
                    packet.time_base = 1 / rate
                    packet.duration = 1
                    packet.stream = stream
                    count += 1
                    yield packet
        first = count
