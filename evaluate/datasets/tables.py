"""CSV tables with one annotation a row: your own, and AFSD's of THUMOS-14."""

import csv
import io
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from evaluate.datasets.fields import read_text
from evaluate.datasets.records import AnnotationSource, Dataset, subset_of

OWN = frozenset({"video", "start", "end", "label"})
AFSD = frozenset({"video", "start", "end", "type"})
TEST_SHARE = 5  # one video in so many goes to the test subset, if no subset is given

Row = dict[str, str]


class CsvTable(NamedTuple):
    """A CSV file: its columns in lower case, and its rows with their place (file and line)."""

    columns: frozenset[str]
    rows: list[tuple[str, Row]]


def read_table(path: Path) -> CsvTable:
    """Return a table, its cells without the blanks around them; short rows end with empty cells.

    Raises:
        ValueError: the file is no table, or a row has more cells than the header.
    """
    try:
        lines = list(_lines(path))
    except csv.Error as error:
        raise ValueError(
            f"{path} is not a CSV table ({error}); export or copy it again."
        ) from error
    if not lines:
        raise ValueError(f"{path} is empty; export or copy it again.")
    header = [cell.lower() for cell in lines[0][1]]
    twice = {column for column in header if column and header.count(column) > 1}
    if twice:
        raise ValueError(f"{path}: column {', '.join(sorted(twice))} is there twice; rename one.")
    rows = []
    for place, cells in lines[1:]:
        if any(cells[len(header) :]):
            raise ValueError(
                f"{place}: {len(cells)} cells, but {len(header)} columns; put a text with a comma "
                "between double quotes."
            )
        cells = cells[: len(header)] + [""] * (len(header) - len(cells))
        rows.append((place, dict(zip(header, cells, strict=True))))
    return CsvTable(frozenset(header), rows)


def _lines(path: Path) -> Iterator[tuple[str, list[str]]]:
    reader = csv.reader(io.StringIO(read_text(path), newline=""))
    first = 1  # a cell between quotes may go over several lines
    for cells in reader:
        if any(cell.strip() for cell in cells):
            yield f"{path}: line {first}", [cell.strip() for cell in cells]
        first = reader.line_num + 1


def get_cell(row: Row, column: str, place: str) -> str:
    """Return a cell that must not be empty."""
    if not row[column]:
        raise ValueError(f"{place}: {column!r} is empty; fill it in.")
    return row[column]


def parse_seconds(text: str) -> Any:
    """Return `h:m:s` or `m:s` in seconds, and any other text unchanged, to be checked later."""
    parts = text.split(":")
    if not 2 <= len(parts) <= 3:
        return text
    try:
        return round(sum(float(part) * 60**i for i, part in enumerate(reversed(parts))), 6)
    except (ValueError, OverflowError):
        return text


def read_afsd(table: CsvTable, source: AnnotationSource, dataset: Dataset) -> None:
    """Add `video,type,type_idx,start,end,startFrame,endFrame`, times in seconds."""
    for place, row in table.rows:
        name = get_cell(row, "video", place)
        video = dataset.video(name, subset_of(name, source, place), source.path, place)
        video.add(get_cell(row, "type", place), row["start"], row["end"], place)


def read_own(table: CsvTable, source: AnnotationSource, dataset: Dataset) -> None:
    """Add `video,start,end,label` and perhaps `subset`, times in seconds or as `h:m:s`.

    A row with a video alone is a video without actions. Without the column, the names of several
    files in a folder give the subset; otherwise a fixed share of the videos, by name, is `test`.
    """
    by_chance = set()
    for place, row in table.rows:
        name = get_cell(row, "video", place)
        if "subset" in row:
            subset = get_cell(row, "subset", place)
        elif source.in_folder and source.subset:
            subset = source.subset
        else:
            subset = "test" if zlib.crc32(name.encode()) % TEST_SHARE == 0 else "training"
            by_chance.add(name)
        video = dataset.video(name, subset, source.path, place)
        if row["start"] or row["end"] or row["label"]:
            start, end = (
                parse_seconds(get_cell(row, column, place)) for column in ("start", "end")
            )
            video.add(get_cell(row, "label", place), start, end, place)
    if by_chance:
        what = "videos put into 'training' or 'test' by their names, for want of a column 'subset'"
        dataset.warnings[what] += len(by_chance)
