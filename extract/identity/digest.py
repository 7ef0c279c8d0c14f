"""The identity of a video: a digest of its file's whole content, computed once."""

import hashlib
import json
import os
from pathlib import Path

from extract.identity import user_cache


def video_digest(path: str | Path) -> str:
    """Return the SHA-256 of a regular file, in hex; remembered until the file changes.

    Raises:
        OSError: the file cannot be read.
    """
    remembered = remembered_digest(path)
    if remembered is not None:
        return remembered
    with open(path, "rb") as file:
        # The state before reading, and of the file that is read: one that is changed or replaced
        # meanwhile will not have it again.
        state = _state(path, os.fstat(file.fileno()))
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    user_cache.save(_memo_name(path), json.dumps([*state, digest]).encode())
    return digest


def remembered_digest(path: str | Path) -> str | None:
    """Return the digest if the file need not be read for it."""
    try:
        state = _state(path, os.stat(path))
        saved = json.loads(user_cache.load(_memo_name(path)) or b"null")
    except (OSError, ValueError):
        return None
    match saved:
        case [*of, str(digest)] if of == state:
            return digest
    return None


def _state(path: str | Path, status: os.stat_result) -> list[str | int]:
    """Return what changes with a file's content.

    No inode: some network file systems renumber files whenever they are opened. A file that is
    put in another's place has another time of its last change of status.
    """
    return [os.path.realpath(path), status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def _memo_name(path: str | Path) -> str:
    where = hashlib.sha256(os.fsencode(os.path.realpath(path))).hexdigest()
    return f"digests/{where}.json"
