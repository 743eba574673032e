"""The documentation: README, guides, node help and the core's docstrings, by Sphinx.

`python3 scripts/run.py -m sphinx -W -b html docs out/docs` builds it, `-b linkcheck` follows its links.
"""

import os
import re
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
sys.path.append(str(REPO))

project = "ComfyUI-SimpleGVR"
author = "ComfyUI-SimpleGVR contributors"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.autosummary", "sphinx.ext.napoleon"]
html_theme = "furo"
html_title = project
templates_path = ["templates"]
exclude_patterns = ["templates", "help/*/*.md"]  # the latter are translations
myst_heading_anchors = 3

napoleon_use_ivar = True  # a field per attribute: autodoc describes some of them itself
default_role = "code"  # docstrings are plain English; their backticks mean what Markdown's do
autosummary_generate = True
autodoc_mock_imports = [] if find_spec("triton") else ["triton"]
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
add_module_names = False
python_maximum_signature_line_length = 100


# Written anew by every build: the pages of the core's modules, and the nodes' help that ComfyUI shows.
for folder in ("api", "help"):
    shutil.rmtree(REPO / "docs" / folder, ignore_errors=True)
shutil.copytree(REPO / "web" / "docs", REPO / "docs" / "help")


REPOSITORY = "https://github.com/ComfyUI-SimpleGVR/ComfyUI-SimpleGVR/blob/main"
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md", "models/README.md": "models.md"}


def expand(app, name: str, source: list[str]) -> None:
    """Inserts included files and points every relative link at a page of the site, or else at the file on GitHub."""
    if name.startswith("help/"):
        return
    source[0] = follow_links(source[0], REPO / "docs")
    for block, path in re.findall(r"(```{include} \.\./(\S+)\n```\n)", source[0]):
        source[0] = source[0].replace(block, follow_links((REPO / path).read_text(encoding="utf-8"), (REPO / path).parent))


def follow_links(text: str, folder: Path) -> str:
    """Returns Markdown in folder with its relative links as seen from docs/."""

    def follow(match: re.Match) -> str:
        image, label, link = match.groups()
        path = (folder / link).resolve()
        if re.match(r"[a-z]+:|#", link) or not path.is_relative_to(REPO):
            return match[0]
        name = path.relative_to(REPO).as_posix()
        if image:
            return f"![{label}]({os.path.relpath(path, REPO / 'docs')})"
        page = PAGES.get(name) or (name.removeprefix("docs/") if re.fullmatch(r"docs/\w+\.md", name) else None)
        return f"[{label}]({page or f'{REPOSITORY}/{name}'})"

    return re.sub(r"(!?)\[([^]]*)\]\(([^)\s]+)\)", follow, text)


def take_plainly(app, what, name, obj, options, lines: list[str]) -> None:
    """Keeps a docstring's stars, bars and underscores, which would be markup, but for what stands in backticks."""
    for i, line in enumerate(lines):
        parts = line.split("`")
        parts[::2] = [re.sub(r"[*|_]", r"\\\g<0>", part) for part in parts[::2]]
        lines[i] = "`".join(parts)


def spare_attribute(app, what, name, obj, options, lines: list[str]) -> None:
    """Begins an attribute's docstring with an empty comment: napoleon takes the words before a colon in its first line for a type."""
    if what == "attribute":
        lines[:0] = ["..", ""]


def setup(app) -> None:
    app.connect("source-read", expand)
    app.connect("autodoc-process-docstring", spare_attribute, priority=400)
    app.connect("autodoc-process-docstring", take_plainly)
