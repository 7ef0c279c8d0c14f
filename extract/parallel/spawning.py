"""Worker processes that are spawned without waiting for them, and queues that tell of failures.

What a spawned process works on reaches it through a pipe, and whoever spawns it waits until it has
read all of it. One that is killed before it reads, as when many import torch at once in a
container with little memory, is waited for for ever. Here the pipe carries a few hundred bytes,
which it holds without a reader, and the rest stands in shared memory.
"""

import os
import pickle
from collections.abc import Callable
from multiprocessing.context import SpawnContext, SpawnProcess
from multiprocessing.queues import Queue
from multiprocessing.reduction import ForkingPickler
from typing import Any

from torch._utils import ExceptionWrapper
from torch.utils.data import get_worker_info

from extract.parallel.shared_memory import SharedMemory


class InMemory:
    """Something that a process to be spawned finds in memory; unpickled it is as it was."""

    def __init__(self, content: Any) -> None:
        self.content = content

    def __reduce__(self) -> tuple[Any, ...]:
        text = ForkingPickler.dumps(self.content)
        self.memory = SharedMemory(len(text))  # open until the process has inherited it
        self.memory.map.write(text)
        return _read, (self.memory,)


def _read(memory: SharedMemory) -> Any:
    return pickle.loads(memory.map)


class WorkerProcess(SpawnProcess):
    """A spawned process whose arguments come in memory."""

    def __init__(
        self,
        group: None = None,
        target: Callable[..., object] | None = None,
        name: str | None = None,
        args: tuple[Any, ...] = (),
        **options: Any,
    ) -> None:
        super().__init__(group, _call, name, (target, InMemory(args)), **options)


def _call(target: Callable[..., object], args: tuple[Any, ...]) -> None:
    target(*args)


class WorkerQueue(Queue):  # type: ignore[type-arg]  # at run time it takes no argument
    """A queue from which comes an error in place of what a worker's thread cannot send.

    Python's prints it in the worker, and whoever waits does so for ever. It may be an error itself:
    there are libraries that make classes of errors as they run, which cannot be pickled.
    """

    def _on_queue_feeder_error(self, error: Exception, item: Any) -> None:
        if get_worker_info() is None:  # keys, for a worker that has ended
            super()._on_queue_feeder_error(error, item)  # type: ignore[misc]
            return
        number, failure = item
        if isinstance(failure, _Unsent):
            os._exit(1)  # which is noticed
        if not isinstance(failure, ExceptionWrapper):
            failure = ExceptionWrapper((type(error), error, error.__traceback__))
        self.put((number, _Unsent(failure)))


class _Unsent(ExceptionWrapper):
    """An error of a worker, as the nearest of its classes that can be pickled."""

    def __init__(self, failure: ExceptionWrapper) -> None:
        self.exc_msg, self.where = failure.exc_msg, failure.where
        self.exc_type = next(filter(_can_be_sent, failure.exc_type.__mro__))


def _can_be_sent(kind: type) -> bool:
    try:
        ForkingPickler.dumps(kind)
    except Exception:
        return False
    return True


class WorkerContext(SpawnContext):
    """How loaders make workers: spawned, because decoders do not survive a fork."""

    Process = WorkerProcess

    def Queue(self, maxsize: int = 0) -> WorkerQueue:
        """Return a queue to or from workers."""
        return WorkerQueue(maxsize, ctx=self)
