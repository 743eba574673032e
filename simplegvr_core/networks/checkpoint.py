"""Checkpoints: safetensors files whose metadata carries the configuration, written atomically and read strictly."""

import json
from dataclasses import asdict, fields
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..files import atomic_write

METADATA_KEY = "simplegvr_config"


def save(path: Path, kind: str, state_dict: dict[str, Tensor], **configs) -> None:
    """Writes a checkpoint with metadata {"kind": kind, name: config, ...}. The file appears whole or not at all.

    Args:
        path: of the safetensors file.
        kind: "dit", "upsampler" or "tiny_vae".
        state_dict: the weights.
        configs: dataclasses, or dicts that JSON can write.

    Raises:
        OSError: as files.atomic_write.
    """
    described = {name: config if isinstance(config, dict) else asdict(config) for name, config in configs.items()}
    metadata = {METADATA_KEY: json.dumps({"kind": kind, **described}), "format": "pt"}
    with atomic_write(path) as partial:
        save_file({key: tensor.contiguous() for key, tensor in state_dict.items()}, partial, metadata)


def part(state_dict: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Returns the tensors whose names begin with prefix, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in state_dict.items() if name.startswith(prefix)}


def half(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.half() for name, tensor in state_dict.items()}


def read(path: Path, kind: str) -> tuple[dict[str, Tensor], dict]:
    """Returns the tensors and the configuration of a checkpoint of this kind. Raises what read_config raises."""
    config = read_config(path, kind)
    return load_file(path), config


def read_config(path: Path, kind: str) -> dict:
    """Returns the configuration of a checkpoint; no tensor is read.

    Args:
        path: of the safetensors file.
        kind: wanted, "dit", "upsampler" or "tiny_vae".

    Raises:
        ValueError: the file is not safetensors, truncated, or of another kind.
        FileNotFoundError: there is none.
    """
    metadata = read_metadata(path)
    if METADATA_KEY not in metadata:
        raise ValueError(
            f"{path} carries no {METADATA_KEY!r} in its metadata: it is no SimpleGVR checkpoint; load stock models with ComfyUI's own nodes"
        )
    config = json.loads(metadata[METADATA_KEY])
    if config["kind"] != kind:
        raise ValueError(f"{path} holds a {config['kind']!r}, but a {kind!r} is wanted here")
    return config


def is_ours(path: Path) -> bool:
    """Returns whether a safetensors file carries our configuration; stock models do not. Raises what read_metadata raises."""
    return METADATA_KEY in read_metadata(path)


def read_metadata(path: Path) -> dict[str, str]:
    """Returns the metadata of a safetensors file; no tensor is read.

    Raises ValueError that names the file and the cure when it is not complete; FileNotFoundError when it is missing.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} does not exist: check the name, or download or train the checkpoint first")
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(
            f"{path} is not a complete safetensors file ({error}): download it again; a pickled checkpoint's name ends with .pth or .pt"
        ) from error


def parse_config(config_class: type, config: dict, section: str, path: Path):
    """Returns config_class(**config[section]) with JSON's lists as tuples.

    Args:
        config_class: a dataclass.
        config: of a checkpoint.
        section: name of the part wanted.
        path: of the checkpoint, for the error's text.

    Raises:
        ValueError: the section is missing or has unknown keys.
    """
    if section not in config:
        raise ValueError(f"{path} has no {section!r} in its configuration: it was not written by this version's checkpoint.save")
    values = config[section]
    unknown = values.keys() - {field.name for field in fields(config_class)}
    if unknown:
        raise ValueError(
            f"{path} has unknown {config_class.__name__} keys {sorted(unknown)}: it was written by a newer version; update the pack"
        )
    return config_class(**{key: tuple(v) if isinstance(v, list) else v for key, v in values.items()})


def check_fit(model: nn.Module, state_dict: dict[str, Tensor], path: Path) -> None:
    """Raises ValueError that lists missing, unexpected and mis-shaped keys, unless state_dict fits model exactly."""
    own = model.state_dict()
    problems = [f"missing {key}" for key in own.keys() - state_dict.keys()]
    problems += [f"unexpected {key}" for key in state_dict.keys() - own.keys()]
    problems += [
        f"{key} is {tuple(state_dict[key].shape)}, wanted {tuple(own[key].shape)}"
        for key in own.keys() & state_dict.keys()
        if own[key].shape != state_dict[key].shape
    ]
    if problems:
        shown = "; ".join(sorted(problems)[:5])
        raise ValueError(f"{path} does not fit its configuration, {len(problems)} problems: {shown}")


def load_strict(model: nn.Module, state_dict: dict[str, Tensor], path: Path) -> None:
    """Copies state_dict into model. Raises ValueError as check_fit does."""
    check_fit(model, state_dict, path)
    model.load_state_dict(state_dict)
