"""The thread that stores activations: its order, its bounds, its errors, and who is slowest."""

import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from extract.activations import writing
from extract.activations.writing import QUEUED, StageTimes, WritingThread, time_decoding

NOTHING: Any = SimpleNamespace()


class SlowStore:
    """Activations whose store takes its time, and may fail."""

    def __init__(self, seconds: float, fails_at: int | None = None) -> None:
        self.seconds, self.fails_at = seconds, fails_at
        self.rows: list[tuple[int, float]] = []

    def write(self, place: object, span: object, rows: Tensor, first: int) -> None:
        assert threading.current_thread() is not threading.main_thread()
        time.sleep(self.seconds)
        if first == self.fails_at:
            raise OSError("no room")
        self.rows.append((first, float(rows.sum())))


def extract(store: Any, count: int, decode_s: float, compute_s: float) -> StageTimes:
    """Go through the three stages of so many pieces, as `refresh` does."""

    def decoded() -> Any:
        for number in range(count):
            time.sleep(decode_s)
            yield number

    times, rows = StageTimes(), torch.zeros(3)
    with WritingThread(times) as writing:
        for number in time_decoding(decoded(), times):
            with times.computing():
                time.sleep(compute_s)
                rows.fill_(number)  # the network may use its memory again
                writing.write(store, NOTHING, NOTHING, rows, number)
    return times


def test_all_is_stored_in_order_as_it_was_given() -> None:
    store = SlowStore(0.002)
    extract(store, 20, 0, 0)
    assert store.rows == [(n, 3.0 * n) for n in range(20)]


@pytest.mark.parametrize("slow", ["decode", "device", "write"])
def test_the_slowest_stage_is_told(slow: str) -> None:
    delays = {stage: 0.03 if stage == slow else 0.001 for stage in ("decode", "device", "write")}
    times = extract(SlowStore(delays["write"]), 12, delays["decode"], delays["device"])
    assert times.describe().startswith(f"{slow}-bound: ")
    assert times.seconds[slow] > 0.7 * sum(times.seconds.values())


def test_writing_and_computing_take_turns_no_longer() -> None:
    """Of two stages of equal length, one is hidden behind the other."""
    began = time.monotonic()
    extract(SlowStore(0.03), 20, 0, 0.03)
    together = time.monotonic() - began
    assert together < 0.8 * 20 * 0.06


def test_what_cannot_be_stored_ends_it_soon() -> None:
    store = SlowStore(0.0, fails_at=2)
    with pytest.raises(OSError, match="no room"):
        extract(store, 1000, 0.001, 0)
    assert [first for first, _ in store.rows] == [0, 1]


def test_an_error_at_the_very_end_is_raised_too() -> None:
    with pytest.raises(OSError, match="no room"):
        extract(SlowStore(0.01, fails_at=4), 5, 0, 0)


def test_an_interrupt_stores_what_is_done() -> None:
    store: Any = SlowStore(0.01)
    with pytest.raises(KeyboardInterrupt), WritingThread(StageTimes()) as writing:
        for number in range(QUEUED):
            writing.write(store, NOTHING, NOTHING, torch.ones(1), number)
        raise KeyboardInterrupt
    assert len(store.rows) == QUEUED


def test_a_gpu_is_asked_for_rows_when_they_are_given_and_waited_for_in_the_thread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A GPU that is not there: asked later, it would first do what it was given since."""
    asked, waited = list[tuple[str, threading.Thread]](), list[threading.Thread]()

    def start_fetch(rows: Tensor) -> Callable[[], Tensor]:
        asked.append((rows.device.type, threading.current_thread()))
        number = len(asked)

        def wait() -> Tensor:
            waited.append(threading.current_thread())
            return torch.full((2,), float(number))

        return wait

    monkeypatch.setattr(writing, "start_fetch", start_fetch)
    store: Any = SlowStore(0)
    with WritingThread(StageTimes()) as thread:
        for number in range(3):
            thread.write(store, NOTHING, NOTHING, torch.zeros(2, device="meta"), number)
            assert asked[number:] == [("meta", threading.current_thread())]
    assert store.rows == [(0, 2.0), (1, 4.0), (2, 6.0)]
    assert len(waited) == 3 and threading.current_thread() not in waited
