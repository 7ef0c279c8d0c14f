"""What not every operating system has, and what stands in for it."""

import os
from typing import Any

try:
    import fcntl as module
except ImportError:  # files have no locks there, as on some network disks
    fcntl: Any = None
else:
    fcntl = module


def count_cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
