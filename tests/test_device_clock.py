"""Waiting for data counts only while the device has nothing to do: a slow one that is not there."""

from collections.abc import Callable, Iterator

import pytest
import torch

from train.engine.device_clock import DeviceClock
from train.engine.stopwatch import Stopwatch


class SlowDevice:
    """A device that works off what it is given one after the other, on a clock of its own.

    Attributes:
        now: the host's time in seconds.
    """

    def __init__(self) -> None:
        self.now, self.free_at = 1000.0, 0.0

    def work(self, seconds: float) -> None:
        self.free_at = max(self.free_at, self.now) + seconds

    def event(self) -> "Event":
        return Event(self)


class Event:
    """The members of `torch.cuda.Event` that are used."""

    def __init__(self, device: SlowDevice) -> None:
        self.device = device

    def record(self) -> None:
        self.at = max(self.device.free_at, self.device.now)

    def query(self) -> bool:
        return self.device.now >= self.at

    def synchronize(self) -> None:
        self.device.now = max(self.device.now, self.at)

    def elapsed_time(self, end: "Event") -> float:
        assert self.query() and end.query(), "torch raises here"
        return 1000 * (end.at - self.at)


Train = Callable[..., dict[str, float]]


@pytest.fixture
def train(monkeypatch: pytest.MonkeyPatch) -> Train:
    """Return what runs updates on a slow device and returns the seconds of the stages."""
    device = SlowDevice()
    monkeypatch.setattr("time.monotonic", lambda: device.now)

    def run(load_s: float, update_s: float, on_device: bool = True) -> dict[str, float]:
        def batches() -> Iterator[int]:
            for number in range(100):
                device.now += load_s
                yield number

        watch = Stopwatch("steps")
        clock = DeviceClock(device.event) if on_device else None
        for number in watch.time_waiting(batches(), "waiting", clock):
            device.work(update_s)
            device.now += 0.001  # the host only enqueues
            if clock is not None:
                clock.mark()
            if number % 10 == 9:  # losses are looked at
                device.now = max(device.now, device.free_at)
        return watch.seconds()

    return run


def test_a_busy_device_waits_for_nothing(train: Train) -> None:
    seconds = train(load_s=0.035, update_s=0.040)
    # The first batch, and one after each look at the losses, find the device idle.
    assert seconds["waiting"] == pytest.approx(11 * 0.035, rel=0.1)
    assert seconds["waiting"] / sum(seconds.values()) < 0.11
    host_alone = train(load_s=0.035, update_s=0.040, on_device=False)
    assert host_alone["waiting"] / sum(host_alone.values()) > 0.8  # what was told before


def test_a_device_that_idles_is_told_the_real_share(train: Train) -> None:
    seconds = train(load_s=0.100, update_s=0.040)
    idle = 100 * (0.100 - 0.040) / (100 * 0.101)
    assert seconds["waiting"] / sum(seconds.values()) == pytest.approx(idle, abs=0.05)


def test_no_second_is_lost(train: Train) -> None:
    for load, update in ((0.035, 0.040), (0.1, 0.04), (0.0, 0.5)):
        seconds = train(load, update)
        assert min(seconds.values()) >= 0
        assert sum(seconds.values()) >= 100 * (load + 0.001)


def test_a_cpu_needs_no_clock() -> None:
    assert DeviceClock.of(torch.device("cpu")) is None
