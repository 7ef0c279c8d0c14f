"""The process that `extract.video.guarded` starts: it carries out calls, and may hang or crash.

Requests come through a pipe, whose file descriptor is the last argument; progress and one answer
per request are sent back.
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
    # It is ignored if a shell started the parent in the background.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    link: Connection = Connection(int(sys.argv[-1]))
    requests: SimpleQueue[bytes] = SimpleQueue()
    threading.Thread(target=_receive_requests, args=(link, requests), daemon=True).start()
    while True:
        link.send_bytes(_run_request(requests.get(), link))


def _receive_requests(link: Connection, requests: SimpleQueue[bytes]) -> None:
    """Queue requests; end with the parent, whose next run would write the same files."""
    try:
        while True:
            requests.put(link.recv_bytes())
    except (EOFError, OSError):
        os._exit(1)


def _run_request(request: bytes, link: Connection) -> bytes:
    """Return the pickled result of a call, or the expected error or bug that it raised."""
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
    """The callback for progress; if it is not called for long, a timer ends this process.

    The parent kills a process that hangs, unless it was killed itself; and a decoder that holds
    Python's lock keeps the receiving thread from noticing that.
    """

    def __init__(self, link: Connection, timeout_s: float) -> None:
        self.link, self.timeout_s, self.done = link, timeout_s, 0
        self.report()

    def __call__(self, done: int) -> None:
        self.done += done
        if time.monotonic() > self.due:
            self.report()

    def report(self) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)  # sending blocks while the parent is stopped
        self.link.send_bytes(pickle.dumps(("progress", self.done)))
        self.done = 0
        signal.setitimer(signal.ITIMER_REAL, 2 * self.timeout_s)
        self.due = time.monotonic() + min(HEARTBEAT_S, self.timeout_s / 10)


if __name__ == "__main__":
    main()
