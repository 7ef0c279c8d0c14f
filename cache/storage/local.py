"""A store on a local or mounted disk.

While a mount's server is away (NFS, sshfs), the store does not answer, as a remote one.
"""

import errno
import functools
import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import numpy as np

from cache.errors import StoreUnreachable
from cache.storage.base import Content, Range
from cache.storage.codec import Bytes, as_buffer
from configs.atomic import atomic_path

P = ParamSpec("P")
T = TypeVar("T")

AWAY = {
    *(errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ENODEV, errno.ENXIO, errno.ETIMEDOUT),
    *(errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH),
    *(errno.ECONNABORTED, errno.ECONNREFUSED, errno.ECONNRESET),
}
"""What the system says of a disk or a server that is away, not of a file."""


def _reaching(
    ask: "Callable[Concatenate[LocalFiles, P], T]",
) -> "Callable[Concatenate[LocalFiles, P], T]":
    """Return a method that raises StoreUnreachable where the disk is away."""

    @functools.wraps(ask)
    def answer(files: "LocalFiles", /, *of: P.args, **options: P.kwargs) -> T:
        try:
            return ask(files, *of, **options)
        except OSError as error:
            if error.errno not in AWAY:
                raise
            cause = f"{files.url} cannot be reached ({error.strerror})"
            raise StoreUnreachable(cause) from error

    return answer


class LocalFiles:
    """A folder of a local or mounted disk."""

    batch_bytes = 2**22

    def __init__(self, folder: Path) -> None:
        self.folder = folder.expanduser()
        self.url = str(folder)

    @_reaching
    def read(self, ranges: Sequence[Range]) -> list[Bytes | None]:
        found: list[Bytes | None] = []
        opened, name = -1, None
        try:
            for wanted_name, start, stop in ranges:
                if wanted_name != name:
                    if opened >= 0:
                        os.close(opened)
                    opened, name = -1, wanted_name
                    with suppress(FileNotFoundError, NotADirectoryError):
                        opened = os.open(f"{self.folder}/{wanted_name}", os.O_RDONLY)
                found.append(None if opened < 0 else _read_range(opened, start, stop))
        finally:
            if opened >= 0:
                os.close(opened)
        return found

    @_reaching
    def size(self, name: str) -> int | None:
        try:
            return (self.folder / name).stat().st_size
        except (FileNotFoundError, NotADirectoryError):
            return None

    @_reaching
    def write(self, name: str, content: Content, durable: bool = True) -> None:
        path = self.folder / name
        self._make_folder(path.parent)
        with atomic_path(path) as aside, open(aside, "wb") as file:
            for piece in content:
                file.write(as_buffer(piece))
            if durable:
                file.flush()
                os.fsync(file.fileno())
        if durable:
            _sync_folder(path.parent)

    @_reaching
    def move(self, old: str, new: str) -> None:
        os.replace(self.folder / old, self.folder / new)
        _sync_folder((self.folder / new).parent)

    @_reaching
    def delete(self, *names: str) -> None:
        for name in names:
            with suppress(FileNotFoundError, NotADirectoryError):
                (self.folder / name).unlink()

    @_reaching
    def delete_folder(self, name: str) -> None:
        shutil.rmtree(self.folder / name, onerror=_ignore_missing)

    @_reaching
    def children(self, folder: str) -> dict[str, int | None]:
        try:
            with os.scandir(self.folder / folder) as entries:
                return dict(sorted(filter(None, map(_name_and_size, entries))))
        except (FileNotFoundError, NotADirectoryError):
            return {}

    def grandchildren(self, folder: str) -> dict[str, dict[str, int | None]]:
        names = [name for name, size in self.children(folder).items() if size is None]
        return {name: self.children(f"{folder}/{name}") for name in names}

    def walk(self, folder: str = "") -> dict[str, int]:
        found: dict[str, int] = {}
        for name, size in self.children(folder).items():
            path = f"{folder}/{name}".lstrip("/")
            found |= self.walk(path) if size is None else {path: size}
        return found

    def free_bytes(self) -> int | None:
        folder = self.folder.absolute()
        while not folder.exists():
            folder = folder.parent
        return shutil.disk_usage(folder).free

    def _make_folder(self, folder: Path) -> None:
        if not folder.is_dir():
            if folder != folder.parent:
                self._make_folder(folder.parent)
            folder.mkdir(exist_ok=True)
            _sync_folder(folder.parent)


def _read_range(opened: int, start: int, stop: int) -> Bytes:
    """Return a range of an open file; shorter where the file ends."""
    size = min(stop, os.fstat(opened).st_size) - start
    data = np.empty(max(size, 0), np.uint8)
    done = 0
    while done < len(data):
        count = os.preadv(opened, [data[done:].data], start + done)
        if not count:
            break
        done += count
    return data[:done]


def _name_and_size(entry: "os.DirEntry[str]") -> tuple[str, int | None] | None:
    """Return name and size, None for both if it was deleted while the folder was listed."""
    try:
        return entry.name, None if entry.is_dir() else entry.stat().st_size
    except FileNotFoundError:
        return None


def _ignore_missing(function: object, path: object, why: Any) -> None:
    """Raise an error of `rmtree` unless another process has deleted the same file."""
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
