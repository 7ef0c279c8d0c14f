"""Storing what passes finish in a thread of its own, and which stage of extraction is the slowest.

The device works on while a store compresses and writes. What is queued is bounded, and what fails
in the thread is raised where the next rows are handed over, or at the end.
"""

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from queue import Queue
from types import TracebackType
from typing import TypeVar

from torch import Tensor

from extract.activations.activations import Activations
from extract.activations.stored import Cached
from extract.parallel.lookahead import start_fetch
from extract.sampling.spans import Span

T = TypeVar("T")
QUEUED = 2  # activations, or pieces of them: of a window of ViT-H's tokens each has 200 MB
STAGES = {"decode": "decoding", "device": "the network", "write": "writing"}
REMEDIES = {
    "decode": "raise training.workers, or make proxies (extract/transcode.py)",
    "device": "a faster device, or more processes, would help",
    "write": "a faster disk or store would help, or fewer cache.blocks",
}


class StageTimes:
    """Seconds that extraction waited for each of its stages."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(STAGES, 0.0)

    @contextmanager
    def of(self, stage: str) -> Iterator[None]:
        """Count the time of the context for a stage."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.seconds[stage] += time.monotonic() - began

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Count the time of the context for the device, but for what is counted inside it."""
        began, before = time.monotonic(), sum(self.seconds.values())
        try:
            yield
        finally:
            inside = sum(self.seconds.values()) - before
            self.seconds["device"] += time.monotonic() - began - inside

    def describe(self) -> str:
        """Return each stage's share, and what the slowest one asks for."""
        total = sum(self.seconds.values()) or 1.0
        slowest = max(self.seconds, key=lambda stage: self.seconds[stage])
        shares = (f"{self.seconds[s] / total:.0%} for {name}" for s, name in STAGES.items())
        return f"{slowest}-bound: waited {', '.join(shares)}; {REMEDIES[slowest]}"


Written = tuple[Activations, Cached, Span, Callable[[], Tensor], int]


class WritingThread(AbstractContextManager["WritingThread"]):
    """A thread that stores rows of activations in the order in which they are given.

    Leaving the context waits until all are stored, after an error, too: what is done is done.

    Args:
        times: is told how long others waited for the device and for the store.
    """

    def __init__(self, times: StageTimes) -> None:
        self.times, self.inside = times, StageTimes()
        self._queue: Queue[Written | None] = Queue(QUEUED)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="writing", daemon=True)
        self._thread.start()

    def write(
        self, activations: Activations, place: Cached, span: Span, rows: Tensor, first: int
    ) -> None:
        """Take rows as `Activations.write` does; they may change afterwards.

        Raises:
            OSError, StoreError: those before could not be stored.
        """
        rows = rows.detach()
        # A device copies them in its order of work; a CPU would hand on the very memory.
        fetch = start_fetch(rows.clone() if rows.device.type == "cpu" else rows)
        with self._waiting():
            self._queue.put((activations, place, span, fetch, first))
        if self._error is not None:
            raise self._error

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._waiting():
            self._queue.put(None)
            self._thread.join()
        if self._error is not None and error is None:
            raise self._error

    @contextmanager
    def _waiting(self) -> Iterator[None]:
        """Count the time of the context for what the thread does meanwhile."""
        began, before = time.monotonic(), dict(self.inside.seconds)
        yield
        waited = time.monotonic() - began
        since = {s: self.inside.seconds[s] - before[s] for s in ("device", "write")}
        # What it was in the middle of counts when it ends: then both can be 0 here.
        device = since["device"] / total if (total := sum(since.values())) else 0.0
        self.times.seconds["device"] += waited * device
        self.times.seconds["write"] += waited * (1 - device)

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            if self._error is not None:
                continue  # nobody may wait for a full queue
            activations, place, span, fetch, first = item
            try:
                with self.inside.of("device"):
                    rows = fetch()  # waits for what the device still computes
                with self.inside.of("write"):
                    activations.write(place, span, rows, first)
            except BaseException as error:
                self._error = error


def time_decoding(pieces: Iterable[T], times: StageTimes) -> Iterator[T]:
    """Yield the pieces, and count the time of waiting for the next one."""
    rest = iter(pieces)
    while True:
        with times.of("decode"):
            try:
                piece = next(rest)
            except StopIteration:
                return
        yield piece
