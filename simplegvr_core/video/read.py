"""Video files: found, inspected, and read frame by frame.

F frames, H, W pixels; images uint8 (F, H, W, 3)
"""

from collections.abc import Callable, Iterator, Set
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import torch
from av.error import FFmpegError
from av.filter import Graph
from torch import Tensor

VIDEO_SUFFIXES = {".mp4", ".mov", ".mkv", ".webm", ".avi", ".mpg"}
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


def inspect_video(path: Path) -> tuple[int, list[str]]:
    """Returns the number of frames of a file, and sentences on what is unusual about it. Demuxes packets without decoding them.

    Args:
        path: Video file.

    Raises:
        ValueError: The file cannot be read, has no video stream or is truncated.
    """
    try:
        with av.open(path) as container:
            stream = container.streams.video[0]
            transfer, bits = stream.codec_context.color_trc, stream.codec_context.format.components[0].bits
            packets = [(packet.pts, packet.is_discard, packet.is_corrupt) for packet in container.demux(stream) if packet.size]
            frames = stream.frames
    except (FFmpegError, IndexError) as error:
        raise ValueError(f"{path} is not a video that can be read ({error})") from error
    if any(is_corrupt for *_, is_corrupt in packets) or len(packets) < frames:
        raise ValueError(f"{path} ends early: {len(packets)} of {frames or 'an unknown number of'} frames are there")
    notes = []
    if transfer in HDR_TRANSFERS:
        notes.append(f"HDR ({HDR_TRANSFERS[transfer]}): tone mapped to BT.709")
    if bits > 8:
        notes.append(f"{bits} bits a channel: decoded to 8")
    times = sorted(pts for pts, *_ in packets if pts is not None)
    gaps = sorted(later - earlier for earlier, later in pairwise(times))
    if sum(gap > 1.5 * gaps[len(gaps) // 2] for gap in gaps) > 0.01 * len(gaps):
        notes.append("variable frame rate: frames are taken in order, whatever their times")
    return sum(not is_discard for _, is_discard, _ in packets), notes


def read_frames(path: Path, wanted: Callable[[int], bool] = lambda index: True) -> Iterator[Tensor]:
    """Yields the frames of a video file in display order, upright, each (H, W, 3) uint8 RGB. HDR is tone mapped to BT.709.

    Args:
        path: Video file. Its color matrix is the one that the file is tagged with, BT.601 where it has no tag.
        wanted: Maps the index of a frame, from 0, to whether it is yielded.

    Raises:
        ValueError: The file cannot be read or a frame is damaged.
    """
    try:
        with av.open(path) as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            to_sdr = tone_mapper(stream) if stream.codec_context.color_trc in HDR_TRANSFERS else lambda frame: frame
            for index, frame in enumerate(container.decode(stream)):
                if frame.is_corrupt:
                    raise ValueError(f"{path} is damaged in frame {index}")
                if wanted(index):
                    yield torch.from_numpy(to_sdr(frame).to_ndarray(format="rgb24")).rot90(round(frame.rotation / 90))
    except (FFmpegError, IndexError) as error:
        raise ValueError(f"{path} is not a video that can be read ({error})") from error


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
        ValueError: The file cannot be read or a frame is damaged.
    """
    with av.open(path) as container:
        rate = container.streams.video[0].average_rate
    images = [frame for _, frame in zip(range(num_frames or 2**31), read_frames(Path(path)), strict=False)]
    return torch.stack(images), rate
