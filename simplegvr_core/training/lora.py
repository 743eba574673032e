"""Low-rank adaptation (LoRA) of the DiT, by peft, with the tensor names of ComfyUI's LoRA loader."""

import re
from copy import deepcopy

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn

from ..networks.attention import AttentionConfig
from ..networks.dit import DiTConfig, SimpleGVRDiT

ADAPTED = r"blocks\.\d+\.((self|cross)_attn\.[qkvo]|ffn\.[02])"


def add_lora(dit: SimpleGVRDiT, rank: int, generator: torch.Generator) -> None:
    """Adds trainable low-rank matrices to the attention and feed-forward weights; at first they change no output.

    Args:
        dit: The network; all its other parameters become untrainable.
        rank: Rank of the matrices.
        generator: Source of their random weights.
    """
    dit.requires_grad_(False)
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=ADAPTED), dit)
    for name, parameter in dit.named_parameters():
        if ".lora_" in name:
            parameter.data = parameter.data.float()  # peft gives it the type of the weight that it adapts
        if ".lora_A." in name:
            nn.init.kaiming_uniform_(parameter, a=5**0.5, generator=generator)


def lora_copy(dit: SimpleGVRDiT, rank: int, generator: torch.Generator) -> SimpleGVRDiT:
    """Returns a network that shares dit's weights, which become untrainable, and has a LoRA of its own. Arguments as of add_lora."""
    copy = deepcopy(dit, {id(parameter): parameter for parameter in dit.parameters()})
    add_lora(copy, rank, generator)
    return copy


def lora_parameters(config: DiTConfig, rank: int) -> int:
    """Returns the number of trainable parameters of a LoRA on a DiT of these sizes."""
    dit = SimpleGVRDiT(config, AttentionConfig(), device="meta")
    adapted = (module for name, module in dit.named_modules() if re.fullmatch(ADAPTED, name))
    return sum(rank * sum(module.weight.shape) for module in adapted if isinstance(module, nn.Linear))


def lora_state_dict(trained: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns the LoRA's tensors by the names of ComfyUI's LoRA loader.

    Args:
        trained: State dict of what was trained, with names such as "dit.NAME.lora_A.default.weight", here
            "diffusion_model.NAME.lora_A.weight". Other networks than dit are left out.
    """
    return {
        name.replace("dit.", "diffusion_model.", 1).replace(".default.", "."): tensor
        for name, tensor in trained.items()
        if name.startswith("dit.") and ".lora_" in name
    }
