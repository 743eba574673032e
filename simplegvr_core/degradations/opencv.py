"""OpenCV, imported where it is used since ComfyUI does not install it."""

from types import ModuleType


def opencv() -> ModuleType:
    """Returns the module cv2. Raises ImportError with the command that installs it."""
    try:
        import cv2
    except ImportError as error:
        raise ImportError(
            "the classical and flow-based degradations need OpenCV, which is not installed: "
            "run `python -m pip install opencv-python-headless` with the Python that runs this, and start again"
        ) from error
    return cv2
