"""CSV tables, however a spreadsheet writes them, and AFSD's of THUMOS-14."""

import csv
import io
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from pathlib import Path

from evaluate.datasets.fields import raise_problems, read_text
from evaluate.datasets.records import AnnotationSource, Dataset, subset_of

AFSD = frozenset({"video", "start", "end", "type"})
OLD_BORIS = frozenset({"behavior", "status", "time"})
MOST_ABOVE = 50  # lines about the whole file above the header
DELIMITERS = (",", ";", "\t")
_SEPARATOR = re.compile(r'"?sep=(.)"?[\s,;]*', re.IGNORECASE)
_VIA_HEADER = "csv_header ="
_NAMES = {",": "a comma", ";": "a semicolon", "\t": "a tab"}
_MEANINGS = {
    "video": "video videos videoid videoname videofile videofilename filename file media mediafile",
    "start": "start starttime starts startsec startsecs startsecond startseconds tstart timestart "
    "begin begintime begins beginsec beginseconds tbegin",
    "end": "end endtime ends endsec endsecs endsecond endseconds tend timeend stop stoptime stops "
    "stopsec stopseconds tstop",
    "label": "label labels labelname class classname classlabel action actionname actionclass "
    "actionlabel activity activityname category behavior behaviour",
    "subset": "subset split set partition",
}
_MEANING = {word: column for column, words in _MEANINGS.items() for word in words.split()}

Row = dict[str, str]
_Cells = list[str] | ValueError | None  # of a row, what is wrong with it, or None for a comment


def column_meaning(name: str) -> str | None:
    """Return which column of one's own table another name for it means: `t-start` is `start`."""
    return _MEANING.get(re.sub(r"[\W_]+", "", name.lower()))


@dataclass(frozen=True)
class CsvTable:
    """A CSV file.

    Args:
        columns: in lower case.
        rows: with their place (file and line).
        delimiter: what stands between the cells.
        comments: the lines above the header, also those that begin with #.
        problems: rows that do not fit the header.
        notes: counts of what was tolerated, by a phrase for it.
    """

    columns: frozenset[str]
    rows: list[tuple[str, Row]]
    delimiter: str = ","
    comments: list[str] = dataclass_field(default_factory=list)
    problems: list[ValueError] = dataclass_field(default_factory=list)
    notes: Counter[str] = dataclass_field(default_factory=Counter)


def read_table(path: Path) -> CsvTable:
    """Return a table, its cells without the blanks around them; short rows end with empty cells.

    Raises:
        ValueError: the file is not a table, or rows have more cells than the header.
    """
    table = parse_table(path)
    raise_problems(table.problems)
    return table


def parse_table(path: Path) -> CsvTable:
    """Return a table whose rows that do not fit are left out and told in its `problems`.

    Cells stand between commas, semicolons or tabs: what a first line `sep=;` says, else what cuts
    the header into most cells. Lines that begin with # are comments, and so is what stands above a
    header that is known.

    Raises:
        ValueError: the file is not a table.
    """
    # Joined files have a byte order mark at each of their beginnings.
    lines = [line.lstrip("\ufeff") for line in io.StringIO(read_text(path), newline="")]
    first = next((index for index, line in enumerate(lines) if line.strip()), len(lines))
    told = _SEPARATOR.fullmatch(lines[first].strip("\r\n")) if first < len(lines) else None
    first += told is not None
    comments = []
    while first < len(lines) and (not lines[first].strip() or _is_comment(lines[first])):
        if _is_comment(lines[first]):
            comments.append(lines[first].strip().lstrip("# "))
        first += 1
    # VIA writes the header as a comment.
    named = next((c for c in comments if c.lower().startswith(_VIA_HEADER)), None)
    header = None
    try:
        delimiter = told[1] if told else _delimiter(lines[first:])
        if named is not None:
            delimiter, header = ",", next(csv.reader([named[len(_VIA_HEADER) :]]))
        records = list(_records(lines, first, delimiter, path))
        header = header or _header_in(comments, delimiter)
    except (csv.Error, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is not a CSV table ({error}); export or copy it again."
        ) from error
    if header is None:
        header, above = _take_header(records)
        comments += above
    if header is None:
        raise ValueError(f"{path} is empty; export or copy it again.")
    return _as_table(path, header, records, delimiter, comments)


def _take_header(records: list[tuple[str, _Cells]]) -> tuple[list[str] | None, list[str]]:
    """Remove the rows up to the header; return the header, and what stands above it.

    It is the first row, unless that is a title above a header that is known for sure.
    """
    rows = [(index, row) for index, (_, row) in enumerate(records[:MOST_ABOVE]) if row is not None]
    if not rows:
        return None, []
    sure = (index for index, row in rows if isinstance(row, list) and _is_header(row))
    place = next(sure, rows[0][0])
    header = records[place][1]
    if isinstance(header, ValueError):
        raise header
    above = [",".join(row) for index, row in rows if index < place and isinstance(row, list)]
    del records[: place + 1]
    return header, above


def _is_header(row: list[str]) -> bool:
    """Return whether a row names the columns of one's own table, or those of BORIS's events."""
    return {column_meaning(cell) for cell in row} >= {"video", "start", "end", "label"} or (
        {cell.lower() for cell in row} >= OLD_BORIS
    )


def _is_comment(line: str) -> bool:
    return line.lstrip().startswith("#")


def _delimiter(lines: list[str]) -> str:
    rows = [line for line in lines[:MOST_ABOVE] if any(each in line for each in DELIMITERS)]

    def cells(delimiter: str) -> int:
        return len(next(csv.reader(iter(rows), delimiter=delimiter), []))

    return max(DELIMITERS, key=cells)


def _header_in(comments: list[str], delimiter: str) -> list[str] | None:
    """Return the header where the last comment is one: `# video,start,end,label`."""
    cells = next(csv.reader(comments[-1:], delimiter=delimiter), [])
    return cells if {column_meaning(cell) for cell in cells} >= {"video", "start", "end"} else None


def _records(
    lines: list[str], first: int, delimiter: str, path: Path
) -> Iterator[tuple[str, _Cells]]:
    """Yield the rows that are not empty, with their places."""
    while first < len(lines):
        place = f"{path}: line {first + 1}"
        if _is_comment(lines[first]):
            yield place, None
            first += 1
            continue
        cells, count = _read_row(lines, first, delimiter)
        if cells is None:
            what = "a double quote begins a cell and does not end it in this row"
            yield place, ValueError(f"{place}: {what}; close it, or write it twice inside a cell.")
        elif any(cells):
            yield place, cells
        first += count


def _read_row(lines: list[str], first: int, delimiter: str) -> tuple[list[str] | None, int]:
    """Return the cells of a row, and the number of its lines: a cell in quotes may have several.

    None where a quote that is not closed would make cells of other rows.
    """
    for strict in (True, False):  # blanks after a quote do no harm
        rest = (lines[index] for index in range(first, len(lines)))
        reader = csv.reader(rest, delimiter=delimiter, strict=strict)
        try:
            cells = [cell.strip() for cell in next(reader)]
        except csv.Error:
            if not strict and '"' not in lines[first]:
                raise
        else:
            if strict or reader.line_num == 1:
                return cells, reader.line_num
    return None, 1


def _as_table(
    path: Path,
    header: list[str],
    records: list[tuple[str, _Cells]],
    delimiter: str,
    comments: list[str],
) -> CsvTable:
    header = [cell.strip().lower() for cell in header]
    twice = {column for column in header if column and header.count(column) > 1}
    if twice:
        raise ValueError(f"{path}: column {', '.join(sorted(twice))} is there twice; rename one.")
    table = CsvTable(frozenset(header), [], delimiter, comments)
    for place, cells in records:
        if isinstance(cells, ValueError):
            table.problems.append(cells)
        elif cells is None:
            table.notes["lines that begin with # left out"] += 1
        elif [cell.lower() for cell in cells] == header:
            table.notes["repeated header lines left out"] += 1
        elif any(cells[len(header) :]):
            table.problems.append(
                ValueError(
                    f"{place}: {len(cells)} cells, but {len(header)} columns; put a text or number "
                    f"with {_NAMES.get(delimiter, repr(delimiter))} in it between double quotes."
                )
            )
        elif len(cells) == 1 < len(header) and (other := _other_delimiter(cells[0], header)):
            table.problems.append(
                ValueError(
                    f"{place}: {_NAMES[other]} between the cells, but in the header "
                    f"{_NAMES.get(delimiter, repr(delimiter))}; write one of them everywhere."
                )
            )
        else:
            cells = cells[: len(header)] + [""] * (len(header) - len(cells))
            table.rows.append((place, dict(zip(header, cells, strict=True))))
    return table


def _other_delimiter(cell: str, header: list[str]) -> str | None:
    found = (d for d in DELIMITERS if cell.count(d) + 1 >= len(header) > 1)
    return next(found, None)


def get_cell(row: Row, column: str, place: str) -> str:
    """Return a cell that must not be empty."""
    if not row[column]:
        raise ValueError(f"{place}: {column!r} is empty; fill it in.")
    return row[column]


def read_afsd(table: CsvTable, source: AnnotationSource, dataset: Dataset) -> None:
    """Add `video,type,type_idx,start,end,startFrame,endFrame`, times in seconds."""
    for place, row in table.rows:
        with dataset.collect():
            name = get_cell(row, "video", place)
            video = dataset.video(name, subset_of(name, source, place), source.path, place)
            video.add(get_cell(row, "type", place), row["start"], row["end"], place)
