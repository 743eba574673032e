"""Files that appear whole or not at all, checksums, and the paths of the bundled weights."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

REPO = Path(__file__).resolve().parents[1]
INSTALLED = Path(__file__).with_name("bundle")  # models/, the clips of assets/ and the workflows, where the package was installed by pip
BUNDLE, CLIPS = (INSTALLED, INSTALLED / "clips") if INSTALLED.is_dir() else (REPO / "models", REPO / "assets")
WORKFLOWS = INSTALLED / "workflows" if INSTALLED.is_dir() else REPO / "workflows" / "api"  # as ComfyUI's server takes them
GVR_TINY = BUNDLE / "diffusion_models" / "gvr_tiny.safetensors"
GVR_TINY_T2V = BUNDLE / "diffusion_models" / "gvr_tiny_t2v.safetensors"
GVR_TINY_UPSAMPLER = BUNDLE / "latent_upscale_models" / "gvr_tiny_upsampler.safetensors"
GVR_TINY_VAE = BUNDLE / "simplegvr_tiny_vae" / "gvr_tiny_vae.safetensors"


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yields where to write the file that is to be path: beside it, NAME.partial.SUFFIX. It is renamed when the block ends.

    The folder is made. The file is on the disk before it is renamed, so that a power cut leaves a whole file or none. When the block
    fails, what was written is removed and what was at path before stays.

    Args:
        path: of the file.

    Raises:
        OSError: path cannot be written, on a full disk above all.
    """
    partial = path.with_suffix(f".partial{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.touch()
        mode = partial.stat().st_mode
        yield partial
        partial.chmod(mode)  # safetensors' writer makes files that only their owner may read
        sync(partial)
        os.replace(partial, path)
        if os.name != "nt":  # Windows opens no folder
            sync(path.parent)
    except (OSError, SafetensorError) as error:
        if not is_of_writing(error, {partial, *path.parents}):
            raise
        reason = getattr(error, "strerror", error)
        cure = "free space there or choose another folder, and run the same command again; what was finished before is kept"
        raise OSError(f"{path} cannot be written ({reason}): {cure}") from error
    finally:
        with suppress(OSError):
            partial.unlink()


def sync(path: Path) -> None:
    """Returns when a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_of_writing(error: OSError | SafetensorError, places: set[Path]) -> bool:
    """Returns whether an error comes from writing in places: not from reading elsewhere, nor with a cure that `atomic_write` gave it."""
    if isinstance(error, SafetensorError):  # what its writer turns a full disk into; its reader's say "deserializing"
        return "while serializing" in str(error)
    return error.errno is not None and (error.filename is None or Path(error.filename) in places)


def write_text(path: Path, text: str) -> None:
    """Writes a text file that appears whole or not at all. Raises what atomic_write raises."""
    with atomic_write(path) as partial:
        partial.write_text(text, encoding="utf-8")


def read_json(path: Path, cure: str) -> Any:
    """Returns the content of a JSON file.

    Args:
        path: Of the file.
        cure: What to do about a damaged one, for the message.

    Raises:
        ValueError: The file is damaged.
        OSError: It cannot be read.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error}): {cure}") from error


def read_result(path: Path, note: Callable[[str], None] = print) -> dict:
    """Returns what an earlier run wrote to a JSON file; {} where there is no file or, after a note, a damaged one."""
    try:
        result = read_json(path, "it is made again") if path.exists() else {}
    except ValueError as error:
        note(str(error))
        return {}
    return result if isinstance(result, dict) else {}


def sha256(path: Path) -> str:
    """Returns the checksum of a file of any size, 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()
