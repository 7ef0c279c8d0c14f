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
    known = remembered_digest(path)
    if known is not None:
        return known
    # The state before reading: what changes meanwhile is another file.
    state = _state(path)
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    user_cache.save(_name(path), json.dumps([*state, digest]).encode())
    return digest


def remembered_digest(path: str | Path) -> str | None:
    """Return the digest if it is known without reading the file."""
    try:
        state = _state(path)
        saved = json.loads(user_cache.load(_name(path)) or b"null")
    except (OSError, ValueError):
        return None
    match saved:
        case [*of, str(digest)] if of == state:
            return digest
    return None


def _state(path: str | Path) -> list[str | int]:
    status = os.stat(path)
    return [os.path.realpath(path), status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def _name(path: str | Path) -> str:
    where = hashlib.sha256(os.fsencode(os.path.realpath(path))).hexdigest()
    return f"digests/{where}.json"
