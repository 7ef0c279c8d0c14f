"""A path or a URL to the place that it names."""

import re
from pathlib import Path

from cache.errors import StoreError, StoreUnreachable
from cache.storage.base import Files
from cache.storage.local import LocalFiles
from cache.storage.remote import RemoteFiles


def open_files(url: str | Path) -> Files:
    """Return the place that a path or a URL names.

    Raises:
        StoreError: no installed package knows this kind of URL, or it lacks its slashes.
    """
    if isinstance(url, Path):
        return LocalFiles(url)
    scheme, separator, path = url.partition("://")
    if not separator:
        _check_slashes(url)
        return LocalFiles(Path(url))
    if scheme in ("file", "local"):
        return LocalFiles(Path(path))
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
