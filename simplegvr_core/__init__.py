"""SimpleGVR in plain PyTorch: networks, sampling, degradations, evaluation and training. Never imports ComfyUI.

A public name is imported from its module when it is first used: `import simplegvr_core` imports no PyTorch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the same names, for editors and type checkers
    from .degradations import RECIPES, Recipe, degrade_latent, degrade_video  # noqa: F401
    from .degradations.classical import ClassicalConfig, degrade_classical  # noqa: F401
    from .degradations.flow_based import FlowBasedConfig, degrade_flow_based  # noqa: F401
    from .degradations.model_guided import ModelGuidedConfig, degrade_model_guided  # noqa: F401
    from .networks.dit import load_dit as load_model  # noqa: F401
    from .networks.upsampler import load_upsampler  # noqa: F401
    from .networks.wan_vae import load_vae  # noqa: F401
    from .sampling.super_resolve import SamplingConfig, super_resolve  # noqa: F401

PUBLIC = {  # name: (module, name there)
    "load_model": ("networks.dit", "load_dit"),
    "load_upsampler": ("networks.upsampler", "load_upsampler"),
    "load_vae": ("networks.wan_vae", "load_vae"),
    "super_resolve": ("sampling.super_resolve", "super_resolve"),
    "SamplingConfig": ("sampling.super_resolve", "SamplingConfig"),
    "degrade_video": ("degradations", "degrade_video"),
    "degrade_latent": ("degradations", "degrade_latent"),
    "Recipe": ("degradations", "Recipe"),
    "RECIPES": ("degradations", "RECIPES"),
    "degrade_classical": ("degradations.classical", "degrade_classical"),
    "ClassicalConfig": ("degradations.classical", "ClassicalConfig"),
    "degrade_flow_based": ("degradations.flow_based", "degrade_flow_based"),
    "FlowBasedConfig": ("degradations.flow_based", "FlowBasedConfig"),
    "degrade_model_guided": ("degradations.model_guided", "degrade_model_guided"),
    "ModelGuidedConfig": ("degradations.model_guided", "ModelGuidedConfig"),
}


def __getattr__(name: str) -> Any:
    if name not in PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, there = PUBLIC[name]
    return getattr(import_module(f".{module}", __name__), there)


def __dir__() -> list[str]:
    return sorted({*globals(), *PUBLIC})
