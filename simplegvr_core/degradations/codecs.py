"""Compression by real codecs: JPEG and video. Images are float32 (H, W, 3) in [0, 1]."""

from collections.abc import Iterable
from fractions import Fraction
from typing import cast

import av
import numpy as np
from av.video.codeccontext import VideoCodecContext

from .opencv import opencv

DECODERS = {"libx264": "h264", "h264": "h264", "mpeg4": "mpeg4"}
SMALLEST = 16  # pixels a side that every encoder takes


def jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    """Returns an image after JPEG compression.

    Args:
        image: float32 (H, W, 3) in [0, 1]; values outside are clamped.
        quality: 1 to 100.
    """
    cv2 = opencv()
    _, packed = cv2.imencode(".jpg", to_bytes(image)[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    return cv2.imdecode(packed, cv2.IMREAD_COLOR)[..., ::-1].astype(np.float32) / 255


def video_codec(images: list[np.ndarray], codec: str, bits: int) -> list[np.ndarray]:
    """Returns images after video compression. Odd and tiny sizes are padded with their edge for the codec and cropped afterwards.

    Args:
        images: Frames of one size, each float32 (H, W, 3) in [0, 1]; values outside are clamped.
        codec: Encoder, a key of DECODERS.
        bits: Mean bits of a frame.
    """
    height, width = images[0].shape[:2]
    pad = [(0, max(SMALLEST, extent + extent % 2) - extent) for extent in (height, width)] + [(0, 0)]
    encoder = cast(VideoCodecContext, av.CodecContext.create(codec, "w"))
    encoder.height, encoder.width = height + pad[0][1], width + pad[1][1]
    encoder.pix_fmt, encoder.framerate, encoder.time_base, encoder.bit_rate = "yuv420p", Fraction(1), Fraction(1), bits
    encoder.bit_rate_tolerance = bits  # otherwise mpeg4 hardly looks at the rate in the first seconds
    if DECODERS[codec] == "h264":
        encoder.options = {"x264-params": "mbtree=0"}  # x264's macroblock tree reads memory it never wrote: other bits each time
    decoder = cast(VideoCodecContext, av.CodecContext.create(DECODERS[codec], "r"))
    for context in (encoder, decoder):
        context.thread_count = 1  # more threads would each take their own decisions
    packets = []
    for time, image in enumerate(images):
        frame = av.VideoFrame.from_ndarray(np.pad(to_bytes(image), pad, mode="edge"), format="rgb24")
        frame.pts = time
        packets += encoder.encode(frame)
    packets += encoder.encode(None)
    decoded = decode(decoder, [*packets, None])
    return [image[:height, :width].astype(np.float32) / 255 for image in decoded]


def decode(decoder: VideoCodecContext, packets: Iterable[av.Packet | None]) -> list[np.ndarray]:
    """Returns the decoded images, uint8 (H, W, 3), in display order."""
    return [frame.to_ndarray(format="rgb24") for packet in packets for frame in decoder.decode(packet)]


def to_bytes(image: np.ndarray) -> np.ndarray:
    """Returns the image as uint8, values outside [0, 1] clamped."""
    return np.round(image.clip(0, 1) * 255).astype(np.uint8)
