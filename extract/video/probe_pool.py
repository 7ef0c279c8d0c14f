"""Processes that look at video files and are killed when they hang.

A thread that hangs in a decoder cannot be ended, a process can. These are light: started directly,
they import what `extract/video/probe_worker.py` names, not the main script of a training run.
"""

import pickle
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryFile

from extract.video.index import VideoError, VideoIndex

COMMAND = [sys.executable, "-P", "-m", "extract.video.probe_worker"]
HANGS = "its decoder hangs"
START_S = 300.0  # importing torch from a busy network disk


class ProbePool:
    """As many processes as threads call `look` at once, started when a file needs one."""

    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self.all: list[_ProbeWorker] = []
        self.idle: list[_ProbeWorker] = []

    def look(self, path: str | Path) -> VideoIndex | VideoError:
        """Return the index of a file whose ends decode, or what is wrong with it.

        Raises:
            OSError: no process can be started.
        """
        try:
            child = self.idle.pop()
        except IndexError:
            child = _ProbeWorker()
            self.all.append(child)
            child.wait_until_ready()
        answer = child.look(path, self.timeout_s)
        if child.process.poll() is None:
            self.idle.append(child)
        return answer

    def end(self) -> None:
        """Kill them all; calls of `look` that wait for one come to an end."""
        for child in self.all:
            child.end()


class _ProbeWorker:
    """A process that looks at one file after another and may be killed while it does."""

    def __init__(self) -> None:
        self.link, theirs = socket.socketpair()
        self.stream = self.link.makefile("rwb")
        self.chatter = TemporaryFile()  # noqa: SIM115  (decoders write of every damaged frame)
        with theirs:
            self.process = subprocess.Popen(
                COMMAND,
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=self.chatter,
                process_group=0,  # Ctrl-C is for the parent
            )

    def wait_until_ready(self) -> None:
        """Raise OSError if the process does not come so far as to say that it is at work."""
        self.link.settimeout(START_S)
        try:
            pickle.load(self.stream)
        except (EOFError, OSError) as error:
            slow = isinstance(error, TimeoutError)
            cause = f"no sign of it for {START_S:g} s" if slow else self._ended()
            self.end()
            raise OSError(f"the process that looks at videos does not start: {cause}") from error

    def look(self, path: str | Path, timeout_s: float) -> VideoIndex | VideoError:
        """Return the process's answer; one that hangs is killed."""
        self.link.settimeout(timeout_s)
        try:
            pickle.dump((path, timeout_s), self.stream)
            self.stream.flush()
            answer: VideoIndex | VideoError | None = None
            while answer is None:
                answer = pickle.load(self.stream)
            return answer
        except TimeoutError:
            cause = f"{HANGS} (no answer within {timeout_s:g} s)"
        except (EOFError, OSError, pickle.UnpicklingError):
            cause = f"its decoder crashed ({self._ended()})"
        self.end()
        return VideoError(f"{path}: cannot be read as video: {cause}")

    def _ended(self) -> str:
        """Return how a process that broke off ended."""
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(10)
        code = self.process.poll()
        if code is None or code < 0:
            return "it stopped talking" if code is None else f"signal {-code}"
        self.chatter.seek(0)
        lines = self.chatter.read().decode(errors="replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "no message")
        return f"exit code {code}: {last}"

    def end(self) -> None:
        """Kill the process: it has nothing to lose."""
        self.process.kill()
        self.process.wait()
        for file in (self.stream, self.link, self.chatter):
            with suppress(OSError):
                file.close()
