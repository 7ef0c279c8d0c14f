"""An end for decoders that hang in the process that uses their frames.

Loader workers decode in themselves: behind `extract.video.guarded` every frame would go through a
pipe, and a worker that dies already has somebody who notices.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Timer

PATIENCE_S = 120.0
SLOWEST_FPS = 5.0  # even large pictures on a busy machine come faster


@contextmanager
def kill_if_stuck(path: str | Path, frames: int) -> Iterator[None]:
    """End this process, with a line that names the file, if decoding `frames` takes far too long.

    Nothing less stops a thread that hangs inside a decoder (which holds no lock of Python's).
    """
    timer = Timer(PATIENCE_S + frames / SLOWEST_FPS, _give_up, [path])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _give_up(path: str | Path) -> None:
    advice = "mend the file or list the video under data.blocked"
    print(f"error: {path}: its decoder hangs; {advice}", file=sys.stderr, flush=True)
    os._exit(1)
