"""A watchdog for decoders that hang in the process that uses their frames.

Loader workers decode in their own process: with `extract.video.guarded` every frame would go
through a pipe, and the loader notices anyway if a worker dies.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Timer

BASE_TIMEOUT_S = 120.0
SLOWEST_FPS = 5.0  # even large frames on a busy machine are decoded faster


@contextmanager
def kill_if_stuck(path: str | Path, frames: int) -> Iterator[None]:
    """End this process, naming the file on stderr, if decoding `frames` takes far too long.

    Nothing less stops a thread that hangs inside a decoder (which does not hold Python's lock).
    """
    timer = Timer(BASE_TIMEOUT_S + frames / SLOWEST_FPS, _end_process, [path])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _end_process(path: str | Path) -> None:
    advice = "repair the file or list the video under data.blocked"
    print(f"error: {path}: its decoder hangs; {advice}", file=sys.stderr, flush=True)
    os._exit(1)
