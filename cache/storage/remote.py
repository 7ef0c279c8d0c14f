"""A store wherever fsspec reaches."""

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import fsspec
import numpy as np
from fsspec.core import url_to_fs

from cache.storage.base import Content, Range
from cache.storage.codec import Bytes


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
            self._content(result, *wanted) for result, wanted in zip(found, ranges, strict=True)
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

    def _content(self, result: Any, name: str, start: int, stop: int) -> Bytes | None:
        if isinstance(result, FileNotFoundError):
            return None
        if isinstance(result, Exception):
            # Object stores refuse a range behind a file's end.
            size = self.size(name)
            if size is not None and start < size:
                raise result
            return None if size is None else np.empty(0, np.uint8)
        return np.frombuffer(result, np.uint8)

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
