"""Ego4D's moments: `moments_train.json`, `moments_val.json`, `moments_test_unannotated.json`.

A file has videos, a video clips, a clip annotators, an annotator labels. As in ActionFormer and
OpenTAD each clip is a video of its own, named by its `clip_uid`; only labels of the primary
taxonomy count; clips without any, and clips whose frame rate is impossible, are left out.
"""

from typing import Any

from evaluate.datasets.fields import as_number, get_field
from evaluate.datasets.records import AnnotationSource, Dataset, Record

POSSIBLE_FPS = (10, 100)


def read_ego4d(content: dict[str, Any], source: AnnotationSource, dataset: Dataset) -> None:
    """Add the clips of a file; subsets are named by its `split`: train, val, test."""
    for i, video in enumerate(get_field(content, "videos", f"{source.path}", kind=list)):
        where = f"{source.path}: videos[{i}]"
        with dataset.collect():
            subset = get_field(video, "split", where, kind=str)
            for j, clip in enumerate(get_field(video, "clips", where, kind=list)):
                place = f"{where}, clips[{j}]"
                with dataset.collect():
                    name = get_field(clip, "clip_uid", place, kind=str)
                    _clip(clip, name, subset, f"{source.path}: clip {name!r}", dataset)


def _clip(clip: dict[str, Any], name: str, subset: str, where: str, dataset: Dataset) -> None:
    first_s, last_s, first, last = (
        as_number(clip.get(key), key, where)
        for key in ("video_start_sec", "video_end_sec", "video_start_frame", "video_end_frame")
    )
    start_s = max(first_s, 0)
    duration_s, frames = round(last_s - start_s, 6), int(last) - max(int(first), 0)
    if duration_s <= 0:
        raise ValueError(f"{where}: it ends at {last_s} s, not after its start {first_s} s.")
    if not POSSIBLE_FPS[0] <= frames / duration_s <= POSSIBLE_FPS[1]:
        dataset.warnings["clips with an impossible frame rate left out"] += 1
        return
    content = {"subset": subset, "duration": duration_s, "frame": frames, "annotations": []}
    record = Record(where, content)
    if "annotations" in clip:  # the test file has none
        _labels(clip, start_s, record, dataset)
        if not record.places:
            dataset.warnings["clips without a primary label left out"] += 1
            return
    dataset.whole_video(name, record)


def _labels(clip: dict[str, Any], start_s: float, record: Record, dataset: Dataset) -> None:
    for i, annotator in enumerate(get_field(clip, "annotations", record.where, kind=list)):
        where = f"{record.where}, annotations[{i}]"
        for j, label in enumerate(get_field(annotator, "labels", where, kind=list)):
            place = f"{where}, labels[{j}]"
            if not get_field(label, "primary", place, kind=bool):
                continue
            begin_s, end_s = (
                round(as_number(label.get(key), key, place) - start_s, 6)
                for key in ("video_start_time", "video_end_time")
            )
            if begin_s < 0 < end_s:
                dataset.warnings["segments clipped to the start of their clip"] += 1
                begin_s = 0.0
            record.add(get_field(label, "label", place, kind=str), begin_s, end_s, place)
