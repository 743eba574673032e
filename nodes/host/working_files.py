"""Where a run keeps its files while it works, how it finds them again after it was cut off, and where its videos go."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import folder_paths
import torch
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io, ui
from torch import Tensor

from ...simplegvr_core.video.write import Encoding

RESUME_FOLDER = "simplegvr_resume"  # in ComfyUI's output folder: the one for temporary files is emptied when it starts
SMALL = 4096  # values of a parameter that tells models apart: enough of them, and quickly read


@contextmanager
def working_folder(fingerprint: str | None) -> Iterator[Path]:
    """Yields a folder for a run's files, which is gone afterwards. With a fingerprint what it holds stays when the run fails.

    With a fingerprint the folder is not there before the run first writes a file into it. A file that cannot be removed stays.
    """
    if fingerprint is None:
        temp = folder_paths.get_temp_directory()
        os.makedirs(temp, exist_ok=True)
        with TemporaryDirectory(prefix="simplegvr_", dir=temp, ignore_cleanup_errors=True) as folder:
            yield Path(folder)
        return
    folder = Path(folder_paths.get_output_directory()) / RESUME_FOLDER / fingerprint
    try:
        yield folder
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        for place in (*(path for path, _, _ in os.walk(folder, topdown=False)), folder.parent):
            with suppress(OSError):  # something is in it
                os.rmdir(place)


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
