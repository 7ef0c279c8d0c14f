"""Video files as items: what each of them is, before any annotation."""

from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from cache.address import VideoInfo
from extract.identity.digest import video_digest
from extract.video.files import only_one
from extract.video.header import announced_frames
from extract.video.index import VideoError, VideoIndex
from extract.video.probe import probe
from train.data.items import VideoItem

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


def with_digest(item: VideoItem) -> VideoItem:
    try:
        digest, size = video_digest(item.path), item.path.stat().st_size
    except OSError as error:
        raise VideoError(f"{item.path}: cannot be read as video: {error.strerror}") from error
    identity = VideoInfo(digest, item.name, size, item.frames, item.fps, item.times_s)
    return replace(item, identity=identity)


@dataclass(frozen=True)
class ProbedFiles:
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


def probe_files(
    paths: Mapping[str, list[Path]], names: Sequence[str], progress: bool
) -> ProbedFiles:
    """Look at the files of those names that have one."""
    present = [paths[name][0] for name in names if name in paths]
    indices = dict(zip(present, probe(present, progress=progress), strict=True))
    readable = {path: index for path, index in indices.items() if isinstance(index, VideoIndex)}
    with ThreadPoolExecutor() as threads:
        counts = threads.map(_count_announced, readable, readable.values())
        announced = dict(zip(readable, counts, strict=True))
    return ProbedFiles(paths, indices, announced)


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
