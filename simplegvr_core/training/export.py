"""A folder ready for a model hub: `simplegvr export --dit FILE --upsampler FILE --name NAME --license LICENSE --out DIR`.

Weights as safetensors, a model card filled from their metadata, a ComfyUI workflow that names them, and their checksums.
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro
from torch import Tensor

from ..checks import amount, check_folder, check_name
from ..files import WORKFLOWS, atomic_write, sha256, write_text
from ..networks import checkpoint
from ..networks.dit import SimpleGVRDiT, parse_dit_config
from ..networks.upsampler import make_upsampler, parse_upsampler_config
from .card import Released, model_card

FOLDERS = {"dit": "diffusion_models", "upsampler": "latent_upscale_models", "lora": "loras"}  # of ComfyUI's models


@dataclass(frozen=True)
class Export:
    """Writes a folder ready for a model hub: the weights, a model card, a ComfyUI workflow and checksums."""

    dit: Path
    """The trained DiT. With --lora it is only named, as the model that the LoRA is for."""
    upsampler: Path
    """Its upsampler. With --lora it is only named."""
    out: Path
    """Folder to write; files of the same names are replaced."""
    name: str
    """Name of the model and of its files: NAME.safetensors and NAME_upsampler.safetensors, or NAME_lora.safetensors."""
    license: str
    """License of the weights, as the hub abbreviates it, such as apache-2.0 or cc-by-nc-4.0."""
    lora: Path | None = None
    """LoRA on --dit, which is exported in place of the two."""
    base_model: str | None = None
    """Model on the hub that the training started from, such as Wan-AI/Wan2.1-T2V-1.3B."""
    data: str | None = None
    """A sentence on the training data, for the card."""

    def run(self) -> dict:
        """Writes the folder.

        Returns:
            {"out", "files": names, "bytes": of all}.

        Raises:
            ValueError: A checkpoint is damaged, does not fit its own configuration, or is not finite; the name is no file name.
            FileNotFoundError: A checkpoint is missing.
            OSError: A file cannot be written.
        """
        self.check()
        dit, upsampler = read_network(self.dit, "dit"), read_network(self.upsampler, "upsampler")
        lora = read_network(self.lora, "lora") if self.lora else None
        released = [lora] if lora else [dit, upsampler]
        check_folder(self.out, sum(network.source.stat().st_size for network in released))
        named = {self.file_name(network): network for network in released}
        for file, network in named.items():
            with atomic_write(self.out / file) as partial:
                shutil.copyfile(network.source, partial)
        workflow = self.workflow(upsampler.config["model"].get("latents", "wan"))
        write_text(self.out / "workflow.json", json.dumps(workflow, indent=1) + "\n")
        sums = {file: sha256(self.out / file) for file in (*named, "workflow.json")}
        about = {"base_model": self.base_model, "license": self.license, "data": self.data, "sums": sums}
        base = (self.dit.name, sha256(self.dit)) if lora else None
        write_text(self.out / "README.md", model_card(self.name, named, **about, lora_base=base))
        sums["README.md"] = sha256(self.out / "README.md")
        write_text(self.out / "sha256sums.txt", "".join(f"{digest}  {file}\n" for file, digest in sums.items()))
        files = [*sums, "sha256sums.txt"]
        return {"out": str(self.out), "files": files, "bytes": sum((self.out / file).stat().st_size for file in files)}

    def check(self) -> None:
        """Raises ValueError when the name is no file name."""
        if not self.name or Path(self.name).name != self.name or self.name.startswith("."):
            raise ValueError(f"--name is {self.name!r}, wanted one that files can have, such as gvr_wan21_1.3b")
        check_name(self.out / f"{self.name}_upsampler.safetensors")

    def file_name(self, network: Released) -> str:
        return f"{self.name}{'' if network.kind == 'dit' else '_' + network.kind}.safetensors"

    def workflow(self, latents: str) -> dict:
        """Returns an API workflow of ComfyUI that runs the model.

        Args:
            latents: Autoencoder of the upsampler's latents.
        """
        template = "quickstart_video" if latents == "tiny_vae" else "wan21_t2v_to_1080p"
        nodes = json.loads((WORKFLOWS / f"{template}.json").read_text(encoding="utf-8"))
        model, upsampler = (only(nodes, kind) for kind in ("SimpleGVRLoadModel", "SimpleGVRLoadUpsampler"))
        nodes[model]["inputs"]["model_name"] = self.dit.name if self.lora else f"{self.name}.safetensors"
        nodes[upsampler]["inputs"]["model_name"] = self.upsampler.name if self.lora else f"{self.name}_upsampler.safetensors"
        if self.lora:
            loader = str(max(map(int, nodes)) + 1)
            nodes[only(nodes, "SimpleGVRSampler")]["inputs"]["model"] = [loader, 0]
            inputs = {"model": [model, 0], "lora_name": f"{self.name}_lora.safetensors", "strength_model": 1.0}
            nodes[loader] = {"class_type": "LoraLoaderModelOnly", "inputs": inputs, "_meta": {"title": "Load LoRA"}}
        return nodes


def only(nodes: dict, kind: str) -> str:
    """Returns the id of the one node of a class."""
    (number,) = (number for number, node in nodes.items() if node["class_type"] == kind)
    return number


def read_network(path: Path, kind: str) -> Released:
    """Returns a checkpoint's kind, sizes and configuration, after all its tensors were checked.

    Args:
        path: Of the checkpoint.
        kind: "dit", "upsampler" or "lora".

    Raises:
        ValueError: It is of another kind, does not fit its configuration, or is not finite.
        FileNotFoundError: It is missing.
    """
    tensors, config = checkpoint.read(path, kind)
    if kind == "dit":
        sizes, attention = parse_dit_config(config, path)
        checkpoint.check_fit(SimpleGVRDiT(sizes, attention, device="meta"), tensors, path)
    elif kind == "upsampler":
        checkpoint.check_fit(make_upsampler(parse_upsampler_config(config, path), device="meta"), tensors, path)
    if broken := [name for name, tensor in tensors.items() if not tensor.isfinite().all()]:
        raise ValueError(f"{path} has {len(broken)} tensors that are not finite, such as {broken[0]}: export an earlier state")
    return Released(kind, path, config, sum(map(Tensor.numel, tensors.values())), amount(path.stat().st_size), FOLDERS[kind])


def main(arguments: Sequence[str]) -> dict:
    """Exports as the command line asks and returns Export.run's summary."""
    return tyro.cli(Export, prog="simplegvr export", args=arguments).run()
