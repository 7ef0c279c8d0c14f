"""The time of a run, by stage."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:  # torch, which a mere command line does not need
    from train.device.device_clock import DeviceClock

START_UP = "starting up"  # what every run begins with
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

    def time_waiting(
        self, items: Iterable[T], name: str, clock: DeviceClock | None = None
    ) -> Iterator[T]:
        """Yield the items, and count the time of waiting for the next one for this stage.

        Args:
            clock: of a device that works while the host waits; only while it has nothing to do does
                waiting count, the rest is the outer stage's.
        """
        rest = iter(items)
        while True:
            outer = self._enter(name)
            began = self._since
            try:
                item = next(rest)
            except StopIteration:
                return
            finally:
                self._enter(outer)
                if clock is not None:
                    busy = min(max(clock.busy_until() - began, 0.0), self._since - began)
                    self._seconds[name] -= busy
                    self._seconds[outer] += busy
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
