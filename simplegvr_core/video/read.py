"""Video files: found, inspected, and read frame by frame.

F frames, H, W pixels; images uint8 (F, H, W, 3)
"""

from collections.abc import Callable, Iterator, Set
from contextlib import contextmanager
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import torch
from av.container import InputContainer
from av.error import FFmpegError
from av.filter import Graph
from av.stream import Disposition
from torch import Tensor

VIDEO_SUFFIXES = {".mp4", ".mov", ".mkv", ".webm", ".avi", ".mpg"}
PICTURES = Disposition.attached_pic | Disposition.timed_thumbnails | Disposition.still_image
UNTAGGED, HD_LINES = 2, 720  # a color matrix of ITU-T H.273; lines from which BT.709 is usual
HDR_TRANSFERS = {16: "PQ", 18: "HLG"}  # transfer characteristics of ITU-T H.273


def find_videos(folder: Path, suffixes: Set[str] = VIDEO_SUFFIXES) -> list[Path]:
    """Returns the video files of a folder and its subfolders, sorted by path.

    Args:
        folder: Folder to search.
        suffixes: Suffixes of the files to find, lower case, with the dot.

    Raises:
        ValueError: The folder does not exist or contains no such file.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder")
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in suffixes)
    if not paths:
        raise ValueError(f"{folder} contains no video ({', '.join(sorted(suffixes))})")
    return paths


class VideoError(ValueError):
    """A file is not a video that can be read. The message names it."""


@contextmanager
def opened(path: Path) -> Iterator[tuple[InputContainer, av.VideoStream]]:
    """Yields a video file's container and the stream that players show. Raises VideoError for whatever goes wrong while it is open."""
    try:
        with av.open(path) as container:
            yield container, video_stream(container, path)
    except (VideoError, GeneratorExit):
        raise
    except (FFmpegError, OSError, ValueError, ArithmeticError, LookupError, MemoryError, AttributeError) as error:
        raise VideoError(f"{path} is not a video that can be read ({error})") from error


def video_stream(container: InputContainer, path: Path) -> av.VideoStream:
    """Returns the first default stream that can be decoded and is no picture attached to the file. Raises VideoError without one."""
    moving = [stream for stream in container.streams.video if not stream.disposition & PICTURES]
    found = [stream for stream in moving if stream.codec_context is not None]
    if not found:
        what = "no decoder is known for its video" if moving else "it has no video stream"
        raise VideoError(f"{path} is not a video that can be read ({what})")
    return max(found, key=lambda stream: bool(stream.disposition & Disposition.default))  # the first of the largest


def pixel_aspect(stream: av.VideoStream) -> Fraction:
    """Returns the width of a stream's pixels over their height."""
    return stream.sample_aspect_ratio or Fraction(1)


def square_width(stream: av.VideoStream) -> int:
    """Returns the width of a stream's frames, at their height, in square pixels; even where the pixels are not square."""
    aspect = pixel_aspect(stream)
    return stream.width if aspect == 1 else max(2, 2 * round(stream.width * aspect / 2))


def inspect_video(path: Path) -> tuple[int, list[str]]:
    """Returns the number of frames of a file, and sentences on what is lost or converted when it is read. Decodes the first frame.

    Args:
        path: Video file.

    Raises:
        VideoError: The file cannot be read, has no video stream or is truncated.
    """
    with opened(path) as (container, stream):
        packets = [(packet.pts, packet.is_discard, packet.is_corrupt) for packet in container.demux(stream) if packet.size]
        frames = stream.frames
    if any(is_corrupt for *_, is_corrupt in packets) or len(packets) < frames:
        raise VideoError(f"{path} ends early: {len(packets)} of {frames or 'an unknown number of'} frames are there")
    with opened(path) as (container, stream):
        first = next(container.decode(stream), None)
        notes = conversions(stream, first)
    notes += timing_notes([pts for pts, is_discard, _ in packets if pts is not None and not is_discard])
    return sum(not is_discard for _, is_discard, _ in packets), notes


def conversions(stream: av.VideoStream, first: av.VideoFrame | None) -> list[str]:
    """Returns what is lost or converted of a stream's frames, as sentences. first: its first frame; None without frames."""
    codec, notes = stream.codec_context, []
    components = codec.format.components if codec.format else ()
    if transfer := HDR_TRANSFERS.get(codec.color_trc):
        notes.append(f"HDR ({transfer}): tone mapped to BT.709")
    if (bits := max((component.bits for component in components), default=8)) > 8:
        notes.append(f"{bits} bits a channel: decoded to 8")
    if pixel_aspect(stream) != 1:
        notes.append(f"pixels of {pixel_aspect(stream)}: made square, {stream.width} x {stream.height} became {square_width(stream)} wide")
    if stream.metadata.get("alpha_mode") == "1" or any(component.is_alpha for component in components):
        notes.append("transparency: dropped, the colors are kept as they are")
    if first is not None and first.interlaced_frame:
        notes.append("interlaced: both fields are kept in a frame")
    if codec.colorspace == UNTAGGED and stream.height >= HD_LINES and any(component.is_chroma for component in components):
        notes.append("no color matrix is tagged: read as BT.601")
    return notes


def timing_notes(times: list[int]) -> list[str]:
    """Returns what is lost of the frames' times when they are taken in order, as sentences. times: in any unit and order."""
    gaps = sorted(later - earlier for earlier, later in pairwise(sorted(times)))
    if not gaps or not (usual := gaps[len(gaps) // 2]):
        return []
    frames = [gap / usual for gap in gaps]
    missing = sum(max(0, round(each) - 1) for each in frames)
    uneven = sum(abs(each - round(each)) > 0.25 or each < 0.75 for each in frames)
    if uneven > 0.01 * len(gaps) or missing > 0.25 * len(gaps):
        return ["variable frame rate: frames are taken in order, whatever their times"]
    return [f"{missing} frames are missing: those after them come too early"] if missing else []


def read_frames(path: Path, wanted: Callable[[int], bool] = lambda index: True) -> Iterator[Tensor]:
    """Yields the frames of a video file in display order, upright, each (H, W, 3) uint8 RGB of square pixels. HDR is tone mapped to BT.709.

    Args:
        path: Video file. Its color matrix is the one that the file is tagged with, BT.601 where it has no tag.
        wanted: Maps the index of a frame, from 0, to whether it is yielded.

    Raises:
        VideoError: The file cannot be read, a frame is damaged or of another size than the first.
    """
    for _, image in timed_frames(path, wanted):
        yield image


def timed_frames(path: Path, wanted: Callable[[int], bool] = lambda index: True) -> Iterator[tuple[float | None, Tensor]]:
    """Yields the time in seconds, None where the file has none, and the image of each frame. Arguments and errors are read_frames'."""
    with opened(path) as (container, stream):
        stream.thread_type = "AUTO"
        to_sdr = tone_mapper(stream) if stream.codec_context.color_trc in HDR_TRANSFERS else lambda frame: frame
        width = square_width(stream)
        resize = {} if width == stream.width else {"width": width, "height": stream.height, "interpolation": "BICUBIC"}
        size = None
        for index, frame in enumerate(container.decode(stream)):
            if frame.is_corrupt:
                raise VideoError(f"{path} is damaged in frame {index}")
            if size not in (None, (frame.width, frame.height)):
                raise VideoError(f"{path} changes its size in frame {index}: convert it to one size")
            size = frame.width, frame.height
            if wanted(index):
                image = to_sdr(frame).to_ndarray(format="rgb24", **resize)
                yield frame.time, torch.from_numpy(image).rot90(round(frame.rotation / 90))


def tone_mapper(stream: av.VideoStream) -> Callable[[av.VideoFrame], av.VideoFrame]:
    """Returns a function from an HDR frame of the stream to an 8-bit BT.709 frame with compressed highlights."""
    graph = Graph()
    scale = graph.add("scale", "out_transfer=bt709:out_primaries=bt709:intent=perceptual")
    graph.link_nodes(graph.add_buffer(template=stream), scale, graph.add("format", "rgb24"), graph.add("buffersink")).configure()

    def to_sdr(frame: av.VideoFrame) -> av.VideoFrame:
        graph.push(frame)
        return graph.vpull()

    return to_sdr


def read_video(path: Path | str, num_frames: int | None = None) -> tuple[Tensor, Fraction]:
    """Returns the first frames of a video file, and its frame rate.

    Args:
        path: Video file.
        num_frames: Number of frames to read at most; None reads all.

    Returns:
        Images (F, H, W, 3) uint8, and frames per second.

    Raises:
        VideoError: The file cannot be read, has no frames or a frame is damaged.
    """
    rate = frame_rate(Path(path))
    images = [frame for _, frame in zip(range(num_frames or 2**31), read_frames(Path(path)), strict=False)]
    if not images:
        raise VideoError(f"{path} has no frames")
    return torch.stack(images), rate


def frame_rate(path: Path) -> Fraction:
    """Returns the average number of frames per second of a video file. Raises VideoError when it has none."""
    with opened(path) as (_, stream):
        rate = stream.average_rate or stream.guessed_rate
    if not rate:
        raise VideoError(f"{path} has no frame rate: convert it to a constant one")
    return rate
