"""A video file as every program shows it alike: square pixels, SDR, a constant frame rate, frames of one size, its sound beside them."""

from collections.abc import Iterator
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import av
import torch
from av.error import FFmpegError
from torch import Tensor

from .read import frame_rate, opened, timed_frames
from .sound import LAYOUTS, Sound
from .write import Encoding, join, write_frames


def normalize_video(path: Path, out: Path) -> None:
    """Writes a video as H.264 with frames of the same times, each repeated where the next is late.

    Args:
        path: Video file.
        out: File to write, mp4.

    Raises:
        VideoError: The file cannot be read.
        OSError: What `files.atomic_write` raises.
    """
    rate = usual_rate(path)
    with TemporaryDirectory(dir=out.parent) as folder:
        part = Path(folder) / "frames.mp4"
        frames = steady_frames(path, rate)
        first = next(frames)
        height, width = first.shape[:2]
        with write_frames(part, Encoding(width, height, rate)) as add:
            add(first[None])
            for frame in frames:
                add(frame[None])
        join(out, [part], rate, sound=read_sound(path))


def usual_rate(path: Path) -> Fraction:
    """Returns the frames per second that the usual time between two frames makes."""
    with opened(path) as (container, stream):
        times = sorted(packet.pts for packet in container.demux(stream) if packet.pts is not None and not packet.is_discard)
        gaps = sorted(later - earlier for earlier, later in pairwise(times))
        base = stream.time_base
    if not gaps or not gaps[len(gaps) // 2] or not base:
        return frame_rate(path)
    return (1 / (gaps[len(gaps) // 2] * base)).limit_denominator(1001)


def steady_frames(path: Path, rate: Fraction) -> Iterator[Tensor]:
    """Yields the frame that is shown at each multiple of 1 / rate seconds, from the first on, each (H, W, 3) uint8."""
    start, count, shown = None, 0, None
    for time, image in timed_frames(path):
        if time is None:
            yield image
            continue
        start = time if start is None else start
        while shown is not None and count < round((time - start) * rate):
            yield shown
            count += 1
        shown = image
    if shown is not None:
        yield shown


def read_sound(path: Path) -> Sound | None:
    """Returns the first sound of a file that can be decoded; None when there is none."""
    try:
        with av.open(path) as container:
            streams = [stream for stream in container.streams.audio if stream.codec_context is not None]
            if not streams or streams[0].channels not in LAYOUTS:
                return None
            resampler = av.AudioResampler("fltp", streams[0].layout, streams[0].rate)
            decoded = (part for frame in (*container.decode(streams[0]), None) for part in resampler.resample(frame))
            waveform = [torch.from_numpy(frame.to_ndarray()) for frame in decoded]
            return Sound(torch.cat(waveform, dim=1), streams[0].rate) if waveform else None
    except FFmpegError:
        return None
