"""H.264 files written frame by frame, and such files joined without encoding them again.

Colors are BT.709 and marked so, as players expect of video. f frames, H, W pixels; images uint8 (f, H, W, 3)
"""

import heapq
import json
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
from av.video.reformatter import Colorspace
from torch import Tensor

from ..files import atomic_write

BT709 = 1  # in ITU-T H.273
LIMITED_RANGE = 1
DELAY = 2  # frames by which x264, at its defaults, decodes one before it is shown
AUDIO_LAYOUTS = {1: "mono", 2: "stereo", 6: "5.1", 8: "7.1"}
AUDIO_STRETCH = 65536  # samples that are encoded at once


@dataclass(frozen=True)
class Encoding:
    """Size in pixels, both sides even; frames per second; quality, from 0 (no loss) to 51, as x264's crf."""

    width: int
    height: int
    rate: Fraction
    crf: float


@contextmanager
def write_frames(path: Path, encoding: Encoding) -> Iterator[Callable[[Tensor], None]]:
    """Yields add, which appends images to the file. It appears at path when the block ends; raises what files.atomic_write raises."""
    with atomic_write(path) as partial, av.open(partial, "w") as container:
        stream = container.add_stream("libx264", rate=encoding.rate, options={"crf": f"{encoding.crf:g}"})
        stream.width, stream.height, stream.pix_fmt = encoding.width, encoding.height, "yuv420p"
        codec = stream.codec_context
        codec.colorspace = codec.color_primaries = codec.color_trc = BT709
        codec.color_range = LIMITED_RANGE

        def add(images: Tensor) -> None:
            for image in images:
                frame = av.VideoFrame.from_ndarray(image.contiguous().numpy(), format="rgb24")
                container.mux(stream.encode(frame.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709)))

        yield add
        container.mux(stream.encode())


def join(path: Path, parts: list[Path], rate: Fraction, audio: dict | None = None, metadata: dict | None = None) -> None:
    """Writes one file of the frames of parts, files of write_frames with one encoding, in order, as they are.

    audio: "waveform" (1, 2, 6 or 8 channels, samples) in [-1, 1] and "sample_rate" in Hz; as much as the video is long.
    metadata: values that JSON can hold, by name. Raises what files.atomic_write raises.
    """
    options = {"movflags": "use_metadata_tags+faststart"}
    with atomic_write(path) as partial, av.open(partial, "w", options=options) as container:
        for name, value in (metadata or {}).items():
            container.metadata[name] = json.dumps(value)
        with av.open(parts[0]) as first:
            video = container.add_stream_from_template(first.streams.video[0])
        video.time_base = 1 / rate
        streams = [video_packets(parts, video, rate)]
        if audio is not None:
            frames = sum(count_frames(part) for part in parts)
            streams.append(audio_packets(container, audio, math.ceil(frames / rate * audio["sample_rate"])))
        container.mux(heapq.merge(*streams, key=lambda packet: packet.dts * packet.time_base))


def count_frames(path: Path) -> int:
    """Returns how many frames a file of write_frames holds."""
    with av.open(path) as container:
        return container.streams.video[0].frames


def video_packets(parts: Iterable[Path], stream: av.VideoStream, rate: Fraction) -> Iterator[av.Packet]:
    """Yields the packets of all parts, timed as those of one video."""
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


def audio_packets(container: av.container.OutputContainer, audio: dict, samples: int) -> Iterator[av.Packet]:
    """Adds a stream of audio to container, and returns an iterator over its packets, at most samples long."""
    channels, rate = audio["waveform"].shape[0], int(audio["sample_rate"])
    stream = container.add_stream("aac", rate=rate, layout=AUDIO_LAYOUTS[channels])

    def packets() -> Iterator[av.Packet]:
        for start in range(0, min(samples, audio["waveform"].shape[1]), AUDIO_STRETCH):
            stretch = audio["waveform"][:, start : min(start + AUDIO_STRETCH, samples)]
            frame = av.AudioFrame.from_ndarray(stretch.float().cpu().contiguous().numpy(), "fltp", AUDIO_LAYOUTS[channels])
            frame.sample_rate, frame.pts = rate, start
            yield from stream.encode(frame)
        yield from stream.encode()

    return packets()
