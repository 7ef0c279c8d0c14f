"""Calls of functions that may hang or crash, in processes that are killed when they do.

A thread that hangs in a decoder cannot be ended, a process can. These are light: started directly,
they import the function that is called, not the main script of a training run.
"""

import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from multiprocessing import Pipe
from pathlib import Path
from tempfile import TemporaryFile
from threading import Lock
from typing import Any, Self, TypeVar

from extract.video.watchdog import happens_within

# By its path: as a module of this package it would import torch before it can report anything.
COMMAND = [sys.executable, "-P", str(Path(__file__).with_name("guarded_worker.py"))]
HANGS = "hangs"
START_S = 300.0  # importing torch from a busy network disk

Result = TypeVar("Result")


class CallFailed(Exception):
    """A call whose process hung or crashed; the text says which, and goes after the call's name."""


class _DiedIdle(Exception):
    """A process that ended between two calls, as when the system kills it for its memory."""


class GuardedPool:
    """Threads, and processes that carry out the threads' calls, started when a call needs one.

    Args:
        size: the most of either.
        grace_s: how long calls that still run at the pool's end may clean up after a
            KeyboardInterrupt before they are killed; 0 where they have nothing to lose.
    """

    def __init__(self, size: int, grace_s: float = 0.0) -> None:
        self.threads = ThreadPoolExecutor(size)
        self.grace_s = grace_s
        self._lock = Lock()
        self._ended = False
        self._processes: set[_Process] = set()  # ended ones, too

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        # After an interrupt, too: threads that wait for a process end with it.
        self.threads.shutdown(wait=False, cancel_futures=True)
        self._end_processes()

    def call(
        self,
        function: Callable[..., Result],
        *args: Any,
        timeout_s: float,
        progress: Callable[[int], None] = lambda done: None,
    ) -> Result:
        """Return `function(*args, progress=…)`, called in a process. Any thread may call this.

        Args:
            function: of a module, not of the main script: the process imports it.
            args: plain data.
            timeout_s: time without progress after which the process is killed; the function reports
                progress by calling `progress` with how much more is done.
            progress: called here, now and then, with what the function has reported since.

        Raises:
            CallFailed: the function hangs, or its process crashed.
            RuntimeError: it has a bug; the text holds the traceback. Expected errors are raised
                as they are (`configs.messages.EXPECTED`).
            OSError: no process can be started.
        """
        request = (function, args, timeout_s)
        while True:  # a process just started is not an idle one
            with suppress(_DiedIdle):
                kind, value = self._call_once(request, progress)
                break
        if kind == "raised":
            raise value
        return value

    def _call_once(
        self, request: tuple[Any, Any, float], progress: Callable[[int], None]
    ) -> tuple[str, Any]:
        process = self._take_process()
        try:
            return process.call(request, progress)
        except BaseException:  # a late answer would be taken for the next call's
            process.end()
            raise
        finally:
            process.busy = False

    def _take_process(self) -> "_Process":
        """Return a process that carries out no call."""
        with self._lock:
            if self._ended:
                raise RuntimeError("the pool of processes has ended")
            idle = (process for process in self._processes if process.is_idle())
            process = next(idle, None) or _Process()
            process.busy = True
            self._processes.add(process)
        return process

    def _end_processes(self) -> None:
        """End every process; calls that are being carried out fail."""
        with self._lock:
            self._ended = True
        try:
            busy = [process.popen for process in self._processes if process.busy]
            for popen in busy:
                popen.send_signal(signal.SIGINT if self.grace_s else signal.SIGKILL)
            deadline = time.monotonic() + self.grace_s
            for popen in busy:
                with suppress(subprocess.TimeoutExpired):
                    popen.wait(max(0.0, deadline - time.monotonic()))
        finally:  # after a second Ctrl-C, too
            for process in self._processes:
                process.popen.kill()
                process.popen.wait()
                if not process.busy:  # else the thread that waits for it does this
                    process.end()


class _Process:
    """A process that carries out one call after another and may be killed while it does."""

    def __init__(self) -> None:
        self.busy = self.started = False
        self.link, remote = Pipe()
        self.stderr = TemporaryFile()  # noqa: SIM115  (decoders report every damaged frame)
        with remote:
            self.popen = subprocess.Popen(
                [*COMMAND, str(remote.fileno())],
                pass_fds=[remote.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self.stderr,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},  # the same modules
                process_group=0,  # Ctrl-C is for the parent
            )

    def is_idle(self) -> bool:
        return not self.busy and self.popen.poll() is None

    def call(
        self, request: tuple[Any, Any, float], progress: Callable[[int], None]
    ) -> tuple[str, Any]:
        """Return ("returned", the result) or ("raised", an exception)."""
        was_started, began = self.started, False
        try:
            self.link.send_bytes(pickle.dumps(request))
            while happens_within(
                limit_s := request[-1] if self.started else START_S, self.link.poll
            ):
                kind, value = pickle.loads(self.link.recv_bytes())
                self.started = began = True
                if kind != "progress":
                    return kind, value
                progress(value)
            how, why = HANGS, f"no answer within {limit_s:g} s"
        except (EOFError, ConnectionError):
            if was_started and not began:
                raise _DiedIdle from None
            how, why = "crashed", self._find_cause()
        if not self.started:
            raise OSError(f"the process that reads videos does not start: {why}")
        raise CallFailed(f"{how} ({why})")

    def _find_cause(self) -> str:
        with suppress(subprocess.TimeoutExpired):
            self.popen.wait(10)
        self.popen.kill()
        code = self.popen.wait()
        self.stderr.seek(0)
        lines = self.stderr.read().decode(errors="replace").strip().splitlines()
        last = lines[-1].strip() if lines else "no message"
        return f"signal {-code}" if code < 0 else f"exit code {code}: {last}"

    def end(self) -> None:
        """Kill the process and close its pipe and its file of messages."""
        self.popen.kill()
        self.popen.wait()
        self.link.close()
        self.stderr.close()
