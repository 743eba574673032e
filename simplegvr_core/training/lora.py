"""Low-rank adaptation of the DiT, by peft, in the names that ComfyUI's LoRA loader knows."""

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn

from ..networks.dit import SimpleGVRDiT

ADAPTED = r"blocks\.\d+\.((self|cross)_attn\.[qkvo]|ffn\.[02])"


def add_lora(dit: SimpleGVRDiT, rank: int, generator: torch.Generator) -> None:
    """Adds trainable matrices of this rank to the attention and feed-forward weights, which start as adding nothing.

    All else of dit stops being trainable.
    """
    dit.requires_grad_(False)
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=ADAPTED), dit)
    for name, parameter in dit.named_parameters():
        if ".lora_A." in name:
            nn.init.kaiming_uniform_(parameter, a=5**0.5, generator=generator)


def lora_state_dict(trained: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns the LoRA among trained, names "dit.NAME.lora_A.default.weight", as "diffusion_model.NAME.lora_A.weight"."""
    return {
        name.replace("dit.", "diffusion_model.", 1).replace(".default.", "."): tensor
        for name, tensor in trained.items()
        if ".lora_" in name
    }
