"""Wan 2.1's autoencoder, by diffusers, for training on its latents outside ComfyUI; and the choice between it and TinyVAE.

B batch, F frames, T latent frames, F = 4 (T - 1) + 1; z normalised latent (B, 16, T, H, W); video (B, 3, F, 8H, 8W) in [-1, 1]
"""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from . import checkpoint
from .tiny_vae import TinyVAE, load_tiny_vae, pad_to_blocks


class WanVAE(nn.Module):
    """Encodes video to normalised latents and back, as ComfyUI's VAE nodes and its Wan 2.1 latent format do together.

    Args:
        state_dict: of the stock file, original key names.
    """

    linear_decoder = None  # only TinyVAE has a closed form
    mean: Tensor
    std: Tensor

    def __init__(self, state_dict: dict[str, Tensor]):
        from diffusers import AutoencoderKLWan  # optional, slow to import  # pyright: ignore[reportPrivateImportUsage]
        from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers

        super().__init__()
        self.vae = AutoencoderKLWan(base_dim=state_dict["encoder.conv1.weight"].shape[0])
        self.vae.load_state_dict(convert_wan_vae_to_diffusers(dict(state_dict)))
        for name in ("mean", "std"):
            values = torch.tensor(getattr(self.vae.config, f"latents_{name}"))
            self.register_buffer(name, values.view(1, -1, 1, 1, 1), persistent=False)

    def encode(self, video: Tensor) -> Tensor:
        """Returns z (B, 16, T, H, W), the mode of the posterior. Edges and last frame are repeated up to whole blocks."""
        return (self.vae.encode(pad_to_blocks(video), return_dict=False)[0].mode() - self.mean) / self.std

    def decode(self, z: Tensor) -> Tensor:
        """Returns the video (B, 3, 4 (T - 1) + 1, 8H, 8W) of z, clamped to [-1, 1]."""
        return self.vae.decode(z * self.std + self.mean, return_dict=False)[0]


def load_vae(path: Path) -> TinyVAE | WanVAE:
    """Returns the autoencoder of a TinyVAE checkpoint or of the stock wan_2.1_vae.safetensors, float32, not trainable.

    Raises:
        ValueError: the file is neither.
        ImportError: Wan's autoencoder needs diffusers, which is not installed.
    """
    if checkpoint.is_ours(path):
        return load_tiny_vae(path)
    state_dict = {name: tensor.float() for name, tensor in load_file(path).items()}
    if "encoder.conv1.weight" not in state_dict or "decoder.conv1.weight" not in state_dict:
        raise ValueError(f"{path} is neither a TinyVAE nor Wan 2.1's autoencoder: give gvr_tiny_vae or wan_2.1_vae.safetensors")
    try:
        return WanVAE(state_dict).eval().requires_grad_(False)
    except ImportError as error:
        raise ImportError("Wan 2.1's autoencoder is run by diffusers, which is not installed: `python -m pip install diffusers`") from error
