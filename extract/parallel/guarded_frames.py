"""Small frames from a process of its own, in which a decoder may hang or crash."""

from collections.abc import Iterator
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Self

import numpy as np
from numpy.typing import NDArray

from extract.sampling.transforms import Shrink
from extract.sampling.window_frames import open_unchanged, resized_chunks
from extract.video import watchdog
from extract.video.guarded import HANGS, START_S, CallFailed, GuardedPool
from extract.video.index import Progress
from extract.video.reader import CHUNK, VideoError

Shape = tuple[int, ...]


class DecodingProcess:
    """A process that decodes for this one; if a video ends it, another takes its place."""

    def __init__(self) -> None:
        self._pool = GuardedPool(1)
        # It imports all that decoding needs while this process goes on.
        self._ready = self._pool.threads.submit(self._pool.call, get_ready, timeout_s=START_S)
        # Frames come through a file: a pipe takes five times as long.
        self._folder = TemporaryDirectory()
        self._passes = count()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.__exit__(*error)
        self._folder.cleanup()

    def pool(self) -> GuardedPool:
        """Return the pool of the process, once that has imported all that decoding needs.

        Raises:
            OSError: the process cannot be started.
        """
        self._ready.result()
        return self._pool

    def chunks(
        self, path: Path, frames: int, digest: str | None, wanted: NDArray[np.int64], to: Shrink
    ) -> Iterator[NDArray[np.uint8]]:
        """Yield the `resized_chunks` of a file at rising indices.

        Args:
            frames, digest: as `open_unchanged`.

        Raises:
            VideoError: the file cannot be read, or its decoder hangs or crashes.
            OSError: the process cannot be started.
        """
        pool, number, file = self.pool(), next(self._passes), Path(self._folder.name, "frames")
        for start in range(0, len(wanted), CHUNK):
            last = int(wanted[min(start + CHUNK, len(wanted)) - 1])
            between = last - int(wanted[start - 1]) if start else frames
            # Its own watchdog is quicker, unless the decoder keeps that from running.
            limit_s = 2 * watchdog.BASE_TIMEOUT_S + between / watchdog.SLOWEST_FPS
            shape, place = None, (number, start)
            try:
                if start:
                    shape = pool.call(send_next, file, place, timeout_s=limit_s)
                if shape is None:
                    request = file, place, path, frames, digest, wanted[start:], to
                    shape = pool.call(send_first, *request, timeout_s=limit_s)
            except CallFailed as failure:
                cause = HANGS if watchdog.HANGS in str(failure) else str(failure)
                raise VideoError(f"{path}: cannot be decoded: its decoder {cause}") from None
            yield np.fromfile(file, np.uint8).reshape(shape)


# ------------------------------------------------------------------ in the process

_passes: dict[tuple[int, int], Iterator[NDArray[np.uint8]]] = {}
"""What is being decoded, by the pass and the place of its next chunk; at most one."""


def get_ready(progress: Progress) -> None:
    """Do nothing: this module has been imported."""


def send_first(
    file: Path,
    place: tuple[int, int],
    path: Path,
    frames: int,
    digest: str | None,
    wanted: NDArray[np.int64],
    to: Shrink,
    progress: Progress,
) -> Shape:
    """Write a video's first chunk to a file; return its shape."""
    _passes.clear()
    return _send(file, place, resized_chunks(open_unchanged(path, frames, digest), wanted, to))


def send_next(file: Path, place: tuple[int, int], progress: Progress) -> Shape | None:
    """Write the next chunk; return None where this process did not decode the one before."""
    chunks = _passes.pop(place, None)
    return None if chunks is None else _send(file, place, chunks)


def _send(file: Path, place: tuple[int, int], chunks: Iterator[NDArray[np.uint8]]) -> Shape:
    chunk = next(chunks)
    chunk.tofile(file)
    number, start = place
    _passes[number, start + CHUNK] = chunks
    return chunk.shape
