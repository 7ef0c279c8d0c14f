"""Looks at many video files before they are used: what each holds, or why it cannot be read.

Broken files make decoders hang or crash, so other processes look at them. What was found is
remembered on disk, for other processes and later runs.
"""

import os
import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

from extract.identity.digest import remembered_digest, video_digest
from extract.video.index import (
    VideoError,
    VideoIndex,
    check_readable,
    remember_index,
    remembered_index,
)
from extract.video.probe_pool import ProbePool

MOST_CHILDREN = 8  # each takes some 300 MB


def probe(
    paths: Sequence[str | Path],
    timeout_s: float = 60.0,
    processes: int | None = None,
    progress: bool = True,
) -> list[VideoIndex | VideoError]:
    """Look at every file: its packets, its first frames and its last one.

    Args:
        timeout_s: a decoder that shows no progress for so long is given up.
        processes: how many look at once; None: as many as this process's share of the cores.
        progress: show a bar if it takes long.

    Returns:
        Per path its index, or the error that names the file and the cause.

    Raises:
        OSError: the processes that look cannot be started.
    """
    found: list[VideoIndex | VideoError | None] = [_known(path) for path in paths]
    unknown = [position for position, answer in enumerate(found) if answer is None]
    # Processes that train together look at once: each finds remembered what another saw first.
    random.SystemRandom().shuffle(unknown)
    children = ProbePool(timeout_s)
    pool = ThreadPoolExecutor(max(1, min(processes or _share_of_cores(), len(unknown))))
    try:
        answers = tqdm(
            pool.map(lambda position: _look(paths[position], children), unknown),
            desc="looking at videos",
            total=len(unknown),
            unit="video",
            delay=2,
            leave=False,
            disable=not progress,
        )
        for position, answer in zip(unknown, answers, strict=True):
            found[position] = answer
    finally:
        # Behind an interrupt, too: threads that wait for a child end with it.
        pool.shutdown(wait=False, cancel_futures=True)
        children.end()
    return [answer for answer in found if answer is not None]


def _known(path: str | Path) -> VideoIndex | VideoError | None:
    """Return what can be told without reading the file."""
    try:
        check_readable(path)
    except VideoError as error:
        return error
    digest = remembered_digest(path)
    return remembered_index(digest) if digest else None


def _look(path: str | Path, children: ProbePool) -> VideoIndex | VideoError:
    try:
        digest = video_digest(path)
    except OSError as error:
        return VideoError(f"{path}: cannot be read as video: {error.strerror}")
    index = remembered_index(digest)
    if index is not None:
        return index
    answer = children.look(path)
    # A file that changed meanwhile has another digest.
    if isinstance(answer, VideoIndex) and remembered_digest(path) == digest:
        remember_index(digest, answer)
    return answer


def _share_of_cores() -> int:
    """Return how many children this process may have beside others of the same run."""
    cores = len(os.sched_getaffinity(0))
    return max(1, min(MOST_CHILDREN, cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1))))
