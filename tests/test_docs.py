"""The documentation builds without a warning, its relative links resolve, and its commands exist."""

import os
import re
import subprocess
import sys
from contextlib import redirect_stdout, suppress
from functools import cache
from importlib import import_module
from io import StringIO
from urllib.parse import unquote

import pytest
from conftest import REPO
from test_repository import tracked

from simplegvr_core.__main__ import COMMANDS
from simplegvr_core.training.distil import PRESETS as DISTIL_PRESETS
from simplegvr_core.training.presets import PRESETS
from simplegvr_core.video import read_video

PAGES = [name for name in tracked() if name.endswith(".md")]
README = (REPO / "README.md").read_text("utf-8")


def test_the_readme_is_short_and_linked():
    assert len(README.split()) <= 900
    assert len(re.findall(r"\]\((?!assets/)", README)) >= 15


@pytest.mark.slow  # CI has a job for it
def test_the_documentation_builds_without_a_warning(tmp_path):
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "-W",
        "--keep-going",
        "-q",
        "-b",
        "html",
        "-d",
        tmp_path / "doctrees",
        "docs",
        tmp_path / "html",
    ]
    built = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    for path in (REPO / "simplegvr_core").rglob("*.py"):
        module = ".".join(path.relative_to(REPO).with_suffix("").parts).removesuffix(".__init__")
        if path.stem != "__main__":  # Sphinx leaves out private modules
            assert (tmp_path / "html" / "api" / f"{module}.html").exists(), module
    for page in (REPO / "web" / "docs").glob("*.md"):
        assert (tmp_path / "html" / "help" / f"{page.stem}.html").exists(), page


def anchors(text: str) -> set[str]:
    """Returns the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", PAGES)
def test_local_links_lead_somewhere(name):
    page = REPO / name
    folder = REPO / "web" / "docs" if name.startswith("web/docs/") else page.parent  # where ComfyUI looks, whatever the language
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)
    for link in re.findall(r"\]\(<?([^)>\s]+)", text):
        target, _, anchor = unquote(link).partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        file = folder / target if target else page
        assert file.exists(), f"{name} links to {link}"
        assert not anchor or anchor in anchors(file.read_text()), f"{name} links to {link}"


def code_lines(text: str) -> list[str]:
    """Lines of the fenced blocks, comments cut off and continued lines joined, and spans of inline code."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, re.M | re.S)
    lines = re.sub(r"\\\n\s*", "", "".join(blocks)).splitlines()
    outside = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    return [re.sub(r"\s+#.*", "", line) for line in lines] + re.findall(r"`([^`]+)`", outside.replace("\n", " "))


@cache
def help_text(command: str, subcommand: str) -> str:
    """Help of a command, or of a subcommand where there is one of that name."""
    shown = StringIO()
    with redirect_stdout(shown), suppress(SystemExit):
        import_module(f"simplegvr_core.{COMMANDS[command][0]}").main([*filter(None, [subcommand]), "--help"])
    return shown.getvalue()


def test_the_readmes_python_writes_the_video_that_it_names(tmp_path):
    (code,) = re.findall(r"^```python\n(.*?)^```", README, re.M | re.S)
    assert len(code.splitlines()) <= 12
    environment = os.environ | {"PYTHONPATH": str(REPO)}
    ran = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    (path,) = tmp_path.iterdir()
    images, rate = read_video(path)
    source, source_rate = read_video(REPO / "assets" / "demo.mp4", len(images))
    assert images.shape == (9, 324, 576, 3) and rate == source_rate
    assert f'"{path.name}"' in code
    error = images[:, 1::3, 1::3].float() - source.float()
    assert error.square().mean().sqrt() < 25  # levels of 255; a gray video has 50


@pytest.mark.parametrize("name", PAGES)
def test_scripts_and_presets_exist(name):
    text = "\n".join(code_lines((REPO / name).read_text("utf-8")))
    for script, arguments in re.findall(r"python3? (?:scripts/run\.py )?((?:scripts|tools)/\w+\.py)(.*)", text):
        source = (REPO / script).read_text("utf-8")
        options = re.findall(r"(?<= )--(?!help)[\w-]+", arguments)
        hands_on = script in ("scripts/run.py", "scripts/test.py")
        assert hands_on or all(f'"{option}"' in source for option in options), f"{script}{arguments}"
    assert set(re.findall(r"--preset (\w+)", text)) <= {*PRESETS, *DISTIL_PRESETS}


@pytest.mark.parametrize("name", PAGES)
def test_commands_have_the_options_that_a_page_gives_them(name):
    for line in code_lines((REPO / name).read_text("utf-8")):
        if re.search(r"run\.py [\w/]+\.py", line):
            continue
        prefixed = re.search(r"(?:run\.py|-m simplegvr_core|\bsimplegvr) ([a-z][\w-]*)(.*)", line)
        alone = re.match(rf"({'|'.join(COMMANDS)})((?: [\w-]+)? --.*)", line)
        if not (found := prefixed or alone):
            continue
        command, arguments = found.groups()
        assert command in COMMANDS, line
        subcommand = re.match(r" ([a-z][\w-]*)", arguments) if command in ("plan", "benchmark") else None
        options = set(re.findall(r"--\w[\w.-]*", help_text(command, subcommand[1] if subcommand else "")))
        assert set(re.findall(r"(?<= )--\w[\w.-]*", arguments)) <= options, line
