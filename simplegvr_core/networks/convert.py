"""The command `convert`: another model's weights as a safetensors file with our configuration, which loads faster and without pickle."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import tyro

from ..checks import check_file
from ..files import sha256
from . import checkpoint
from .dit import SimpleGVRDiT, parse_dit_config
from .foreign import is_safetensors, read_recognised
from .lora_merge import FAMILY, merge
from .upsampler import make_upsampler, parse_upsampler_config

LICENCES = {
    "Ultra Flash": "apache-2.0 (huggingface.co/xin1u/UltraFlash)",
    "SimpleGVR": "as the source's",
    FAMILY: "as the LoRA's and the base's",
}


@dataclass(frozen=True)
class Convert:
    """Writes a SimpleGVR checkpoint from another model's weights: their sizes, attention, sampling, licence and origin in its metadata.

    With --lora and --base in place of a source, it merges a control LoRA into the text-to-video Wan that it was made for."""

    source: tyro.conf.Positional[Path | None] = None
    """File of the weights: .pth, .pt or .safetensors."""
    out: Path | None = None
    """Safetensors file to write. Not given: beside the source, with the suffix .safetensors; of a LoRA, with _merged at the end."""
    family: Literal["auto", "SimpleGVR", "Ultra Flash"] = "auto"
    """Whose weights they are. auto: recognised by keys and shapes; a transformer with 32 input channels is taken as Ultra Flash's."""
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    """Data type of the weights in the new file."""
    lora: Path | None = None
    """Control LoRA that adds a condition, such as the tile control LoRA for Wan 2.1 1.3B."""
    base: Path | None = None
    """Text-to-video Wan that the LoRA was made for, in fp16, bf16 or fp32."""

    def run(self) -> dict:
        """Writes the checkpoint.

        Returns:
            {"out": file, "kind": "dit" or "upsampler", "family", "tensors": number of them, "sha256": of the source}.

        Raises:
            ValueError: The source does not fit its network, or the name of the new file is wrong; what foreign.read_any and
                lora_merge.merge raise.
            OSError: The file cannot be written.
        """
        out, dtype = self.checked_out(), getattr(torch, self.dtype)
        if self.lora is not None and self.base is not None:
            source, kind, (tensors, config) = self.lora, "dit", merge(self.lora, self.base, dtype)
        else:
            source = self.named_source
            if is_safetensors(source) and checkpoint.is_ours(source):
                raise ValueError(f"{source} is a SimpleGVR checkpoint with its own configuration: load it as it is")
            kind, tensors, config = read_recognised(source, self.family)
        check_fit(kind, tensors, config, source)
        check_file(out, dtype.itemsize * sum(tensor.numel() for tensor in tensors.values()))
        origin, digest = config["origin"], sha256(source)
        licence = "unknown, as the family was assumed" if origin["assumed"] else LICENCES[origin["family"]]
        config["origin"] = origin | {"licence": licence, "sha256": digest}
        checkpoint.save(out, kind, {name: tensor.to(dtype) for name, tensor in tensors.items()}, **config)
        return {"out": str(out), "kind": kind, "family": origin["family"], "tensors": len(tensors), "sha256": digest}

    @property
    def named_source(self) -> Path:
        """Returns the source, or the LoRA. Raises ValueError unless there is one of them, the LoRA with its base."""
        source = self.lora if self.source is None else self.source
        if source is None or (self.source is not None and self.lora is not None) or (self.lora is None) != (self.base is None):
            raise ValueError("wanted either a source, or --lora and --base together")
        return source

    def checked_out(self) -> Path:
        """Returns the file to write. Raises ValueError when its name is wrong or it is one of those that are read, OSError without room."""
        source = self.named_source
        out = self.out or source.with_name(f"{source.stem}{'' if self.lora is None else '_merged'}.safetensors")
        if out.suffix != ".safetensors":
            raise ValueError(f"--out is {out}, wanted a name that ends with .safetensors")
        if out.exists() and any(out.samefile(file) for file in (source, self.base) if file is not None and file.exists()):
            raise ValueError(f"--out is the source, {out}: give another name")
        check_file(out)
        return out


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
