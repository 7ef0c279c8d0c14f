"""Probing of many video files before they are used: the index of each, or why it cannot be read.

Broken files make decoders hang or crash, so other processes open them. Indexes are kept on disk,
for other processes and later runs.
"""

import os
import random
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np

from configs.progress import ProgressBar
from configs.system import count_cores
from extract.identity.digest import remembered_digest, video_digest
from extract.video import guarded
from extract.video.guarded import CallFailed, GuardedPool
from extract.video.header import announced_frames
from extract.video.index import Progress, VideoError, VideoIndex, check_readable
from extract.video.indexing import remember_index, remembered_index
from extract.video.reader import VideoReader

MOST_PROCESSES = 8  # each takes some 300 MB
HANGS = f"its decoder {guarded.HANGS}"


def probe(
    paths: Sequence[str | Path],
    timeout_s: float = 60.0,
    processes: int | None = None,
    progress: bool = True,
    running: Callable[[], GuardedPool] | None = None,
) -> list[VideoIndex | VideoError]:
    """Return the index of every file, or the error that names the file and the cause.

    A file's packets are read, and its first frames and its last one decoded.

    Args:
        timeout_s: time without progress after which a decoder is killed.
        processes: how many probe at once; None: as many as this process's share of the cores.
        progress: show a bar if it takes long.
        running: returns a pool whose process runs already, for a single file: starting another
            would take longer than looking at the file.

    Raises:
        OSError: the processes that probe cannot be started.
    """
    found: list[VideoIndex | VideoError | None] = [_find_known(path) for path in paths]
    unknown = [position for position, answer in enumerate(found) if answer is None]
    # Processes that train together probe at the same time: each finds what another has kept.
    random.SystemRandom().shuffle(unknown)
    most = max(1, min(processes or _count_free_cores(), len(unknown)))
    alone = running if len(unknown) == 1 else None
    with GuardedPool(most) if alone is None else nullcontext(alone()) as pool:
        answers = ProgressBar(
            pool.threads.map(
                lambda position: _probe_file(paths[position], timeout_s, pool), unknown
            ),
            desc="probing videos",
            total=len(unknown),
            unit="video",
            delay=2,
            leave=False,
            disable=not progress,
        )
        for position, answer in zip(unknown, answers, strict=True):
            found[position] = answer
    return [answer for answer in found if answer is not None]


def _find_known(path: str | Path) -> VideoIndex | VideoError | None:
    """Return the index or the error, if the file need not be read for it, else None."""
    try:
        check_readable(path)
    except VideoError as error:
        return error
    digest = remembered_digest(path)
    return remembered_index(digest) if digest else None


def _probe_file(path: str | Path, timeout_s: float, pool: GuardedPool) -> VideoIndex | VideoError:
    try:
        digest = video_digest(path)
    except OSError as error:
        return VideoError(f"{path}: cannot be read as video: {error.strerror}")
    index = remembered_index(digest)
    if index is not None:
        return index
    try:
        index = pool.call(decode_ends, path, timeout_s=timeout_s)
    except VideoError as error:
        return error
    except CallFailed as failure:
        return VideoError(f"{path}: cannot be read as video: its decoder {failure}")
    # A file that changed meanwhile has another digest.
    if remembered_digest(path) == digest:
        remember_index(digest, index)
    return index


def decode_ends(path: str | Path, progress: Progress) -> VideoIndex:
    """Return the index of a file after decoding both its ends as `VideoReader` will read them.

    Raises:
        VideoError: they cannot be decoded.
    """
    try:
        reader = VideoReader(path, progress)
        if reader.index.access != "sequence":  # its frames were counted by decoding all of them
            reader.frames(np.array([0]))
            _decode_last(reader, progress)
    except VideoError:
        raise
    except Exception as error:  # decoders meet broken files with errors of any kind
        cause = f"its decoder crashed ({type(error).__name__}: {error})"
        raise VideoError(f"{path}: cannot be read as video: {cause}") from error
    return reader.index


def _decode_last(reader: VideoReader, progress: Progress) -> None:
    """Decode a file's last frame; raise VideoError, which says so where the file was cut there."""
    frames = len(reader)
    try:
        reader.frame_stepwise(frames - 1, progress)
    except VideoError as error:
        announced = announced_frames(reader.path, reader.index)
        if announced <= frames:
            raise
        there = f"its end is missing: fewer than {frames} of {announced} frames can be decoded"
        raise VideoError(f"{reader.path}: {there}; copy it again") from error


def _count_free_cores() -> int:
    """Return how many processes this one may have, next to the other ones of the same run."""
    return max(1, min(MOST_PROCESSES, count_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1))))
