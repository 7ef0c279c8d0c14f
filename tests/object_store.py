"""A server of S3's protocol for tests, and a proxy before it that counts requests and does harm.

As a script it is the server: it prints its URL and ends when its standard input does.
"""

import http.client
import logging
import random
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

Fault = Literal["500", "503", "drop", "cut", "slow"]
FAULTS: tuple[Fault, ...] = ("500", "503", "drop", "cut", "slow")
SLOW_S = 0.3


@contextmanager
def serving() -> Iterator[str]:
    """Run a server of its own process; gives its URL, and is gone with this process at the latest.

    It is empty and knows every key and secret.
    """
    command = [sys.executable, "-m", "tests.object_store"]
    root, pipe = Path(__file__).parent.parent, subprocess.PIPE
    with subprocess.Popen(command, cwd=root, stdin=pipe, stdout=pipe, text=True) as server:
        assert server.stdin is not None and server.stdout is not None
        try:
            yield server.stdout.readline().strip()
        finally:
            server.stdin.close()
            server.wait(60)


class Proxy:
    """Passes requests on to a server, counted, while it is open.

    Args:
        server: its URL.
        latency_s: how much later every request arrives.

    Attributes:
        counts: requests by method that reached it, faulty ones included.
        fault: says what harm a request (method, path) comes to; None for none.
    """

    def __init__(self, server: str, latency_s: float = 0.0) -> None:
        self.server = urlsplit(server).netloc
        self.latency_s = latency_s
        self.counts: Counter[str] = Counter()
        self.fault: Callable[[str, str], Fault | None] = lambda method, path: None
        self._guard = threading.Lock()
        self._connections: set[socket.socket] = set()
        self._http: _Server | None = _Server(("127.0.0.1", 0), self)
        self.port = self._http.server_port
        self._serve(self._http)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        """What lets a process's s3:// URLs lead here."""
        return {
            "FSSPEC_S3_ENDPOINT_URL": self.url,
            "FSSPEC_S3_KEY": "nobody",
            "FSSPEC_S3_SECRET": "nothing",
        }

    def close(self) -> None:
        """Refuse connections and end those that there are, as a server that is gone does."""
        if self._http is not None:
            self._http.shutdown()
            self._http.server_close()
            self._http = None
            with self._guard:
                for connection in self._connections:
                    connection.shutdown(socket.SHUT_RDWR)
                self._connections.clear()

    def open(self) -> None:
        """Be there again, at the same place."""
        if self._http is None:
            self._http = _Server(("127.0.0.1", self.port), self)
            self._serve(self._http)

    @contextmanager
    def outage(self) -> Iterator[None]:
        """Be closed for a while."""
        self.close()
        try:
            yield
        finally:
            self.open()

    @contextmanager
    def counting(self) -> Iterator[Counter[str]]:
        """Count the requests within, by method."""
        before, found = self.counts.copy(), Counter[str]()
        yield found
        found.update(self.counts - before)

    def share_fails(self, share: float, *faults: Fault) -> None:
        """Harm a share of all requests, at random but the same ones in every run."""
        rng = random.Random(0)
        self.fault = lambda method, path: rng.choice(faults) if rng.random() < share else None

    def fails_after(self, count: int) -> None:
        """Refuse all requests but the next ones."""
        left = iter(range(count))
        self.fault = lambda method, path: "500" if next(left, None) is None else None

    def _serve(self, server: "_Server") -> None:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()

    def count(self, method: str) -> None:
        with self._guard:
            self.counts[method] += 1

    def connected(self, connection: socket.socket) -> None:
        with self._guard:
            self._connections.add(connection)

    def ended(self, connection: socket.socket) -> None:
        with self._guard:
            self._connections.discard(connection)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], proxy: Proxy) -> None:
        super().__init__(address, _Handler)
        self.proxy = proxy

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: clients go when they like, and connections are cut on purpose."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server
    connection: socket.socket

    def setup(self) -> None:
        super().setup()
        self.upstream = http.client.HTTPConnection(self.server.proxy.server, timeout=60)
        self.server.proxy.connected(self.connection)

    def finish(self) -> None:
        self.server.proxy.ended(self.connection)
        self.upstream.close()
        super().finish()

    def _pass_on(self) -> None:
        proxy, method = self.server.proxy, self.command
        proxy.count(method)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        time.sleep(proxy.latency_s)
        fault = proxy.fault(method, self.path)
        if fault == "slow":
            time.sleep(SLOW_S)
        if fault == "drop":
            self.close_connection = True
            return
        if fault in ("500", "503"):
            self._answer(int(fault), {"Content-Length": "0"}, b"")
            return
        self.upstream.request(method, self.path, body, dict(self.headers.items()))
        answer = self.upstream.getresponse()
        content = answer.read()
        headers = {
            name: value
            for name, value in answer.getheaders()
            if name.lower() not in ("connection", "transfer-encoding")
        }
        if method != "HEAD":
            headers["Content-Length"] = str(len(content))
        if fault == "cut" and content:
            content, self.close_connection = content[: len(content) // 2], True
        self._answer(answer.status, headers, content)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _pass_on

    def _answer(self, status: int, headers: dict[str, str], content: bytes) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)


def _main() -> None:
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    print(f"http://{host}:{port}", flush=True)
    sys.stdin.read()
    server.stop()


if __name__ == "__main__":
    _main()
