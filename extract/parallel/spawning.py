"""Worker processes that are spawned without waiting for them.

What a spawned process works on reaches it through a pipe, and whoever spawns it waits until it has
read all of it. One that is killed before it reads, as when many import torch at once in a
container with little memory, is waited for for ever. Here the pipe carries a few hundred bytes,
which it holds without a reader, and the rest stands in shared memory.
"""

import pickle
from collections.abc import Callable
from multiprocessing.context import SpawnContext, SpawnProcess
from multiprocessing.reduction import ForkingPickler
from typing import Any

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


class WorkerContext(SpawnContext):
    """How loaders make workers: spawned, because decoders do not survive a fork."""

    Process = WorkerProcess
