"""The videos of a subset: annotations matched with files, and what is wrong with either."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from accelerate import Accelerator

from cache.address import VideoInfo
from cache.store import Store
from evaluate.annotations import Annotations, Video, select_videos
from evaluate.datasets.fields import NearFiles
from extract.backbone.imported import imported_name
from extract.parallel.processes import gather_objects
from extract.video.files import describe_no_videos, files_by_name
from train.config import DataConfig
from train.data.items import Subset, VideoItem, check_usable
from train.data.truth import with_truth, without_short
from train.data.video_files import probe_files, with_digest


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
    check_usable(found, subsets, data.bad_videos == "stop", part=part)
    return [
        Subset((without_short(item, data.min_share) for item in items), items.skipped)
        if data.min_share and subset == data.train_subset
        else items
        for subset, items in zip(subsets, found, strict=True)
    ]


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
    files = probe_files(paths, [video.name for video in videos], bar)
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


def _stored_item(info: VideoInfo, folder: Path) -> VideoItem:
    nothing = np.zeros((0, 2)), np.zeros(0, np.int64)
    path, duration_s = folder / info.name, info.frames / info.fps
    return VideoItem(
        *(info.name, path, info.frames, duration_s, info.fps, *nothing, ()),
        times_s=info.times_s,
        identity=info,
    )


def _add_warnings(annotations: Annotations, warnings: Counter[str]) -> None:
    """Add counts to the annotations' warnings."""
    for what, count in warnings.items():
        annotations.warnings[what] = annotations.warnings.get(what, 0) + count
