"""The files of a store, on a local disk or wherever fsspec reaches.

Names are relative to the store, with slashes. Every file appears whole or not at all and is never
changed afterwards, only replaced: locally it is written aside, forced to the disk and renamed;
elsewhere it is one put.
"""

from collections.abc import Iterator, Sequence
from typing import Protocol

from cache.storage.codec import Bytes

Range = tuple[str, int, int]
"""A file's name and the bytes wanted of it: first, and one past the last."""

Content = Sequence[bytes | Bytes]


class Files(Protocol):
    """The operations that a store needs of a disk or an object store."""

    url: str
    batch_bytes: int
    """Bytes to ask for in one `read`: many where a request takes long."""

    def read(self, ranges: Sequence[Range]) -> list[Bytes | None]:
        """Return what the ranges hold, shorter where a file ends, None where it is not there."""

    def size(self, name: str) -> int | None:
        """Return a file's bytes, None if it is not there."""

    def write(self, name: str, content: Content, durable: bool = True) -> None:
        """Write a file whole or not at all; once this returns, it survives a power cut."""

    def move(self, old: str, new: str) -> None:
        """Rename a file; raise FileNotFoundError if it is not there."""

    def delete(self, *names: str) -> None:
        """Delete files; they need not be there."""

    def delete_folder(self, name: str) -> None:
        """Delete a folder with all that is in it; it need not be there."""

    def children(self, folder: str) -> dict[str, int | None]:
        """Return the names in a folder with files' bytes, None for folders; empty if absent."""

    def grandchildren(self, folder: str) -> dict[str, dict[str, int | None]]:
        """Return `children` of every folder in a folder."""

    def walk(self, folder: str = "") -> dict[str, int]:
        """Return all files below a folder, by their names in the store, with their bytes."""

    def free_bytes(self) -> int | None:
        """Return the free bytes of the disk; None where that is unknown."""


def read_whole(files: Files, name: str, size: int | None) -> Bytes | None:
    """Return a file's bytes, None if it is not there.

    Args:
        size: its bytes; if None, anything up to 16 MiB.
    """
    return files.read([(name, 0, 2**24 if size is None else size)])[0]


def split_batches(sizes: Sequence[int], limit: int) -> Iterator[slice]:
    """Yield slices of neighbours whose sizes add up to no more than a limit, at least one each."""
    first = total = 0
    for number, size in enumerate(sizes):
        if number > first and total + size > limit:
            yield slice(first, number)
            first, total = number, 0
        total += size
    if sizes:
        yield slice(first, len(sizes))
