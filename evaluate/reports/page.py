"""Reports as one HTML file that needs nothing else, and their tables as JSON."""

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple
from urllib.parse import quote

from configs.atomic import write_text
from evaluate.rendering import render_template

REPORT = "report.html"
TABLES = "report.json"
LONGEST_TILE = 12  # letters that fit into a tile in large print

Cell = str | int | float | None


class Fact(NamedTuple):
    """One number, or a few words, that a report begins with."""

    name: str
    value: Cell
    mood: Literal["", "good", "bad"] = ""

    @property
    def shown(self) -> str:
        return _shown(self.value, 3)

    @property
    def short(self) -> bool:
        return len(self.shown) <= LONGEST_TILE


@dataclass(frozen=True)
class Table:
    """Rows of a report, which are in its JSON as they are.

    Args:
        name: in JSON; `title` and `note` are for people.
        digits: after the point, of fractions as they are shown.
        links: URLs, relative to the report, of texts in the first column.
        strong: numbers of rows that matter most.
        bars: the column, if any, whose numbers are drawn as bars, too.
    """

    name: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    title: str = ""
    note: str = ""
    digits: int = 3
    links: Mapping[str, str] = field(default_factory=dict)
    strong: Sequence[int] = ()
    bars: str = ""

    def __post_init__(self) -> None:
        assert all(len(row) == len(self.columns) for row in self.rows), self.name

    def is_number(self, column: int) -> bool:
        """Return whether a column holds nothing but numbers."""
        cells = [row[column] for row in self.rows if row[column] is not None]
        return bool(cells) and not any(isinstance(cell, str) for cell in cells)

    def shown(self, cell: Cell) -> str:
        """Return a cell as people read it."""
        return _shown(cell, self.digits)

    def bar(self, row: Sequence[Cell]) -> float:
        """Return the length of a row's bar, in percent of the longest."""
        column = self.columns.index(self.bars)
        longest = max(_number(each[column]) for each in self.rows)
        return round(100 * _number(row[column]) / longest, 1) if longest else 0.0


class Figure(NamedTuple):
    """A PNG beside the report, and what it shows."""

    file: str
    about: str


@dataclass(frozen=True)
class Section:
    """A part of a report: text, then figures, tables and texts as they are, by title.

    Args:
        folded: whether the texts are hidden until opened.
    """

    title: str
    text: str = ""
    figures: Sequence[Figure] = ()
    tables: Sequence[Table] = ()
    texts: Mapping[str, str] = field(default_factory=dict)
    folded: bool = False


@dataclass(frozen=True)
class Report:
    """The report of a run, an evaluation or a study.

    Args:
        kind: which of them, in a few words.
        summary: the result in one or two sentences.
    """

    kind: str
    title: str
    summary: str
    facts: Sequence[Fact]
    sections: Sequence[Section]
    warnings: Sequence[str] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return everything but pictures, for programs."""
        return {
            "kind": self.kind,
            "title": self.title,
            "summary": self.summary,
            "facts": {fact.name: fact.value for fact in self.facts},
            "warnings": list(self.warnings),
            "tables": {
                table.name: {"columns": list(table.columns), "rows": [list(r) for r in table.rows]}
                for section in self.sections
                for table in section.tables
            },
            "texts": {
                name: text for section in self.sections for name, text in section.texts.items()
            },
        }


def write_report(report: Report, out: Path) -> None:
    """Write report.html and report.json into a folder that has the figures.

    Raises:
        OSError: they cannot be written; what was there before is whole.
    """
    page = render_template(
        "report.html.j2",
        report=report,
        embedded=lambda file: _embedded(out / file),
        size=lambda file: _size(out / file),
        url=quote,
    )
    content = json.dumps(report.to_dict(), indent=1, ensure_ascii=False)
    write_text(out / TABLES, content + "\n")
    write_text(out / REPORT, page)


def _shown(cell: Cell, digits: int) -> str:
    if cell is None:
        return ""
    if isinstance(cell, str):
        return cell
    return f"{cell:,}" if isinstance(cell, int) else f"{cell:,.{digits}f}"


def _number(cell: Cell) -> float:
    return float(cell) if isinstance(cell, int | float) else 0.0


def _embedded(picture: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode()}"


def _size(picture: Path) -> tuple[int, int]:
    """Return width and height of a PNG in pixels, which its header begins with."""
    header = picture.read_bytes()[:24]
    return int.from_bytes(header[16:20]), int.from_bytes(header[20:24])
