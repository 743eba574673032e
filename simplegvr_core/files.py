"""Files that appear whole or not at all, and checksums."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Yields where to write the file that is to be path: beside it, NAME.partial.SUFFIX. It is renamed when the block ends.

    The folder is made. When the block fails, what was written is removed and what was at path before stays.
    Raises OSError that names path and the cure when it cannot be written, on a full disk above all.
    """
    partial = path.with_suffix(f".partial{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        os.replace(partial, path)
    except (OSError, SafetensorError) as error:  # safetensors' writer turns a full disk into its own error
        reason = getattr(error, "strerror", None) or error
        raise OSError(
            f"{path} cannot be written ({reason}): free space there or choose another folder, and run the same command again; "
            "what was finished before is kept"
        ) from error
    finally:
        with suppress(OSError):
            partial.unlink()


def write_text(path: Path, text: str) -> None:
    """Writes a text file that appears whole or not at all. Raises what whole raises."""
    with whole(path) as partial:
        partial.write_text(text)


def sha256(path: Path) -> str:
    """Returns the checksum of a file of any size, 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()
