"""Entry scripts in processes of their own that need not import everything again.

A server imports all modules once. For each script it forks a child, which then is what
`python SCRIPT ARGUMENTS` would be: its own process group, output, exit code and last rites. That
costs a tenth of a second where an interpreter that imports torch costs five.
"""

import atexit
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import traceback
from functools import cache
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

import fsspec.config

ROOT = Path(__file__).resolve().parent.parent
STAGES = ("configs", "cache", "extract", "evaluate", "train")


class Script:
    """A running script; one at a time.

    Args:
        environment: variables that are set for it beside the server's.

    Attributes:
        pid: of the process, which leads a group of its own.
    """

    def __init__(self, *arguments: object, environment: dict[str, str] | None = None) -> None:
        self._out, self._err = TemporaryFile(), TemporaryFile()  # noqa: SIM115
        self._code: int | None = None
        said = json.dumps([[str(a) for a in arguments], environment or {}]).encode()
        socket.send_fds(_server(), [said], [self._out.fileno(), self._err.fileno()])
        self.pid = int(_answer())

    def poll(self) -> int | None:
        """Return its exit code, None while it runs; a signal's number counts below 0."""
        if self._code is None and select.select([_server()], [], [], 0)[0]:
            self._code = int(_answer())
        return self._code

    def wait(self, timeout: float = 300) -> int:
        """Return its exit code when it has ended."""
        if not select.select([_server()] if self._code is None else [], [], [], timeout)[0]:
            assert self._code is not None, f"not done in {timeout} s"
        code = self.poll()
        assert code is not None
        return code

    def kill(self) -> None:
        """Kill it and its workers."""
        os.killpg(self.pid, signal.SIGKILL)
        self.wait()

    def printed(self) -> str:
        """Return what it has printed so far."""
        return _content(self._out)

    def complained(self) -> str:
        """Return what it has written to its standard error so far."""
        return _content(self._err)


def script(
    *arguments: object, timeout: float = 300, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run one of the entry scripts from the repository's root."""
    started = Script(*arguments, environment=environment)
    try:
        code = started.wait(timeout)
    except BaseException:
        started.kill()
        raise
    names = [str(argument) for argument in arguments]
    return subprocess.CompletedProcess(names, code, started.printed(), started.complained())


def good(*arguments: object, environment: dict[str, str] | None = None) -> str:
    """Run an entry script that must succeed; returns what it prints."""
    done = script(*arguments, environment=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _content(file: IO[bytes]) -> str:
    return os.pread(file.fileno(), 2**24, 0).decode()


def _answer() -> str:
    answer = _server().recv(64).decode().strip()
    assert answer, "the server of forks has ended"
    return answer


@cache
def _server() -> socket.socket:
    # Not at the top: the server would have, and each child of it would delete, another CACHE.
    from tests.test_e2e import ENVIRONMENT

    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.forks", str(there.fileno())],
        cwd=ROOT,
        env=ENVIRONMENT,
        pass_fds=[there.fileno()],
    )
    there.close()
    atexit.register(server.wait)
    atexit.register(here.close)
    return here


def _serve(connection: socket.socket) -> list[str]:
    """Fork a child for each request; returns in the child, with what it shall run."""
    while True:
        said, files, _, _ = socket.recv_fds(connection, 2**16, 2)
        if not said:
            os._exit(0)
        child = os.fork()
        if not child:
            connection.close()
            os.setsid()
            for number, file in enumerate(files, start=1):
                os.dup2(file, number)
                os.close(file)
            arguments, environment = json.loads(said)
            os.environ.update(environment)
            fsspec.config.set_conf_env(fsspec.config.conf, environment)
            return list(arguments)
        for file in files:
            os.close(file)
        connection.send(str(child).encode())
        _, status = os.waitpid(child, 0)
        connection.send(str(os.waitstatus_to_exitcode(status)).encode())


def _main() -> None:
    # All of them: scripts import what is slow when they need it, each child would do so again.
    for file in sorted(file for stage in STAGES for file in (ROOT / stage).rglob("*.py")):
        __import__(".".join(file.relative_to(ROOT).with_suffix("").parts))
    sys.argv = _serve(socket.socket(fileno=int(sys.argv[1])))
    sys.path[0] = str(Path(sys.argv[0]).resolve().parent)
    code: object = 0
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        code = end.code or 0
        if not isinstance(code, int):
            print(code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        code = 1
    # The end of an interpreter without its slow part, which takes all modules down.
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 1)


if __name__ == "__main__":
    _main()
