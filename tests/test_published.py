"""What the registry gets, and a ComfyUI that has the pack from there alone."""

import json
import re
import shutil
import subprocess
import sys
import urllib.request
import zipfile
from types import SimpleNamespace

import comfyui as setup
import pytest
from client import output_files
from conftest import REPO
from test_repository import tracked
from test_server import clip, quickstart, run  # noqa: F401 (a fixture)

from simplegvr_core.video.read import read_video


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """The zip of `comfy node pack`, from a clean checkout of what is in the repository."""
    checkout = tmp_path_factory.mktemp("checkout")
    for name in tracked():
        if (REPO / name).is_file():
            (checkout / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(REPO / name, checkout / name)
    for command in (["git", "init", "-q"], ["git", "add", "--all"]):
        subprocess.run(command, cwd=checkout, check=True)
    command = [sys.executable, "-m", "comfy_cli", "--no-json", "--skip-prompt", "node", "pack"]
    packed = subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=False)
    assert packed.returncode == 0, packed.stdout + packed.stderr
    assert "warning" not in packed.stdout.lower(), packed.stdout
    return checkout / "node.zip"


def test_the_zip_holds_what_runs_and_not_what_tests_it(published):
    there = set(tracked())
    names = set(zipfile.ZipFile(published).namelist())
    assert names == {name for name in there if not re.match(r"\.|tests/|docs/conf\.py|docs/templates/", name)}
    for folder in ("nodes", "simplegvr_core", "models", "workflows", "web", "locales", "subgraphs", "assets", "scripts", "tools"):
        assert any(name.startswith(f"{folder}/") for name in names) or not (REPO / folder).exists(), folder
    assert {"__init__.py", "pyproject.toml", "README.md", "LICENSE"} <= names
    templates = [name for name in names if re.fullmatch(r"workflows/\w+\.json", name)]
    assert templates and {name.removesuffix(".json") + ".jpg" for name in templates} <= names


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
