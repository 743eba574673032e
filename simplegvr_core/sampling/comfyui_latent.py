"""LATENTs of ComfyUI in files, as its Save Latent writes them and its Load Latent reads them: values that are not normalised."""

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
    try:
        with safe_open(path, "pt") as file:
            tensors = {key: file.get_tensor(key) for key in LATENT_KEYS if key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is not a safetensors file that can be read ({error})") from error
    shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    latent = next((tensor for tensor in tensors.values() if tensor.ndim == 5 and tensor.shape[1] == LATENT_CHANNELS), None)
    if latent is None:
        raise ValueError(
            f"{path} contains no latent of Wan 2.1: wanted {' or '.join(LATENT_KEYS)} of shape (1, 16, T, h, w), as Save Latent writes it, "
            f"found {shapes or 'neither'}"
        )
    mean, std = statistics()
    return (latent[:1].float() - mean) / std


def write_latent_of_comfyui(path: Path, z: Tensor, metadata: dict[str, str]) -> None:
    """Writes a normalised latent (1, 16, T, H, W) to a file that Load Latent reads. Raises what files.atomic_write raises."""
    mean, std = statistics()
    with atomic_write(path) as partial:
        save_file({"latent_tensor": z.float().cpu() * std + mean, FORMAT: torch.zeros(0)}, partial, metadata)


def statistics() -> tuple[Tensor, Tensor]:
    """Returns mean and standard deviation of each channel of Wan 2.1's latents, (1, 16, 1, 1, 1)."""
    mean, std = (torch.tensor(values).view(1, -1, 1, 1, 1) for values in (WAN_MEAN, WAN_STD))
    return mean, std
