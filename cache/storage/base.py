"""The files of a store, on a local disk or wherever fsspec reaches.

Names are relative to the store, with slashes. Every file appears whole or not at all and is never
changed afterwards, only replaced: locally it is written aside, forced to the disk and renamed;
elsewhere it is one put.
"""

import os
import re
import secrets
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import fsspec
import numpy as np
from fsspec.core import url_to_fs

from cache.errors import StoreError
from cache.storage.codec import Bytes, buffer

Range = tuple[str, int, int]
"""A file's name and the bytes wanted of it: first, and one behind the last."""

Content = Sequence[bytes | Bytes]


class Files(Protocol):
    """What a store needs of a place."""

    url: str
    batch_bytes: int
    """How much to ask for in one `read`: much where a request takes long."""

    def read(self, ranges: Sequence[Range]) -> list[Bytes | None]:
        """Return what the ranges hold, shorter where a file ends, None where it is not there."""

    def size(self, name: str) -> int | None:
        """Return a file's bytes, None if it is not there."""

    def write(self, name: str, content: Content, durable: bool = True) -> None:
        """Write a file whole or not at all; when this returns, a power cut keeps it."""

    def move(self, old: str, new: str) -> None:
        """Rename a file. FileNotFoundError: it is not there."""

    def delete(self, name: str) -> None:
        """Delete a file or a folder with all that is in it; it need not be there."""

    def children(self, folder: str) -> dict[str, int | None]:
        """Return names in a folder and the files' bytes, None for folders; empty if absent."""

    def grandchildren(self, folder: str) -> dict[str, dict[str, int | None]]:
        """Return `children` of every folder in a folder."""

    def usage(self, folder: str) -> int:
        """Return the bytes of all files below a folder."""

    def free_bytes(self) -> int | None:
        """Return how much fits on the disk; None where nobody can say."""


def files_at(url: str | Path) -> Files:
    """Return the place that a path or a URL names.

    Raises:
        StoreError: no installed package knows this kind of URL, or it lacks its slashes.
    """
    if isinstance(url, Path):
        return LocalFiles(url)
    scheme, separator, path = url.partition("://")
    if not separator:
        _refuse_lost_slashes(url)
        return LocalFiles(Path(url))
    if scheme in ("file", "local"):
        return LocalFiles(Path(path))
    try:
        return RemoteFiles(url)
    except (ImportError, ValueError) as error:
        raise StoreError(f"cannot reach {url}: {error}") from error


def _refuse_lost_slashes(url: str) -> None:
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


def read_whole(files: Files, name: str, size: int | None) -> Bytes | None:
    """Return a file's bytes, None if it is not there.

    Args:
        size: its bytes; if None, anything up to 16 MiB.
    """
    return files.read([(name, 0, 2**24 if size is None else size)])[0]


class LocalFiles:
    """A folder of a local or mounted disk."""

    batch_bytes = 2**22

    def __init__(self, folder: Path) -> None:
        self.folder = folder.expanduser()
        self.url = str(folder)

    def read(self, ranges: Sequence[Range]) -> list[Bytes | None]:
        found: list[Bytes | None] = []
        opened, name = -1, None
        try:
            for wanted, start, stop in ranges:
                if wanted != name:
                    if opened >= 0:
                        os.close(opened)
                    opened, name = -1, wanted
                    with suppress(FileNotFoundError, NotADirectoryError):
                        opened = os.open(self.folder / wanted, os.O_RDONLY)
                found.append(None if opened < 0 else _read_at(opened, start, stop))
        finally:
            if opened >= 0:
                os.close(opened)
        return found

    def size(self, name: str) -> int | None:
        try:
            return (self.folder / name).stat().st_size
        except (FileNotFoundError, NotADirectoryError):
            return None

    def write(self, name: str, content: Content, durable: bool = True) -> None:
        path = self.folder / name
        self._make(path.parent)
        # A name of its own: two processes may write the same file of equal content.
        aside = path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")
        try:
            with open(aside, "wb") as file:
                for piece in content:
                    file.write(buffer(piece))
                if durable:
                    file.flush()
                    os.fsync(file.fileno())
            os.replace(aside, path)
        except BaseException:
            with suppress(OSError):
                aside.unlink()
            raise
        if durable:
            _sync_folder(path.parent)

    def move(self, old: str, new: str) -> None:
        os.replace(self.folder / old, self.folder / new)
        _sync_folder((self.folder / new).parent)

    def delete(self, name: str) -> None:
        path = self.folder / name
        try:
            path.unlink()
        except FileNotFoundError:
            pass
        except (IsADirectoryError, PermissionError):
            shutil.rmtree(path, onerror=_unless_gone)

    def children(self, folder: str) -> dict[str, int | None]:
        try:
            with os.scandir(self.folder / folder) as entries:
                return dict(sorted(filter(None, map(_entry, entries))))
        except (FileNotFoundError, NotADirectoryError):
            return {}

    def grandchildren(self, folder: str) -> dict[str, dict[str, int | None]]:
        names = [name for name, size in self.children(folder).items() if size is None]
        return {name: self.children(f"{folder}/{name}") for name in names}

    def usage(self, folder: str) -> int:
        return sum(
            self.usage(f"{folder}/{name}") if size is None else size
            for name, size in self.children(folder).items()
        )

    def free_bytes(self) -> int | None:
        folder = self.folder.absolute()
        while not folder.exists():
            folder = folder.parent
        return shutil.disk_usage(folder).free

    def _make(self, folder: Path) -> None:
        if not folder.is_dir():
            if folder != folder.parent:
                self._make(folder.parent)
            folder.mkdir(exist_ok=True)
            _sync_folder(folder.parent)


class RemoteFiles:
    """A folder of an object store, or of anything else that fsspec reaches."""

    batch_bytes = 2**26

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self.system: fsspec.AbstractFileSystem
        self.system, root = url_to_fs(self.url)
        self.root = root.rstrip("/")

    def read(self, ranges: Sequence[Range]) -> list[Bytes | None]:
        paths, starts, stops = self._columns(ranges)
        found = self.system.cat_ranges(paths, starts, stops, on_error="return") if paths else []
        return [
            self._content(answer, *wanted) for answer, wanted in zip(found, ranges, strict=True)
        ]

    def size(self, name: str) -> int | None:
        self.system.invalidate_cache()
        try:
            return int(self.system.size(self._path(name)))
        except FileNotFoundError:
            return None

    def write(self, name: str, content: Content, durable: bool = True) -> None:
        path, data = self._path(name), b"".join(bytes(piece) for piece in content)
        try:
            self.system.pipe_file(path, data)
        except FileNotFoundError:
            # A place that has real folders, as SFTP does.
            self.system.makedirs(path.rpartition("/")[0], exist_ok=True)
            self.system.pipe_file(path, data)

    def move(self, old: str, new: str) -> None:
        self.system.mv(self._path(old), self._path(new))

    def delete(self, name: str) -> None:
        with suppress(FileNotFoundError):
            self.system.rm(self._path(name), recursive=True)

    def children(self, folder: str) -> dict[str, int | None]:
        self.system.invalidate_cache()
        try:
            entries = self.system.ls(self._path(folder), detail=True)
        except (FileNotFoundError, NotADirectoryError):
            return {}
        return {
            entry["name"].rstrip("/").rpartition("/")[2]: (
                None if entry["type"] == "directory" else int(entry["size"])
            )
            for entry in sorted(entries, key=lambda entry: str(entry["name"]))
        }

    def grandchildren(self, folder: str) -> dict[str, dict[str, int | None]]:
        # One recursive listing: a request for every folder would take long.
        self.system.invalidate_cache()
        root = self._path(folder).lstrip("/") + "/"
        found: dict[str, dict[str, int | None]] = {}
        for path, entry in sorted(self.system.find(self._path(folder), detail=True).items()):
            below = path.lstrip("/").removeprefix(root).split("/")
            if len(below) > 1:
                size = int(entry["size"]) if len(below) == 2 else None
                found.setdefault(below[0], {})[below[1]] = size
        return found

    def _content(self, answer: Any, name: str, start: int, stop: int) -> Bytes | None:
        if isinstance(answer, FileNotFoundError):
            return None
        if isinstance(answer, Exception):
            # Object stores refuse a range behind a file's end.
            size = self.size(name)
            if size is not None and start < size:
                raise answer
            return None if size is None else np.empty(0, np.uint8)
        return np.frombuffer(answer, np.uint8)

    def usage(self, folder: str) -> int:
        self.system.invalidate_cache()
        found = self.system.find(self._path(folder), detail=True)
        return sum(int(entry["size"]) for entry in found.values())

    def free_bytes(self) -> int | None:
        return None

    def _path(self, name: str) -> str:
        return f"{self.root}/{name}"

    def _columns(self, ranges: Sequence[Range]) -> tuple[list[str], list[int], list[int]]:
        rows = [(self._path(name), start, stop) for name, start, stop in ranges]
        return [row[0] for row in rows], [row[1] for row in rows], [row[2] for row in rows]


def _read_at(opened: int, start: int, stop: int) -> Bytes:
    """Read a range of an open file; shorter where the file ends."""
    size = min(stop, os.fstat(opened).st_size) - start
    data = np.empty(max(size, 0), np.uint8)
    done = 0
    while done < len(data):
        count = os.preadv(opened, [data[done:].data], start + done)
        if not count:
            break
        done += count
    return data[:done]


def _entry(entry: "os.DirEntry[str]") -> tuple[str, int | None] | None:
    """Name and size; None if it was deleted while the folder was listed."""
    try:
        return entry.name, None if entry.is_dir() else entry.stat().st_size
    except FileNotFoundError:
        return None


def _unless_gone(function: object, path: object, why: Any) -> None:
    """Let another process delete the same folder."""
    if not issubclass(why[0], FileNotFoundError):
        raise why[1]


def _sync_folder(folder: Path) -> None:
    """Force the names in a folder to the disk."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    except OSError:
        pass  # some mounted disks cannot sync folders
    finally:
        os.close(opened)
