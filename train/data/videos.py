"""The videos of a subset: annotations matched with files, and what is wrong with either."""

from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from accelerate import Accelerator
from numpy.typing import NDArray

from cache.address import VideoInfo
from cache.store import Store
from evaluate.annotations import (
    Annotations,
    Notice,
    Video,
    read_annotations,
    select_videos,
    with_duration,
)
from evaluate.datasets.fields import NearFiles, Refused
from extract.backbone.imported import imported_name
from extract.identity.digest import video_digest
from extract.parallel.processes import gather_objects
from extract.video.files import describe_no_videos, files_by_name, only_one
from extract.video.header import announced_frames
from extract.video.index import VideoError, VideoIndex
from extract.video.probe import probe
from train.config import DataConfig
from train.data.items import Subset, VideoItem, count_listed, skipped_of

ACTION = "action"  # any
TICKS = 2  # of a file's clock, by which the times of evenly spaced frames may be off
REPAIRED = (
    "frames of videos whose time is missing or not after the one before, each taken to be one "
    "frame's length later (extract/check.py names the videos)"
)


def probe_item(path: str | Path, sampling_fps: float | None = None) -> VideoItem:
    """Return a file without truth as an item.

    Args:
        sampling_fps: `sampling.fps`.

    Raises:
        VideoError: it cannot be read or does not decode.
    """
    (found,) = probe([path], progress=False)
    return make_item(Path(path), found, sampling_fps)


def make_item(
    path: Path, found: VideoIndex | VideoError, sampling_fps: float | None = None
) -> VideoItem:
    if isinstance(found, VideoError):
        raise found
    frames = len(found.pts)
    nothing = np.zeros((0, 2)), np.zeros(0, np.int64)
    times_s = np.append(found.times(np.arange(frames)), frames / found.fps)
    # Samples by time are the nearest frames, so that what is more than rounding to ticks matters.
    tolerated = 0.5 if sampling_fps is None else min(0.5, TICKS * found.fps * found.time_base)
    uneven = np.abs(times_s * found.fps - np.arange(frames + 1)).max() > tolerated
    return VideoItem(
        *(path.stem, path, frames, frames / found.fps, found.fps, *nothing, ()),
        times_s=times_s if uneven else None,
        sampling_fps=sampling_fps,
    )


def check_whole(path: Path, frames: int, announced: int) -> None:
    """Raise VideoError if the end of a file is missing, by its header: truth would not fit it."""
    if announced > frames:
        raise VideoError(
            f"{path}: its end is missing: {frames} of {announced} frames are there; copy it again"
        )


def _count_announced(path: Path, index: VideoIndex) -> int:
    try:
        return announced_frames(path, index)
    except (VideoError, OSError):  # it went away since, which reading it will say
        return len(index.pts)


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


def load_items(
    data: DataConfig,
    annotations: Annotations,
    subset: str,
    accelerator: Accelerator | None = None,
    store: Store | None = None,
    imported: str | None = None,
    sampling_fps: float | None = None,
) -> Subset[VideoItem]:
    """Match a subset's videos with their files; see `load_subsets`."""
    (found,) = load_subsets(
        data,
        annotations,
        [subset],
        accelerator,
        store,
        imported=imported,
        sampling_fps=sampling_fps,
    )
    return found


def load_subsets(
    data: DataConfig,
    annotations: Annotations,
    subsets: Sequence[str],
    accelerator: Accelerator | None = None,
    store: Store | None = None,
    needs_files: bool = False,
    imported: str | None = None,
    sampling_fps: float | None = None,
    part: bool = False,
) -> list[Subset[VideoItem]]:
    """Match the subsets' videos with their files; adds to the annotations' warnings.

    Args:
        accelerator: of a run of several processes, which must all get the same videos.
        store: of activations: videos get their identity, also those whose files are gone.
        needs_files: gone videos are missing, whatever is stored of them.
        imported: name of the imported features used in place of the videos; no file is opened.
        sampling_fps: `sampling.fps`.
        part: the annotations are of a part of each subset, which may have bad videos alone.

    Raises:
        ValueError: files are missing, unreadable or cut off (with `bad_videos` skip: all of them);
            those of all subsets are listed at once.
    """
    found = [
        _match_features(data, annotations, subset, store, imported)
        if imported and store
        else _match_files(data, annotations, subset, accelerator, store, needs_files, sampling_fps)
        for subset in subsets
    ]
    problems = skipped_of(found)
    none_usable = not part and any(items.skipped and not items for items in found)
    if problems and (data.bad_videos == "stop" or none_usable):
        count = count_listed(found)
        names = " and ".join(f"'{subset}'" for subset in dict.fromkeys(subsets))
        shown = "\n  ".join(problems.values())
        remedy = "" if none_usable else ", or skip them with --data.bad_videos skip"
        raise ValueError(
            f"{len(problems)} of {count} videos of {names} cannot be used; mend them or list them "
            f"under data.blocked{remedy}:\n  {shown}"
        )
    return [
        Subset((without_short(item, data.min_share) for item in items), items.skipped)
        if data.min_share and subset == data.train_subset
        else items
        for subset, items in zip(subsets, found, strict=True)
    ]


def without_short(item: VideoItem, share: float) -> VideoItem:
    """Return the item with only those actions to learn that last longer than a share of it."""
    kept = np.array([end - start > share * item.duration_s for _, start, end in item.truth], bool)
    return replace(item, segments=item.segments[kept], labels=item.labels[kept])


def _select(data: DataConfig, annotations: Annotations, subset: str) -> list[Video]:
    """Return the videos of a subset; where there are none, name the setting that asks for it."""
    try:
        return select_videos(annotations, subset)
    except ValueError as error:
        names = ("train_subset", "validation_subset", "test_subset")
        asking = [f"data.{name}" for name in names if getattr(data, name) == subset]
        raise ValueError(": ".join([*asking[:1], str(error)])) from error


def _match_features(
    data: DataConfig, annotations: Annotations, subset: str, store: Store, imported: str
) -> Subset[VideoItem]:
    """Match a subset's videos with features that were imported for them."""
    warnings: Counter[str] = Counter()
    items, problems = [], {}
    for video in _select(data, annotations, subset):
        try:
            info = store.videos_by_name.get(imported_name(imported, video.name))
            if info is None:
                raise ValueError(
                    f"{video.name}: no features '{imported}' of it are in {store.url}; import them "
                    "with extract/features.py"
                )
            item = replace(_stored_item(info, Path(store.url)), name=video.name)
            items.append(with_truth(item, video, data, annotations.classes, warnings))
        except ValueError as error:
            problems[video.name] = str(error)
    _add_warnings(annotations, warnings)
    return Subset(items, problems)


def _match_files(
    data: DataConfig,
    annotations: Annotations,
    subset: str,
    accelerator: Accelerator | None,
    store: Store | None,
    needs_files: bool,
    sampling_fps: float | None,
) -> Subset[VideoItem]:
    """Match a subset's videos with files, or with what a store has of those that are gone."""
    folder = Path(data.videos)
    stored = store.videos_by_name if store and not needs_files else {}
    if not folder.is_dir() and not stored:
        raise ValueError(f"data.videos: there is no folder {folder}")
    paths = files_by_name(folder) if folder.is_dir() else {}
    near = NearFiles(paths)
    names = Counter(info.name for info in store.videos.values()) if stored and store else Counter()
    videos = _select(data, annotations, subset)
    bar = accelerator is None or accelerator.is_main_process
    files = _probe_files(paths, [video.name for video in videos], bar)
    away = 0
    warnings: Counter[str] = Counter()
    items, problems = [], {}
    for video in videos:
        name = video.name
        try:
            if name in paths:
                item = files.load_item(name, sampling_fps, warnings)
                item = with_digest(item) if store or data.frame_cache else item
            elif names[name] > 1:
                raise ValueError(
                    f"{name}: no such file in {folder}, and the cache has {names[name]} different "
                    "videos of that name; bring the file back"
                )
            elif name in stored:
                away += 1
                item = replace(_stored_item(stored[name], folder), sampling_fps=sampling_fps)
            elif store is not None and not needs_files:
                raise ValueError(
                    f"{name}: no such file in {folder}, and it is not in {store.url}: bring it "
                    "back and run `python extract/run.py`"
                )
            else:
                hint = near.describe(name) or describe_no_videos(name, folder)
                raise ValueError(f"{name}: no such file in {folder}{hint}")
            items.append(with_truth(item, video, data, annotations.classes, warnings))
        except ValueError as error:
            problems[name] = str(error)
    if accelerator is not None:
        # A file may be bad, or too slow, for one process alone.
        for others in gather_objects([problems]):
            problems = others | problems
        items = [item for item in items if item.name not in problems]
    if away and bar:
        print(
            f"{away} of {len(videos)} videos have no file in {folder}: the cache has them by name"
        )
    _add_warnings(annotations, warnings)
    return Subset(items, problems)


@dataclass(frozen=True)
class _ProbedFiles:
    """Files of videos, which have been looked at.

    Args:
        paths: by name; several files may have one.
        indices: by path, or why a file cannot be read.
        announced: frames that the headers of those that can be read announce.
    """

    paths: Mapping[str, list[Path]]
    indices: Mapping[Path, VideoIndex | VideoError]
    announced: Mapping[Path, int]

    def load_item(self, name: str, sampling_fps: float | None, warnings: Counter[str]) -> VideoItem:
        """Return a video whose file is whole; counts the frames whose times were mended.

        Raises:
            ValueError: there are several files, or it cannot be read or has lost its end.
        """
        path = only_one(self.paths[name], "data.videos")
        index = self.indices[path]
        item = make_item(path, index, sampling_fps)
        if isinstance(index, VideoIndex) and index.repaired:
            warnings[REPAIRED] += index.repaired
        check_whole(path, item.frames, self.announced[path])
        return item


def _probe_files(
    paths: Mapping[str, list[Path]], names: Sequence[str], progress: bool
) -> _ProbedFiles:
    """Look at the files of those names that have one."""
    present = [paths[name][0] for name in names if name in paths]
    indices = dict(zip(present, probe(present, progress=progress), strict=True))
    readable = {path: index for path, index in indices.items() if isinstance(index, VideoIndex)}
    with ThreadPoolExecutor() as threads:
        counts = threads.map(_count_announced, readable, readable.values())
        announced = dict(zip(readable, counts, strict=True))
    return _ProbedFiles(paths, indices, announced)


def _add_warnings(annotations: Annotations, warnings: Counter[str]) -> None:
    """Add counts to the annotations' warnings."""
    for what, count in warnings.items():
        annotations.warnings[what] = annotations.warnings.get(what, 0) + count


def with_digest(item: VideoItem) -> VideoItem:
    try:
        digest, size = video_digest(item.path), item.path.stat().st_size
    except OSError as error:
        raise VideoError(f"{item.path}: cannot be read as video: {error.strerror}") from error
    identity = VideoInfo(digest, item.name, size, item.frames, item.fps, item.times_s)
    return replace(item, identity=identity)


def _stored_item(info: VideoInfo, folder: Path) -> VideoItem:
    nothing = np.zeros((0, 2)), np.zeros(0, np.int64)
    path, duration_s = folder / info.name, info.frames / info.fps
    return VideoItem(
        *(info.name, path, info.frames, duration_s, info.fps, *nothing, ()),
        times_s=info.times_s,
        identity=info,
    )


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
