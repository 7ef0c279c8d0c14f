"""From a path or a URL to the place that it names."""

import re
from pathlib import Path

from cache.errors import StoreError, StoreUnreachable
from cache.storage.base import Files
from cache.storage.local import LocalFiles
from cache.storage.remote import RemoteFiles

CACHING = {"simplecache", "filecache", "blockcache", "cached"}
"""File systems of fsspec that keep copies, and so show what others have replaced or deleted."""


def open_files(url: str | Path) -> Files:
    """Return the place that a path or a URL names.

    Raises:
        StoreError: no installed package knows this kind of URL, it lacks its slashes, or it names a
            copy of the place.
    """
    if isinstance(url, Path):
        return LocalFiles(url)
    scheme, separator, path = url.partition("://")
    if not separator:
        _check_slashes(url)
        return LocalFiles(Path(url))
    if scheme in ("file", "local"):
        return LocalFiles(Path(path))
    layers = url.split("::")
    if copying := CACHING.intersection(layer.partition("://")[0] for layer in layers):
        raise StoreError(
            f"{url}: {min(copying)} would go on showing what other processes have replaced or "
            f"deleted; give the place itself: {layers[-1]}"
        )
    try:
        return RemoteFiles(url)
    except StoreUnreachable:
        raise
    except (ImportError, ValueError) as error:
        raise StoreError(f"cannot reach {url}: {error}") from error


def _check_slashes(url: str) -> None:
    """Raise StoreError for `s3:bucket/x`, which would be a folder of this name."""
    if found := re.match(r"([A-Za-z][\w+.-]+):/*(.*)", url):
        scheme, path = found.groups()
        meant = path if scheme in ("file", "local") else f"{scheme}://{path}"
        if meant == path and url.startswith(f"{scheme}:/"):
            meant = f"/{path}"
        raise StoreError(
            f"{url} is neither a URL nor a plain path; write {meant}, or, for a folder of this "
            f"very name, ./{url}"
        )
