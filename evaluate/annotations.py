"""Dataset annotations: whatever layout on disk, typed and checked segments in memory."""

import csv
import io
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from evaluate.datasets.classes import ClassList, read_classes
from evaluate.datasets.fields import (
    Refused,
    as_int,
    as_positive,
    as_segment,
    did_you_mean,
    get_field,
    group_spelled_alike,
    raise_problems,
    read_text,
    short_repr,
    show_alike,
)
from evaluate.datasets.read import read_dataset
from evaluate.datasets.records import Record

ROUNDING_S = 1e-6  # a start so little below 0 is 0 that was calculated


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
    """One annotated video; `None` for values that only the video file has."""

    name: str
    subset: str
    duration_s: float | None
    frames: int | None
    fps: float | None
    segments: tuple[Segment, ...]


@dataclass(frozen=True)
class Annotations:
    """A whole annotation file: videos in file order, class names in index order.

    `warnings` counts tolerated entries, by a phrase for what was done with them.
    """

    videos: dict[str, Video]
    classes: tuple[str, ...]
    warnings: dict[str, int]


class _Info(NamedTuple):
    fps: float
    frames: int


ALIKE_LABELS = "labels that differ in case, blanks or Unicode form alone"
"""The phrase under which `Annotations.warnings` counts them; their names follow it."""


Notice = Callable[[str, int | None, str | ValueError], None]
"""Called with a video, the index of an entry in its list (None for the whole record) and the
problem: the phrase under which `Annotations.warnings` counts it, or the error that rejects it."""


FrameTimes = Callable[[Sequence[str]], Mapping[str, NDArray[np.float64] | ValueError]]
"""Called with names of videos; returns when each of their N frames begins and the last one ends, in
seconds [N + 1], or why their files cannot be read."""


def raise_problem(video: str, entry: int | None, problem: str | ValueError) -> None:
    """Raise an error and ignore everything tolerated: the default notice of `with_duration`."""
    if isinstance(problem, ValueError):
        raise problem


def read_annotations(
    path: Path,
    *,
    classes: Path | None = None,
    info_csv: Sequence[Path] = (),
    ignore_labels: Collection[str] = ("Ambiguous",),
    blocked: Collection[str] = (),
    notice: Notice | None = None,
    frame_times: FrameTimes | None = None,
    skip_unread: bool = False,
) -> Annotations:
    """Read a dataset's annotations: a file, or a folder with its published files.

    The layouts, recognised by their content, are those of evaluate/datasets: ActivityNet's JSON
    `{"database": {video: {"subset", "duration", "frame", "annotations": [{"segment": [start, end],
    "label": name}]}}}`, which HACS, FineAction and THUMOS-14 share, Ego4D's moments, text files of
    a class each, CSV tables of one's own, of AFSD, EPIC-Kitchens-100 and Charades, and what CVAT,
    Label Studio, VIA 3, ELAN and BORIS export.

    path: where a layout has no subsets, the names of the files and folders tell `training`,
        `validation` or `test`.
    classes: a file with one class name a line (`category_idx.txt`), or as datasets publish it;
        without it the classes are the sorted labels of the whole dataset, blocked videos included,
        so that blocking moves no index.
    info_csv: tables with columns `video`, `fps` and `count` (frames), for annotations without
        duration and frames; values in the annotations take precedence.
    ignore_labels: annotations with these labels are dropped and counted.
    blocked: videos to leave out; names that the dataset does not hold are fine.
    notice: called for everything tolerated or malformed; if it returns, the entry or the video is
        skipped and reading continues. By default all that is malformed is raised at the end.
    frame_times: of the videos' files, for tools that write times in frames without a frame rate.
    skip_unread: leave out, and count, videos whose times would need a file that cannot be read.

    Dropped and counted: exact duplicates within a video, segments of zero length, ignored labels.
    Raises ValueError, naming file and line, or video and entry, for everything malformed.
    """
    dataset = read_dataset(Path(path), Path(classes) if classes else None)
    records, problems = dataset.records, dataset.problems
    if notice is None:

        def collect(video: str, entry: int | None, problem: str | ValueError) -> None:
            if isinstance(problem, ValueError):
                problems.append(problem)

        notice = collect
    else:
        raise_problems(problems)
    if classes:
        class_list = read_classes(classes)
    else:
        class_list = ClassList(_labels(records.values(), ignore_labels), {})
    for alike in group_spelled_alike(class_list.names):
        names = ", ".join(show_alike(alike))
        what = f"{ALIKE_LABELS}: {names}"
        dataset.warnings[what] += len(alike)
    info = {name: row for table in info_csv for name, row in _read_info(table).items()}
    counted = [
        name
        for name, record in records.items()
        if name not in blocked and record.in_frames and not _tells_rate(record, info.get(name))
    ]
    clocks = frame_times(counted) if frame_times and counted else {}
    videos = {}
    for name, record in records.items():
        if name in blocked:
            continue
        if name in counted and skip_unread and isinstance(clocks.get(name), ValueError):
            dataset.warnings["videos left out, as times in frames need their files"] += 1
            continue
        if name in counted and record.steady:
            dataset.warnings["videos with Label Studio's frames read at their file's rate"] += 1
        try:
            _frames_to_seconds(record, info.get(name), clocks.get(name))
            videos[name] = _video(
                name, record, info.get(name), class_list, ignore_labels, dataset.warnings, notice
            )
        except ValueError as error:
            notice(name, None, error)
    raise_problems(problems)
    return Annotations(videos, class_list.names, dict(dataset.warnings))


def select_videos(annotations: Annotations, subset: str) -> list[Video]:
    """Return the videos of one subset, in file order; the name must match exactly."""
    videos = [video for video in annotations.videos.values() if video.subset == subset]
    if not videos:
        subsets = sorted({video.subset for video in annotations.videos.values()})
        raise ValueError(
            f"no video is in subset {subset!r}; the annotations have {', '.join(subsets) or 'none'}"
            f"{did_you_mean(subset, subsets)}"
        )
    return videos


def with_duration(
    video: Video, duration_s: float, warnings: Counter[str], notice: Notice = raise_problem
) -> Video:
    """Complete a video whose duration the annotations lack, and check its segments.

    Raises ValueError for a segment far outside the video; adds to `warnings` what is tolerated.
    `notice` as for `read_annotations`; entries are counted among those that were kept.
    """
    segments = []
    for index, segment in enumerate(video.segments):
        tolerated = Counter[str]()
        try:
            where = f"video {video.name!r}, entry {index}"
            segments.append(_within(segment, duration_s, tolerated, where))
        except ValueError as error:
            notice(video.name, index, error)
        _notify(notice, video.name, index, tolerated, warnings)
    return replace(video, duration_s=duration_s, segments=tuple(segments))


def _video(
    name: str,
    record: Record,
    info: _Info | None,
    classes: ClassList,
    ignore_labels: Collection[str],
    warnings: Counter[str],
    notice: Notice,
) -> Video:
    subset = get_field(record.content, "subset", record.where, kind=str)
    duration_s, frames, fps = _video_measures(record.content, info, record.where)
    names, segments = dict.fromkeys(classes.names), dict[Segment, None]()
    for index, (place, entry) in enumerate(_annotated_entries(record)):
        tolerated = Counter[str]()
        try:
            segment = _segment(
                entry, place, duration_s, names, classes.codes, ignore_labels, tolerated
            )
        except ValueError as error:
            notice(name, index, error)
            continue
        if segment in segments:
            tolerated["exact duplicates dropped"] += 1
        if segment is not None:
            segments[segment] = None
        _notify(notice, name, index, tolerated, warnings)
    return Video(name, subset, duration_s, frames, fps, tuple(segments))


def _annotated_entries(record: Record) -> Iterable[tuple[str, Any]]:
    """Return the annotations of a video, each with its place for messages."""
    # Test subsets are published without labels, then without the list as well.
    entries = record.content.get("annotations", [])
    if not isinstance(entries, list):
        raise ValueError(f"{record.where}: expected a list, not {short_repr(entries)}.")
    places = record.places or [f"{record.where}, entry {index}" for index in range(len(entries))]
    return zip(places, entries, strict=True)


def _segment(
    entry: Any,
    place: str,
    duration_s: float | None,
    classes: Collection[str],
    codes: Mapping[str, str],
    ignore_labels: Collection[str],
    warnings: Counter[str],
) -> Segment | None:
    """Return the segment of an entry; None if it is dropped."""
    label = get_field(entry, "label", place, kind=str)
    if not label.strip():
        raise ValueError(f"{place}: 'label' is empty; fill it in, or remove the entry.")
    if label in ignore_labels:
        warnings[f"{label!r} annotations dropped"] += 1
        return None
    label = label if label in classes else codes.get(label, label)
    if label not in classes:
        raise Refused(
            "unknown label",
            f"{place}: label {label!r} is not in the class list"
            f"{did_you_mean(label, classes)} Correct the label or the list.",
        )
    start_s, end_s = as_segment(entry, place)
    if -ROUNDING_S <= start_s < 0:
        start_s, end_s = 0.0, max(end_s, 0.0)
    if start_s < 0:
        text = f"{place}: the segment starts at {start_s} s, before the video does."
        raise Refused("outside the video", text)
    if start_s == end_s:
        warnings["segments of zero length dropped"] += 1
        return None
    segment = Segment(label, start_s, end_s)
    return segment if duration_s is None else _within(segment, duration_s, warnings, place)


def _notify(
    notice: Notice, video: str, entry: int, tolerated: Counter[str], warnings: Counter[str]
) -> None:
    for what in tolerated:
        notice(video, entry, what)
    warnings += tolerated


def _within(segment: Segment, duration_s: float, warnings: Counter[str], where: str) -> Segment:
    beyond = segment.end_s > duration_s
    return _clip_or_keep(segment, duration_s, warnings, where) if beyond else segment


def _clip_or_keep(
    segment: Segment, duration_s: float, warnings: Counter[str], where: str
) -> Segment:
    """Return a segment that ends after the video, clipped or as it is, and count which.

    A little (1 s or 2 %) is rounding or another container's idea of the duration: clipped. More is
    a wrong annotation, yet THUMOS-14 lists eight wholly outside their videos, and the public
    evaluation code scores every listed action, found or not; without them results would be a
    little higher and compare with nothing. So they stay as they are. The worst ends at 1.9 times
    the duration; beyond twice the duration the times are in another unit (frames, milliseconds).
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


def _video_measures(
    record: dict[str, Any], info: _Info | None, where: str
) -> tuple[float | None, int | None, float | None]:
    """Return duration in seconds, frames and frames per second, as far as they are given."""
    duration_s, count, fps = (
        None if record.get(key) is None else as_positive(record[key], key, where)
        for key in ("duration", "frame", "fps")
    )
    frames = None if count is None else as_int(count, "frame", where)
    if info is not None:
        fps = fps or info.fps
        frames = frames or info.frames
        duration_s = duration_s or info.frames / info.fps
    if fps is None and frames is not None and duration_s is not None:
        fps = frames / duration_s
    return duration_s, frames, fps


def _tells_rate(record: Record, info: _Info | None) -> bool:
    """Return whether the annotations or a table tell the frame rate, even a wrong one."""
    return info is not None or bool({"fps", "frame"} & record.content.keys())


def _frames_to_seconds(
    record: Record, info: _Info | None, clock: NDArray[np.float64] | ValueError | None
) -> None:
    """Give the annotations that are in frames their times in seconds."""
    if not record.in_frames:
        return
    fps = _video_measures(record.content, info, record.where)[2]
    for entry in record.in_frames:
        if isinstance(clock, ValueError):
            raise ValueError(f"{record.where}: times are in frames, and {clock}")
        if fps is None and clock is None:
            raise ValueError(
                f"{record.where}: times are in frames, and nothing tells the frame rate; bring the "
                "video's file under data.videos, or its rate in a table under data.info_csv."
            )
        entry["segment"] = [_frame_time(frame, record, fps, clock) for frame in entry["frames"]]


def _frame_time(
    frame: float, record: Record, fps: float | None, clock: NDArray[np.float64] | None
) -> float:
    if clock is None:
        assert fps is not None
        return round(frame / fps, 6)
    last = len(clock) - 1
    if record.steady or not 0 <= frame <= last:
        return round(frame * float(clock[-1]) / last, 6)
    return round(float(np.interp(frame, np.arange(last + 1), clock)), 6)


def _labels(records: Iterable[Record], ignore_labels: Collection[str]) -> tuple[str, ...]:
    """Return the sorted labels, blocked videos included; malformed records are ignored here."""
    contents = [record.content for record in records if isinstance(record.content, dict)]
    lists = [content.get("annotations") for content in contents]
    entries = [entry for each in lists if isinstance(each, list) for entry in each]
    labels = [entry.get("label") for entry in entries if isinstance(entry, dict)]
    return tuple(sorted({x for x in labels if isinstance(x, str)} - set(ignore_labels)))


def _read_info(path: Path) -> dict[str, _Info]:
    table = csv.DictReader(io.StringIO(read_text(Path(path)), newline=""))
    rows = {}
    try:
        missing = {"video", "fps", "count"} - set(table.fieldnames or ())
        if missing:
            raise ValueError(
                f"{path}: column {', '.join(sorted(missing))} is missing; "
                f"a video-info table needs video, fps and count (frames)."
            )
        for row in table:
            where = f"{path}: line {table.line_num}"
            fps, count = (as_positive(row[key], key, where) for key in ("fps", "count"))
            rows[row["video"]] = _Info(fps, as_int(count, "count", where))
    except csv.Error as error:
        raise ValueError(
            f"{path} is not a CSV table ({error}); export or copy it again."
        ) from error
    return rows
