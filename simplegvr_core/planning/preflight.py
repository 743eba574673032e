"""Checks before the work: that what a run will write can be written. Each raises an error with what came, what is wanted and the cure."""

import shutil
from pathlib import Path
from tempfile import TemporaryFile

import av
from av.error import FFmpegError

from ..video.write import Encoding, configure
from .plan import amount

LONGEST_SIDE = 16384  # pixels, of x264
LONGEST_NAME = 255  # bytes of a file name, on the file systems of Linux, macOS and Windows
LEAST_BITS = 0.02  # per pixel, of H.264 at a low quality: less room than that is never enough


def check_folder(folder: Path, nbytes: float = 0) -> None:
    """Raises OSError unless files of so many bytes can be written to a folder, which is made.

    Args:
        folder: The folder.
        nbytes: Bytes that will be written at least.
    """
    cure = "free space there or choose another folder"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass
    except FileExistsError as error:
        raise OSError(f"{error.filename} is a file, wanted a folder: choose another") from error
    except NotADirectoryError as error:
        raise OSError(f"{folder} is below a file, wanted a folder: choose another") from error
    except OSError as error:
        raise OSError(f"{folder} cannot be written ({error.strerror}): {cure}") from error
    free = shutil.disk_usage(folder).free
    if free < nbytes:
        raise OSError(f"{folder} has {amount(free)} free, the run needs at least {amount(nbytes)}: {cure}")


def check_file(path: Path, nbytes: float = 0) -> None:
    """Raises OSError or ValueError unless a file of so many bytes can be written at path, as check_folder and check_name do."""
    check_name(path)
    check_folder(path.parent, nbytes)
    if path.is_dir():
        raise OSError(f"{path} is a folder, wanted a file: choose another")


def check_name(path: Path) -> None:
    """Raises ValueError when a file's name is too long for its file system."""
    length, longest = len(path.name.encode()), LONGEST_NAME - len(".partial")
    if length > longest:
        raise ValueError(f"the file name {path.name[:40]}... has {length} bytes, wanted at most {longest}: shorten it")


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
