"""Copies to the device, and from it, while it works: batches ahead, and results behind."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, Protocol, Self, TypeVar

import torch
from torch import Tensor


class OfTensors(Protocol):
    """A batch of tensors."""

    def each(self, change: Callable[[Tensor], Tensor]) -> Self:
        """Return the batch with its tensors changed."""


B = TypeVar("B", bound=OfTensors)
T = TypeVar("T")
U = TypeVar("U")


def copied_ahead(batches: Iterable[B], device: torch.device) -> Iterator[B]:
    """Yield the batches on the device, each copied on a stream of its own one batch ahead.

    What is there already stays as it is: that stream would not wait for what makes it, and its
    memory might be used again before that stream has read it. On a CPU batches pass through.
    """
    if device.type != "cuda":
        return iter(batches)
    copying = _copying_stream(device)

    def copy(tensor: Tensor) -> Tensor:
        return tensor.to(device, non_blocking=True)

    def start(batch: B) -> tuple[B, Any]:
        with torch.cuda.stream(copying):
            return batch.each(copy), copying.record_event()

    def finish(started: tuple[B, Any]) -> B:
        batch, copied = started
        using = torch.cuda.current_stream(device)
        using.wait_event(copied)  # the device waits, not the host

        def keep(tensor: Tensor) -> Tensor:
            tensor.record_stream(using)  # its memory belongs to the other stream
            return tensor

        return batch.each(keep)

    return map(finish, start_ahead(batches, start))


@cache
def _copying_stream(device: torch.device) -> torch.cuda.Stream:
    """Return the stream of all copies to a device: memory freed on one is not used on another."""
    return torch.cuda.Stream(device)


def start_fetch(tensor: Tensor) -> Callable[[], Tensor]:
    """Begin to copy a tensor to the host; return a function that waits for it and returns it.

    The device may be given more work meanwhile.
    """
    if tensor.device.type != "cuda":
        return tensor.cpu
    copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    copy.copy_(tensor, non_blocking=True)
    done = torch.cuda.current_stream(tensor.device).record_event()

    def wait() -> Tensor:
        done.synchronize()
        return copy

    return wait


@contextmanager
def one_behind() -> Iterator[Callable[[Callable[[], None]], None]]:
    """Give a function that takes what ends a piece of work, and calls what it was given before.

    The last is called at the end, unless that is an error: a device is given the next piece before
    the host waits for one.
    """
    waiting = list[Callable[[], None]]()

    def finish_later(finish: Callable[[], None]) -> None:
        waiting.append(finish)
        if len(waiting) > 1:
            waiting.pop(0)()

    yield finish_later
    for finish in waiting:
        finish()


def start_ahead(items: Iterable[T], start: Callable[[T], U]) -> Iterator[U]:
    """Yield what `start` returns for each item, after it has been called for the next one.

    An item that cannot be had ends it only after all before it were yielded.
    """
    started = list[U]()
    failure: Exception | None = None
    try:
        for item in items:
            started.append(start(item))
            if len(started) > 1:
                yield started.pop(0)
    except Exception as error:
        failure = error
    yield from started
    if failure is not None:
        raise failure
