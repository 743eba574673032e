"""Text features of prompts in files. S text tokens."""

import hashlib
from pathlib import Path, PurePath

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from ..files import read_json, sha256

INDEX = "contexts.json"  # of a folder of shards


def read_context(path: Path, text_dim: int) -> Tensor:
    """Returns the text features (S, text_dim) of a prompt, float32.

    Args:
        path: Safetensors file, tensor "context".
        text_dim: Width of the text features.

    Raises:
        ValueError: The file is not there, or has no features of this width.
    """
    try:
        context = load_file(path)["context"].float()
    except (OSError, KeyError, SafetensorError) as error:
        raise ValueError(f'{path} has no tensor "context" that can be read ({error!r})') from error
    return checked(context, path, text_dim)


def checked(context: Tensor, path: Path, text_dim: int) -> Tensor:
    """Returns text features. Raises ValueError unless they are (S, text_dim), S at least 1, and finite."""
    if context.ndim != 2 or not len(context) or context.shape[1] != text_dim or not context.isfinite().all():
        raise ValueError(f"{path} has a context of shape {tuple(context.shape)}, wanted (tokens, {text_dim}), all finite")
    return context


class Contexts:
    """The text features of many prompts, read one at a time, each checked against its checksum.

    Attributes:
        folder: Folder that `simplegvr contexts` wrote, or of files NAME.safetensors with a tensor "context" each.
        entries: Record of each prompt of the former, by its name; None for the latter.
    """

    def __init__(self, folder: Path):
        """Reads the folder's index. Raises ValueError when it is damaged."""
        self.folder = Path(folder)
        index = self.folder / INDEX
        cure = "delete it and run `simplegvr contexts` again"
        try:
            self.entries = {entry["name"]: entry for entry in read_json(index, cure)["contexts"]} if index.is_file() else None
        except (KeyError, TypeError) as error:
            raise ValueError(f"{index} is damaged ({error!r}): {cure}") from error

    def read(self, name: str, text_dim: int) -> Tensor:
        """Returns the text features (S, text_dim) of a prompt, float32.

        Args:
            name: Path of its video in the folder of video, without suffix.
            text_dim: Width of the text features.

        Raises:
            ValueError: There are none, they are damaged, or of another width.
        """
        if self.entries is None:
            return read_context(self.folder / f"{name}.safetensors", text_dim)
        entry = self.entry(name)
        path = self.folder / entry["shard"]
        try:
            with safe_open(path, framework="pt") as shard:
                context = shard.get_tensor(f"{entry['id']:05d}.context")
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path} cannot be read ({error}): delete it and run `simplegvr contexts` again") from error
        if tensor_sha256(context) != entry["sha256"]:
            raise ValueError(f"{path} is damaged at the features of {name!r}: delete it and run `simplegvr contexts` again")
        return checked(context.float(), path, text_dim)

    def digest(self, name: str) -> str:
        """Returns the checksum of a prompt's features."""
        return sha256(self.folder / f"{name}.safetensors") if self.entries is None else self.entry(name)["sha256"]

    def entry(self, name: str) -> dict:
        """Returns the record of a prompt. Raises ValueError when there is none."""
        assert self.entries is not None
        if name not in self.entries:
            raise ValueError(f"{self.folder / INDEX} has no features of {name!r}: give it a caption and run `simplegvr contexts` again")
        return self.entries[name]


def without_suffix(video: str) -> str:
    """Returns the name of a video's prompt: its path in its folder without the suffix."""
    return PurePath(video).with_suffix("").as_posix()


def tensor_sha256(tensor: Tensor) -> str:
    """Returns the checksum of a tensor's values, 64 hexadecimal digits."""
    return hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()
