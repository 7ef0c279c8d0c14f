"""CVAT's "CVAT for video 1.1", and "CVAT for images 1.1" of a video task, for its tags.

https://docs.cvat.ai/docs/other/xml_format and, for what the numbers of frames are,
https://github.com/cvat-ai/cvat/blob/develop/cvat/apps/dataset_manager/bindings.py

A track is an action, from its first visible shape to where it is outside; so is a tag that
consecutive frames have. Frames are those of the video, counted from 0, also where a task has every
fifth frame. The file does not say how long one lasts.
"""

from itertools import groupby
from xml.etree.ElementTree import Element

from evaluate.datasets.fields import as_int, as_number
from evaluate.datasets.records import AnnotationSource, Dataset, Record
from evaluate.datasets.tools.safe_xml import get_attribute

ROOT = "annotations"


def read_cvat(root: Element, source: AnnotationSource, dataset: Dataset) -> None:
    """Add the video of a task or job, or all those of a project."""
    meta = root.find("meta")
    tasks = [] if meta is None else [*meta.iter("task"), *meta.iter("job")]
    if not tasks:
        raise ValueError(f"{source.path}: 'meta' describes no task; export it from CVAT again.")
    records = {}
    for task in tasks:
        with dataset.collect():
            identity = task.findtext("id", "").strip()
            # The file's name stands in the task or, of older versions, beside it.
            texts = [task.findtext("source")]
            if meta is not None and len(tasks) == 1:
                texts.append(meta.findtext("source"))
            file = next((text.strip() for text in texts if text and text.strip()), None)
            records[identity] = _add_video(task, file, source, dataset), _frame_step(task)
    tags: dict[tuple[str, str], list[int]] = {}
    for index, track in enumerate(root.findall("track")):
        with dataset.collect():
            place = f"{source.path}: track {track.get('id', index)}"
            record, step = _record_of(track, records, place)
            label = get_attribute(track, "label", place)
            for first, end in _visible(track, step, place):
                record.add_frames(label, first, end, place)
    for image in root.findall("image"):
        for tag in image.findall("tag"):
            with dataset.collect():
                _note_tag(tag, image, image.get("id"), tags, source)
        if any(child.tag != "tag" for child in image):
            dataset.warnings["CVAT's shapes on single images left out"] += 1
    for tag in root.findall("tag"):
        with dataset.collect():
            _note_tag(tag, tag, tag.get("frame"), tags, source)
    for (task_id, label), frames in tags.items():
        with dataset.collect():
            place = f"{source.path}: tag {label!r}"
            record, step = _record_of(Element("tag", task_id=task_id), records, place)
            for first, end in _runs(sorted(set(frames)), step):
                record.add_frames(label, first, end, place)


def _add_video(
    task: Element, file: str | None, source: AnnotationSource, dataset: Dataset
) -> Record:
    where = f"{source.path}: {task.tag} {task.findtext('id', '?')}"
    given = file or task.findtext("name", "").strip()
    if not given:
        raise ValueError(f"{where}: neither 'source' nor 'name' gives its video.")
    if not file:
        dataset.warnings["CVAT tasks without a source, whose video is named as they are"] += 1
    name = dataset.name_of_file(given, where)
    subset = task.findtext("subset", "").strip() or dataset.choose_subset(name, source)
    record = Record(f"{source.path}: video {name!r}", {"subset": subset, "annotations": []})
    dataset.whole_video(name, record)
    return record


def _frame_step(task: Element) -> int:
    """Return how many frames of the video there are to one of the task: `step=5`."""
    _, _, step = task.findtext("frame_filter", "").partition("step=")
    return int(step) if step.strip().isdecimal() and int(step) else 1


def _record_of(
    element: Element, records: dict[str, tuple[Record, int]], place: str
) -> tuple[Record, int]:
    """Return the video that an element of the file is about, with its step."""
    task = element.get("task_id") or ""
    if task in records:
        return records[task]
    if len(records) != 1 or task:
        raise ValueError(f"{place}: it belongs to task {task!r}, which 'meta' does not describe.")
    return next(iter(records.values()))


def _visible(track: Element, step: int, place: str) -> list[tuple[int, int]]:
    """Return from which to before which frames a track is visible."""
    shapes = sorted((_frame(shape.get("frame"), place), _is_outside(shape)) for shape in track)
    spans = []
    for outside, shown in groupby(shapes, key=lambda shape: shape[1]):
        frames = [frame for frame, _ in shown]
        if not outside:
            spans.append((frames[0], frames[-1] + step))
        elif spans:
            spans[-1] = spans[-1][0], frames[0]
    return spans


def _is_outside(shape: Element) -> bool:
    if shape.tag == "skeleton":
        return all(point.get("outside") == "1" for point in shape)
    return shape.get("outside") == "1"


def _note_tag(
    tag: Element,
    owner: Element,
    frame: str | None,
    tags: dict[tuple[str, str], list[int]],
    source: AnnotationSource,
) -> None:
    place = f"{source.path}: tag on frame {frame}"
    key = owner.get("task_id") or "", get_attribute(tag, "label", place)
    tags.setdefault(key, []).append(_frame(frame, place))


def _frame(text: str | None, place: str) -> int:
    return as_int(as_number(text, "frame", place), "frame", place)


def _runs(frames: list[int], step: int) -> list[tuple[int, int]]:
    spans: list[tuple[int, int]] = []
    for frame in frames:
        if spans and frame <= spans[-1][1]:
            spans[-1] = spans[-1][0], frame + step
        else:
            spans.append((frame, frame + step))
    return spans
