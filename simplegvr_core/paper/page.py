"""The page that puts the paper's figures beside ours, as Markdown, HTML and JSON."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape

from ..files import write_text

FOLDER = Path(__file__).parent
PAPER = json.loads((FOLDER / "paper.json").read_text())  # {"sources": {name: what it is}, "items": {item: what the paper shows}}
NOT_MEASURED = "n. m."

Rows = Mapping[str, Mapping[str, float | int | str | None]]  # values by row and column


@dataclass(frozen=True)
class Here:
    """Our measurement of one of the paper's tables or figures.

    Attributes:
        differs: Sentences about its conditions and its differences from the paper's.
        rows: Values by row and column; columns that the paper has, under the paper's names.
        pictures: Captions by file name.
        missing: Reasons why rows or columns of the paper are not measured.
    """

    differs: str
    rows: Rows = field(default_factory=dict)
    pictures: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Table:
    """A table of the page.

    Attributes:
        columns: Headings, the paper's first.
        rows: Name, owner and cells of each row.
    """

    columns: list[str]
    rows: list[tuple[str, str, list[str]]]


def join(paper: dict[str, Any], groups: dict[str, Rows]) -> Table | None:
    """Returns the paper's rows and below them ours; None when there are no rows.

    A column of the paper without a value of ours has NOT_MEASURED; a column of ours is empty in the paper's rows.

    Args:
        paper: "columns" and "rows" of an item in paper.json.
        groups: Our rows, by their owner.
    """
    theirs = paper["columns"]
    ours = list(dict.fromkeys(column for rows in groups.values() for row in rows.values() for column in row if column not in theirs))
    decimals = {column: most_decimals(row["values"].get(column) for row in paper["rows"]) for column in theirs}
    lines = []
    for row in paper["rows"]:
        cells = [number(row["values"].get(column), decimals[column]) for column in theirs]
        lines.append((row["name"], f"paper, {row['source']}", cells + [""] * len(ours)))
    for whose, rows in groups.items():
        for name, row in rows.items():
            cells = [number(row.get(column), decimals[column]) or NOT_MEASURED for column in theirs]
            lines.append((name, whose, cells + [number(row.get(column)) for column in ours]))
    return Table([*theirs, *ours], lines) if lines else None


def most_decimals(values: Iterable[float | str | None]) -> int:
    """Returns the largest number of decimals among values."""
    return max((len(str(value).partition(".")[2]) for value in values if isinstance(value, float)), default=0)


def number(value: float | int | str | None, decimals: int | None = None) -> str:
    """Returns a cell's text: so many decimals, or four digits; text and whole numbers unchanged, empty for None."""
    if not isinstance(value, float):
        return "" if value is None else str(value)
    return format(value, "#.4g" if decimals is None else f".{decimals}f")


def code(text: str) -> Markup:
    """Returns a sentence as HTML, with code in place of Markdown's backticks."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def write_page(out: Path, items: dict[str, dict], command: str, weights: str) -> None:
    """Writes out/paper.md and out/paper.html.

    Args:
        out: Folder of the page.
        items: As Paper.run returns them.
        command: Command that makes the page.
        weights: Names of the networks that were measured.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(loader=FileSystemLoader(FOLDER), undefined=StrictUndefined, autoescape=lambda name: ".html" in (name or ""))
    environment.trim_blocks = environment.lstrip_blocks = True
    environment.filters["code"] = code
    tables = {name: join(item["paper"], item["groups"]) for name, item in items.items()}
    facts = {"sources": PAPER["sources"], "command": command, "weights": weights, "not_measured": NOT_MEASURED}
    for suffix in ("md", "html"):
        text = environment.get_template(f"paper.{suffix}.jinja").render(items=items, tables=tables, **facts)
        write_text(out / f"paper.{suffix}", text)
