"""The watchdog's time: what was stopped together with what it waits for does not hang."""

import signal
import subprocess
import sys
import time
from threading import Thread

import psutil  # type: ignore[import-untyped]
import pytest

from extract.video import watchdog
from extract.video.watchdog import happens_within
from tests.conftest import REPOSITORY

READING = """
import sys, time
from extract.video import watchdog
watchdog.BASE_TIMEOUT_S = 2.0
with watchdog.kill_if_stuck("clip.mp4", 0):
    print("began", flush=True)
    time.sleep(1.0)
    time.sleep(0.5)  # a sleep that was stopped is over at once
print("done")
"""
HANGING = """
import os, sys, time
from extract.video import watchdog
watchdog.BASE_TIMEOUT_S, watchdog.TICK_S = 0.6, 0.1
with watchdog.kill_if_stuck("before.mp4", 0):
    time.sleep(0.3)
if "fork" in sys.argv and (child := os.fork()):
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
began = time.monotonic()
with watchdog.kill_if_stuck("hangs.mp4", 0):
    while True:  # others come and go meanwhile
        if time.monotonic() > began + 0.5:
            print("waits", flush=True)
        with watchdog.kill_if_stuck("after.mp4", 0):
            time.sleep(0.05)
"""
CALLING = """
from extract.video.guarded import GuardedPool
from tests import guarded_calls
with GuardedPool(1) as pool:
    pool.call(guarded_calls.double, 1, timeout_s=60)
    print("began", flush=True)
    pool.call(guarded_calls.sleep, 1.5, timeout_s=2.0)
print("done")
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "code",
    [READING, pytest.param(CALLING, marks=pytest.mark.slow)],
    ids=["a worker", "a guarded call"],
)
def test_time_in_which_a_process_is_stopped_does_not_count(code: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "began\n"
    here = psutil.Process(process.pid)
    every = [here, *here.children(recursive=True)]
    for each in every:
        each.send_signal(signal.SIGSTOP)
    time.sleep(3.0)
    for each in every:
        each.send_signal(signal.SIGCONT)
    output, errors = process.communicate(timeout=60)
    assert (output, errors, process.returncode) == ("done\n", "", 0)


@pytest.mark.parametrize("process", ["alone", "fork"])
def test_what_hangs_ends_its_process_and_is_named(process: str) -> None:
    command = [sys.executable, "-c", HANGING, process]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "waits" in done.stdout
    assert done.stderr.startswith("error: hangs.mp4: its decoder hangs; ")


def test_one_thread_watches_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """A new one for every chunk would wait for a core that decoding keeps busy."""
    started = list[Thread]()
    start = Thread.start

    def noted(thread: Thread) -> None:
        started.append(thread)
        start(thread)

    monkeypatch.setattr(Thread, "start", noted)
    for _ in range(20):
        with watchdog.kill_if_stuck("clip.mp4", 8):
            pass
    assert len(started) <= 1  # none, if something was decoded here before


def test_what_never_happens_is_waited_for_as_long_as_was_said() -> None:
    waited: list[float] = []

    def wait(seconds: float) -> bool:
        waited.append(seconds)
        return False

    assert not happens_within(2.5, wait)
    assert sum(waited) == 2.5
    assert happens_within(2.5, lambda seconds: True)
