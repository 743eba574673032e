"""What the registry gets, and a ComfyUI that has the pack from there alone."""

import ast
import json
import re
import subprocess
import sys
import urllib.request
import zipfile
from types import SimpleNamespace

import comfyui as setup
import pytest
from client import output_files
from conftest import REPO
from test_repository import CORE, copy_of_the_repository, imported_modules, module_name, tracked
from test_server import clip, quickstart, run  # noqa: F401 (a fixture)

from simplegvr_core.video.read import read_video


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """The zip of `comfy node pack`, from a clean checkout of what is in the repository."""
    checkout = copy_of_the_repository(tmp_path_factory.mktemp("checkout"))
    for command in (["git", "init", "-q"], ["git", "add", "--all"]):
        subprocess.run(command, cwd=checkout, check=True)
    command = [sys.executable, "-m", "comfy_cli", "--no-json", "--skip-prompt", "node", "pack"]
    packed = subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=False)
    assert packed.returncode == 0, packed.stdout + packed.stderr
    assert "warning" not in packed.stdout.lower(), packed.stdout
    return checkout / "node.zip"


def test_the_zip_holds_what_nodes_need(published):
    names = set(zipfile.ZipFile(published).namelist())
    core = {path.as_posix() for path in CORE}
    kept = re.compile(r"(nodes|models|workflows|web|locales|subgraphs|assets)/.+|[^/.][^/]*")
    wanted = {name for name in tracked() if kept.fullmatch(name)} - {"CONTRIBUTING.md", "workflows/aigc100.txt", "workflows/vbench110.txt"}
    assert {name for name in names if not name.startswith("simplegvr_core/")} == wanted
    needed = modules_that_nodes_need()
    assert names & core == {path.as_posix() for path in CORE if module_name(path) in needed}
    assert {name for name in names - core if name.startswith("simplegvr_core/")} == {"simplegvr_core/evaluation/niqe_pristine.npz"}
    templates = [name for name in names if re.fullmatch(r"workflows/\w+\.json", name)]
    assert templates and {name.removesuffix(".json") + ".jpg" for name in templates} <= names


def modules_that_nodes_need() -> set[str]:
    """Returns the core's modules that nodes or the public names import, with those that these import, and the kernels, chosen by name."""
    paths = {module_name(path): path for path in CORE}
    found, to_do = set(), {""} | {name for name in paths if name.startswith("networks.kernels")}
    for path in (REPO / "nodes").rglob("*.py"):
        for package, names in re.findall(r"^ *from \.{2,3}simplegvr_core\.?([\w.]*) import (.+)", path.read_text(), re.M):
            inner = {f"{package}.{name}" for name in names.split(", ")} & paths.keys()
            to_do |= inner or {package}
    while to_do:
        found |= to_do
        imported = set().union(*(imported_modules(paths[name]) for name in to_do))
        to_do = {name for each in imported for name in (each, each.rpartition(".")[0])} - found
    return found


# What the registry's scanners and careful readers look for; import_module imports modules of ours, and optional packages of metrics.
STARTS_OR_IMPORTS = {"subprocess", "Popen", "system", "exec", "eval", "compile", "__import__", "import_module"}
ALLOWED = {
    ("simplegvr_core/__init__.py", "import_module"),
    ("simplegvr_core/networks/kernels/__init__.py", "import_module"),
    ("simplegvr_core/evaluation/learned.py", "import_module"),
}


def test_no_code_of_the_zip_starts_programs_or_imports_what_it_is_told(published):
    found = set()
    with zipfile.ZipFile(published) as archive:
        for name in filter(lambda name: name.endswith(".py"), archive.namelist()):
            for node in ast.walk(ast.parse(archive.read(name))):
                if isinstance(node, ast.Import):
                    found |= {(name, alias.name) for alias in node.names if alias.name in ("subprocess", "pickle")}
                elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute):
                    called = node.func.id if isinstance(node.func, ast.Name) else node.func.attr
                    is_method = isinstance(node.func, ast.Attribute) and called in ("eval", "compile")  # of a network, of re
                    found |= {(name, called)} if called in STARTS_OR_IMPORTS and not is_method else set()
    assert found == ALLOWED


def test_the_zip_is_small(published):
    """Nearly all of it are the bundled weights, which do not compress; the largest of the other files shows what grew."""
    others = sorted(
        (entry.compress_size, entry.filename) for entry in zipfile.ZipFile(published).infolist() if "models/" not in entry.filename
    )
    assert published.stat().st_size < 40 * 2**20, others[-5:]
    assert sum(size for size, _ in others) < 6 * 2**20, others[-5:]


def test_the_quickstart_runs_from_the_zip_in_a_clean_comfyui(published, clip, tmp_path):  # noqa: F811
    """Unpacked under the registry's name for the pack, as ComfyUI's Manager does: nothing depends on the repository's name."""
    name = re.search(r'^name = "(.+)"$', (REPO / "pyproject.toml").read_text(), re.M)[1]
    pack = tmp_path / "custom_nodes" / name
    zipfile.ZipFile(published).extractall(pack)
    with setup.server(tmp_path, pack=pack) as (address, _):
        server = SimpleNamespace(address=address, base=tmp_path)
        files = output_files(run(server, quickstart(server, clip, 2.0)), tmp_path / "output")
        with urllib.request.urlopen(f"{address}/object_info") as response:
            modules = {node["python_module"] for id, node in json.load(response).items() if id.startswith("SimpleGVR")}
        with urllib.request.urlopen(f"{address}/api/workflow_templates") as response:
            assert "quickstart_video" in json.load(response)[name]
    assert read_video(files[0])[0].shape == (7, 116, 140, 3)
    assert modules == {f"custom_nodes.{name}"}
