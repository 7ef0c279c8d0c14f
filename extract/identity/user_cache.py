"""Small files in the user's cache folder: they save time, and nothing depends on them.

What cannot be written there is kept in this process's memory.
"""

import multiprocessing
import os
import threading
from pathlib import Path

from tqdm import tqdm

from configs.atomic import atomic_path

_unwritten: dict[str, bytes] = {}  # by place: what this process could not write
_warned = threading.Event()
_lock = threading.Lock()


def load(name: str) -> bytes | None:
    """Return what was saved under a name; None if nothing was, or it cannot be read."""
    try:
        path = _folder() / name
        unwritten = _unwritten.get(str(path))
        return path.read_bytes() if unwritten is None else unwritten
    except RuntimeError:
        return _unwritten.get(name)
    except OSError:
        return None


def save(name: str, content: bytes) -> None:
    """Write a file whole or not at all; where that is impossible, keep its content in memory."""
    place, cause = name, "there is no home folder"
    try:
        path = _folder() / name
        place = str(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as aside:
            aside.write_bytes(content)
        _unwritten.pop(place, None)
        return
    except OSError as error:
        cause = f"{path.parent}: {error.strerror or error}"
    except RuntimeError:
        pass
    _unwritten[place] = content
    _warn_once(cause)


def _folder() -> Path:
    """Return where the files are; RuntimeError where the user has no home."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", ""))
    # The XDG specification: a relative path is to be ignored.
    return (cache if cache.is_absolute() else Path.home() / ".cache") / "palindrome/videos"


def _warn_once(cause: str) -> None:
    """Warn once for all processes of a run: the first of a machine, not its loader workers."""
    with _lock:
        if _warned.is_set():
            return
        _warned.set()
    if multiprocessing.parent_process() is None and os.environ.get("LOCAL_RANK", "0") == "0":
        tqdm.write(
            f"warning: {cause}; what videos hold is remembered in memory alone and found out again "
            "by every process, which reads them whole: set XDG_CACHE_HOME to a folder that can be "
            "written"
        )
