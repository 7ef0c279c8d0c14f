"""A watchdog for decoders that hang in the process that uses their frames.

Loader workers decode in their own process, and the loader notices if one dies: with
`extract.video.guarded` every frame would go through another pipe.
"""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread
from typing import IO

BASE_TIMEOUT_S = 120.0
SLOWEST_FPS = 5.0  # even large frames on a busy machine are decoded faster
HANGS = "its decoder hangs"
TICK_S = 1.0


def happens_within(timeout_s: float, wait: Callable[[float], bool]) -> bool:
    """Return whether something happens within a time.

    It is counted in ticks: a clock goes on while this process is stopped (Ctrl-Z, a container that
    is paused), and what is waited for was stopped, too.

    Args:
        wait: waits for a number of seconds at most, and returns whether it has happened.
    """
    left = timeout_s
    while left > 0:
        tick = min(TICK_S, left)
        if wait(tick):
            return True
        left -= tick
    return False


@dataclass(eq=False)
class _Guarded:
    """A piece of decoding that goes on, and the seconds that it may still take."""

    path: str | Path
    left_s: float


@contextmanager
def kill_if_stuck(path: str | Path, frames: int) -> Iterator[None]:
    """End this process, naming the file on stderr, if decoding `frames` takes far too long.

    Nothing less stops a thread that hangs inside a decoder (which does not hold Python's lock).
    """
    # A tick more, for one may have begun.
    guarded = _Guarded(path, BASE_TIMEOUT_S + frames / SLOWEST_FPS + TICK_S)
    watched = _watched_in(os.getpid())
    watched.add(guarded)
    _write_note(path)
    try:
        yield
    finally:
        watched.remove(guarded)
        _write_note("")


@lru_cache(maxsize=1)
def _watched_in(process: int) -> set[_Guarded]:
    """Return what is decoded in a process, this one, and watched by a thread of it.

    One for all: where cores are busy a new thread waits for milliseconds until it runs, which is as
    long as decoding takes. A fork has its parent's, but not the thread.
    """
    watched = set[_Guarded]()
    Thread(target=_watch, args=(watched,), daemon=True).start()
    return watched


def _watch(watched: set[_Guarded]) -> None:
    """Count the time of all that is decoded in ticks: see `happens_within`."""
    while True:
        time.sleep(TICK_S)
        for guarded in tuple(watched):
            guarded.left_s -= TICK_S
            if guarded.left_s <= 0:
                advice = "repair the file or list the video under data.blocked"
                print(f"error: {guarded.path}: {HANGS}; {advice}", file=sys.stderr, flush=True)
                os._exit(1)


def note_taker() -> Callable[[int], None]:
    """Return a function that lets another process note, for this one, what file it decodes.

    It is called there with any number, as torch calls it in a loader's worker.
    """
    return partial(_take_notes, _notes_folder().name)


def file_being_decoded(process: int) -> Path | None:
    """Return the file that a process was decoding when it ended, None if it was decoding none."""
    try:
        note = Path(_notes_folder().name, str(process)).read_bytes()
    except FileNotFoundError:
        return None
    return Path(os.fsdecode(note)) if note else None


@lru_cache
def _notes_folder() -> "TemporaryDirectory[str]":
    """Return this process's folder of notes, removed when it ends."""
    return TemporaryDirectory()


_note: IO[bytes] | None = None


def _take_notes(folder: str, worker: int) -> None:
    global _note
    _note = Path(folder, str(os.getpid())).open("wb", buffering=0)  # noqa: SIM115


def _write_note(path: str | Path) -> None:
    if _note is not None:
        _note.seek(0)
        _note.truncate()
        _note.write(os.fsencode(path))
