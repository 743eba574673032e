"""What pip installs: the wheel, its dependencies, the extras that commands need, the public names."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import comfyui as setup
import pytest
import tomlkit
from conftest import REPO
from test_repository import CORE, copy_of_the_repository, imported_modules, module_name, tracked

import simplegvr_core
from simplegvr_core.__main__ import COMMANDS

IMPORTED_AS = {"cv2": "opencv-python-headless", "PIL": "Pillow", "markupsafe": "jinja2"}  # the rest under their own names


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The folder into which the wheel of a clean checkout is installed, without the packages that it depends on."""
    checkout, target = copy_of_the_repository(tmp_path_factory.mktemp("checkout")), tmp_path_factory.mktemp("installed")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--target", target, checkout]
    ran = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return target


def project() -> dict:
    """Returns the [project] table of pyproject.toml."""
    return tomlkit.parse((REPO / "pyproject.toml").read_text())["project"].unwrap()


def names(requirements: list[str]) -> set[str]:
    return {re.match(r"[\w.-]+(\[\w+\])?", requirement)[0] for requirement in requirements}


def extra(name: str) -> set[str]:
    """Returns the packages of an extra, those of the extras in it included."""
    found = names(project()["optional-dependencies"][name])
    inner = {requirement for requirement in found if requirement.startswith("simplegvr[")}
    return (found - inner).union(*(extra(requirement[10:-1]) for requirement in inner))


def test_the_wheel_has_the_core_the_weights_the_clips_and_the_workflows(installed):
    bundled = {"models/": "simplegvr_core/bundle/", "assets/": "simplegvr_core/bundle/clips/"}
    bundled["workflows/api/"] = "simplegvr_core/bundle/workflows/"
    wanted = {
        re.sub("^(models/|assets/|workflows/api/)", lambda found: bundled[found[0]], name)
        for name in tracked()
        if re.fullmatch(r"simplegvr_core/.*|models/.*\.safetensors|assets/.*\.mp4|workflows/api/.*\.json", name)
    }
    files = [path for path in (installed / "simplegvr_core").rglob("*") if path.is_file() and path.suffix != ".pyc"]
    there = {path.relative_to(installed).as_posix() for path in files}
    assert there == wanted
    assert [path.name for path in installed.iterdir() if path.suffix != ".dist-info" and path.name != "bin"] == ["simplegvr_core"]


def test_an_installed_package_evaluates_the_bundled_clip(installed, tmp_path):
    """Away from the repository: weights, template and clip are the wheel's."""
    (tmp_path / "clips").mkdir()
    code = "from pathlib import Path\nfrom simplegvr_core.files import CLIPS\nprint(CLIPS)\n"
    code += "Path('clips/demo.mp4').write_bytes((CLIPS / 'demo.mp4').read_bytes())\n"
    code += "from simplegvr_core.__main__ import main\n"
    code += "main('evaluate --clips clips --out out --methods gvr bicubic --num-frames 5 --steps 1 --scale 2 --metrics psnr'.split())"
    environment = {**setup.os.environ, "PYTHONPATH": str(installed)}
    ran = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines()[0] == str(installed / "simplegvr_core" / "bundle" / "clips")
    assert (tmp_path / "out" / "report.html").stat().st_size > 10_000


def test_a_node_pack_depends_on_what_comfyui_lacks():
    """ComfyUI-Manager and comfy-cli read requirements.txt, the registry pyproject.toml."""
    own = project()["dependencies"]
    assert (REPO / "requirements.txt").read_text().split() == own
    lines = (setup.find_comfyui(setup.HOME) / "requirements.txt").read_text().splitlines()
    comfyui = names([line for line in lines if line and not line.startswith("#")])
    assert own and "torch" in comfyui and not names(own) & comfyui


@pytest.mark.parametrize("command", COMMANDS)
def test_an_extra_has_all_that_its_command_imports(command):
    """What the command's module and those of ours that it imports import at once; what a function imports is optional."""
    module, extras, _ = COMMANDS[command]
    paths = {module_name(path): path for path in CORE}
    needed, to_do = set(), {module}
    while to_do - needed:
        needed |= (new := to_do - needed)
        to_do = set().union(*(imported_modules(paths[each]) for each in new))
    imported = set().union(*(packages(paths[each]) for each in needed))
    allowed = names(project()["dependencies"]).union(*map(extra, extras.split(",")))
    assert {IMPORTED_AS.get(name, name) for name in imported} <= allowed


def packages(path: Path) -> set[str]:
    """Returns the packages of others that a file imports when it is imported."""
    found = set()
    for node in ast.parse((REPO / path).read_text()).body:
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(node.module.split(".")[0])
    return found - sys.stdlib_module_names


def test_public_names_are_imported_when_they_are_used():
    code = "import sys, simplegvr_core as s\nassert 'torch' not in sys.modules and len(dir(s)) > 10\n"
    code += "assert all(getattr(s, name) is not None for name in s.PUBLIC)\nassert 'torch' in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=REPO, check=True)
    with pytest.raises(AttributeError, match="module 'simplegvr_core' has no attribute 'upscale'"):
        simplegvr_core.upscale  # noqa: B018


def test_type_checkers_see_the_same_public_names():
    tree = ast.parse((REPO / "simplegvr_core" / "__init__.py").read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {alias.asname or alias.name: (node.module, alias.name) for node in block.body for alias in node.names}
    assert seen == simplegvr_core.PUBLIC
