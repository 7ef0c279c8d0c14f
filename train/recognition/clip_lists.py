"""Readers of lists of labelled clips: class folders, tables, JSON, segments of videos."""

import re
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from evaluate.annotations import read_annotations
from evaluate.datasets import epic
from evaluate.datasets.classes import ClassList, read_classes
from evaluate.datasets.fields import (
    Refused,
    as_number,
    did_you_mean,
    get_field,
    read_json,
    short_repr,
)
from evaluate.datasets.read import holds_annotations
from evaluate.datasets.records import TEST_SHARE, subset_in
from evaluate.datasets.tables import CsvTable, get_cell, read_table
from evaluate.datasets.times import parse_seconds
from evaluate.datasets.tools.label_studio import is_label_studio
from evaluate.metrics.accuracy import LabelSet
from extract.video.files import files_by_name

OWN = frozenset({"video", "label"})
KINETICS = frozenset({"label", "youtube_id", "time_start", "time_end"})
BY_CHANCE = "clips put into 'training' or 'test' by their names, for want of a subset"


class LabelledClip(NamedTuple):
    """One trimmed clip as a list names it.

    Attributes:
        video: names of the file, one of which there should be: with or without its extension, with
            or without the folders it lies in.
        labels: class of every label set; none where the list has no labels.
        span_s: start and end in seconds; None is the whole video.
        place: file and line or entry, for messages.
    """

    video: tuple[str, ...]
    labels: tuple[str, ...]
    span_s: tuple[float, float] | None
    subset: str
    place: str


class LabelledClips(NamedTuple):
    """A whole list; `warnings` counts what was tolerated, by a phrase for it."""

    clips: list[LabelledClip]
    sets: tuple[LabelSet, ...]
    warnings: dict[str, int]


_Reader = Callable[[Any, Path, int, Counter[str]], list[LabelledClip]]


def read_clip_list(path: Path, classes: Sequence[Path] = ()) -> LabelledClips:
    """Read labelled clips from a file or folder, whose layout is recognised by its content.

    - a folder of class folders with videos, `<class>/<video>` or `<subset>/<class>/<video>`;
    - CSV with the columns `video`, `label` and perhaps `start`, `end`, `subset`;
    - Kinetics' CSV (`label`, `youtube_id`, `time_start`, `time_end`, `split`);
    - Something-Something V2's JSON (`id`, `template`);
    - EPIC-Kitchens-100's CSV, with verbs and nouns where `classes` names both lists;
    - whatever `evaluate.annotations` reads: every segment is a clip.

    A folder may hold several files of one layout. Subsets come from the clip's line, the file's
    name or the folder's; otherwise a fixed share of the names is `test` and the rest `training`.

    Args:
        classes: files with class lists (`evaluate.datasets.classes`); two are two label sets.

    Raises:
        ValueError: naming file and line or entry, for everything malformed.
    """
    if not path.exists():
        raise ValueError(f"data.annotations: there is no file or folder {path}")
    for file in classes:
        if not file.is_file():
            raise ValueError(f"data.classes: there is no file {file}")
    if len(classes) > 2:
        raise ValueError(f"data.classes: at most two lists, not {len(classes)}")
    warnings: Counter[str] = Counter()
    clips = _read_files(path, len(classes), warnings)
    if clips is None and path.is_dir() and not holds_annotations(path):
        clips = _read_class_folders(path, warnings)
    if clips is None:
        if len(classes) > 1:
            raise ValueError(
                f"{path} has one label a clip, but data.classes names two lists; two go with "
                "EPIC-Kitchens-100's tables"
            )
        clips = _read_segments(path, classes[0] if classes else None, warnings)
    lists = [read_classes(file) for file in classes]
    if not lists:
        lists = [ClassList(tuple(sorted({clip.labels[0] for clip in clips if clip.labels})), {})]
        if not lists[0].names:
            raise ValueError(f"{path}: no clip has a label, so data.classes must name the classes")
    named = [_resolve_labels(clip, lists) for clip in clips]
    sets = [
        LabelSet(name, each.names) for name, each in zip(set_names(classes), lists, strict=True)
    ]
    return LabelledClips(named, tuple(sets), dict(warnings))


def set_names(classes: Sequence[Path]) -> list[str]:
    """Return the names of label sets: of two, `verb` for `EPIC_100_verb_classes.csv`."""
    if len(classes) < 2:
        return [""]
    kinds = [next((k for k in epic.KINDS if k in file.stem.lower()), file.stem) for file in classes]
    if len(set(kinds)) < len(kinds):
        raise ValueError(f"data.classes: {classes[0]} and {classes[1]} are lists of the same")
    return kinds


def _resolve_labels(clip: LabelledClip, lists: Sequence[ClassList]) -> LabelledClip:
    """Return the clip with the names of its classes in place of their codes."""
    if not clip.labels:
        return clip
    labels = []
    for label, each in zip(clip.labels, lists, strict=True):
        name = label if label in each.names else each.codes.get(label, label)
        if name not in each.names:
            raise Refused(
                "unknown label",
                f"{clip.place}: label {label!r} is not in the class list"
                f"{did_you_mean(label, each.names)} Correct the label or the list.",
            )
        labels.append(name)
    return clip._replace(labels=tuple(labels))


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    files = [file for file in path.iterdir() if file.suffix.lower() in (".csv", ".json", ".txt")]
    return sorted(file for file in files if file.is_file() and not file.name.startswith("."))


def _read_files(path: Path, sets: int, warnings: Counter[str]) -> list[LabelledClip] | None:
    """Return the clips of the files whose layouts are for clips; None if none is."""
    found: list[LabelledClip] = []
    readers: dict[_Reader, Path] = {}
    for file in _files(path):
        content, reader = _choose_reader(file, sets)
        if reader is not None:
            readers.setdefault(reader, file)
            found += reader(content, file, sets, warnings)
    if len(readers) > 1:
        some = " and ".join(file.name for file in list(readers.values())[:2])
        raise ValueError(f"{path} has lists of several layouts, as {some}; name one of them")
    return found if readers else None


def _choose_reader(path: Path, sets: int) -> tuple[Any, _Reader | None]:
    suffix = path.suffix.lower()
    if suffix == ".json":
        content = read_json(path)
        is_list = isinstance(content, list) and not is_label_studio(content)
        return content, _read_something if is_list else None
    if suffix != ".csv":
        return None, None
    content = read_table(path)
    if content.columns >= KINETICS:
        return content, _read_kinetics
    if content.columns >= OWN:
        return content, _read_own
    if sets == 2 and content.columns >= epic.SEGMENTS:
        return content, _read_epic
    return None, None


def _read_own(table: CsvTable, path: Path, sets: int, warnings: Counter[str]) -> list[LabelledClip]:
    if sets == 2:
        raise ValueError(f"{path}: has one label a clip, but data.classes names two lists")
    clips = []
    for place, row in table.rows:
        name = get_cell(row, "video", place)
        if "subset" in row:
            subset = get_cell(row, "subset", place)
        else:
            subset = _choose_subset(subset_in(path.stem), name, warnings)
        label = (row["label"],) if row["label"] else ()
        span = _parse_span(row.get("start", ""), row.get("end", ""), place)
        clips.append(LabelledClip((name,), label, span, subset, place))
    return clips


def _read_kinetics(
    table: CsvTable, path: Path, sets: int, warnings: Counter[str]
) -> list[LabelledClip]:
    clips = []
    for place, row in table.rows:
        name, subset = get_cell(row, "youtube_id", place), row.get("split") or subset_in(path.stem)
        times = [as_number(row[key], key, place) for key in ("time_start", "time_end")]
        # As the public downloader names the clips that it cuts.
        cut = "_".join([name, *(f"{int(time):06d}" for time in times)])
        label = (row["label"],) if row["label"] else ()
        clips.append(
            LabelledClip((cut, name), label, None, _choose_subset(subset, name, warnings), place)
        )
    return clips


def _read_epic(
    table: CsvTable, path: Path, sets: int, warnings: Counter[str]
) -> list[LabelledClip]:
    clips = []
    labelled = table.columns >= {"verb_class", "noun_class"}
    for place, row in table.rows:
        name = get_cell(row, "video_id", place)
        columns = [f"{kind}_class" for kind in epic.KINDS] if labelled else []
        labels = tuple(get_cell(row, column, place) for column in columns)
        span = _parse_span(row["start_timestamp"], row["stop_timestamp"], place)
        subset = _choose_subset(subset_in(path.stem), name, warnings)
        clips.append(LabelledClip((name,), labels, span, subset, place))
    return clips


def _read_something(
    records: list[Any], path: Path, sets: int, warnings: Counter[str]
) -> list[LabelledClip]:
    """Read `[{"id": "1", "template": "Moving [something] up", …}]`."""
    clips = []
    subset = subset_in(path.stem)
    for position, entry in enumerate(records):
        place = f"{path}: entry {position}"
        named = isinstance(entry, dict) and isinstance(entry.get("id"), str | int)
        if not named or not str(entry["id"]).strip():
            raise ValueError(
                f"{place}: expected an object with the video's 'id', not {short_repr(entry)}."
            )
        key = "template" if "template" in entry else "label"
        # Test lists have none.
        label = (
            (re.sub(r"[\[\]]", "", get_field(entry, key, place, kind=str)),) if key in entry else ()
        )
        name = str(entry["id"])
        clips.append(
            LabelledClip((name,), label, None, _choose_subset(subset, name, warnings), place)
        )
    return clips


def _read_class_folders(folder: Path, warnings: Counter[str]) -> list[LabelledClip]:
    found = _read_classes_in(folder, None, warnings)
    for subset in sorted(each for each in folder.iterdir() if each.is_dir()):
        found += _read_classes_in(subset, subset.name, warnings)
    if not found:
        raise ValueError(
            f"{folder} holds no clips: neither <class>/<video> nor <subset>/<class>/<video>, and "
            "no CSV or JSON that lists them"
        )
    return found


def _read_classes_in(
    folder: Path, subset: str | None, warnings: Counter[str]
) -> list[LabelledClip]:
    clips = []
    for each in sorted(part for part in folder.iterdir() if part.is_dir()):
        for file in chain.from_iterable(files_by_name(each).values()):
            name = str(file.absolute())
            of = _choose_subset(subset, f"{each.name}/{file.stem}", warnings)
            clips.append(LabelledClip((name,), (each.name,), None, of, str(file)))
    return clips


def _read_segments(path: Path, classes: Path | None, warnings: Counter[str]) -> list[LabelledClip]:
    annotations = read_annotations(path, classes=classes)
    warnings.update(annotations.warnings)
    return [
        LabelledClip(
            (video.name,),
            (segment.label,),
            (segment.start_s, segment.end_s),
            video.subset,
            f"{path}: video {video.name!r}, entry {position}",
        )
        for video in annotations.videos.values()
        for position, segment in enumerate(video.segments)
    ]


def _choose_subset(given: str | None, name: str, warnings: Counter[str]) -> str:
    if given:
        return given
    warnings[BY_CHANCE] += 1
    return "test" if zlib.crc32(name.encode()) % TEST_SHARE == 0 else "training"


def _parse_span(start: str, end: str, place: str) -> tuple[float, float] | None:
    """Return the times of a row, which may have none."""
    if not start and not end:
        return None
    times = [
        as_number(parse_seconds(text), name, place)
        for name, text in (("start", start), ("end", end))
    ]
    if not 0 <= times[0] < times[1]:
        raise ValueError(f"{place}: the clip goes from {start} to {end}; write times in seconds.")
    return times[0], times[1]
