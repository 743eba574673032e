"""The repository's own rules: imports point one way, files stay small, the README tells the truth."""

import ast
import os
import re
import shutil
import subprocess
import sys
from graphlib import TopologicalSorter
from importlib.util import find_spec
from pathlib import Path

import pytest
from comfyui import OLDEST
from conftest import REPO

CORE = sorted(path.relative_to(REPO) for path in (REPO / "simplegvr_core").rglob("*.py"))
ROOMS = [  # a file imports from its own row and from those above it
    {"latent_space", "tiling", "files", "flow", "checks"},
    {"networks", "video"},
    {"sampling"},
    {"planning", "degradations"},
    {"super_resolve_command"},
    {"evaluation"},
    {"training"},
    {"benchmark"},
    {"paper"},
    {"__main__"},
]


def tracked() -> list[str]:
    """Returns the repository's files, without those that git ignores."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=REPO, capture_output=True, text=True, check=True
    )
    return listed.stdout.splitlines()


def copy_of_the_repository(folder: Path) -> Path:
    """Returns folder with a copy of the repository's files, as a clean checkout has them."""
    for name in tracked():
        if (REPO / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(REPO / name, folder / name)
    return folder


def test_core_never_imports_comfyui():
    modules = [".".join(path.with_suffix("").parts) for path in CORE if path.stem != "__init__"]
    if find_spec("triton") is None:
        modules.remove("simplegvr_core.networks.kernels.sparse_local_triton")
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


def room(module: str) -> str:
    return module.split(".", maxsplit=1)[0]


@pytest.mark.parametrize("path", [path for path in CORE if module_name(path)], ids=str)
def test_a_room_imports_only_from_rooms_before_it(path):
    own = room(module_name(path))
    level = next(i for i, rooms in enumerate(ROOMS) if own in rooms)
    allowed = set().union(*ROOMS[:level], {own} if len(path.parts) > 2 else ROOMS[0])
    assert {room(module) for module in imported_modules(path)} <= allowed, imported_modules(path)


@pytest.mark.parametrize("path", sorted((REPO / "nodes").glob("[a-z]*.py")), ids=lambda path: path.name)
def test_nodes_import_the_host_and_the_core_and_not_each_other(path):
    imported = {
        node.module.split(".")[0] if node.module else alias.name
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and node.level == 1
        for alias in node.names
    }
    assert imported <= {"host"}


def test_no_imports_go_in_a_circle():
    graph = {module_name(path): imported_modules(path) for path in CORE}
    assert len(list(TopologicalSorter(graph).static_order())) >= len(CORE)  # raises CycleError that names the circle


def relative_imports(path: Path) -> list[tuple[int, str]]:
    """Returns (number of dots, module) of each relative import; "from . import x" is (1, "x")."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            found += [(node.level, node.module)] if node.module else [(node.level, alias.name) for alias in node.names]
    return found


NODES = sorted(path for path in (REPO / "nodes").rglob("*.py") if path != REPO / "nodes" / "__init__.py")  # which lists the nodes


@pytest.mark.parametrize("path", NODES, ids=lambda path: str(path.relative_to(REPO)))
def test_nodes_import_the_host_and_the_core_up_to_evaluation_and_never_each_other(path):
    in_host = path.parent.name == "host"
    for level, module in relative_imports(path):
        first, *rest = module.split(".")
        if level == (3 if in_host else 2):
            assert first == "simplegvr_core" and rest[0] not in {"training", "benchmark", "paper"}, module
        else:
            assert level == 1 and (in_host or first == "host"), module


def test_nodes_need_no_package_that_comfyui_lacks_until_they_run():
    """OpenCV above all: what the nodes import of the core is imported in a fresh process without it."""
    needed = set()
    for path in (REPO / "nodes").rglob("*.py"):
        needed |= set(re.findall(r"^from \.{2,3}(simplegvr_core[\w.]*) import", path.read_text(), re.M))
    blocked = ["cv2", "accelerate", "tyro", "scipy", "matplotlib", "torchmetrics", "diffusers", "peft", "ray"]
    code = f"import sys\nfor m in {blocked}: sys.modules[m] = None\nfor m in {sorted(needed)}: __import__(m)\nprint(len({sorted(needed)}))"
    ran = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert int(ran.stdout) > 8


def test_pack_imports_are_relative():
    for path in [*(REPO / "nodes").rglob("*.py"), *(REPO / "simplegvr_core").rglob("*.py")]:
        assert not re.search(r"^\s*(import|from) simplegvr_core", path.read_text(), re.M), path


def test_files_are_short():
    for path in [
        *(REPO / "nodes").rglob("*.py"),
        *(REPO / "simplegvr_core").rglob("*.py"),
        *(REPO / "scripts").glob("*.py"),
        *(REPO / "tools").glob("*.py"),
    ]:
        assert len(path.read_text().splitlines()) <= 400, path


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


@pytest.mark.skipif("COMFYUI_PATH" in os.environ, reason="the checker reads the types of the pinned ComfyUI")
def test_types_are_right():
    """Pyright, in the mode of pyproject.toml; basedpyright is its build with Node from PyPI."""
    command = [sys.executable, "-m", "basedpyright", "--pythonpath", sys.executable]
    result = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=False)
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
