"""What test_guarded.py calls in other processes: good and bad functions that start fast."""

import os
import re
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from configs.atomic import atomic_path

Progress = Callable[[int], None]


def double(number: int, progress: Progress) -> int:
    return 2 * number


def process_id(progress: Progress) -> int:
    progress(5)
    return os.getpid()


def fail(progress: Progress) -> None:
    raise OSError("No space left on device")


def run_out_of_memory(progress: Progress) -> None:
    raise MemoryError("too many frames")


def meet_a_bug(progress: Progress) -> None:
    raise KeyError("absent")


def return_code(progress: Progress) -> object:
    return lambda: None  # no plain data


def crash(progress: Progress) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.kill(os.getpid(), signal.SIGSEGV)


def leave(progress: Progress) -> None:
    sys.exit("no more frames")


def hang(folder: str = "", *, progress: Progress) -> None:
    """Hang, with this process's id left in a folder, if one is given."""
    if folder:
        Path(folder, str(os.getpid())).touch()
    time.sleep(600)


def hang_with_pythons_lock(folder: str, progress: Progress) -> None:
    """Keep all other threads from running, as some decoders do."""
    Path(folder, str(os.getpid())).touch()
    re.match(r"(a+)+$", "a" * 60 + "b")


def work_slowly(seconds: float, progress: Progress) -> float:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.02)
        progress(1)
    return seconds


def write_half(path: Path, stubborn: bool, progress: Progress) -> None:
    if stubborn:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    with atomic_path(path) as aside:
        aside.write_text("half")
        time.sleep(600)


def sleep(seconds: float, progress: Progress) -> None:
    time.sleep(seconds)
