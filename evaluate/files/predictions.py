"""Prediction files in ActivityNet's layout ↔ typed detections."""

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from configs.atomic import write_text
from evaluate.annotations import Detection
from evaluate.datasets.fields import (
    as_number,
    as_segment,
    get_field,
    raise_problems,
    read_json,
    short_repr,
)
from evaluate.nms import NmsConfig, suppress


def read_predictions(path: Path) -> dict[str, list[Detection]]:
    """Read a prediction file in ActivityNet's layout, in file order.

    `{"results": {video: [{"segment": [start, end], "label": name, "score": number}]}}`; other
    members are ignored. Raises ValueError, naming file, video and entry, for everything malformed.
    """
    results = get_field(read_json(Path(path)), "results", f"{path}")
    problems: list[ValueError] = []
    found = {
        name: _detections(entries, f"{path}: video {name!r}", problems)
        for name, entries in results.items()
    }
    raise_problems(problems)
    return found


def write_predictions(path: Path, predictions: Mapping[str, Iterable[Detection]]) -> None:
    """Write a prediction file that `read_predictions` gives back with the same floats.

    The file appears whole or not at all: a crash or a NaN leaves an older file as it was.
    """
    results = {}
    for name, detections in predictions.items():
        results[name] = [
            _entry(detection, f"video {name!r}, entry {index}")
            for index, detection in enumerate(detections)
        ]
    text = json.dumps({"version": "VERSION 1.3", "results": results, "external_data": {}})
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)


def join_predictions(
    files: Sequence[Mapping[str, Sequence[Detection]]], nms: NmsConfig
) -> dict[str, list[Detection]]:
    """Return the segments of several files fused late: overlapping ones give way again."""
    fused: dict[str, list[Detection]] = {}
    for video in dict.fromkeys(name for found in files for name in found):
        every = [d for found in files for d in found.get(video, [])]
        labels = sorted({d.label for d in every})
        segments, scores, classes = suppress(
            np.array([(d.start_s, d.end_s) for d in every], np.float32).reshape(-1, 2),
            np.array([d.score for d in every], np.float32),
            np.array([labels.index(d.label) for d in every], np.int64),
            nms,
        )
        fused[video] = [
            Detection(labels[label], float(start), float(end), float(score))
            for (start, end), score, label in zip(segments, scores, classes, strict=True)
        ]
    return fused


def scoring_problems(
    found: Mapping[str, Iterable[Detection]],
    truth: Collection[str],
    classes: Collection[str],
    subset: str,
) -> list[str]:
    """Return what in predictions cannot score, in words: they may be of another dataset or subset.

    Args:
        truth: the videos of the subset; `classes`: those of the annotations.
    """
    problems = []
    videos = found.keys() - set(truth)
    if videos:
        problems.append(
            f"{len(videos)} of {len(found)} predicted videos are not in subset "
            f"'{subset}'; as in the public evaluation, their predictions count as false"
        )
    labels = {d.label for detections in found.values() for d in detections} - set(classes)
    if labels:
        names = ", ".join(sorted(labels)[:10])
        problems.append(f"labels that the annotations do not have: {names}")
    return problems


def _detections(entries: Any, where: str, problems: list[ValueError]) -> list[Detection]:
    """Return the detections of a video; what is malformed is added to the problems."""
    if not isinstance(entries, list):
        problems.append(ValueError(f"{where}: expected a list, not {short_repr(entries)}."))
        return []
    found = []
    for index, entry in enumerate(entries):
        try:
            found.append(_detection(entry, f"{where}, entry {index}"))
        except ValueError as error:
            problems.append(error)
    return found


def _detection(entry: Any, where: str) -> Detection:
    label = get_field(entry, "label", where, kind=str)
    start_s, end_s = as_segment(entry, where)
    return Detection(label, start_s, end_s, as_number(entry.get("score"), "score", where))


def _entry(detection: Detection, where: str) -> dict[str, Any]:
    # float() also turns numpy's scalars into what JSON can hold, without changing the value.
    entry = {
        "segment": [float(detection.start_s), float(detection.end_s)],
        "label": detection.label,
        "score": float(detection.score),
    }
    _detection(entry, where)
    return entry
