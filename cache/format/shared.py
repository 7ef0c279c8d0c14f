"""An opened index for processes that are being spawned: they share its memory."""

import io
import mmap
import os
import pickle
import tempfile
import weakref
from collections.abc import Callable
from multiprocessing.context import get_spawning_popen
from multiprocessing.reduction import DupFd
from typing import Any, cast

from cache.format.index import Index
from cache.storage.base import Files

ALIGNMENT = 64


def is_spawning() -> bool:
    """Return whether what is pickled now goes to a process that this one is about to start."""
    return get_spawning_popen() is not None


class SharedIndex:
    """An index in a temporary file without a name, which children map into their memory.

    Nothing has to be deleted: the file ends with the last process that has it open. It is local
    also where the store is not, or cannot be written.
    """

    def __init__(self, index: Index, files: Files) -> None:
        """Raises OSError if there is no room for the file."""
        self.index = index
        buffers: list[pickle.PickleBuffer] = []
        stream = io.BytesIO()
        _Pickler(stream, files, buffers.append).dump(index)
        self._ranges: list[tuple[int, int]] = []
        with tempfile.TemporaryFile() as file:
            for content in (stream.getbuffer(), *(buffer.raw() for buffer in buffers)):
                start = file.seek(-(-file.tell() // ALIGNMENT) * ALIGNMENT)
                file.write(content)
                self._ranges.append((start, start + len(content)))
            file.flush()
            self._descriptor = os.dup(file.fileno())
        weakref.finalize(self, os.close, self._descriptor)

    def __reduce__(self) -> tuple[type["ReceivedIndex"], tuple[Any, list[tuple[int, int]]]]:
        return ReceivedIndex, (DupFd(self._descriptor), self._ranges)


class ReceivedIndex:
    """A `SharedIndex` in the process that was spawned."""

    def __init__(self, descriptor: Any, ranges: list[tuple[int, int]]) -> None:
        self._descriptor, self._ranges = descriptor, ranges

    def load(self, files: Files) -> Index:
        """Return the index; its arrays are those of the other process."""
        descriptor = self._descriptor.detach()
        try:
            content = memoryview(mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ))
        finally:
            os.close(descriptor)
        first, *others = (content[start:stop] for start, stop in self._ranges)
        return cast(Index, _Unpickler(io.BytesIO(first), files, others).load())


class _Pickler(pickle.Pickler):
    """Leaves out the store's files, which the other process has, too, and arrays' memory."""

    def __init__(
        self, stream: io.BytesIO, files: Files, collect: Callable[[pickle.PickleBuffer], object]
    ) -> None:
        super().__init__(stream, protocol=5, buffer_callback=collect)
        self._files = files

    def persistent_id(self, value: object) -> str | None:
        return "files" if value is self._files else None


class _Unpickler(pickle.Unpickler):
    def __init__(self, stream: io.BytesIO, files: Files, buffers: list[memoryview]) -> None:
        super().__init__(stream, buffers=buffers)
        self._files = files

    def persistent_load(self, name: str) -> Files:
        return self._files
