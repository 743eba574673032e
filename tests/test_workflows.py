"""Every workflow is valid for the real server, and loads in the real front end with no missing node."""

import json
import re
import subprocess
import sys
import urllib.request
from itertools import combinations

import comfyui as setup
import pytest
import tomlkit
from conftest import REPO

TITLE = 30  # height of a title bar, above pos
NAMES = sorted(path.stem for path in (REPO / "workflows").glob("*.json"))


def api_workflow(name: str) -> dict:
    return json.loads((REPO / "workflows" / "api" / f"{name}.json").read_text())


def test_all_are_there_with_twin_and_thumbnail():
    assert NAMES == [
        "degradation_preview",
        "long_video",
        "quickstart_video",
        "wan21_t2v_to_1080p",
        "wan21_training_free_1080p",
        "wan21_ultraflash_1k",
        "wan21_ultraflash_2k",
        "wan22_training_free_4_steps",
        "wiring_test_t2v",
    ]
    for name in NAMES:
        assert (REPO / "workflows" / "api" / f"{name}.json").exists()
        assert (REPO / "workflows" / f"{name}.jpg").stat().st_size > 10_000


@pytest.mark.parametrize("name", NAMES)
def test_comfy_cli_finds_the_workflow_valid(stocked, tmp_path, name):
    with urllib.request.urlopen(f"{stocked.address}/object_info") as response:
        (tmp_path / "info.json").write_bytes(response.read())
    command = [
        sys.executable,
        "-m",
        "comfy_cli",
        "--no-json",
        "workflow",
        "validate",
        "--workflow",
        REPO / "workflows" / "api" / f"{name}.json",
    ]
    result = subprocess.run([*command, "--input", tmp_path / "info.json"], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("name", NAMES)
def test_front_end_loads_it_and_gives_the_api_workflow_back(page, name):
    graph = json.loads((REPO / "workflows" / f"{name}.json").read_text())
    missing, prompt = page.evaluate(
        """async (graph) => {
            await app.loadGraphData(graph)
            const missing = app.graph._nodes.filter(n => n.has_errors || !LiteGraph.registered_node_types[n.type]).map(n => n.type)
            return [missing, (await app.graphToPrompt()).output]
        }""",
        graph,
    )
    assert missing == []
    expected = {id: (node["class_type"], node["inputs"]) for id, node in api_workflow(name).items()}
    if setup.version(setup.find_comfyui(setup.HOME)) < (0, 30):  # whose Save Video has no choice of quality
        for _, inputs in expected.values():
            inputs.pop("codec.encoding", None)
            inputs.pop("codec.encoding.crf", None)
    loaded = {id: (node["class_type"], node["inputs"]) for id, node in prompt.items()}
    assert loaded.keys() == expected.keys()
    for id, (class_type, inputs) in expected.items():
        assert loaded[id][0] == class_type
        assert inputs.items() <= loaded[id][1].items(), class_type


BASE = {"umt5_xxl_fp8_e4m3fn_scaled.safetensors": "text_encoders", "wan_2.1_vae.safetensors": "vae"}
WAN21 = {"wan2.1_t2v_1.3B_fp16.safetensors": "diffusion_models", "umt5_xxl_fp8_e4m3fn_scaled.safetensors": "text_encoders"}
FILES = {  # that a workflow names, and their folders
    "wan21_training_free_1080p": {**BASE, **WAN21},
    "wan21_ultraflash_1k": {
        **WAN21,
        "1K-Causal-Sparse-SR-Dit-fidelity-step_12800.pth": "diffusion_models",
        "1K-ultraLatentUpsampler-step_19900.pth": "latent_upscale_models",
        "taew2_1.safetensors": "vae_approx",
    },
    "wan21_ultraflash_2k": {
        **BASE,
        **WAN21,
        "2K-Causal-Sparse-SR-Dit-fidelity-step_12800.pth": "diffusion_models",
        "2K-ultraLatentUpsampler-step_28100.pth": "latent_upscale_models",
    },
    "wan22_training_free_4_steps": {
        **BASE,
        "wan2.2_t2v_high_noise_14B_fp8_scaled.safetensors": "diffusion_models",
        "wan2.2_t2v_low_noise_14B_fp8_scaled.safetensors": "diffusion_models",
        "wan2.2_t2v_lightx2v_4steps_lora_v1.1_high_noise.safetensors": "loras",
        "wan2.2_t2v_lightx2v_4steps_lora_v1.1_low_noise.safetensors": "loras",
    },
}


@pytest.mark.parametrize("name", NAMES)
def test_no_node_covers_another(name):
    nodes = json.loads((REPO / "workflows" / f"{name}.json").read_text())["nodes"]
    boxes = [(node["pos"][0], node["pos"][1] - TITLE, node["pos"][0] + node["size"][0], node["pos"][1] + node["size"][1]) for node in nodes]
    for one, other in combinations(boxes, 2):
        assert one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1], (one, other)


@pytest.mark.parametrize("name", FILES)
def test_models_carry_download_links(name):
    graph = json.loads((REPO / "workflows" / f"{name}.json").read_text())
    linked = {model["name"]: model for node in graph["nodes"] for model in node["properties"].get("models", [])}
    assert {name: model["directory"] for name, model in linked.items()} == FILES[name]
    assert all(re.fullmatch(rf"https://huggingface\.co/\S+/{re.escape(name)}\?download=true", linked[name]["url"]) for name in linked)


SHIPPED = sorted([*(REPO / "workflows").glob("*.json"), *(REPO / "subgraphs").glob("*.json")])


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_missing_nodes_can_be_installed_from_the_workflow(path):
    """ComfyUI's manager finds a pack by cnr_id and ver in the registry, or by aux_id on GitHub; a person by the note."""
    project = tomlkit.parse((REPO / "pyproject.toml").read_text())["project"]
    address = project["urls"]["Repository"]
    graph = json.loads(path.read_text())
    parts = [graph, *(graph["definitions"] or {}).get("subgraphs", [])]
    ours = [node["properties"] for part in parts for node in part["nodes"] if node["type"].startswith("SimpleGVR")]
    assert ours
    for properties in ours:
        assert (properties["cnr_id"], properties["ver"]) == (project["name"], project["version"])
        assert f"https://github.com/{properties['aux_id']}" == address
    core = [node["properties"] for part in parts for node in part["nodes"] if node["type"] in ("UNETLoader", "LoadVideo")]
    assert all(properties["cnr_id"] == "comfy-core" for properties in core)
    if path.parent.name == "workflows":
        (note,) = [node["widgets_values"][0] for node in graph["nodes"] if node["type"] == "MarkdownNote"]
        assert address in note


def test_server_offers_the_workflows_as_templates(server):
    with urllib.request.urlopen(f"{server.address}/api/workflow_templates") as response:
        assert sorted(json.load(response)["ComfyUI-SimpleGVR"]) == NAMES
