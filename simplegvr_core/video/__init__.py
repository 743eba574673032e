"""Video files and frames: read, decoded, written."""

from .frames import to_images, to_video
from .read import read_video
from .write import write_video

__all__ = ["read_video", "to_images", "to_video", "write_video"]
