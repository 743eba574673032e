"""Video in and out, and training crops.

B batch, F frames, H, W pixels; images uint8 (F, H, W, 3) as stored; video float (B, 3, F, H, W) in [-1, 1]
"""

from collections.abc import Callable, Iterator, Set
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from ..files import atomic_write

VIDEO_SUFFIXES = {".mp4", ".mov", ".mkv", ".webm", ".avi", ".mpg"}
HDR_TRANSFERS = {16: "PQ", 18: "HLG"}  # transfer characteristics of ITU-T H.273


def find_videos(folder: Path, suffixes: Set[str] = VIDEO_SUFFIXES) -> list[Path]:
    """Returns the video files of a folder, sorted by name. Raises ValueError when there is none."""
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder")
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in suffixes)
    if not paths:
        raise ValueError(f"{folder} holds no video ({', '.join(sorted(suffixes))})")
    return paths


def inspect_video(path: Path) -> tuple[int, list[str]]:
    """Returns how many frames a file holds, and what is unusual about it, in words. Reads its packets, decodes nothing.

    Raises ValueError when it cannot be read, holds no video or ends early.
    """
    try:
        with av.open(path) as container:
            stream = container.streams.video[0]
            packets = [(packet.pts, packet.is_discard, packet.is_corrupt) for packet in container.demux(stream) if packet.size]
    except (av.FFmpegError, IndexError) as error:
        raise ValueError(f"{path} is not a video that can be read ({error})") from error
    if any(is_corrupt for *_, is_corrupt in packets) or len(packets) < stream.frames:
        raise ValueError(f"{path} ends early: {len(packets)} of {stream.frames or 'an unknown number of'} frames are there")
    notes = []
    if transfer := HDR_TRANSFERS.get(stream.codec_context.color_trc):
        notes.append(f"HDR ({transfer}): tone mapped to BT.709")
    if (bits := stream.codec_context.format.components[0].bits) > 8:
        notes.append(f"{bits} bits a channel: decoded to 8")
    times = sorted(pts for pts, *_ in packets if pts is not None)
    gaps = sorted(later - earlier for earlier, later in pairwise(times))
    if sum(gap > 1.5 * gaps[len(gaps) // 2] for gap in gaps) > 0.01 * len(gaps):
        notes.append("variable frame rate: frames are taken in order, whatever their times")
    return sum(not is_discard for _, is_discard, _ in packets), notes


def read_frames(path: Path, wanted: Callable[[int], bool] = lambda index: True) -> Iterator[Tensor]:
    """Yields the frames of a video file in order, each uint8 (H, W, 3), upright; those whose number is wanted, from 0.

    HDR is tone mapped to BT.709. Raises ValueError when there are none or one is damaged.
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
    except (av.FFmpegError, IndexError) as error:
        raise ValueError(f"{path} is not a video that can be read ({error})") from error


def tone_mapper(stream: av.VideoStream) -> Callable[[av.VideoFrame], av.VideoFrame]:
    """Returns a function from an HDR frame of the stream to one of BT.709, 8 bit, with its highlights compressed."""
    graph = av.filter.Graph()
    scale = graph.add("scale", "out_transfer=bt709:out_primaries=bt709:intent=perceptual")
    graph.link_nodes(graph.add_buffer(template=stream), scale, graph.add("format", "rgb24"), graph.add("buffersink")).configure()

    def to_sdr(frame: av.VideoFrame) -> av.VideoFrame:
        graph.push(frame)
        return graph.pull()

    return to_sdr


def read_video(path: Path, num_frames: int | None = None) -> tuple[Tensor, Fraction]:
    """Returns images (F, H, W, 3) uint8 of the first num_frames frames (all by default) and the frame rate in 1/s."""
    with av.open(path) as container:
        rate = container.streams.video[0].average_rate
    images = [frame for _, frame in zip(range(num_frames or 2**31), read_frames(path), strict=False)]
    return torch.stack(images), rate


def write_video(path: Path, images: Tensor, rate: Fraction, lossless: bool = False) -> None:
    """Writes images (F, H, W, 3) uint8 as H.264, visually lossless. Odd sizes are kept by full-resolution chroma.

    lossless: as they are in 8-bit YCbCr.

    The file appears whole or not at all. Raises what files.atomic_write raises.
    """
    halves = images.shape[1] % 2 == images.shape[2] % 2 == 0 and not lossless
    with atomic_write(path) as partial, av.open(partial, "w") as container:
        stream = container.add_stream("libx264", rate=rate, options={"qp": "0"} if lossless else {"crf": "12"})
        stream.height, stream.width = images.shape[1:3]
        stream.pix_fmt = "yuv420p" if halves else "yuv444p"
        for image in images:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image.numpy(), format="rgb24")))
        container.mux(stream.encode())


def to_video(images: Tensor) -> Tensor:
    """Returns video (1, 3, F, H, W) in [-1, 1] of images (F, H, W, 3) uint8."""
    return rearrange(images, "F H W C -> 1 C F H W").float() / 127.5 - 1


def to_images(video: Tensor) -> Tensor:
    """Returns images (F, H, W, 3) uint8 of the first video of (B, 3, F, H, W) in [-1, 1]; values outside are clamped."""
    return rearrange(video[0].clamp(-1, 1) * 127.5 + 127.5, "C F H W -> F H W C").round().byte()


def resize_frames(video: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    """Returns video (B, 3, F, *size), each frame resized alone by torch's interpolation mode ("area", "bicubic", ...)."""
    frames = rearrange(video, "B C F H W -> (B F) C H W")
    exact = {} if mode in ("area", "nearest-exact") else {"align_corners": False}
    return rearrange(F.interpolate(frames, size, mode=mode, **exact), "(B F) C H W -> B C F H W", B=video.shape[0])


def area_downscale(video: Tensor, scale: int) -> Tensor:
    """Returns video (B, 3, F, H // scale, W // scale): means of scale x scale pixels. The rest of an edge is cut off."""
    height, width = (extent // scale for extent in video.shape[3:])
    return resize_frames(video[..., : height * scale, : width * scale], (height, width), "area")


def shrink(frame: Tensor, height: int) -> Tensor:
    """Returns frame (H, W, 3) uint8, made height pixels tall by area averaging if it is taller."""
    if frame.shape[0] <= height:
        return frame
    import cv2  # ComfyUI does not install it, and its sampling needs none

    width = round(frame.shape[1] * height / frame.shape[0])
    return torch.from_numpy(cv2.resize(frame.numpy(), (width, height), interpolation=cv2.INTER_AREA))


def crop_centre(images: Tensor, multiple: int) -> Tensor:
    """Returns the middle of images (F, H, W, 3), as much as is a multiple of so many pixels in height and width."""
    top, left = (extent % multiple // 2 for extent in images.shape[1:3])
    height, width = (extent // multiple * multiple for extent in images.shape[1:3])
    return images[:, top : top + height, left : left + width]


def random_crops(clips: list[Tensor], batch: int, num_frames: int, size: int, generator: torch.Generator) -> Tensor:
    """Returns video (B, 3, F, size, size) in [-1, 1]: random clips, places, first frames and left-right mirroring.

    Raises ValueError when a clip is smaller than a crop.
    """

    def draw(limit: int) -> int:
        return int(torch.randint(limit, (), generator=generator))

    crops = []
    for _ in range(batch):
        clip = clips[draw(len(clips))]
        if any(have < want for have, want in zip(clip.shape, (num_frames, size, size), strict=False)):
            frames, height, width = clip.shape[:3]
            raise ValueError(f"a clip has {frames} frames of {width} x {height}, the crops want {num_frames} of {size} x {size}")
        f, y, x = (draw(extent - want + 1) for extent, want in zip(clip.shape, (num_frames, size, size), strict=False))
        crop = to_video(clip[f : f + num_frames, y : y + size, x : x + size])
        crops.append(crop.flip(-1) if draw(2) else crop)
    return torch.cat(crops)
