"""VIA 3 (VGG Image Annotator): projects and the tables that it exports.

https://gitlab.com/vgg/via/-/blob/master/via-3.x.y/CodeDoc.md and
https://www.robots.ox.ac.uk/~vgg/software/via/

Temporal segments count, `"z": [start, end]` in seconds. Their label is the value of an attribute,
or the text of the option that it chooses; `TEMPORAL-SEGMENTS` is the attribute of VIA's video
annotator.
"""

import json
from typing import Any

from evaluate.datasets.fields import get_field, short_repr
from evaluate.datasets.records import AnnotationSource, Dataset, Record
from evaluate.datasets.tables import CsvTable, get_cell
from evaluate.datasets.tools.addresses import path_of

SEGMENTS = "TEMPORAL-SEGMENTS"
CHECKBOX, VIDEO, AUDIO = 2, 4, 8
COLUMNS = frozenset({"file_list", "metadata", "metadata_id"})
SKIPPED = "VIA annotations other than temporal segments left out"


def is_via(content: Any) -> bool:
    """Return whether JSON is a project of VIA 3."""
    parts = {"project", "attribute", "file", "metadata", "view"}
    return isinstance(content, dict) and content.keys() >= parts


def read_via(content: dict[str, Any], source: AnnotationSource, dataset: Dataset) -> None:
    """Add the videos of a project."""
    path = f"{source.path}"
    files, attributes = get_field(content, "file", path), get_field(content, "attribute", path)
    records = {}
    for number, view in get_field(content, "view", path).items():
        with dataset.collect():
            where = f"{path}: view {number}"
            listed = get_field(view, "fid_list", where, kind=list)
            if len(listed) != 1:
                raise ValueError(f"{where}: shows {len(listed)} files; views must be of one video.")
            file = get_field(files, str(listed[0]), where)
            if file.get("type", VIDEO) in (VIDEO, AUDIO):
                given = get_field(file, "fname", where, kind=str)
                records[number] = _add_video(given, where, source, dataset)
    for number, entry in get_field(content, "metadata", path).items():
        with dataset.collect():
            where = f"{path}: metadata {number!r}"
            times = get_field(entry, "z", where, kind=list)
            record = records.get(str(entry.get("vid")))
            if len(times) != 2 or entry.get("xy") or record is None:
                dataset.warnings[SKIPPED] += 1
                continue
            for label in _labels(get_field(entry, "av", where), attributes, where):
                record.add(label, times[0], times[1], where)


def read_via_table(table: CsvTable, source: AnnotationSource, dataset: Dataset) -> None:
    """Add the videos that have segments in a table, whose header and attributes are comments."""
    attributes = {}
    for comment in table.comments:
        key, _, text = comment.partition(" = ")
        if key.strip() in ("ATTRIBUTE", "ATTRIBUTES"):
            attributes = _parsed(text, f"{source.path}: ATTRIBUTE", dict)
    for place, row in table.rows:
        with dataset.collect():
            listed = _parsed(get_cell(row, "file_list", place), f"{place}: 'file_list'", list)
            if len(listed) != 1 or not isinstance(listed[0], str):
                raise ValueError(f"{place}: 'file_list' must name one, not {short_repr(listed)}.")
            name = dataset.name_of_file(path_of(listed[0]), place)
            subset = dataset.choose_subset(name, source)
            record = dataset.video(name, subset, source.path, place)
            if "temporal_coordinates" in row:
                cell = row["temporal_coordinates"] or "[]"
                times = _parsed(cell, f"{place}: 'temporal_coordinates'", list)
            else:
                columns = ("temporal_segment_start", "temporal_segment_end")
                times = [get_cell(row, column, place) for column in columns if column in row]
            spatial = row.get("spatial_coordinates", "")
            if len(times) != 2 or spatial not in ("", "[]"):
                dataset.warnings[SKIPPED] += 1
                continue
            values = _parsed(get_cell(row, "metadata", place), f"{place}: 'metadata'", dict)
            for label in _labels(values, attributes, place):
                record.add(label, times[0], times[1], place)


def _add_video(given: str, where: str, source: AnnotationSource, dataset: Dataset) -> Record:
    name = dataset.name_of_file(path_of(given), where)
    content = {"subset": dataset.choose_subset(name, source), "annotations": []}
    record = Record(f"{where}, video {name!r}", content)
    dataset.whole_video(name, record)
    return record


def _labels(values: dict[str, Any], attributes: dict[str, Any], where: str) -> list[str]:
    """Return the values of the attribute that names segments."""
    known = {key: value for key, value in attributes.items() if isinstance(value, dict)}
    names = {key: known.get(key, {}).get("aname", attributes.get(key, key)) for key in values}
    filled = [key for key, value in values.items() if value not in ("", "_DEFAULT", None)]
    chosen = [key for key in filled if names[key] == SEGMENTS] or filled
    if len(chosen) != 1:
        raise ValueError(
            f"{where}: {len(chosen)} attributes have a value; one alone must name the action, or "
            f"be called {SEGMENTS}."
        )
    attribute, value = known.get(chosen[0], {}), values[chosen[0]]
    if not isinstance(value, str):
        raise ValueError(f"{where}: its label must be a text, not {short_repr(value)}.")
    options = attribute.get("options")
    options = options if isinstance(options, dict) else {}
    several = attribute.get("type") == CHECKBOX
    parts = value.split(",") if several else [value]
    return [str(options.get(part) or part) for part in parts]


def _parsed(text: str, where: str, kind: type) -> Any:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is not valid JSON ({error}).") from error
    return get_field({"it": found}, "it", where, kind=kind)
