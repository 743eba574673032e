"""Checks of a video before the work: that the encoder takes it. Each raises an error with what came, what is wanted and the cure."""

import av
from av.error import FFmpegError

from ..video.write import Encoding, configure

LONGEST_SIDE = 16384  # pixels, of x264
LEAST_BITS = 0.02  # per pixel, of H.264 at a low quality: less room than that is never enough


def check_encoding(encoding: Encoding) -> None:
    """Raises ValueError unless the encoder takes frames of that size, rate and quality."""
    size = f"{encoding.width} x {encoding.height}"
    if max(encoding.width, encoding.height) > LONGEST_SIDE:
        raise ValueError(f"the frames are {size}, H.264 takes sides of at most {LONGEST_SIDE} pixels: choose a smaller size, or trim")
    codec = av.CodecContext.create("libx264", "w")
    assert isinstance(codec, av.VideoCodecContext)
    configure(codec, encoding)
    codec.framerate, codec.time_base = encoding.rate, 1 / encoding.rate
    try:
        codec.open()
    except FFmpegError as error:
        raise ValueError(
            f"H.264 does not take frames of {size} at {float(encoding.rate):g} a second ({error.strerror}): "
            "choose a smaller size or another rate"
        ) from error


def video_bytes(encoding: Encoding, frames: int) -> float:
    """Returns the bytes that a video takes at least while it is written: its parts and the joined file."""
    return 2 * frames * encoding.width * encoding.height * LEAST_BITS / 8
