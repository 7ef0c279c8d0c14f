"""Charades: `Charades_v1_train.csv` and `Charades_v1_test.csv`, a video a row."""

import math

from evaluate.datasets.records import AnnotationSource, Dataset, Record, subset_of
from evaluate.datasets.tables import CsvTable, get_cell

COLUMNS = frozenset({"id", "actions", "length"})


def read_charades(table: CsvTable, source: AnnotationSource, dataset: Dataset) -> None:
    """Add the videos of one subset; `actions` is `c092 11.90 21.20;c147 0.00 12.60`."""
    for place, row in table.rows:
        with dataset.collect():
            name = get_cell(row, "id", place)
            subset = subset_of(name, source, place)
            length = get_cell(row, "length", place)
            content = {"subset": subset, "duration": length, "annotations": []}
            record = Record(f"{place}, video {name!r}", content)
            _add_actions(row["actions"], record, place, dataset)
            dataset.whole_video(name, record)


def _add_actions(actions: str, record: Record, place: str, dataset: Dataset) -> None:
    for index, action in enumerate(filter(str.strip, actions.split(";"))):
        where = f"{place}, action {index}"
        with dataset.collect():
            fields = action.split()
            if len(fields) != 3:
                raise ValueError(f"{where}: expected `class start end`, not {action!r:.60}.")
            label, start, end = fields
            if _backwards(start, end):
                # Seven of the published annotations are; nothing else in those videos is wrong.
                dataset.warnings["actions that end before they start dropped"] += 1
                continue
            record.add(label, start, end, where)


def _backwards(start: str, end: str) -> bool:
    try:
        return math.isfinite(float(start)) and float(end) < float(start)
    except ValueError:
        return False  # reported where the numbers are checked
