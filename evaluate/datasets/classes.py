"""Lists of classes, plain and as they are published."""

import re
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from evaluate.datasets.fields import as_number, read_json, read_text, short_repr
from evaluate.datasets.tables import CsvTable, get_cell, read_table

_CODED = re.compile(r"(c?)(\d+)\s+(\S.*)")


class ClassList(NamedTuple):
    """Class names in index order, and the codes that annotations may use instead."""

    names: tuple[str, ...]
    codes: dict[str, str]


def read_classes(path: Path) -> ClassList:
    """Read the classes of a dataset, in index order.

    One name a line; or the published lists of Charades (`c008 Opening a door`), of THUMOS-14,
    MultiTHUMOS and ActionFormer's Ego4D (`7 BaseballPitch`), of EPIC-Kitchens-100 (a table with the
    columns `id` and `key`), of Something-Something and Kinetics (JSON, `{"Moving up": "0"}`).

    Raises:
        ValueError: it names none, or one twice.
    """
    text = read_text(Path(path))
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if Path(path).suffix.lower() == ".json":
        names, codes = _indexed(read_json(Path(path)), path)
    elif lines and [cell.strip(' "') for cell in lines[0].lower().split(",")[:2]] == ["id", "key"]:
        names, codes = _numbered(read_table(Path(path)), path)
    else:
        names, codes = _coded(lines) or (tuple(lines), {})
    twice = [name for name, count in Counter(names).items() if count > 1]
    if not names or twice:
        problem = f"class {twice[0]!r} is listed twice" if twice else "the file names no class"
        raise ValueError(f"{path}: {problem}; write one class name a line, in index order.")
    return ClassList(names, codes)


def _indexed(content: object, path: Path) -> ClassList:
    """Return the classes of a JSON object that maps each to its number."""
    if not isinstance(content, dict) or not content:
        raise ValueError(
            f"{path}: expected an object with each class's number, not {short_repr(content)}."
        )
    numbers = {name: as_number(value, repr(name), f"{path}") for name, value in content.items()}
    if sorted(numbers.values()) != list(range(len(numbers))):
        raise ValueError(f"{path}: the numbers must be 0, 1, 2 and so on; copy the file again.")
    # Kinetics' names of several words are quoted.
    names = tuple(name.strip('"') for name in sorted(numbers, key=lambda name: numbers[name]))
    return ClassList(names, {str(index): name for index, name in enumerate(names)})


def _coded(lines: list[str]) -> ClassList | None:
    """Return the classes of a list with a rising code before every name; None for a plain list."""
    found = [match for line in lines if (match := _CODED.fullmatch(line))]
    numbers = [int(match[2]) for match in found if len(match[2]) < 10]
    rising = numbers == sorted(set(numbers))
    same = len({match[1] for match in found}) == 1
    names = tuple(match[3] for match in found)
    if len(numbers) < len(lines) or not rising or not same or len(set(names)) < len(names):
        return None
    return ClassList(names, {match[1] + match[2]: match[3] for match in found})


def _numbered(table: CsvTable, path: Path) -> ClassList:
    codes = {get_cell(row, "id", place): get_cell(row, "key", place) for place, row in table.rows}
    numbers = [as_number(row["id"], "id", place) for place, row in table.rows]
    if numbers != list(range(len(codes))):
        raise ValueError(f"{path}: the ids must be 0, 1, 2 and so on; copy the file again.")
    return ClassList(tuple(codes.values()), codes)
