"""Checks before the work: that what a run will write can be written, and that the memory it needs is free.

Each raises an error with what came, what is wanted and the cure.
"""

import re
import shutil
from pathlib import Path
from tempfile import TemporaryFile

DEVICES = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?$", re.IGNORECASE)  # names that are no files on Windows
LONGEST_NAME = 255  # bytes of a file name, on the file systems of Linux, macOS and Windows


def amount(count: float) -> str:
    """Returns a number of bytes in MB or GB, of 10^6 and 10^9, to three digits."""
    return f"{count / 1e9:.3g} GB" if count >= 0.9995e9 else f"{count / 1e6:.3g} MB"


def check_folder(folder: Path, nbytes: float = 0, of: str = "the run") -> None:
    """Raises OSError unless files of so many bytes can be written to a folder, which is made.

    Args:
        folder: The folder.
        nbytes: Bytes that will be written at least.
        of: What they are, for the message.
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
        raise OSError(f"{folder} has {amount(free)} free, {of} needs at least {amount(nbytes)}: {cure}")


def check_file(path: Path, nbytes: float = 0) -> None:
    """Raises OSError or ValueError unless a file of so many bytes can be written at path, as check_folder and check_name do."""
    check_name(path)
    check_folder(path.parent, nbytes, path.name)
    if path.is_dir():
        raise OSError(f"{path} is a folder, wanted a file: choose another")


def check_name(path: Path) -> None:
    """Raises ValueError when a file's name is too long for its file system."""
    length, longest = len(path.name.encode()), LONGEST_NAME - len(".partial")
    if length > longest:
        raise ValueError(f"the file name {path.name[:40]}... has {length} bytes, wanted at most {longest}: shorten it")


def check_host_memory(nbytes: float, of: str, cure: str) -> None:
    """Raises ValueError unless so many bytes of the host's memory are free. Without psutil, which ComfyUI has, nothing is checked.

    Args:
        nbytes: Bytes that are needed at least.
        of: What needs them, for the message.
        cure: The cure, for the message.
    """
    try:
        import psutil
    except ModuleNotFoundError:
        return
    free = psutil.virtual_memory().available
    if nbytes > free:
        raise ValueError(f"{of} needs {amount(nbytes)} of the host's memory, {amount(free)} are free: {cure}")
