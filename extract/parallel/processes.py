"""What the processes of one run tell each other, and how they wait for each other.

This goes through the host (gloo): a GPU's own collectives (NCCL) would take objects through its
memory, and their time limit is that of a step. Here processes may wait for days, as while others
decode their videos. All processes must call the same functions in the same order.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from typing import TypeVar

import torch.distributed as dist

from configs.messages import format_bytes

LONGEST_WAIT = timedelta(days=7)
NCCL_BYTES = 10**9  # of /dev/shm
LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe")

T = TypeVar("T")


@contextmanager
def translate_lost_process() -> Iterator[None]:
    """Turn the sudden end of another process into an OSError that says what to do.

    Only gloo tells. Processes that wait for a GPU's collectives are ended by the launcher, which
    also says which process (rank) ended, and how.
    """
    try:
        yield
    except RuntimeError as error:
        if not any(sign in str(error) for sign in LOST):
            raise
        raise OSError(
            "another process of this run ended unexpectedly: the launcher's summary below names "
            "its rank and its exit code (-9: killed, often for its memory); the same command goes "
            "on, in training with --resume"
        ) from error


def processes_here(processes: int) -> int:
    """Return how many of a run's processes are on this machine: all, if the launcher is silent."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", processes))


def describe_little_shm() -> str:
    """Return one line where /dev/shm may be too small for NCCL, which then ends the run; else "".

    Source: NVIDIA's NCCL user guide, "Shared memory", gives containers 1 GB.
    """
    if os.environ.get("NCCL_SHM_DISABLE") == "1":
        return ""
    try:
        free = shutil.disk_usage("/dev/shm").free
    except OSError:
        return ""
    if free >= NCCL_BYTES:
        return ""
    return (
        f"warning: /dev/shm has {format_bytes(free)} free, and NCCL may need "
        f"{format_bytes(NCCL_BYTES)} for several GPUs; if it ends with 'shared memory segment', "
        "start the container with --shm-size 1g or --ipc=host, or set NCCL_SHM_DISABLE=1 (slower)"
    )


def connect() -> None:
    """Connect the processes, while all are sure to be here."""
    if _are_several():
        _host_group()


def gather_objects(mine: list[T]) -> list[T]:
    """Return the objects of all processes, in the order of the processes."""
    if not _are_several():
        return mine
    shares: list[list[T]] = [[] for _ in range(dist.get_world_size())]
    with translate_lost_process():
        dist.all_gather_object(shares, mine, group=_host_group())
    return [item for share in shares for item in share]


def broadcast_object(item: T) -> T:
    """Return the first process's object."""
    if not _are_several():
        return item
    sent = [item]
    with translate_lost_process():
        dist.broadcast_object_list(sent, src=0, group=_host_group())
    return sent[0]


def wait_for_all() -> None:
    """Wait until every process is here."""
    if _are_several():
        with translate_lost_process():
            dist.barrier(group=_host_group())


def _are_several() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


@cache
def _host_group() -> dist.ProcessGroup:
    group = dist.new_group(backend="gloo", timeout=LONGEST_WAIT)
    assert isinstance(group, dist.ProcessGroup)
    return group
