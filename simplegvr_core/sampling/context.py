"""Text features of a prompt in a file. S text tokens."""

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor


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
    if context.ndim != 2 or not len(context) or context.shape[1] != text_dim or not context.isfinite().all():
        raise ValueError(f"{path} has a context of shape {tuple(context.shape)}, wanted (tokens, {text_dim}), all finite")
    return context
