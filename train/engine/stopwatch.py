"""Where a run's time goes."""

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")


class Stopwatch:
    """Adds up the seconds of stages; every moment belongs to one, the innermost.

    Args:
        stage: what begins now.
    """

    def __init__(self, stage: str) -> None:
        self._seconds: dict[str, float] = defaultdict(float)
        self._stage, self._since = stage, time.monotonic()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count for this stage as long as the context lasts, then for the outer one again."""
        outer = self._enter(name)
        try:
            yield
        finally:
            self._enter(outer)

    def time_waiting(self, items: Iterable[T], name: str) -> Iterator[T]:
        """Pass items through; the time that the next one takes to come counts for this stage."""
        rest = iter(items)
        while True:
            with self.stage(name):
                try:
                    item = next(rest)
                except StopIteration:
                    return
            yield item

    def seconds(self) -> dict[str, float]:
        """Return the seconds of all stages so far, in the order of their first ends."""
        self._enter(self._stage)
        return {name: round(seconds, 3) for name, seconds in self._seconds.items()}

    def _enter(self, name: str) -> str:
        now = time.monotonic()
        self._seconds[self._stage] += now - self._since
        outer, self._stage, self._since = self._stage, name, now
        return outer
