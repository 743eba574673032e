"""The nodes' help pages: they name what a node has, show pictures that are there, quote real messages, and are served."""

import ast
import json
import re
import urllib.request
from pathlib import Path

import pytest
from author_locales import inputs, read
from conftest import REPO

DOCS = REPO / "web" / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
SECTIONS = {
    "en": ["When to use it", "Inputs", "Outputs", "Example", "Errors and cures"],
    "zh": ["何时使用", "输入", "输出", "示例", "错误与对策"],
}
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))


@pytest.fixture(scope="module")
def nodes(server) -> dict:
    """The pack's part of the server's /object_info."""
    with urllib.request.urlopen(f"{server.address}/object_info") as response:
        return {name: node for name, node in json.load(response).items() if node["python_module"].endswith("ComfyUI-SimpleGVR")}


def about(page: Path) -> tuple[str, str]:
    """Returns the node and the language of a page: NODE.md or NODE/LANGUAGE.md."""
    return (page.stem, "en") if page.parent == DOCS else (page.parent.name, page.stem)


def section(page: Path, index: int) -> str:
    """Returns the section of a page by its place in SECTIONS."""
    return re.split(r"^## ", page.read_text("utf-8"), flags=re.M)[1 + index]


def first_column(text: str) -> list[str]:
    return re.findall(r"^\| \*\*(.+?)\*\* \|", text, re.M)


def test_every_node_has_a_page_in_every_language(nodes):
    assert set(map(about, PAGES)) == {(node, language) for node in nodes for language in SECTIONS}


@every_page
def test_a_page_names_what_the_node_has(nodes, page):
    """By the names that the node shows in the page's language; an input that a choice brings stands behind its combo's."""
    name, language = about(page)
    texts, text = read(language)[name], page.read_text("utf-8")
    assert text.startswith(f"# {texts['display_name']}\n")
    assert re.findall(r"^## (.+)$", text, re.M) == SECTIONS[language]
    labels = {key: words["name"] for key, words in texts["inputs"].items()}
    shown = []
    for key, plain, _ in inputs(nodes[name]["input"]):
        combo = key.removesuffix(plain).removesuffix("_")
        shown.append(f"{labels[combo]} → {labels[key]}" if combo else labels[key])
    assert first_column(section(page, 1)) == shown
    outputs = first_column(section(page, 2))
    assert len(outputs) == len(texts["outputs"])
    assert all(words.get("name", output) == output for output, words in zip(outputs, texts["outputs"].values(), strict=True))


@every_page
def test_a_page_has_pictures_and_templates_that_are_there(page):
    pictures = re.findall(r"!\[[^]]+\]\(([^)]+)\)", page.read_text("utf-8"))
    assert pictures and all((DOCS / picture).exists() for picture in pictures), pictures
    workflows = re.findall(r"`([a-z0-9]+_\w+)`", section(page, 3))
    assert all((REPO / "workflows" / f"{workflow}.json").exists() for workflow in workflows), workflows


def test_pictures_are_small_and_all_shown():
    pictures = [path for path in DOCS.iterdir() if path.is_file() and path.suffix != ".md"]
    assert sum(path.stat().st_size for path in pictures) < 3 * 2**20
    assert all(any(f"({path.name})" in page.read_text("utf-8") for page in PAGES) for path in pictures)


@pytest.fixture(scope="module")
def messages() -> list[str]:
    """The texts in the nodes' and the core's code, with … for each value that is put in."""
    found = []
    for path in [*(REPO / "nodes").rglob("*.py"), *(REPO / "simplegvr_core").rglob("*.py")]:
        for part in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(part, ast.JoinedStr):
                found.append("".join(value.value if isinstance(value, ast.Constant) else "…" for value in part.values))
            elif isinstance(part, ast.Constant) and isinstance(part.value, str):
                found.append(part.value)
    return found


@every_page
def test_a_page_quotes_messages_that_the_code_has(messages, page):
    """A quotation's … stands for values and whatever lies between."""
    for quoted in re.findall(r"\*\*\"(.+?)\"\*\*", section(page, 4)):
        pattern = ".*".join(map(re.escape, quoted.split("…")))
        assert any(re.search(pattern, text) for text in messages), quoted


def test_the_server_gives_pages_and_pictures(server):
    for path in (path for path in DOCS.rglob("*") if path.is_file()):
        with urllib.request.urlopen(f"{server.address}/extensions/ComfyUI-SimpleGVR/docs/{path.relative_to(DOCS).as_posix()}") as response:
            assert response.read() == path.read_bytes()
