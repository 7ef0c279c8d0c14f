"""Started by `extract.video.guarded`: carries out one call after another, and may hang or crash.

Requests come through a pipe, whose file descriptor the last argument names; steps of progress and
one answer per request go back.
"""

import os
import pickle
import signal
import sys
import threading
import time
import traceback
from multiprocessing.connection import Connection
from queue import SimpleQueue

from configs.messages import EXPECTED

HEARTBEAT_S = 0.5


def main() -> None:
    # A shell that started the parent in the background has made it ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    link: Connection = Connection(int(sys.argv[-1]))
    requests: SimpleQueue[bytes] = SimpleQueue()
    threading.Thread(target=_receive, args=(link, requests), daemon=True).start()
    while True:
        link.send_bytes(_answer(requests.get(), link))


def _receive(link: Connection, requests: SimpleQueue[bytes]) -> None:
    """Pass requests on; end this process with its parent, whose next run writes the same files."""
    try:
        while True:
            requests.put(link.recv_bytes())
    except (EOFError, OSError):
        os._exit(1)


def _answer(request: bytes, link: Connection) -> bytes:
    """Return what a call returned or raised, or the traceback of a bug."""
    try:
        function, args, timeout_s = pickle.loads(request)  # imports what the function needs
        progress = _Progress(link, timeout_s)
        result = function(*args, progress=progress)
        progress.report()
        return pickle.dumps(("returned", result))
    except EXPECTED as error:
        return pickle.dumps(("raised", error))
    except Exception:
        bug = RuntimeError(f"a bug, in a process of its own:\n{traceback.format_exc()}")
        return pickle.dumps(("raised", bug))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


class _Progress:
    """What a function calls at every step; long silence ends this process.

    The parent kills a process that hangs, unless it was killed itself; and a decoder that holds
    Python's lock keeps the thread from seeing that.
    """

    def __init__(self, link: Connection, timeout_s: float) -> None:
        self.link, self.timeout_s, self.done = link, timeout_s, 0
        self.report()

    def __call__(self, done: int) -> None:
        self.done += done
        if time.monotonic() > self.due:
            self.report()

    def report(self) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)  # a parent that was stopped lets it wait
        self.link.send_bytes(pickle.dumps(("progress", self.done)))
        self.done = 0
        signal.setitimer(signal.ITIMER_REAL, 2 * self.timeout_s)
        self.due = time.monotonic() + min(HEARTBEAT_S, self.timeout_s / 10)


if __name__ == "__main__":
    main()
