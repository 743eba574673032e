"""Shards: numbered safetensors files whose metadata has the records of what is in them, so that a killed run resumes after the last."""

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from tqdm import tqdm

from ..files import atomic_write


def shard_name(number: int) -> str:
    return f"shard_{number:05d}.safetensors"


def write_shard(path: Path, tensors: dict[str, Tensor], key: str, metadata: list | dict) -> None:
    """Writes a shard that appears whole or not at all.

    Args:
        path: Of the file.
        tensors: Its tensors.
        key: Of the metadata; one, as several have no fixed order in the file.
        metadata: The records, or a table with them as "records".

    Raises:
        OSError: As files.atomic_write.
    """
    with atomic_write(path) as partial:
        partial.write_bytes(save(tensors, {key: json.dumps(metadata)}))


def read_shards(folder: Path, key: str) -> list[list | dict]:
    """Returns the metadata of the folder's shards, in order; up to a damaged shard, with a warning.

    Args:
        folder: Folder of the shards.
        key: Of the metadata.
    """
    found: list[list | dict] = []
    while (path := folder / shard_name(len(found))).exists():
        try:
            found.append(read_metadata(path, key))
        except ValueError as error:
            tqdm.write(f"{error}: it and those after it are made again")
            break
    return found


def read_metadata(path: Path, key: str) -> list | dict:
    """Returns the metadata of a shard.

    Args:
        path: Of the file.
        key: Of the metadata.

    Raises:
        ValueError: The file is damaged.
        OSError: It cannot be read.
    """
    try:
        with safe_open(path, framework="pt") as shard:
            return json.loads(shard.metadata()[key])
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({error})") from error
