"""Calls in processes that may hang or crash: what comes back, and that no process stays behind."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Any

import pytest

from extract.video import guarded
from extract.video.guarded import CallFailed, GuardedPool
from tests import guarded_calls as calls
from tests.test_probe import runs, wait_for

LONG_S = 120.0  # for calls that need no limit, on busy machines, too


def test_results_and_errors_come_back_and_the_process_goes_on() -> None:
    with GuardedPool(1) as pool:
        process = pool.call(calls.process_id, timeout_s=LONG_S)
        assert process != os.getpid() and runs(process)
        assert pool.call(calls.double, 21, timeout_s=LONG_S) == 42
        with pytest.raises(OSError, match=r"^No space left on device$"):
            pool.call(calls.fail, timeout_s=LONG_S)
        with pytest.raises(RuntimeError, match=r"(?s)Traceback.*meet_a_bug.*KeyError: 'absent'"):
            pool.call(calls.meet_a_bug, timeout_s=LONG_S)
        with pytest.raises(RuntimeError, match="pickle"):
            pool.call(calls.return_code, timeout_s=LONG_S)
        assert pool.call(calls.process_id, timeout_s=LONG_S) == process
    assert not runs(process)
    with pytest.raises(RuntimeError, match="has ended"):
        pool.call(calls.double, 21, timeout_s=LONG_S)


@pytest.mark.parametrize(
    ("function", "timeout_s", "how"),
    [
        (calls.hang, 0.5, "hangs (no answer within 0.5 s)"),
        (calls.crash, LONG_S, f"crashed (signal {int(signal.SIGSEGV)})"),
        (calls.leave, LONG_S, "crashed (exit code 1: no more frames)"),
    ],
)
def test_a_process_that_hangs_or_crashes_is_replaced(
    function: Any, timeout_s: float, how: str
) -> None:
    with GuardedPool(1) as pool:
        before = pool.call(calls.process_id, timeout_s=LONG_S)
        with pytest.raises(CallFailed) as caught:
            pool.call(function, timeout_s=timeout_s)
        assert str(caught.value) == how
        assert not runs(before)
        assert pool.call(calls.process_id, timeout_s=LONG_S) != before


def test_a_process_that_was_killed_while_idle_is_replaced() -> None:
    with GuardedPool(1) as pool:
        before = pool.call(calls.process_id, timeout_s=LONG_S)
        os.kill(before, signal.SIGKILL)
        wait_for(lambda: not runs(before))
        assert pool.call(calls.process_id, timeout_s=LONG_S) != before


def test_a_process_that_dies_between_a_look_at_it_and_the_call_is_replaced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with GuardedPool(1) as pool:
        before = pool.call(calls.process_id, timeout_s=LONG_S)
        os.kill(before, signal.SIGKILL)
        not_yet_seen = lambda self: not self.busy and self.popen.returncode is None  # noqa: E731
        monkeypatch.setattr(guarded._Process, "is_idle", not_yet_seen)
        assert pool.call(calls.process_id, timeout_s=LONG_S) != before


def test_progress_keeps_a_slow_call_alive_and_is_added_up() -> None:
    steps: list[int] = []
    with GuardedPool(1) as pool:
        assert pool.call(calls.work_slowly, 3.0, timeout_s=2.0, progress=steps.append) == 3.0
        assert 3 <= len(steps) < 40 and 10 < sum(steps) <= 150
        assert pool.call(calls.process_id, timeout_s=LONG_S, progress=steps.append)
        assert steps[-2:] == [0, 5]


def test_a_call_that_is_given_up_here_ends_its_process() -> None:
    def refuse(done: int) -> None:
        raise ZeroDivisionError

    with GuardedPool(1) as pool:
        with pytest.raises(ZeroDivisionError):
            pool.call(calls.work_slowly, 600.0, timeout_s=LONG_S, progress=refuse)
        assert pool.call(calls.double, 21, timeout_s=LONG_S) == 42


def test_many_calls_at_once_share_the_processes() -> None:
    with GuardedPool(3) as pool:
        numbers = range(40)
        answers = pool.threads.map(lambda n: pool.call(calls.double, n, timeout_s=LONG_S), numbers)
        assert list(answers) == [2 * number for number in numbers]
        ids = [pool.threads.submit(pool.call, calls.process_id, timeout_s=LONG_S) for _ in numbers]
        assert 1 <= len({future.result() for future in ids}) <= 3


def test_functions_are_found_where_the_caller_found_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lies_elsewhere.py").write_text("def answer(progress):\n    return __file__\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    from lies_elsewhere import answer  # type: ignore[import-not-found]

    with GuardedPool(1) as pool:
        assert pool.call(answer, timeout_s=LONG_S) == str(tmp_path / "lies_elsewhere.py")


@pytest.mark.parametrize(
    ("code", "cause"),
    [("raise SystemExit('no')", "exit code 1: no"), ("import time; time.sleep(600)", "no answer")],
)
def test_a_process_that_does_not_start_is_an_error(
    monkeypatch: pytest.MonkeyPatch, code: str, cause: str
) -> None:
    monkeypatch.setattr(guarded, "COMMAND", [sys.executable, "-c", code])
    monkeypatch.setattr(guarded, "START_S", 1.0 if "sleep" in code else LONG_S)
    with GuardedPool(1) as pool, pytest.raises(OSError, match=f"does not start: {cause}"):
        pool.call(calls.double, 21, timeout_s=LONG_S)


@pytest.mark.parametrize("stubborn", [False, True])
def test_an_interrupt_leaves_time_to_clean_up_but_no_more(tmp_path: Path, stubborn: bool) -> None:
    grace_s = 1.0 if stubborn else LONG_S
    began, call = 0.0, Future[None]()
    with pytest.raises(KeyboardInterrupt), GuardedPool(1, grace_s) as pool:
        call = pool.threads.submit(
            pool.call, calls.write_half, tmp_path / "made", stubborn, timeout_s=LONG_S
        )
        late = pool.threads.submit(pool.call, calls.double, 21, timeout_s=LONG_S)
        wait_for(lambda: (tmp_path / "made.part").exists())
        wait_for(lambda: (tmp_path / "made.part").stat().st_size)
        began = time.monotonic()
        raise KeyboardInterrupt
    assert time.monotonic() - began < 60
    assert late.cancelled()
    wait([call], 60)
    assert isinstance(call.exception(), CallFailed)
    assert [path.name for path in tmp_path.iterdir()] == (["made.part"] if stubborn else [])


@pytest.mark.slow
def test_no_process_outlives_a_parent_that_is_killed(tmp_path: Path) -> None:
    """Not even one whose decoder lets no thread run that could notice."""
    code = f"""
from extract.video.guarded import GuardedPool
from tests import guarded_calls as calls
with GuardedPool(2) as pool:
    for function in (calls.hang, calls.hang_with_pythons_lock):
        limit_s = 500 if function is calls.hang else 2
        pool.threads.submit(pool.call, function, {str(tmp_path)!r}, timeout_s=limit_s)
    pool.threads.shutdown()
"""
    parent = subprocess.Popen([sys.executable, "-c", code])
    wait_for(lambda: len(list(tmp_path.iterdir())) == 2)
    parent.kill()
    parent.wait()
    wait_for(lambda: not any(runs(int(file.name)) for file in tmp_path.iterdir()))
