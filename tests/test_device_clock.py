"""Waiting for data counts only while the device has nothing to do: a slow one that is not there."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from configs.loader import load
from tests.test_e2e import DEMO, QUICK, build
from train.config import Experiment
from train.device.device_clock import DeviceClock
from train.engine.stopwatch import Stopwatch


class SlowDevice:
    """A device that works off what it is given one after the other, on a clock of its own.

    Attributes:
        now: the host's time in seconds.
        speed: of the device's clock: its seconds in one of the host's.
    """

    def __init__(self, speed: float = 1.0) -> None:
        self.now, self.free_at, self.speed = 1000.0, 0.0, speed

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
        return 1000 * (end.at - self.at) * self.device.speed


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
    for loading, updating in ((0.035, 0.040), (0.1, 0.04), (0.0, 0.5)):
        seconds = train(loading, updating)
        assert min(seconds.values()) >= 0
        assert sum(seconds.values()) >= 100 * (loading + 0.001)


def test_a_look_at_the_losses_sets_the_clock_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two quartzes drift apart by seconds a day, and torch tells long times in float32."""
    device = SlowDevice(speed=1.01)
    monkeypatch.setattr("time.monotonic", lambda: device.now)
    clock = DeviceClock(device.event)
    for _ in range(100):
        for _ in range(10):
            device.work(0.04)
            clock.mark()
        device.now = device.free_at  # the host has waited
        clock.set_anew()
        assert clock.busy_until() == device.now
        device.work(0.04)
        clock.mark()
        assert clock.busy_until() == math.inf
        device.now += 0.05
        assert clock.busy_until() == pytest.approx(device.now - 0.01, abs=0.001)


def test_runs_set_their_clock_anew(
    data: list[str], tmp_path: Path, accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = list[str]()

    class Clock(DeviceClock):
        def __init__(self) -> None:
            pass

        def mark(self) -> None:
            calls.append("update")

        def busy_until(self) -> float:
            return 0.0

        def set_anew(self) -> None:
            calls.append("set")

    one_epoch = ["--training.stop_epoch=1", "--data.validation_subset=null"]
    often = [*one_epoch, "--training.global_batch=1"]
    run = build(load(Experiment, DEMO, [*data, *QUICK, *often, f"--out={tmp_path}"]), accelerator)
    run.clock = Clock()
    monkeypatch.setattr("train.engine.loop.LOG_EVERY", 2)
    run.train()
    assert calls == ["update", "update", "set"] * 2


def test_a_cpu_needs_no_clock() -> None:
    assert DeviceClock.of(torch.device("cpu")) is None
