"""The repository's own rules: imports point one way, files stay small, the README tells the truth."""

import ast
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from comfyui import OLDEST
from conftest import REPO

CORE = sorted(path.relative_to(REPO) for path in (REPO / "simplegvr_core").rglob("*.py"))
LAYERS = [
    {"optical_flow", "files", "command_line", "crops", "report_plots"},
    {"flow", "noise", "colour", "seam_plot", "layers", "no_reference", "temporal", "checkpoint", "data", "timesteps", "memory"},
    {
        "baselines",
        "video_file",
        "measure",
        "peers",
        "report_page",
        "fit",
        "paper_page",
        "paper_pictures",
        "full_reference",
        "learned_metrics",
    },
    {"filters"},
    {"clips", "photos", "report"},
    {"degradations.randomness", "degradations.opencv"},
    {"degradations.blur", "degradations.codecs", "degradations.motion"},
    {"degradations.classical", "degradations.flow_based"},
    {"windows"},
    {"kernels.reference", "kernels.sdpa"},
    {"kernels", "kernels.sparse_local_triton"},
    {"attention", "vae", "latent_file"},
    {"upsampler", "tiling", "seams"},
    {"refine", "decoding", "motion_metrics"},
    {"decode_to_file", "model", "wan_vae"},
    {"sampling", "attention_map", "flops", "lora", "loss", "network_memory"},
    {"degradations.model_guided", "plan", "sampling_plan", "metrics"},
    {"degradations"},
    {"pairs", "plan_picture", "methods", "suites"},
    {"curve", "training_data", "plan_command", "benchmark_memory", "benchmark_seams"},
    {"train", "train_vae", "evaluate", "benchmark"},
    {"ablate", "paper_bench"},
    {"paper_ablation", "paper_figures", "paper_tables"},
    {"paper"},
]


def tracked() -> list[str]:
    """Returns the repository's files, without those that git ignores."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=REPO, capture_output=True, text=True, check=True
    )
    return listed.stdout.splitlines()


def test_core_never_imports_comfyui():
    modules = [".".join(path.with_suffix("").parts) for path in CORE if path.stem != "__init__"]
    if find_spec("triton") is None:
        modules.remove("simplegvr_core.kernels.sparse_local_triton")
    code = f"import sys\nfor m in {modules}: __import__(m)\nprint({{'comfy', 'comfy_api', 'folder_paths', 'nodes'}} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, check=True).stdout == "set()\n"


def module_name(path: Path) -> str:
    """Returns the module's name without the package's: "kernels.sdpa", "kernels", or "" for the package itself."""
    return ".".join(path.with_suffix("").parts[1:]).removesuffix("__init__").removesuffix(".")


def imported_modules(path: Path) -> set[str]:
    """Returns the modules of the core that a file of it imports."""
    modules, found = {module_name(other) for other in CORE} - {""}, set()
    for node in ast.walk(ast.parse((REPO / path).read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            package = [*path.parts[1 : len(path.parts) - node.level], *filter(None, [node.module])]
            names = {".".join([*package, alias.name]) for alias in node.names}
            found |= names & modules or {".".join(package)}
    return found


@pytest.mark.parametrize("path", [path for path in CORE if module_name(path)], ids=str)
def test_core_imports_point_one_way(path):
    level = next((i for i, layer in enumerate(LAYERS) if module_name(path) in layer), None)
    assert level is not None, f"{module_name(path)} has no place in LAYERS"
    allowed = set().union(*LAYERS[:level])
    assert imported_modules(path) <= allowed, imported_modules(path) - allowed


def test_nodes_need_no_package_that_comfyui_lacks_until_they_run():
    """OpenCV above all: what the nodes import of the core is imported in a fresh process without it."""
    needed = set()
    for path in (REPO / "nodes").glob("*.py"):
        needed |= set(re.findall(r"^from \.\.(simplegvr_core[\w.]*) import", path.read_text(), re.M))
    blocked = ["cv2", "accelerate", "tyro", "scipy", "matplotlib", "torchmetrics", "diffusers", "peft", "ray"]
    code = f"import sys\nfor m in {blocked}: sys.modules[m] = None\nfor m in {sorted(needed)}: __import__(m)\nprint(len({sorted(needed)}))"
    ran = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert int(ran.stdout) > 8


def test_pack_imports_are_relative():
    for path in [*(REPO / "nodes").glob("*.py"), *(REPO / "simplegvr_core").rglob("*.py")]:
        assert not re.search(r"^\s*(import|from) simplegvr_core", path.read_text(), re.M), path


def test_files_are_short():
    for path in [*(REPO / "nodes").glob("*.py"), *(REPO / "simplegvr_core").rglob("*.py"), *(REPO / "scripts").glob("*.py")]:
        assert len(path.read_text().splitlines()) <= 400, path


def test_the_file_guide_lists_exactly_the_files_there_are():
    guide = (REPO / "CONTRIBUTING.md").read_text().split("## File guide")[1]
    listed = set(re.findall(r"^\| `([^`]+)` \|", guide, re.M))
    there = {
        name for name in tracked() if re.fullmatch(r"(nodes|simplegvr_core|scripts)/.*\.py", name) and not name.endswith("__init__.py")
    }
    assert listed == there


def test_bundled_weights_stay_within_48_mb_and_are_safetensors():
    weights = [path for path in (REPO / "models").rglob("*") if path.is_file() and path.suffix != ".md"]
    assert all(path.suffix == ".safetensors" for path in weights)
    assert sum(path.stat().st_size for path in weights) <= 48 * 2**20


def test_what_the_readmes_show_is_in_the_repository():
    there = tracked()
    for folder, readme in ((".", REPO / "README.md"), ("models", REPO / "models" / "README.md")):
        text = readme.read_text()
        shown = re.findall(r"!\[[^]]*\]\(([^)]+)\)", text) + re.findall(r"`([\w.]+/[\w/.]+\.(?:safetensors|json|md))`", text)
        missing = [name for name in shown if (name if folder == "." else f"{folder}/{name}") not in there]
        assert shown and not missing, missing
        assert not re.search(r"^\W*[A-Z]{5,}\W*$|@[A-Z0-9]+@", text, re.M), "a figure still has to be filled in"


def test_ruff_is_clean():
    for command in (["check"], ["format", "--check"]):
        result = subprocess.run([sys.executable, "-m", "ruff", *command, "."], cwd=REPO, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stdout


def test_the_oldest_comfyui_is_the_same_everywhere():
    oldest = ".".join(map(str, OLDEST))
    assert f'requires-comfyui = ">={oldest}.0"' in (REPO / "pyproject.toml").read_text()
    assert f"comfyui: v{oldest}.0" in (REPO / ".github" / "workflows" / "ci.yml").read_text()


def test_comfy_node_validate_is_clean(tmp_path):
    command = [sys.executable, "-m", "comfy_cli", "--no-json", "--skip-prompt", "node", "validate"]
    result = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "warning" not in result.stdout.lower(), result.stdout
