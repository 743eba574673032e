"""The prompts of a text-to-video model's clips: their words, from the manifest of scripts/aigc100.py, and their text features.

S text tokens
"""

import json
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor


def read_prompts(clips: Path, names: list[str]) -> dict[str, str]:
    """Returns the prompt of each clip that manifest.json has, in or beside the clips' folder; {} without such a file.

    Args:
        clips: Folder of the clips.
        names: Their names.

    Raises:
        ValueError: The manifest is not one of scripts/aigc100.py.
    """
    path = next((path for path in (clips / "manifest.json", clips.resolve().parent / "manifest.json") if path.is_file()), None)
    if path is None:
        return {}
    try:
        known = json.loads(path.read_text(encoding="utf-8"))["clips"]
        return {name: known[name]["prompt"] for name in names if name in known}
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is no manifest of scripts/aigc100.py ({error!r}): move it, or make it anew") from error


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
    if context.ndim != 2 or context.shape[1] != text_dim or not context.isfinite().all():
        raise ValueError(f"{path} has a context of shape {tuple(context.shape)}, wanted (tokens, {text_dim}), all finite")
    return context
