"""Where a run keeps its files while it works, how it finds them again after it was cut off, and where its videos go."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from uuid import uuid4

import folder_paths
import torch
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io, ui
from filelock import FileLock, Timeout
from torch import Tensor

from ...simplegvr_core.video.write import Encoding

# In ComfyUI's output folder: its temp folder is emptied whenever a server with the same base folder starts or ends.
RESUME_FOLDER = "simplegvr_resume"  # of runs that can be continued
WORK_FOLDER = "simplegvr_work"  # of others
SMALL = 4096  # values of a parameter that tells models apart: enough of them, and quickly read


@contextmanager
def working_folder(fingerprint: str | None, note: Callable[[str], None]) -> Iterator[Path]:
    """Yields a folder for this run's files alone, in ComfyUI's output folder, which is deleted afterwards.

    It does not exist before the run first writes a file. A file that cannot be deleted is left. Folders that processes left when
    they died are deleted.

    Args:
        fingerprint: Names a run that can be continued: its folder is deleted only when the run succeeds. None for other runs.
        note: Called with a sentence when another process works on the same run, so that this one cannot be continued.
    """
    output = Path(folder_paths.get_output_directory())
    resumed, own = output / RESUME_FOLDER / str(fingerprint), output / WORK_FOLDER / uuid4().hex
    with ExitStack() as stack:
        folder = own
        if fingerprint is not None:
            stack.callback(remove_if_empty, resumed.parent)
            if stack.enter_context(owned(resumed)):
                folder = resumed
            else:
                note("Another process runs the same prompt with resume: this run has files of its own and cannot be resumed.")
        if folder == own:
            delete_orphans(own.parent)
            stack.callback(remove_if_empty, own.parent)
            stack.enter_context(owned(own, seconds=10))
            stack.callback(shutil.rmtree, own, ignore_errors=True)
        try:
            yield folder
            shutil.rmtree(folder, ignore_errors=True)
        finally:
            for place in [path for path, _, _ in os.walk(folder, topdown=False)]:
                remove_if_empty(Path(place))


@contextmanager
def owned(folder: Path, seconds: float = 0) -> Iterator[bool]:
    """Yields whether this process alone may use a folder: whether it has the lock NAME.lock beside it.

    The operating system takes the lock from a process that dies. seconds: to wait for the lock.
    """
    path = folder.with_name(f"{folder.name}.lock")
    lock = FileLock(path)
    with suppress(Timeout):
        lock.acquire(timeout=seconds)
    try:
        yield lock.is_locked
    finally:
        if lock.is_locked:
            with suppress(OSError):  # Windows deletes no open file; there releasing does
                path.unlink()
            lock.release()


def delete_orphans(parent: Path) -> None:
    """Deletes the folders in parent whose processes have died."""
    names = {path.stem for path in parent.iterdir()} if parent.is_dir() else set()
    for name in names:
        with owned(parent / name) as orphan:
            if orphan:
                shutil.rmtree(parent / name, ignore_errors=True)


def remove_if_empty(folder: Path) -> None:
    with suppress(OSError):  # something is in it, or another process was faster
        folder.rmdir()


def fingerprint(*parts) -> str:
    """Returns 16 hexadecimal digits that differ when one of parts does: tensors, networks, or what JSON can hold.

    Of a latent a frame at a time is in memory. Networks, as ComfyUI holds them, are told apart by their parameters' names and
    shapes and the values of the small ones, without what a LoRA adds to them while they are loaded.
    """
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, ModelPatcher):
            parameters = dict(part.model.named_parameters()) | {name: kept.weight for name, kept in part.backup.items()}
            tensors = [values for values in parameters.values() if values.numel() <= SMALL]
            description = [(name, list(values.shape)) for name, values in parameters.items()]
        elif isinstance(part, Tensor):
            tensors = part.split(1, dim=2) if part.ndim == 5 else [part]
            description = [list(part.shape), str(part.dtype)]
        else:
            tensors, description = [], part
        digest.update(json.dumps(description, sort_keys=True).encode() + b"\n")
        for values in tensors:
            digest.update(values.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def save_path(prefix: str, encoding: Encoding, folder_type: io.FolderType) -> tuple[Path, ui.SavedResult]:
    """Returns the next free path for a video, as Save Video names its files, and what shows it on the node."""
    root = {io.FolderType.output: folder_paths.get_output_directory, io.FolderType.temp: folder_paths.get_temp_directory}[folder_type]()
    folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(prefix, root, encoding.width, encoding.height)
    file = f"{name}_{counter:05}_.mp4"
    return Path(folder) / file, ui.SavedResult(file, subfolder, folder_type)


def reserve_path(prefix: str, encoding: Encoding, folder_type: io.FolderType) -> tuple[Path, ui.SavedResult]:
    """Returns what save_path returns, of an empty file that it makes, so that no other process takes the same name."""
    while True:
        path, shown = save_path(prefix, encoding, folder_type)
        try:
            path.touch(exist_ok=False)
        except FileExistsError:  # another process was faster: the next number
            continue
        return path, shown
