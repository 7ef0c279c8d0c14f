"""Files that appear whole or not at all."""

import hashlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

from configs.system import fcntl, try_lock

LONGEST = 230  # bytes of a name to which ours can be added, too: file systems take 255


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically.

    Bytes of a name that are not UTF-8 are written as JSON's escapes, such as `\\udcff`.
    """
    with atomic_path(path) as aside:
        aside.write_text(text, encoding="utf-8", errors="backslashreplace")


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a path to write to, which is renamed to `path` at the end, or removed on an error.

    After a kill there is the previous file or the new one, never half of one. Any number of threads
    and processes may write the same file: each has a path of its own, and the last to end wins.
    """
    aside, lock = _open_locked(path)
    try:
        yield aside
        os.replace(aside, path)
    except BaseException:
        with suppress(OSError):
            aside.unlink()
        raise
    finally:
        os.close(lock)


def _open_locked(path: Path) -> tuple[Path, int]:
    """Return an empty file beside `path` that no one else writes, and the descriptor of its lock.

    The kernel releases the lock with its process: the file of a killed one is used again, where
    files with random names would accumulate.
    """
    if len(os.fsencode(path.name)) > LONGEST:
        path = path.with_name(hashlib.sha256(os.fsencode(path.name)).hexdigest())
    if fcntl is None:
        return _open_random(path)
    for number in count():
        aside = path.with_name(f"{path.name}{f'.{number}' if number else ''}.part")
        try:
            lock = os.open(aside, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except PermissionError:
            if not aside.exists():
                raise
            continue  # another user's
        try:
            locked = try_lock(lock)
            # Its writer may have renamed or removed it in between.
            if locked and os.path.samestat(os.fstat(lock), os.stat(aside)):
                os.ftruncate(lock, 0)
                return aside, lock
        except FileNotFoundError:
            pass
        except OSError:
            os.close(lock)
            raise
        os.close(lock)
        if locked is None:
            aside.unlink(missing_ok=True)
            return _open_random(path)
    raise AssertionError("count() has no end")


def _open_random(path: Path) -> tuple[Path, int]:
    """Return the same where there are no locks."""
    aside = path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")
    return aside, os.open(aside, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
