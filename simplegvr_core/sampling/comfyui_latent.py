"""LATENTs of ComfyUI in files, as its Save Latent writes them and its Load Latent reads them: values that are not normalised."""

from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..files import atomic_write
from ..latent_space import LATENT_CHANNELS, WAN_MEAN, WAN_STD

LATENT_SUFFIXES = {".latent", ".safetensors"}
LATENT_KEYS = ("latent_tensor", "samples")  # of ComfyUI's Save Latent, and of a LATENT saved as it is
FORMAT = "latent_format_version_0"  # Save Latent's empty tensor: without it, Load Latent scales the values


def read_latent(path: Path) -> Tensor:
    """Returns the normalised latent, (1, 16, T, h, w), of the first clip in a file.

    Args:
        path: Safetensors file with a LATENT of ComfyUI's, values of Wan 2.1's latent space that are not normalised.

    Raises:
        ValueError: The file contains no such latent; the message names it.
    """
    with opened(path) as (file, key, _):
        values = file.get_tensor(key)[:1]
    latent = values.float()
    if values.is_complex() or not latent.isfinite().all():
        raise ValueError(f"{path} has a latent with NaN, infinite or complex values: look for the cause in the sampler that made it")
    mean, std = statistics()
    return (latent - mean) / std


def read_latent_shape(path: Path) -> tuple[int, int, int, int, int]:
    """Returns the shape of what read_latent returns. Its values are not read. Raises what read_latent raises."""
    with opened(path) as (_, _, shape):
        _, channels, frames, height, width = shape
    return 1, channels, frames, height, width


@contextmanager
def opened(path: Path) -> Iterator[tuple[safe_open, str, list[int]]]:
    """Yields a file, the name of its latent and the latent's shape. Raises ValueError when there is none."""
    try:
        with safe_open(path, "pt") as file:
            shapes = {key: file.get_slice(key).get_shape() for key in LATENT_KEYS if key in file.keys()}  # noqa: SIM118
            key = next((key for key, shape in shapes.items() if len(shape) == 5 and shape[1] == LATENT_CHANNELS and prod(shape)), None)
            if key is None:
                raise ValueError(
                    f"{path} contains no latent of Wan 2.1: wanted {' or '.join(LATENT_KEYS)} of shape (1, 16, T, h, w), as Save Latent "
                    f"writes it, found {({key: tuple(shape) for key, shape in shapes.items()}) or 'neither'}"
                )
            yield file, key, shapes[key]
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is not a safetensors file that can be read ({error})") from error


def write_latent_of_comfyui(path: Path, z: Tensor, metadata: dict[str, str]) -> None:
    """Writes a normalised latent (1, 16, T, H, W) to a file that Load Latent reads. Raises what files.atomic_write raises."""
    mean, std = statistics()
    with atomic_write(path) as partial:
        save_file({"latent_tensor": z.float().cpu() * std + mean, FORMAT: torch.zeros(0)}, partial, metadata)


def statistics() -> tuple[Tensor, Tensor]:
    """Returns mean and standard deviation of each channel of Wan 2.1's latents, (1, 16, 1, 1, 1)."""
    mean, std = (torch.tensor(values).view(1, -1, 1, 1, 1) for values in (WAN_MEAN, WAN_STD))
    return mean, std
