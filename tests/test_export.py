"""A folder for a model hub: its workflow runs on a real server, its card and its checksums say what is in it."""

import asyncio
import json
import shutil
import subprocess
from dataclasses import replace

import pytest
import torch
from client import output_files, run_workflow
from safetensors.torch import load_file, save_file

from simplegvr_core.files import GVR_TINY, GVR_TINY_UPSAMPLER
from simplegvr_core.networks import checkpoint
from simplegvr_core.networks.dit import load_dit
from simplegvr_core.sampling.super_resolve import SamplingConfig
from simplegvr_core.training.export import Export, main
from simplegvr_core.training.lora import add_lora, lora_state_dict


@pytest.fixture
def export(tmp_path) -> Export:
    return Export(GVR_TINY, GVR_TINY_UPSAMPLER, tmp_path / "hub", "mine", "mit", data="Thirty seconds of a film.")


@pytest.fixture
def lora(export, tmp_path):
    """The command with a LoRA of gvr_tiny, whose matrices are random."""
    dit, _ = load_dit(GVR_TINY)
    add_lora(dit, 2, torch.Generator().manual_seed(0))
    state_dict = lora_state_dict({f"dit.{name}": 0.01 * torch.randn_like(tensor) for name, tensor in dit.state_dict().items()})
    path = tmp_path / "lora.safetensors"
    checkpoint.save(path, "lora", state_dict, sampling=SamplingConfig(steps=4), trained={"objective": "dmd2", "curve": None})
    return Export(export.dit, export.upsampler, export.out, "mine", "mit", lora=path)


def run_on(server, export: Export, folders: dict[str, str]) -> list:
    """Returns the files that the exported workflow makes on a server, after the card's folders received the exported files."""
    for file, folder in folders.items():
        (server.base / "models" / folder).mkdir(parents=True, exist_ok=True)
        shutil.copy(export.out / file, server.base / "models" / folder / file)
    workflow = json.loads((export.out / "workflow.json").read_text())
    return output_files(asyncio.run(run_workflow(server.address, workflow)), server.base / "output")


def test_the_exported_workflow_runs(export, stocked):
    summary = export.run()
    assert summary["files"] == ["mine.safetensors", "mine_upsampler.safetensors", "workflow.json", "README.md", "sha256sums.txt"]
    made = run_on(stocked, export, {"mine.safetensors": "diffusion_models", "mine_upsampler.safetensors": "latent_upscale_models"})
    assert made and all(file.stat().st_size > 1000 for file in made)


def test_the_workflow_of_a_lora_loads_it_on_its_model(lora, stocked):
    assert lora.run()["files"] == ["mine_lora.safetensors", "workflow.json", "README.md", "sha256sums.txt"]
    shutil.copy(GVR_TINY, stocked.base / "models" / "diffusion_models")
    shutil.copy(GVR_TINY_UPSAMPLER, stocked.base / "models" / "latent_upscale_models")
    assert run_on(stocked, lora, {"mine_lora.safetensors": "loras"})
    card = (lora.out / "README.md").read_text()
    assert "The LoRA is for the transformer `gvr_tiny.safetensors`, sha256 `" in card and "| objective | `dmd2` |" in card


def test_the_checksums_are_those_of_all_files(export):
    export.run()
    assert subprocess.run(["sha256sum", "-c", "sha256sums.txt"], cwd=export.out, check=False, capture_output=True).returncode == 0
    listed = {line.split("  ")[1] for line in (export.out / "sha256sums.txt").read_text().splitlines()}
    assert listed == {path.name for path in export.out.iterdir()} - {"sha256sums.txt"}
    (export.out / "workflow.json").write_text("{}")
    assert subprocess.run(["sha256sum", "-c", "sha256sums.txt"], cwd=export.out, check=False, capture_output=True).returncode == 1


def test_the_card_has_what_the_metadata_has(export):
    export.run()
    card = (export.out / "README.md").read_text()
    assert card.startswith("---\nlicense: mit\npipeline_tag: video-to-video\n")
    for line in (
        "| `mine.safetensors` | transformer | 5.91 M | 11.8 MB | `models/diffusion_models` |",
        "| `mine_upsampler.safetensors` | latent upsampler | 4.67 M | 9.34 MB | `models/latent_upscale_models` |",
        "| steps | `1` |",
        "| start | `condition` |",
        "| dim | `256` |",
        "| window | `[1, 12, 9]` |",
        "| objective | `regression` |",
        "| curve | uniform density |",
        "Latents: TinyVAE's",
        "Thirty seconds of a film.",
    ):
        assert line in card, line
    assert "factors" not in card


def test_wan_latents_get_wans_workflow(export, checkpoints):
    upsampler = checkpoints / "latent_upscale_models" / "upsampler_test.safetensors"
    Export(checkpoints / "diffusion_models" / "gvr_test.safetensors", upsampler, export.out, "wan", "mit").run()
    nodes = json.loads((export.out / "workflow.json").read_text()).values()
    names = {node["class_type"]: node["inputs"].get("model_name") for node in nodes}
    assert (names["SimpleGVRLoadModel"], names["SimpleGVRLoadUpsampler"]) == ("wan.safetensors", "wan_upsampler.safetensors")
    assert "UNETLoader" in names


def test_the_license_is_the_user_s_choice(export, capsys):
    options = ["--dit", export.dit, "--upsampler", export.upsampler, "--out", export.out, "--name", "mine"]
    with pytest.raises(SystemExit):
        main(list(map(str, options)))
    assert "--license" in capsys.readouterr().err and not export.out.exists()
    main([*map(str, options), "--license", "cc-by-nc-4.0"])
    assert (export.out / "README.md").read_text().startswith("---\nlicense: cc-by-nc-4.0\n")


def test_what_cannot_be_published_is_refused(export, tmp_path):
    with pytest.raises(ValueError, match=r"gvr_tiny_upsampler\.safetensors holds a 'upsampler', but a 'dit' is wanted"):
        replace(export, dit=GVR_TINY_UPSAMPLER).run()
    tensors, config = load_file(GVR_TINY), checkpoint.read_config(GVR_TINY, "dit")
    tensors["head.head.bias"][0] = float("nan")
    metadata = {checkpoint.METADATA_KEY: json.dumps(config), "format": "pt"}
    save_file(tensors, tmp_path / "broken.safetensors", metadata)
    with pytest.raises(ValueError, match=r"has 1 tensors that are not finite, such as head\.head\.bias: export an earlier state"):
        replace(export, dit=tmp_path / "broken.safetensors").run()
    with pytest.raises(ValueError, match="--name is 'a/b', wanted one that files can have"):
        replace(export, name="a/b").run()
    assert not (export.out / "README.md").exists()
