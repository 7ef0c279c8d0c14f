"""The time of a run, by stage."""

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")


class Stopwatch:
    """Seconds by stage; every moment belongs to one stage, the innermost.

    Args:
        stage: the first one, which begins now.
    """

    def __init__(self, stage: str) -> None:
        self._seconds: dict[str, float] = defaultdict(float)
        self._stage, self._since = stage, time.monotonic()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count time for this stage during the context, then for the outer one again."""
        outer = self._enter(name)
        try:
            yield
        finally:
            self._enter(outer)

    def time_waiting(self, items: Iterable[T], name: str) -> Iterator[T]:
        """Yield the items, and count the time of waiting for the next one for this stage."""
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
