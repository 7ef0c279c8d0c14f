"""What annotations say of videos: read for a run, and put on the timeline of a video's file."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from evaluate.annotations import Annotations, Notice, Video, read_annotations, with_duration
from evaluate.datasets.fields import NearFiles, Refused
from extract.video.files import files_by_name
from extract.video.index import VideoError
from extract.video.probe import probe
from train.config import DataConfig
from train.data.items import VideoItem

ACTION = "action"  # any


def load_annotations(data: DataConfig, notice: Notice | None = None) -> Annotations:
    """Read the experiment's annotations, class list and video tables.

    Args:
        notice: as for `read_annotations`; by default all malformed entries are raised at the end.

    Raises:
        ValueError: a file is missing or malformed.
    """
    if not Path(data.annotations).exists():
        raise ValueError(f"data.annotations: there is no file or folder {data.annotations}")
    for setting, path in (
        ("classes", data.classes),
        *(("info_csv", path) for path in data.info_csv),
    ):
        if path and not Path(path).is_file():
            raise ValueError(f"data.{setting}: there is no file {path}")
    annotations = read_annotations(
        Path(data.annotations),
        classes=Path(data.classes) if data.classes else None,
        info_csv=[Path(path) for path in data.info_csv],
        blocked=data.blocked,
        notice=notice,
        frame_times=partial(_frame_times_in, Path(data.videos)),
        skip_unread=data.bad_videos == "skip",
    )
    if not annotations.classes:
        raise ValueError(f"data.annotations: {data.annotations} has no action in it")
    return annotations


def _frame_times_in(
    folder: Path, names: Sequence[str]
) -> dict[str, NDArray[np.float64] | ValueError]:
    files = files_by_name(folder) if folder.is_dir() else {}
    return frame_times({name: paths[0] for name, paths in files.items()}, f"{folder}", names)


def frame_times(
    files: Mapping[str, Path], where: str, names: Sequence[str]
) -> dict[str, NDArray[np.float64] | ValueError]:
    """Return when the frames of videos begin and the last one ends, or why that is not known.

    Args:
        where: the files are, for messages.
    """
    paths = {name: files[name] for name in names if name in files}
    near = NearFiles(files)
    found: dict[str, NDArray[np.float64] | ValueError] = {
        name: ValueError(f"{name}: no such file in {where}{near.describe(name)}")
        for name in names
        if name not in files
    }
    for name, index in zip(paths, probe(list(paths.values())), strict=True):
        if isinstance(index, VideoError):
            found[name] = index
        else:
            frames = len(index.pts)
            found[name] = np.append(index.times(np.arange(frames)), frames / index.fps)
    return found


def target_classes(data: DataConfig, annotations: Annotations) -> tuple[str, ...]:
    """Return a detector's classes: the annotated ones, or one for any action."""
    return (ACTION,) if data.class_agnostic else annotations.classes


def with_truth(
    item: VideoItem,
    video: Video,
    data: DataConfig,
    classes: tuple[str, ...],
    warnings: Counter[str],
) -> VideoItem:
    """Return the item with its annotated segments; ValueError where the two do not fit."""
    # Frames are counted in the file; the duration is the one that the annotations assume.
    if video.duration_s is None:
        try:
            video = with_duration(video, item.duration_s, warnings)
        except ValueError as error:
            raise ValueError(f"{data.annotations}: {error}") from error
    duration = video.duration_s or item.duration_s
    if not 0.5 < duration / item.duration_s < 2:
        raise Refused(
            "file of another length",
            f"{item.path}: lasts {item.duration_s:.1f} s, but {duration:.1f} s in "
            f"{data.annotations}; is it another video?",
        )
    if abs(duration - item.duration_s) > max(1.0, 0.02 * duration):
        warnings["videos whose file is longer or shorter than annotated"] += 1
    seconds = np.array([s[1:] for s in video.segments], np.float64).reshape(-1, 2)
    item = replace(item, duration_s=duration)
    return replace(
        item,
        segments=item.to_timeline(seconds),
        labels=np.array(
            [0 if data.class_agnostic else classes.index(s.label) for s in video.segments], np.int64
        ),
        truth=video.segments,
    )


def without_short(item: VideoItem, share: float) -> VideoItem:
    """Return the item with only those actions to learn that last longer than a share of it."""
    kept = np.array([end - start > share * item.duration_s for _, start, end in item.truth], bool)
    return replace(item, segments=item.segments[kept], labels=item.labels[kept])
