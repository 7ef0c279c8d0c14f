"""A watchdog for decoders that hang in the process that uses their frames.

Loader workers decode in their own process, and the loader notices if one dies: with
`extract.video.guarded` every frame would go through another pipe.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Timer

BASE_TIMEOUT_S = 120.0
SLOWEST_FPS = 5.0  # even large frames on a busy machine are decoded faster
HANGS = "its decoder hangs"


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
    print(f"error: {path}: {HANGS}; {advice}", file=sys.stderr, flush=True)
    os._exit(1)
