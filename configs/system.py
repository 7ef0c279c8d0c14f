"""What not every operating system has, and what stands in for it."""

import errno
import os
from contextlib import suppress
from typing import Any

try:
    import fcntl as module
except ImportError:  # files have no locks there, as on some network disks
    fcntl: Any = None
else:
    fcntl = module

NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}


def try_lock(file: int) -> bool | None:
    """Lock a file, for this process and all that inherit it; return whether nobody else holds it.

    Returns:
        None where there are no locks.
    """
    if fcntl is None:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        return None
    return True


def unlock(file: int) -> None:
    """Unlock a file, also for those that have inherited it."""
    with suppress(OSError):
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_UN)


def count_cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
