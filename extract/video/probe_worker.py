"""Started by `extract.video.probe`: looks at video files, in a process that may hang or crash.

Standard input is a socket. A path and a time limit come in; an index or a VideoError goes out, and
None meanwhile, to say that this process is at work.
"""

import pickle
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from extract.video.index import VideoError, VideoIndex, video_index
from extract.video.reader import VideoReader


def main() -> None:
    with socket.socket(fileno=0) as link:
        stream = link.makefile("rwb")

        def tell(answer: VideoIndex | VideoError | None) -> None:
            pickle.dump(answer, stream)
            stream.flush()

        tell(None)
        while True:
            try:
                path, timeout_s = pickle.load(stream)
            except EOFError:
                return
            try:
                tell(_look(path, _heartbeat(timeout_s, lambda: tell(None))))
            except VideoError as error:
                tell(error)
            signal.setitimer(signal.ITIMER_REAL, 0)


def _heartbeat(timeout_s: float, tell: Callable[[], None]) -> Callable[[], None]:
    """Return what to call at every step; long silence ends this process."""
    # The parent kills a process that hangs, unless it was killed itself.
    signal.setitimer(signal.ITIMER_REAL, 2 * timeout_s)
    due = time.monotonic() + timeout_s / 10

    def alive() -> None:
        nonlocal due
        if time.monotonic() > due:
            tell()
            signal.setitimer(signal.ITIMER_REAL, 2 * timeout_s)
            due = time.monotonic() + timeout_s / 10

    return alive


def _look(path: Path, alive: Callable[[], None]) -> VideoIndex:
    """Read the index; see that both ends decode, in the way they will be read."""
    index = video_index(path, alive)
    if index.access != "sequence":  # its frames were counted by decoding all of them
        reader, last = VideoReader(path), len(index.pts) - 1
        reader.frames(np.array([0]))
        # Decoded anyway on the way to the last frame, but in steps: the way may be long.
        for _ in reader.chunks(np.arange(last + 1 - reader.effort(last, last), last + 1)):
            alive()
    return index


if __name__ == "__main__":
    main()
