"""EPIC-Kitchens-100: `EPIC_100_train.csv`, `EPIC_100_validation.csv` and those that go with them.

An action has a verb and a noun. The list of classes decides which of them is detected: the
published `EPIC_100_verb_classes.csv` or `EPIC_100_noun_classes.csv`.
"""

import re
from pathlib import Path

from evaluate.datasets.records import AnnotationSource, Dataset, subset_of
from evaluate.datasets.tables import CsvTable, get_cell
from evaluate.datasets.times import parse_seconds

SEGMENTS = frozenset({"video_id", "start_timestamp", "stop_timestamp"})
KINDS = ("verb", "noun")
INFO = frozenset({"video_id", "duration", "fps"})


def read_epic(table: CsvTable, source: AnnotationSource, dataset: Dataset) -> None:
    """Add the annotations of one subset; the test file's videos have none."""
    labelled = table.columns >= {"verb_class", "noun_class"}
    column = _label_column(source.path, source.classes) if labelled else ""
    for place, row in table.rows:
        with dataset.collect():
            name = get_cell(row, "video_id", place)
            video = dataset.video(name, subset_of(name, source, place), source.path, place)
            if labelled:
                start, end = (
                    parse_seconds(row[key]) for key in ("start_timestamp", "stop_timestamp")
                )
                video.add(get_cell(row, column, place), start, end, place)


def read_info(table: CsvTable, dataset: Dataset) -> None:
    """Add duration and frame rate from `EPIC_100_video_info.csv` to the videos."""
    for place, row in table.rows:
        with dataset.collect():
            record = dataset.records.get(get_cell(row, "video_id", place))
            if record is not None:
                record.content |= {key: get_cell(row, key, place) for key in ("duration", "fps")}


def _label_column(path: Path, classes: Path | None) -> str:
    words = re.findall("[a-z]+", classes.stem.lower()) if classes else []
    kinds = [kind for kind in KINDS if kind in words or f"{kind}s" in words]
    if len(kinds) != 1:
        raise ValueError(
            f"{path} labels verbs and nouns; set data.classes to the published "
            "EPIC_100_verb_classes.csv or EPIC_100_noun_classes.csv to say which are to be found."
        )
    return f"{kinds[0]}_class"
