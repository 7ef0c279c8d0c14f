"""Killed with -9 at any moment, a store holds what was committed, and ends as if it had lived."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from cache.address import Address
from cache.storage.leases import USERS
from cache.storage.local import LocalFiles
from cache.store import Store
from cache.upkeep.prune import prune
from cache.upkeep.verify import verify
from tests.conftest import REPOSITORY
from tests.marks import slow
from tests.store_writer import COUNT, activation, described

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}


def begin(*arguments: object, **environment: str) -> "subprocess.Popen[str]":
    """Start the writer; it imports what it needs and waits."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.store_writer", *map(str, arguments)],
        cwd=REPOSITORY,
        env=ENVIRONMENT | environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def go(process: "subprocess.Popen[str]") -> None:
    """Let a process that was begun do its work."""
    assert process.stdin is not None and process.stdout is not None
    assert process.stdout.readline() == "ready\n", process.communicate()
    process.stdin.write("\n")
    process.stdin.flush()


def finish(process: "subprocess.Popen[str]") -> None:
    """Wait for a process that shall end well."""
    out, error = process.communicate(timeout=300)
    assert process.returncode == 0, out + error


def complete(folder: str | Path) -> None:
    """Check that a store holds everything, as it was written, and nothing is wrong with it."""
    store = Store.open(folder, "a")
    assert verify(store) == []
    pairs = [activation(number) for number in range(COUNT)]
    for got, (address, rows) in zip(store.read_many([a for a, _ in pairs]), pairs, strict=True):
        assert store.contains(address) and got.dtype == rows.dtype and torch.equal(got, rows)
    assert sum(summary.spans for summary in store.summaries()) == COUNT
    for number in range(14):
        video, fingerprint = described(number)
        assert store.videos[video.digest] == video == store.videos_by_name[video.name]
        assert store.fingerprints[fingerprint.fingerprint] == fingerprint
        times = store.videos[video.digest].times_s
        assert (times is None) == (video.times_s is None)
        assert times is None or times.tolist() == list(video.times_s)  # type: ignore[arg-type]


def committed(log: Path) -> list[tuple[set[int], set[int]]]:
    """Return per run what was put, and of that what surely was committed."""
    runs: list[tuple[set[int], set[int]]] = []
    for line in log.read_text().splitlines() if log.exists() else []:
        if line == "begin":
            runs.append((set(), set()))
        elif line.startswith("put "):
            runs[-1][0].add(int(line.split()[1]))
        elif line == "flush":
            runs[-1][1].update(runs[-1][0])
    return runs


@pytest.mark.slow
@pytest.mark.parametrize("stores", [1, 10])
def test_killed_stores_end_as_if_they_had_not_been(tmp_path: Path, stores: int) -> None:
    process = begin("write", tmp_path / "whole")
    go(process)
    began = time.monotonic()
    finish(process)
    seconds = time.monotonic() - began
    complete(tmp_path / "whole")
    killed = sum(kill_often(tmp_path / str(number), seconds, number) for number in range(stores))
    assert killed >= 3 * stores  # the others had ended already


def kill_often(folder: Path, seconds: float, seed: int) -> int:
    """Kill five processes that write or prune a store, finish it, and check; return how many."""
    rng, log = random.Random(seed), folder.with_suffix(".log")
    killed = 0
    jobs = ["write", "write", "write", "prune", "write", "write"]
    processes = [begin(job, folder, "--log", log) for job in jobs]
    for process in processes[:-1]:
        go(process)
        time.sleep(rng.uniform(0, seconds / 3))
        process.send_signal(signal.SIGKILL)
        _, error = process.communicate()
        assert process.returncode == -signal.SIGKILL or not process.returncode, error
        killed += process.returncode != 0
        if (folder / "palindrome.json").exists():
            assert verify(Store.open(folder)) == []
    go(processes[-1])
    finish(processes[-1])
    prune(Store.open(folder, "a"))
    complete(folder)
    nothing_left(folder)
    before: set[int] = set()
    for put, sure in committed(log):
        # What was committed is not written again: at most what came after the last flush is.
        assert not put & before
        before |= sure
    return killed


def nothing_left(folder: Path) -> None:
    """Check that a store was tidied up: no journals, no files of the dead, nothing to do."""
    assert not list(folder.glob("parts/*/j*.bin")) and not list(folder.glob("parts/*/*.part"))
    files = {file for file in folder.glob("parts/**/*")}
    report = prune(Store.open(folder, "a"))
    assert (report.moved, report.duplicates, report.leftovers) == (0, 0, 0)
    assert files == {file for file in folder.glob("parts/**/*")}


class Dead(BaseException):
    """Stands for kill -9: nothing that follows reaches the disk."""


class Death:
    """Lets this process's changes of files end at one of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left = self.done = 0
        self.wounded = False
        # A dead process gives no sign; here its thread would, into a folder that is just deleted.
        monkeypatch.setattr("cache.storage.leases._keep_renewed", lambda lease: None)
        for name in ("write", "move", "delete"):
            monkeypatch.setattr(LocalFiles, name, self._mortal(getattr(LocalFiles, name)))

    def _mortal(self, change: Callable[..., None]) -> Callable[..., None]:
        def attempt(files: LocalFiles, name: str, *rest: Any, **options: Any) -> None:
            if not name.startswith(USERS):
                if self.left <= 0:
                    if self.left == 0 and change.__name__ == "write" and self.wounded:
                        # It dies while it writes: half of the file stands aside.
                        path = files.folder / f"{name}.half.part"
                        path.parent.mkdir(parents=True, exist_ok=True)
                        path.write_bytes(b"".join(bytes(piece) for piece in rest[0])[::2])
                    self.left -= 1
                    raise Dead
                self.left -= 1
                self.done += 1
            change(files, name, *rest, **options)

        return attempt

    def after(self, steps: int, work: Callable[[], None], folder: Path) -> bool:
        """Do some work, but die after some changes; return whether it came to that."""
        self.left, self.done, self.wounded = steps, 0, steps % 2 == 0
        try:
            work()
            return False
        except Dead:
            # Its leases are there still, of a process that is gone.
            for lease in (folder / USERS).glob("*.json"):
                lease.write_text(lease.read_text().replace(f'"pid": {os.getpid()}', '"pid": 0'))
            return True
        finally:
            self.left = 2**60


def some(count: int) -> list[tuple[Address, torch.Tensor]]:
    return [activation(number) for number in range(count)]


@pytest.mark.parametrize("job", ["write", "prune", "drop"])
@pytest.mark.parametrize("stride", [10, slow(1)])
def test_death_at_every_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, job: str, stride: int
) -> None:
    """Every single change of a file is the last one once."""
    monkeypatch.setattr(os, "fsync", lambda _: None)  # the disk outlives a process
    pairs = some(24)
    death = Death(monkeypatch)
    death.left = 2**60

    def write(folder: Path) -> None:
        store = Store.open(folder, "a")
        writer = store.writer(compact_bytes=60_000)
        for number, (address, rows) in enumerate(pairs):
            for info in described(number):
                writer.describe(info)
            if not store.contains(address):
                writer.write(address, rows)
            if number % 5 == 4:
                writer.flush()
        writer.close()

    def prepare(folder: Path) -> None:
        """Make what prune shall work on: a compacted part, an abandoned journal, duplicates."""
        write(folder)
        for shift in (0, 1):
            left = Store.open(folder, "a").writer()
            for number in range(shift, 24, 3):
                left.write(*pairs[number])
                left.write(*activation(100 + number))
            left.flush()
            left.lease.release()

    def clean(folder: Path) -> None:
        prune(Store.open(folder, "a"), lambda info: job == "drop" and info.cut == 0)

    if job == "write":
        work, before = write, None
    else:
        work, before = clean, tmp_path / "before"
        prepare(before)
    steps = 0
    while True:
        folder = tmp_path / "now"
        if before is not None:
            shutil.copytree(before, folder)
        died = death.after(steps, partial(work, folder), folder)
        if (folder / "palindrome.json").exists():
            reader = Store.open(folder)
            assert not reader.index.unreadable
            assert verify(reader) == []
            for number, (address, rows) in enumerate(pairs):
                if reader.contains(address):
                    assert torch.equal(reader.read(address), rows)
                else:
                    assert job == "write" or (job == "drop" and number % 2 == 0)
            reader.close()  # what it asked for may not be dropped before
        work(folder)
        prune(Store.open(folder, "a"), lambda info: job == "drop" and info.cut == 0)
        last = Store.open(folder)
        assert verify(last) == []
        for number, (address, rows) in enumerate(pairs):
            if job == "drop" and number % 2 == 0:
                assert not last.contains(address)
            else:
                assert torch.equal(last.read(address), rows)
        nothing_left(folder)
        shutil.rmtree(folder)
        if not died:
            break
        steps += stride
    assert steps > 10
