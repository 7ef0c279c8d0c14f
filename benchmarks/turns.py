"""Several works timed in one run: they take turns, so that all meet the same noise."""

import statistics
import time
from collections.abc import Callable, Sequence


def time_work(work: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    """Return the seconds of a work."""
    began = clock()
    work()
    return clock() - began


def median_seconds(
    works: Sequence[Callable[[], object]],
    turns: int,
    clock: Callable[[], float] = time.perf_counter,
) -> list[float]:
    """Return the median seconds of each work; one turn before the counted ones warms up.

    Args:
        clock: returns seconds; `time.process_time` for those of the processor.
    """
    taken = [[time_work(work, clock) for work in works] for _ in range(turns + 1)]
    return [statistics.median(column) for column in zip(*taken[1:], strict=True)]
