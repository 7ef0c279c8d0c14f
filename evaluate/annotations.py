"""Dataset annotations and prediction files: JSON on disk, typed segments in memory."""

import csv
import difflib
import json
import math
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple


class Segment(NamedTuple):
    """One annotated action; times in seconds from the first frame."""

    label: str
    start_s: float
    end_s: float


class Detection(NamedTuple):
    """One predicted action; times in seconds from the first frame, higher score = surer."""

    label: str
    start_s: float
    end_s: float
    score: float


@dataclass(frozen=True)
class Video:
    """One annotated video; `None` stands for what only the video file itself can tell."""

    name: str
    subset: str
    duration_s: float | None
    frames: int | None
    fps: float | None
    segments: tuple[Segment, ...]


@dataclass(frozen=True)
class Annotations:
    """A whole annotation file: videos in file order, class names in index order.

    `warnings` counts what was tolerated, by a phrase that says what happened to it.
    """

    videos: dict[str, Video]
    classes: tuple[str, ...]
    warnings: dict[str, int]


class _Info(NamedTuple):
    fps: float
    frames: int


class Refused(ValueError):
    """An entry that cannot be used; `kind` says why in a few words, `end_s` where it ends."""

    def __init__(self, kind: str, text: str, end_s: float | None = None) -> None:
        super().__init__(text)
        self.kind, self.end_s = kind, end_s


Notice = Callable[[str, int | None, str | ValueError], None]
"""Is told of a video, an entry of its list (None: the record as a whole) and what is wrong there:
the phrase that `Annotations.warnings` counts it by, or the error that refuses it."""


def stop(video: str, entry: int | None, problem: str | ValueError) -> None:
    """The notice of those who need good annotations: the first error ends the reading."""
    if isinstance(problem, ValueError):
        raise problem


def read_annotations(
    path: Path,
    *,
    classes: Path | None = None,
    info_csv: Sequence[Path] = (),
    ignore_labels: Collection[str] = ("Ambiguous",),
    blocked: Collection[str] = (),
    notice: Notice = stop,
) -> Annotations:
    """Read `{"database": {video: {"subset", "duration", "frame", "annotations": [...]}}}`.

    This is the layout of ActivityNet and of THUMOS-14 as its users pass it around; an annotation
    is `{"segment": [start, end], "label": name}` with times in seconds, as numbers or as strings.

    classes: a file with one class name a line (`category_idx.txt`); without it the classes are the
        sorted labels of the whole file, blocked videos included, so that blocking moves no index.
    info_csv: tables with columns `video`, `fps` and `count` (frames), for files without "duration"
        and "frame"; what the JSON says itself has precedence.
    ignore_labels: annotations with these labels are dropped and counted.
    blocked: videos to leave out; names that the file does not hold are fine.
    notice: is told of everything tolerated or malformed; where it returns, the entry or the video
        is left out and reading goes on.

    Dropped and counted: exact duplicates within a video, segments of zero length, ignored labels.
    Raises ValueError, naming file, video and entry, for everything malformed.
    """
    database = _member(_load(path), "database", f"{path}")
    names = read_classes(classes) if classes else _labels(database, ignore_labels)
    info = {name: row for table in info_csv for name, row in _read_info(table).items()}
    warnings: Counter[str] = Counter()
    videos = {}
    for name, record in database.items():
        if name in blocked:
            continue
        try:
            videos[name] = _video(
                name, record, info.get(name), names, ignore_labels, warnings, path, notice
            )
        except ValueError as error:
            notice(name, None, error)
    return Annotations(videos, names, dict(warnings))


def select(annotations: Annotations, subset: str) -> list[Video]:
    """The videos of one subset, in file order; the name must match exactly."""
    videos = [video for video in annotations.videos.values() if video.subset == subset]
    if not videos:
        subsets = sorted({video.subset for video in annotations.videos.values()})
        raise ValueError(
            f"no video is in subset {subset!r}; the annotations have {', '.join(subsets) or 'none'}"
            f"{_did_you_mean(subset, subsets)}"
        )
    return videos


def with_duration(
    video: Video, duration_s: float, warnings: Counter[str], notice: Notice = stop
) -> Video:
    """Complete a video whose duration the annotations do not know, and check its segments.

    Raises ValueError for a segment far outside the video; adds to `warnings` what is tolerated.
    `notice` as for `read_annotations`; entries are counted among those that were kept.
    """
    segments = []
    for index, segment in enumerate(video.segments):
        met = Counter[str]()
        try:
            where = f"video {video.name!r}, entry {index}"
            segments.append(_within(segment, duration_s, met, where))
        except ValueError as error:
            notice(video.name, index, error)
        _tell(notice, video.name, index, met, warnings)
    return replace(video, duration_s=duration_s, segments=tuple(segments))


def read_predictions(path: Path) -> dict[str, list[Detection]]:
    """Read a prediction file in ActivityNet's layout, in file order.

    `{"results": {video: [{"segment": [start, end], "label": name, "score": number}]}}`; other
    members are ignored. Raises ValueError, naming file, video and entry, for everything malformed.
    """
    results = _member(_load(path), "results", f"{path}")
    return {
        name: [_detection(entry, where) for where, entry in _entries(entries, name, path)]
        for name, entries in results.items()
    }


def write_predictions(path: Path, predictions: Mapping[str, Iterable[Detection]]) -> None:
    """Write a prediction file that `read_predictions` gives back with the same floats.

    The file appears whole or not at all: a crash or a NaN leaves an older file as it was.
    """
    results = {}
    for name, detections in predictions.items():
        results[name] = [
            _detection_entry(detection, f"video {name!r}, entry {index}")
            for index, detection in enumerate(detections)
        ]
    text = json.dumps({"version": "VERSION 1.3", "results": results, "external_data": {}})
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        aside.write_text(text, encoding="utf-8")
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def _video(
    name: str,
    record: Any,
    info: _Info | None,
    classes: tuple[str, ...],
    ignore_labels: Collection[str],
    warnings: Counter[str],
    path: Path,
    notice: Notice,
) -> Video:
    where = f"{path}: video {name!r}"
    subset = _member(record, "subset", where, kind=str)
    duration_s, frames, fps = _measures(record, info, where)
    # Test subsets are published without labels, then without the list as well.
    entries = record.get("annotations", [])
    known, segments = dict.fromkeys(classes), dict[Segment, None]()
    for index, (place, entry) in enumerate(_entries(entries, name, path)):
        met = Counter[str]()
        try:
            segment = _segment(entry, place, duration_s, known, ignore_labels, met)
        except ValueError as error:
            notice(name, index, error)
            continue
        if segment in segments:
            met["exact duplicates dropped"] += 1
        if segment is not None:
            segments[segment] = None
        _tell(notice, name, index, met, warnings)
    return Video(name, subset, duration_s, frames, fps, tuple(segments))


def _segment(
    entry: Any,
    place: str,
    duration_s: float | None,
    known: Collection[str],
    ignore_labels: Collection[str],
    warnings: Counter[str],
) -> Segment | None:
    """What an entry says; None for those that are dropped."""
    label = _member(entry, "label", place, kind=str)
    if label in ignore_labels:
        warnings[f"{label!r} annotations dropped"] += 1
        return None
    if label not in known:
        raise Refused(
            "unknown label",
            f"{place}: label {label!r} is not in the class list"
            f"{_did_you_mean(label, known)} Correct the label or the list.",
        )
    start_s, end_s = _times(entry, place)
    if start_s < 0:
        text = f"{place}: the segment starts at {start_s} s, before the video does."
        raise Refused("outside the video", text)
    if start_s == end_s:
        warnings["segments of zero length dropped"] += 1
        return None
    segment = Segment(label, start_s, end_s)
    return segment if duration_s is None else _within(segment, duration_s, warnings, place)


def _tell(
    notice: Notice, video: str, entry: int, met: Counter[str], warnings: Counter[str]
) -> None:
    for what in met:
        notice(video, entry, what)
    warnings += met


def _within(segment: Segment, duration_s: float, warnings: Counter[str], where: str) -> Segment:
    beyond = segment.end_s > duration_s
    return _beyond(segment, duration_s, warnings, where) if beyond else segment


def _beyond(segment: Segment, duration_s: float, warnings: Counter[str], where: str) -> Segment:
    """What becomes of a segment that ends behind the video's end.

    A little (1 s or 2 %) is rounding or another container's idea of the duration: clipped. More is
    a wrong annotation, yet THUMOS-14 lists eight wholly outside their videos, and the public
    evaluation code scores every listed action, found or not; without them results would be a
    little higher and compare with nothing. So they stay as they are. The worst ends at 1.9 times
    the duration; behind twice the duration the times are in another unit (frames, milliseconds).
    """
    if segment.end_s > 2 * duration_s and segment.end_s > duration_s + 1:
        raise Refused(
            "outside the video",
            f"{where}: the segment [{segment.start_s}, {segment.end_s}] s is far outside the video "
            f"of {duration_s:.3f} s. Are the times in seconds? Correct it, or block the video.",
            segment.end_s,
        )
    if segment.start_s < duration_s and segment.end_s - duration_s <= max(1, 0.02 * duration_s):
        warnings["segments clipped to the end of their video"] += 1
        return segment._replace(end_s=duration_s)
    warnings["segments kept though outside their video"] += 1
    return segment


def _measures(
    record: dict[str, Any], info: _Info | None, where: str
) -> tuple[float | None, int | None, float | None]:
    """(duration in seconds, frames, frames per second), as far as JSON and table know them."""
    duration_s, count, fps = (
        None if record.get(key) is None else _positive(record[key], key, where)
        for key in ("duration", "frame", "fps")
    )
    frames = None if count is None else _whole(count, "frame", where)
    if info is not None:
        fps = fps or info.fps
        frames = frames or info.frames
        duration_s = duration_s or info.frames / info.fps
    if fps is None and frames is not None and duration_s is not None:
        fps = frames / duration_s
    return duration_s, frames, fps


def _detection(entry: Any, where: str) -> Detection:
    label = _member(entry, "label", where, kind=str)
    start_s, end_s = _times(entry, where)
    return Detection(label, start_s, end_s, _number(entry.get("score"), "score", where))


def _detection_entry(detection: Detection, where: str) -> dict[str, Any]:
    # float() also turns numpy's scalars into what JSON can hold, without changing the value.
    entry = {
        "segment": [float(detection.start_s), float(detection.end_s)],
        "label": detection.label,
        "score": float(detection.score),
    }
    _detection(entry, where)
    return entry


def _labels(database: dict[str, Any], ignore_labels: Collection[str]) -> tuple[str, ...]:
    """Sorted labels, blocked videos included; malformed records are left to who reads them."""
    records = [record for record in database.values() if isinstance(record, dict)]
    lists = [record.get("annotations") for record in records]
    entries = [entry for each in lists if isinstance(each, list) for entry in each]
    labels = [entry.get("label") for entry in entries if isinstance(entry, dict)]
    return tuple(sorted({x for x in labels if isinstance(x, str)} - set(ignore_labels)))


def read_classes(path: Path) -> tuple[str, ...]:
    """Return the class names of a file with one a line.

    Raises:
        ValueError: it names none, or one twice.
    """
    lines = [line.strip() for line in Path(path).read_text(encoding="utf-8-sig").splitlines()]
    names = tuple(line for line in lines if line)
    twice = [name for name, count in Counter(names).items() if count > 1]
    if not names or twice:
        problem = f"class {twice[0]!r} stands there twice" if twice else "the file names no class"
        raise ValueError(f"{path}: {problem}; write one class name a line, in index order.")
    return names


def _read_info(path: Path) -> dict[str, _Info]:
    with open(path, encoding="utf-8-sig", newline="") as file:
        table = csv.DictReader(file)
        missing = {"video", "fps", "count"} - set(table.fieldnames or ())
        if missing:
            raise ValueError(
                f"{path}: column {', '.join(sorted(missing))} is missing; "
                f"a video-info table needs video, fps and count (frames)."
            )
        rows = {}
        for row in table:
            where = f"{path}: line {table.line_num}"
            fps, count = (_positive(row[key], key, where) for key in ("fps", "count"))
            rows[row["video"]] = _Info(fps, _whole(count, "count", where))
    return rows


def _load(path: Path) -> Any:
    if not Path(path).is_file():
        raise ValueError(f"there is no file {path}; check its path.")
    try:
        return json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:  # covers bad JSON and bad UTF-8
        raise ValueError(f"{path} is not valid JSON ({error}); export or copy it again.") from error


_KINDS: dict[type, str] = {dict: "an object", list: "a list", str: "a text"}


def _member(record: Any, key: str, where: str, kind: type = dict) -> Any:
    if not isinstance(record, dict):
        raise ValueError(f"{where}: expected an object with {key!r}, not {record!r:.60}.")
    if key not in record:
        raise ValueError(f"{where}: {key!r} is missing; it must be {_KINDS[kind]}.")
    if not isinstance(record[key], kind):
        raise ValueError(f"{where}: {key!r} must be {_KINDS[kind]}, not {record[key]!r:.60}.")
    return record[key]


def _entries(entries: Any, name: str, path: Path) -> Iterable[tuple[str, Any]]:
    if not isinstance(entries, list):
        raise ValueError(f"{path}: video {name!r}: expected a list, not {entries!r:.60}.")
    return ((f"{path}: video {name!r}, entry {i}", entry) for i, entry in enumerate(entries))


def _times(entry: dict[str, Any], where: str) -> tuple[float, float]:
    pair = _member(entry, "segment", where, kind=list)
    if len(pair) != 2:
        raise ValueError(f"{where}: 'segment' must be [start, end] in seconds, not {pair!r:.60}.")
    start_s, end_s = (_number(value, "segment", where) for value in pair)
    if end_s < start_s:
        text = f"{where}: the segment ends at {end_s} s, before its start {start_s} s."
        raise Refused("reversed segment", text)
    return start_s, end_s


def _positive(value: Any, what: str, where: str) -> float:
    number = _number(value, what, where)
    if number <= 0:
        raise ValueError(f"{where}: {what} must be above 0, not {number}.")
    return number


def _whole(number: float, what: str, where: str) -> int:
    if not number.is_integer():
        raise ValueError(f"{where}: {what} must be a whole number of frames, not {number}.")
    return int(number)


def _number(value: Any, what: str, where: str) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{where}: {what} must be a finite number, not {value!r:.60}.")
    return number


def _did_you_mean(name: str, names: Collection[str]) -> str:
    nearest = difflib.get_close_matches(name, names, n=1, cutoff=0)
    return f"; did you mean {nearest[0]!r}?" if nearest else "."
