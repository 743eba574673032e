"""The page that puts the paper's figures beside ours, as Markdown, HTML and JSON."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from markupsafe import Markup, escape

from ..files import write_text

FOLDER = Path(__file__).parent
PAPER = json.loads((FOLDER / "paper.json").read_text())  # {"sources": {name: what it is}, "items": {item: what the paper shows}}
NOT_MEASURED = "n. m."

Rows = dict[str, dict[str, float | str | None]]


@dataclass(frozen=True)
class Here:
    """What was measured in place of one of the paper's tables or figures.

    differs: sentences that say with what, and what is not as in the paper. rows: values by row and column, those of the
    paper's columns that were measured under the paper's names. pictures: captions by file name. missing: why a row or
    column of the paper is not measured.
    """

    differs: str
    rows: Rows = field(default_factory=dict)
    pictures: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Table:
    """A table ready to be shown: rows are (name, whose they are, cells); the paper's columns come first."""

    columns: list[str]
    rows: list[tuple[str, str, list[str]]]


def join(paper: dict, groups: dict[str, Rows]) -> Table | None:
    """Returns the paper's rows and under them ours, by whose they are; None when there are no rows.

    A paper's column without a value of ours says so; a column of ours is empty in the paper's rows.
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


def most_decimals(values: Iterator[float | None]) -> int:
    """Returns the decimals that write the most precise of values in full."""
    return max((len(str(value).partition(".")[2]) for value in values if isinstance(value, float)), default=0)


def number(value: float | int | str | None, decimals: int | None = None) -> str:
    """Returns a cell: so many decimals, or four digits; text and whole numbers as they are, nothing for None."""
    if not isinstance(value, float):
        return "" if value is None else str(value)
    return format(value, "#.4g" if decimals is None else f".{decimals}f")


def code(text: str) -> Markup:
    """Returns a sentence as HTML: what Markdown puts in backticks is code."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def write_page(out: Path, items: dict[str, dict], command: str, weights: str) -> None:
    """Writes out/paper.md and out/paper.html. items: as Paper.run returns them. weights: names of what was measured."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(loader=FileSystemLoader(FOLDER), undefined=StrictUndefined, autoescape=lambda name: ".html" in name)
    environment.trim_blocks = environment.lstrip_blocks = True
    environment.filters["code"] = code
    tables = {name: join(item["paper"], item["groups"]) for name, item in items.items()}
    said = {"sources": PAPER["sources"], "command": command, "weights": weights, "not_measured": NOT_MEASURED}
    for suffix in ("md", "html"):
        text = environment.get_template(f"paper.{suffix}.jinja").render(items=items, tables=tables, **said)
        write_text(out / f"paper.{suffix}", text)
