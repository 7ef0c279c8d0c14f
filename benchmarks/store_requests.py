"""Count the requests that a store on an object store takes, now and at an earlier commit.

    python -m benchmarks.store_requests [--before COMMIT]

The server is moto's, of S3's protocol, on this machine; the proxy of the tests counts before it.
Spans are features of windows, [96, 384] float16, of one fingerprint and eight videos.
"""

import argparse
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import torch

HERE = Path(__file__).resolve().parent.parent
SPANS, ROWS, WIDTH = 400, 96, 384
METHODS = ("GET", "HEAD", "PUT", "POST", "DELETE")


def work(url: str) -> None:
    """Do one thing after another to a store of whatever version is imported, and print times.

    Before and after each it waits for a line on the standard input.
    """
    from cache.address import Address, FingerprintInfo, VideoInfo
    from cache.store import Store
    from cache.upkeep.prune import prune
    from cache.upkeep.verify import verify

    def address(number: int) -> Address:
        frames = np.arange(2 * ROWS, dtype=np.int64) + number // 8 * ROWS
        return Address("1" * 32, "float16", f"{number % 8:064x}", "forward", "window", frames, ROWS)

    def step(name: str, act: Callable[[], Any]) -> Any:
        print(json.dumps([name, None]), flush=True)
        sys.stdin.readline()
        began = time.perf_counter()
        found = act()
        print(json.dumps([name, time.perf_counter() - began]), flush=True)
        sys.stdin.readline()
        return found

    def write() -> Any:
        writer = Store.open(url, "a").writer(flush_seconds=1e9)
        put = getattr(writer, "write", None) or writer.put
        writer.describe(FingerprintInfo("1" * 32, "features", "a.pt"))
        for number in range(8):
            writer.describe(VideoInfo(f"{number:064x}", f"{number}.mp4", 1, 10**5, 25.0))
        for number, a in enumerate(addresses):
            put(a, torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(number)))
        writer.flush()
        return writer

    addresses = [address(number) for number in range(SPANS)]
    writer = step(f"write {SPANS} spans", write)
    store = step("open the journal", lambda: Store.open(url, "a"))
    store.contains(addresses[0])  # its lease is written
    step("read one span of the journal", lambda: store.read(addresses[7]))
    step(f"read {SPANS} spans of the journal", lambda: store.read_many(addresses))
    assert step("verify the journal", lambda: verify(store)) == []
    step("fold the journal into an array", writer.compact)
    step("end the writer", writer.close)
    store = step("open the array", lambda: Store.open(url, "a"))
    store.contains(addresses[0])
    assert len(step("names of all videos", lambda: store.videos)) == 8
    step("read one span of the array", lambda: store.read(addresses[7]))
    step(f"read {SPANS} spans of the array", lambda: store.read_many(addresses))
    assert step("verify the array", lambda: verify(store)) == []
    left = write()  # a writer that dies
    left.lease.release()
    step(f"prune {SPANS} spans of a killed writer", lambda: prune(store))


def count(server: str, folder: Path, latency_s: float) -> dict[str, tuple[dict[str, int], float]]:
    """Return requests by method and seconds of each step, of the code in a folder."""
    from tests.object_store import Proxy

    proxy = Proxy(server, latency_s)
    environment = os.environ | proxy.environment | {"PYTHONPATH": str(folder)}
    command = [sys.executable, str(Path(__file__).resolve()), "--work", f"s3://bucket/{uuid4()}"]
    found: dict[str, tuple[dict[str, int], float]] = {}
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, cwd=folder, env=environment, stdin=pipe, stdout=pipe, text=True
    ) as worker:
        assert worker.stdin is not None and worker.stdout is not None
        for line in worker.stdout:
            name, seconds = json.loads(line)
            if seconds is None:
                before = proxy.counts.copy()
            else:
                found[name] = dict(proxy.counts - before), seconds
                print(f"{folder.name}: {name}: {cell(found[name][0])}", file=sys.stderr)
            worker.stdin.write("\n")
            worker.stdin.flush()
    assert worker.returncode == 0
    proxy.close()
    return found


def earlier(commit: str, folder: Path) -> None:
    """Write the files of a commit into a folder."""
    archive = subprocess.run(
        ["git", "archive", commit, "cache", "configs"], cwd=HERE, check=True, capture_output=True
    )
    with tarfile.open(fileobj=BytesIO(archive.stdout)) as files:
        files.extractall(folder, filter="data")


def cell(counts: dict[str, int]) -> str:
    parts = [f"{counts[method]} {method}" for method in METHODS if counts.get(method)]
    return f"{sum(counts.values())} ({', '.join(parts)})" if parts else "0"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--before", metavar="COMMIT", help="count at this commit, too")
    parser.add_argument("--latency_ms", type=float, default=10.0, help="of every request")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        work(args.work)
        return
    from tests.object_store import serving  # not there at every earlier commit

    with serving() as server, tempfile.TemporaryDirectory() as name:
        folders = {"now": HERE}
        if args.before:
            folders = {f"at {args.before[:7]}": Path(name), **folders}
            earlier(args.before, Path(name))
        make_bucket(server)
        found = {when: count(server, f, args.latency_ms / 1000) for when, f in folders.items()}
    steps = list(found["now"])
    print("| | " + " | ".join(f"requests {when} | seconds" for when in found) + " |")
    print("|---|" + "---|---|" * len(found))
    for step in steps:
        cells = [f"{cell(every[step][0])} | {every[step][1]:.2f}" for every in found.values()]
        print(f"| {step} | " + " | ".join(cells) + " |")


def make_bucket(server: str) -> None:
    import fsspec

    system = fsspec.filesystem("s3", endpoint_url=server, key="nobody", secret="nothing")
    system.mkdir("bucket")


if __name__ == "__main__":
    main()
