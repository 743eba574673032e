"""OpenCV, which ComfyUI does not install: imported where it is used, with the cure when it is missing."""

from types import ModuleType


def opencv() -> ModuleType:
    """Returns the module cv2. Raises ImportError that says what to install."""
    try:
        import cv2
    except ImportError as error:
        raise ImportError(
            "the classical and flow-based degradations need OpenCV, which is not installed: "
            "run `python -m pip install opencv-python-headless` with the Python that runs this, and start again"
        ) from error
    return cv2
