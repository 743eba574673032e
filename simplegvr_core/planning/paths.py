"""Checks before the work: that what a run will write can be written. Each raises an error with what came, what is wanted and the cure."""

import shutil
from pathlib import Path
from tempfile import TemporaryFile

from .network_memory import amount

LONGEST_NAME = 255  # bytes of a file name, on the file systems of Linux, macOS and Windows


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
