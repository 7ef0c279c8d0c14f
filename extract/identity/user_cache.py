"""Small files in the user's cache folder: they save time, and nothing depends on them."""

import os
from contextlib import suppress
from pathlib import Path

from configs.atomic import atomic_path


def load(name: str) -> bytes | None:
    """Return what was written under a name; None if nothing was, or it cannot be read."""
    try:
        return (_folder() / name).read_bytes()
    except (OSError, RuntimeError):
        return None


def save(name: str, content: bytes) -> None:
    """Write whole or not at all; where the folder cannot be written, nothing happens."""
    with suppress(OSError, RuntimeError):
        path = _folder() / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as aside:
            aside.write_bytes(content)


def _folder() -> Path:
    """Raises RuntimeError where the user has no home."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", ""))
    # The XDG specification: a relative path is to be ignored.
    return (cache if cache.is_absolute() else Path.home() / ".cache") / "palindrome/videos"
