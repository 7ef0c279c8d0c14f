"""Memory that processes share without /dev/shm, of which containers have 64 MB."""

import mmap
import os
import tempfile
from multiprocessing import reduction
from typing import Any


class SharedMemory:
    """Memory that another process of the same run maps too when this is sent to it.

    Torch's and Python's own stand in /dev/shm.
    """

    opened: int | None = None

    def __init__(self, size: int, opened: int | None = None) -> None:
        """Map a new, empty file without a name, or the `opened` one of another process."""
        self.size = size
        self.opened = _open_unnamed(size) if opened is None else opened
        self.map = mmap.mmap(self.opened, size)

    def __reduce__(self) -> tuple[Any, ...]:
        assert self.opened is not None
        return _map_again, (self.size, reduction.DupFd(self.opened))

    def __del__(self) -> None:
        if self.opened is not None:  # else there was no room
            os.close(self.opened)


def _map_again(size: int, duplicate: Any) -> SharedMemory:
    return SharedMemory(size, duplicate.detach())


def _open_unnamed(size: int) -> int:
    if hasattr(os, "memfd_create"):
        opened = os.memfd_create("palindrome")
    else:
        with tempfile.TemporaryFile() as file:
            opened = os.dup(file.fileno())
    os.ftruncate(opened, size)
    return opened
