"""Your own table: one annotation a row, in whatever dialect a spreadsheet writes it."""

from pathlib import Path

from evaluate.datasets.records import AnnotationSource, Dataset
from evaluate.datasets.tables import CsvTable, column_meaning, get_cell
from evaluate.datasets.times import TimeReader

COLUMNS = ("video", "start", "end", "label")
ALL_COLUMNS = (*COLUMNS, "subset")


def is_own(table: CsvTable) -> bool:
    """Return whether a table has the four columns, under whatever name."""
    return set(COLUMNS) <= {column_meaning(column) for column in table.columns}


def missing_columns(table: CsvTable) -> list[str]:
    """Return those of the four columns that a table has under no name, sorted."""
    return sorted(set(COLUMNS) - {column_meaning(column) for column in table.columns})


def read_own(table: CsvTable, source: AnnotationSource, dataset: Dataset) -> None:
    """Add `video,start,end,label` and perhaps `subset`, times in seconds or as `h:m:s`.

    A row with a video alone is a video without actions. Without the column, the names of several
    files in a folder give the subset; otherwise a fixed share of the videos, by name, is `test`.
    """
    columns = _choose_columns(table, source.path)
    for meaning, column in columns.items():
        if column != meaning:
            dataset.warnings[f"columns {column!r} read as {meaning!r}"] += 1
    video, start, end, label = (columns[meaning] for meaning in COLUMNS)
    cells = [row[column] for _, row in table.rows for column in (start, end)]
    times = TimeReader(cells, table.delimiter)
    renamed = set()
    for place, row in table.rows:
        with dataset.collect():
            given = get_cell(row, video, place)
            name = dataset.name_of_file(given, place)
            if name != given:
                renamed.add(name)
            if "subset" in columns:
                subset = get_cell(row, columns["subset"], place)
            else:
                subset = dataset.choose_subset(name, source)
            record = dataset.video(name, subset, source.path, place)
            if row[start] or row[end] or row[label]:
                begins, ends = (
                    times.read(get_cell(row, column, place), column, place)
                    for column in (start, end)
                )
                if isinstance(begins, ValueError) and isinstance(ends, ValueError):
                    begins = ValueError(f"{begins}\n  {ends}")
                record.add(get_cell(row, label, place), begins, ends, place)
    dataset.warnings += times.notes
    if renamed:
        dataset.warnings["videos given by their files, read without the ending"] += len(renamed)


def _choose_columns(table: CsvTable, path: Path) -> dict[str, str]:
    """Return the column of each meaning: the one that is called so, else the only other name."""
    columns = {}
    for meaning in ALL_COLUMNS:
        named = sorted(c for c in table.columns if column_meaning(c) == meaning)
        if meaning in named:
            columns[meaning] = meaning
        elif len(named) > 1:
            raise ValueError(
                f"{path}: line 1: columns {' and '.join(map(repr, named))} may both be the "
                f"{meaning}; call one of them {meaning!r}."
            )
        elif named:
            columns[meaning] = named[0]
    return columns
