"""BORIS's exported events, tabular and aggregated, as CSV or TSV.

https://github.com/olivierfriard/BORIS/blob/master/boris/export_observation.py

Tabular events are rows `Behavior`, `Behavior type` (START, STOP or POINT) and `Time`; a state lasts
from its START to the next STOP of the same behaviour of the same subject with the same modifiers.
Aggregated events have `Start (s)` and `Stop (s)`. Point events have no length and are left out.
Several media files of an observation play one after the other, and times count on from one to the
next.
"""

from itertools import accumulate
from typing import NamedTuple

from evaluate.datasets.fields import as_number, short_repr
from evaluate.datasets.records import AnnotationSource, Dataset
from evaluate.datasets.tables import OLD_BORIS, CsvTable, Row, get_cell
from evaluate.datasets.times import TimeReader

TABULAR = frozenset({"behavior", "behavior type", "time"})
OLD_TABULAR = OLD_BORIS  # until version 7, below lines about the observation
AGGREGATED = frozenset({"behavior", "behavior type", "start (s)", "stop (s)"})
POINTS = "BORIS point events left out"


class _Media(NamedTuple):
    """The files of an observation, and when each of several begins."""

    files: list[str]
    starts_s: list[float]
    ends_s: list[float]


def read_boris(table: CsvTable, source: AnnotationSource, dataset: Dataset) -> None:
    """Add the videos of all observations in a table."""
    for comment in table.comments:
        what, _, offset = comment.partition(",")
        if what.lower() == "time offset (s)":
            _check_offset(offset.strip(","), f"{source.path}")
    columns = ("start (s)", "stop (s)", "time")
    cells = [row[column] for _, row in table.rows for column in columns if row.get(column)]
    times = TimeReader(cells, table.delimiter)
    if table.columns >= AGGREGATED:
        _read_aggregated(table, times, source, dataset)
    else:
        _read_tabular(table, times, source, dataset)
    dataset.warnings += times.notes


def _read_aggregated(
    table: CsvTable, times: TimeReader, source: AnnotationSource, dataset: Dataset
) -> None:
    for place, row in table.rows:
        with dataset.collect():
            kind = get_cell(row, "behavior type", place).upper()
            if kind == "POINT":
                dataset.warnings[POINTS] += 1
            elif kind == "STATE":
                start, end = (
                    times.read(get_cell(row, column, place), column, place)
                    for column in ("start (s)", "stop (s)")
                )
                _add(row, (place, start), (place, end), source, dataset)
            else:
                raise ValueError(
                    f"{place}: 'Behavior type' must be STATE or POINT, not {kind!r:.60}."
                )


def _read_tabular(
    table: CsvTable, times: TimeReader, source: AnnotationSource, dataset: Dataset
) -> None:
    column = "behavior type" if "behavior type" in table.columns else "status"
    modifiers = sorted(name for name in table.columns if name.startswith("modifier"))
    begun: dict[tuple[str, ...], tuple[str, Row]] = {}
    for place, row in table.rows:
        with dataset.collect():
            key = tuple(
                row.get(name, "")
                for name in ("observation id", "source", "subject", "behavior", *modifiers)
            )
            kind = get_cell(row, column, place).upper()
            if kind == "POINT":
                dataset.warnings[POINTS] += 1
            elif kind == "START":
                if key in begun:
                    raise ValueError(f"{place}: {key[3]!r} starts again before a STOP.")
                begun[key] = place, row
            elif kind == "STOP":
                if key not in begun:
                    raise ValueError(f"{place}: {key[3]!r} stops, but did not start.")
                where, first = begun.pop(key)
                start, end = (
                    times.read(get_cell(each, "time", at), "time", at)
                    for at, each in ((where, first), (place, row))
                )
                _add(first, (where, start), (place, end), source, dataset)
            else:
                raise ValueError(
                    f"{place}: {column!r} must be START, STOP or POINT, not {kind!r:.60}."
                )
    dataset.problems += [
        ValueError(f"{place}: {key[3]!r} starts and never stops.")
        for key, (place, _) in begun.items()
    ]


def _add(
    row: Row,
    start: tuple[str, float | str | ValueError],
    end: tuple[str, float | str | ValueError],
    source: AnnotationSource,
    dataset: Dataset,
) -> None:
    place = start[0]
    _check_offset(row.get("time offset (s)", ""), place)
    begins_s, ends_s = (as_number(time, "time", where) for where, time in (start, end))
    label, media = get_cell(row, "behavior", place), _media(row, place)
    index = next((i for i, each in enumerate(media.files) if begins_s < media.ends_s[i]), -1)
    if len(media.files) > 1:
        if ends_s > media.ends_s[index] + 0.05:
            raise ValueError(f"{place}: {label!r} goes on from one media file into the next.")
        begins_s, ends_s = (round(t - media.starts_s[index], 6) for t in (begins_s, ends_s))
    name = dataset.name_of_file(media.files[index], place)
    record = dataset.video(name, dataset.choose_subset(name, source), source.path, place)
    record.add(label, begins_s, ends_s, place)


def _check_offset(offset: str, place: str) -> None:
    if offset not in ("", "NA") and as_number(offset, "time offset", place) != 0:
        raise ValueError(
            f"{place}: a time offset of {offset} s may be in the times or not; export without one."
        )


def _media(row: Row, place: str) -> _Media:
    """Return the files that player 1 shows: `player #1:a.mp4;b.mp4|player #2:c.mp4`."""
    columns = ("source", "media file path", "media file", "media file name")
    listed = next((row[column] for column in columns if row.get(column)), "")
    first = listed.split("|")[0].removeprefix("player #1:")
    files = [file.strip() for file in first.split(";") if file.strip()]
    if not files or listed == "NA":
        raise ValueError(f"{place}: no media file is named, but {short_repr(listed)}.")
    if len(files) == 1:
        return _Media(files, [0.0], [float("inf")])
    lengths = row.get("media duration (s)", "").split("|")[0].split(";")
    if len(lengths) != len(files):
        raise ValueError(f"{place}: {len(files)} media files, but {len(lengths)} durations.")
    ends_s = list(accumulate(as_number(each, "media duration", place) for each in lengths))
    return _Media(files, [0.0, *ends_s[:-1]], ends_s)
