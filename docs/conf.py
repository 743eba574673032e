"""The documentation: README, guides, node help and the core's docstrings, by Sphinx.

`python3 scripts/run.py -m sphinx -W -b html docs out/docs` builds it, `-b linkcheck` follows its links.
"""

import re
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
sys.path.append(str(REPO))

project = "ComfyUI-SimpleGVR"
author = "ComfyUI-SimpleGVR contributors"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.autosummary"]
html_theme = "furo"
html_title = project
templates_path = ["templates"]
exclude_patterns = ["templates", "help/*/*.md"]  # the latter are translations
myst_heading_anchors = 3

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


def take_plainly(app, what, name, obj, options, lines: list[str]) -> None:
    """Keeps a docstring's stars, bars and underscores, which would be markup, but for what stands in backticks."""
    for i, line in enumerate(lines):
        parts = line.split("`")
        parts[::2] = [re.sub(r"[*|_]", r"\\\g<0>", part) for part in parts[::2]]
        lines[i] = "`".join(parts)


def setup(app) -> None:
    app.connect("autodoc-process-docstring", take_plainly)
