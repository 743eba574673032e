"""The documentation builds without a warning, and its links within the repository lead somewhere."""

import re
import subprocess
import sys
from urllib.parse import unquote

import pytest
from conftest import REPO
from test_repository import tracked

PAGES = [name for name in tracked() if name.endswith(".md")]


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
