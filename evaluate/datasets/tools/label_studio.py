"""Label Studio's exports as JSON and as JSON-MIN.

https://labelstud.io/guide/export.html; times in frames: https://labelstud.io/tags/timelinelabels.html
and, for their rate, https://labelstud.io/tags/video.html; in seconds:
https://labelstud.io/tags/labels.html; how frames count, in utils/converter.py of
https://github.com/HumanSignal/label-studio-ml-backend/tree/master/label_studio_ml/examples/yolo

A range of frames `{"start": 3, "end": 5}` counts from 1 and includes both. Its frames are those of
the labelling config's `frameRate`, 24 a second if it says nothing, whatever the video has. A task
that tells it in its data (`frameRate="$fps"`) is read so; otherwise a table of frame rates counts,
then the video's own rate, which is noted.
"""

from typing import Any
from urllib.parse import unquote

from evaluate.datasets.fields import as_number, get_field
from evaluate.datasets.records import AnnotationSource, Dataset, Record
from evaluate.datasets.tools.addresses import path_of

RATES = ("fps", "frame_rate", "frameRate", "framerate")
MEDIA = ("video", "video_url", "url")


def is_label_studio(content: Any) -> bool:
    """Return whether JSON is a list of tasks, as exported or for import."""
    return (
        isinstance(content, list)
        and bool(content)
        and all(isinstance(task, dict) for task in content)
        and any(_is_task(task) or _is_minimal(task) for task in content)
    )


def _is_task(task: dict[str, Any]) -> bool:
    return isinstance(task.get("data"), dict) and bool(
        {"annotations", "completions", "predictions"} & task.keys()
    )


def _is_minimal(task: dict[str, Any]) -> bool:
    lists = [value for value in task.values() if isinstance(value, list)]
    regions = [region for each in lists for region in each if isinstance(region, dict)]
    return bool({"annotation_id", "annotator", "lead_time"} & task.keys()) or any(
        "timelinelabels" in region for region in regions
    )


def read_label_studio(
    content: list[dict[str, Any]], source: AnnotationSource, dataset: Dataset
) -> None:
    """Add the videos of all tasks; those that nobody has annotated yet are left out and counted."""
    # Files for import have predictions alone; in exports they stand beside annotations.
    guessed = not any("annotations" in task or "completions" in task for task in content)
    for index, task in enumerate(content):
        with dataset.collect():
            place = f"{source.path}: task {task.get('id', index)}"
            if not _is_task(task):
                _add_minimal(task, place, source, dataset)
                continue
            members = ("predictions",) if guessed else ("annotations", "completions")
            results = [
                (kind, each)
                for kind in members
                for each in (get_field(task, kind, place, list) if kind in task else [])
            ]
            _add_task(task, results, place, source, dataset)


def _add_task(
    task: dict[str, Any],
    results: list[tuple[str, Any]],
    place: str,
    source: AnnotationSource,
    dataset: Dataset,
) -> None:
    done = [each for _, each in results if not _flag(each, "was_cancelled")]
    if len(done) > 1:
        done = [each for each in done if _flag(each, "ground_truth")] or done
    if not done:
        dataset.warnings["tasks that nobody has annotated left out"] += 1
        return
    if len(done) > 1:
        raise ValueError(
            f"{place}: it has been annotated {len(done)} times; mark one annotation as ground "
            "truth in Label Studio, or export one."
        )
    record = _add_video(task["data"], place, source, dataset)
    for number, result in enumerate(get_field(done[0], "result", place, kind=list)):
        with dataset.collect():
            where = f"{place}, result {number}"
            _add_region(get_field(result, "value", where), record, where, dataset)
    if any(kind == "predictions" for kind, _ in results):
        dataset.warnings["videos whose Label Studio predictions are read, as nothing else is"] += 1


def _flag(annotation: Any, key: str) -> bool:
    return isinstance(annotation, dict) and annotation.get(key) is True


def _add_minimal(
    task: dict[str, Any], place: str, source: AnnotationSource, dataset: Dataset
) -> None:
    """Add JSON-MIN's `{"video": …, "label": [{"ranges": …, "timelinelabels": …}], …}`."""
    record = _add_video(task, place, source, dataset)
    for name, regions in task.items():
        for number, region in enumerate(regions if isinstance(regions, list) else ()):
            if isinstance(region, dict):
                with dataset.collect():
                    _add_region(region, record, f"{place}, {name}[{number}]", dataset)


def _add_video(
    data: dict[str, Any], place: str, source: AnnotationSource, dataset: Dataset
) -> Record:
    texts = {key: value for key, value in data.items() if isinstance(value, str) and value}
    media = [texts[key] for key in MEDIA if key in texts][:1]
    if not media:
        files = {value for value in texts.values() if "." in value.rpartition("/")[2]}
        media = list(files) if len(files) == 1 else []
    if not media:
        raise ValueError(f"{place}: its data do not tell which video it is; call it 'video'.")
    name = dataset.name_of_file(media_file(media[0]), place)
    content: dict[str, Any] = {"subset": dataset.choose_subset(name, source), "annotations": []}
    rates = [data[key] for key in RATES if data.get(key) is not None]
    if rates:
        content["fps"] = rates[0]
    record = Record(f"{place}, video {name!r}", content, steady=True)
    dataset.whole_video(name, record)
    return record


def media_file(address: str) -> str:
    """Return the file of a task's address: uploaded, served from a local folder, or of a URL."""
    folder, slash, file = path_of(address).rpartition("/")
    mark, dash, rest = file.partition("-")
    # Label Studio puts eight digits before the names of uploaded files; its addresses are URLs'.
    if "upload" in folder.split("/") and dash and rest and len(mark) == 8 and _is_hex(mark):
        file = unquote(rest)
    return folder + slash + file


def _is_hex(text: str) -> bool:
    return all(letter in "0123456789abcdef" for letter in text)


def _add_region(value: dict[str, Any], record: Record, place: str, dataset: Dataset) -> None:
    labels = [
        label
        for key, listed in value.items()
        if key.endswith("labels") and isinstance(listed, list)
        for label in listed
    ]
    if "ranges" in value:
        for span in get_field(value, "ranges", place, kind=list):
            get_field({"range": span}, "range", place)
            first, last = (as_number(span.get(key), key, place) for key in ("start", "end"))
            for label in labels:
                record.add_frames(label, first - 1, last, place)
    elif "start" in value and "end" in value:
        for label in labels:
            record.add(label, value["start"], value["end"], place)
    else:
        dataset.warnings["Label Studio results without a beginning and end left out"] += 1
        return
    if not labels:
        dataset.warnings["Label Studio regions without a label left out"] += 1
