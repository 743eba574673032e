"""The command `convert`: another model's weights as a safetensors file with our configuration, which loads faster and without pickle."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import tyro

from ..files import sha256
from . import checkpoint
from .dit import SimpleGVRDiT, parse_dit_config
from .foreign import read_recognised
from .upsampler import make_upsampler, parse_upsampler_config

LICENCES = {"Ultra Flash": "apache-2.0 (huggingface.co/xin1u/UltraFlash)", "SimpleGVR": "as the source's"}


@dataclass(frozen=True)
class Convert:
    """Writes a SimpleGVR checkpoint from another model's weights: their sizes, attention, sampling, licence and origin in its metadata."""

    source: tyro.conf.Positional[Path]
    """File of the weights: .pth, .pt or .safetensors."""
    out: Path | None = None
    """Safetensors file to write. Not given: beside the source, with the suffix .safetensors."""
    family: Literal["auto", "SimpleGVR", "Ultra Flash"] = "auto"
    """Whose weights they are. auto: recognised by keys and shapes; a transformer with 32 input channels is taken as Ultra Flash's."""
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    """Data type of the weights in the new file."""

    def run(self) -> dict:
        """Writes the checkpoint.

        Returns:
            {"out": file, "kind": "dit" or "upsampler", "family", "tensors": number of them, "sha256": of the source}.

        Raises:
            ValueError: The source does not fit its network, or the name of the new file is wrong; what foreign.read_any raises.
            OSError: The file cannot be written.
        """
        out = self.source.with_suffix(".safetensors") if self.out is None else self.out
        if out.suffix != ".safetensors":
            raise ValueError(f"--out is {out}, wanted a name that ends with .safetensors")
        if out.exists() and out.samefile(self.source):
            raise ValueError(f"--out is the source, {self.source}: give another name")
        kind, tensors, config = read_recognised(self.source, self.family)
        check_fit(kind, tensors, config, self.source)
        origin, digest = config["origin"], sha256(self.source)
        config["origin"] = origin | {"licence": LICENCES[origin["family"]], "sha256": digest, "assumed": False}
        converted = {name: tensor.to(getattr(torch, self.dtype)) for name, tensor in tensors.items()}
        checkpoint.save(out, kind, converted, **config)
        return {"out": str(out), "kind": kind, "family": origin["family"], "tensors": len(tensors), "sha256": digest}


def check_fit(kind: str, tensors: dict[str, torch.Tensor], config: dict, source: Path) -> None:
    """Raises ValueError that names the tensors unless they are exactly those of the network that config describes."""
    if kind == "dit":
        network = SimpleGVRDiT(*parse_dit_config(config, source), device="meta")
    else:
        network = make_upsampler(parse_upsampler_config(config, source), device="meta")
    checkpoint.check_fit(network, tensors, source)


def main(arguments: Sequence[str]) -> dict:
    """Runs `convert` with the arguments of the command line; returns its results."""
    return tyro.cli(Convert, prog="simplegvr convert", args=arguments).run()
