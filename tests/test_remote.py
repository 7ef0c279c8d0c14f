"""Stores on object stores: what a network and a server do to them, and how few requests they take.

The server is moto's, of S3's protocol, behind a proxy that counts requests and harms them.
"""

import asyncio
import os
import pickle
import subprocess
import sys
import time
from contextlib import suppress
from typing import Any, ClassVar
from uuid import uuid4

import fsspec
import fsspec.config
import numpy as np
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem

from cache.address import Address, FingerprintInfo, VideoInfo
from cache.errors import StoreError, StoreUnreachable
from cache.format.writer import Writer
from cache.storage.base import read_whole
from cache.storage.open import open_files
from cache.storage.remote import WAITS_S
from cache.store import Store
from cache.upkeep.prune import prune
from cache.upkeep.verify import verify
from tests.conftest import REPOSITORY
from tests.marks import quick_only, slow
from tests.object_store import Fault, Proxy
from tests.store_writer import activation
from tests.test_store import bits, filled, same
from tests.test_store_kill import begin, complete, finish, go

SPANS, VIDEOS = 400, 8


@pytest.fixture
def url(s3: Proxy) -> str:
    return f"s3://bucket/{uuid4()}/store"


def features(number: int) -> tuple[Address, torch.Tensor]:
    """Return features of a known span; all are of one fingerprint."""
    frames = np.arange(16, dtype=np.int64) + number
    video = f"{number % VIDEOS:064x}"
    address = Address("1" * 32, "float16", video, "forward", "window", frames, 8)
    return address, torch.full((8, 96), number, dtype=torch.float16)


def video(number: int) -> VideoInfo:
    """Return a video of which there are features; of every other one the frames are uneven."""
    times = np.cumsum(np.random.default_rng(number).uniform(0.03, 0.05, 1001))
    uneven = times if number % 2 else None
    return VideoInfo(f"{number:064x}", f"{number}.mp4", 1, 1000, 25.0, uneven)


def describe_all(writer: Writer) -> None:
    writer.describe(FingerprintInfo("1" * 32, "features", "a.pt"))
    for number in range(VIDEOS):
        writer.describe(video(number))


def in_journal(url: str) -> list[tuple[Address, torch.Tensor]]:
    """Leave known activations in one segment, as a killed writer does."""
    pairs = [features(number) for number in range(SPANS)]
    writer = Store.open(url, "a").writer()
    describe_all(writer)
    for pair in pairs:
        writer.write(*pair)
    writer.flush()
    return pairs


OPERATIONS: dict[str, Any] = {
    "read": lambda files: files.read([("a", 0, 1)]),
    "size": lambda files: files.size("a"),
    "write": lambda files: files.write("a", [b"x"]),
    "move": lambda files: files.move("a", "b"),
    "delete": lambda files: files.delete("a"),
    "children": lambda files: files.children(""),
    "grandchildren": lambda files: files.grandchildren(""),
    "walk": lambda files: files.walk(""),
}


@pytest.mark.parametrize("fault", quick_only(["500", "503", "drop", None], "503"))
def test_all_errors_of_a_client_are_one_kind(s3: Proxy, url: str, fault: Fault | None) -> None:
    files = open_files(url)
    files.write("a", [b"content"])
    s3.fault = lambda method, path: fault
    if fault is None:
        s3.close()
    began = time.monotonic()
    for name, operation in OPERATIONS.items():
        with pytest.raises(StoreUnreachable) as raised:
            operation(files)
        text = str(raised.value)
        assert url in text and "\n" not in text and len(text) < 400, (name, text)
        assert isinstance(raised.value, StoreError) and isinstance(raised.value, OSError)
        again = pickle.loads(pickle.dumps(raised.value))
        assert str(again) == text == str(StoreUnreachable(text))
    assert time.monotonic() - began < 10
    s3.fault = lambda method, path: None
    s3.open()
    data = read_whole(files, "a", None)
    assert data is not None and bytes(data) == b"content"


@pytest.mark.slow
def test_cut_answers_are_asked_for_again(s3: Proxy, url: str) -> None:
    files, content = open_files(url), os.urandom(100_000)
    files.write("a", [content])
    answers: list[Fault | None] = ["cut", "cut"]
    s3.fault = lambda method, path: answers.pop() if answers else None
    data = read_whole(files, "a", len(content))
    assert data is not None and bytes(data) == content
    s3.fault = lambda method, path: "cut"
    with pytest.raises(StoreUnreachable):
        read_whole(files, "a", len(content))


def test_an_outage_costs_one_failing_read(s3: Proxy, url: str) -> None:
    pairs = in_journal(url)
    store = Store.open(url)
    assert all(store.contains(a) for a, _ in pairs)
    s3.fault = lambda method, path: "500"
    began = time.monotonic()
    with s3.counting() as counts, pytest.raises(StoreUnreachable):
        store.read_many([a for a, _ in pairs])
    assert counts["GET"] <= 10 and time.monotonic() - began < 5  # leases are renewed beside
    with s3.counting() as counts:
        for a, _ in pairs[:20]:
            with pytest.raises(StoreUnreachable):
                store.read(a)
    assert counts["GET"] == 20  # nobody waits for what is known to be gone
    s3.fault = lambda method, path: None
    same(store, pairs[:5])


def test_a_range_behind_the_end_asks_for_the_size_and_nothing_else_does(
    s3: Proxy, url: str
) -> None:
    files = open_files(url)
    files.write("a", [b"0123"])
    with s3.counting() as counts:
        found = files.read([("a", 2, 9), ("gone", 3, 4), ("a", 3, 3)])
        assert [None if f is None else bytes(f) for f in found] == [b"23", None, b""]
        (behind,) = files.read([("a", 9, 12)])
    assert behind is not None and bytes(behind) == b""
    assert counts["HEAD"] == 1
    s3.fault = lambda method, path: "500"
    with s3.counting() as counts, pytest.raises(StoreUnreachable):
        files.read([("a", 0, 1)])
    assert counts["HEAD"] == 0


@pytest.mark.parametrize(
    "faults",
    [
        pytest.param(("500", "503"), marks=pytest.mark.slow),
        pytest.param(("drop", "cut", "slow"), marks=pytest.mark.slow),
    ],
)
def test_a_store_works_over_a_bad_network(s3: Proxy, url: str, faults: tuple[Fault, ...]) -> None:
    s3.share_fails(0.2, *faults)
    pairs = [activation(number) for number in range(8)]
    with Store.open(url, "a") as store, store.writer() as writer:
        for number, pair in enumerate(pairs):
            writer.write(*pair)
            if number == 5:
                writer.flush()
                writer.compact()
    writer = Store.open(url, "a").writer()
    writer.write(*features(0))
    writer.flush()
    writer.lease.release()
    pairs.append(features(0))
    with Store.open(url, "a") as store:
        for _ in range(2):
            for got, (_, rows) in zip(store.read_many([a for a, _ in pairs]), pairs, strict=True):
                bits(got, rows)
            assert verify(store) == []
            prune(store)


@pytest.mark.slow
def test_what_waits_during_an_outage_is_written_after_it(s3: Proxy, url: str) -> None:
    pairs = filled(url, 8)
    more = [activation(number) for number in range(8, 16)]
    store = Store.open(url, "a")
    writer = store.writer()
    with s3.outage():
        for pair in more:
            writer.write(*pair)
        for _ in range(3):
            with pytest.raises(StoreUnreachable, match=r"B wait in memory.*flush again"):
                writer.flush()
        for a, _ in pairs:  # what is known to be there needs no server
            assert store.contains(a)
        with pytest.raises(StoreUnreachable):
            verify(store)
        with pytest.raises(StoreUnreachable):
            prune(store)
        with pytest.raises(StoreUnreachable):
            Store.open(url)
    writer.close()
    store.refresh()
    same(store, pairs + more)
    assert verify(store) == []
    store.close()


@pytest.mark.slow
def test_folding_stops_at_an_outage_and_loses_nothing(s3: Proxy, url: str) -> None:
    """Wherever it begins: all that was flushed is there, and another fold makes it an array."""
    for number in (0, 1, 3, 6):
        here = f"{url}{number}"
        pairs = [features(n) for n in range(3)]
        store = Store.open(here, "a")
        writer = store.writer()
        for pair in pairs:
            writer.write(*pair)
        writer.flush()
        s3.fails_after(number)
        with suppress(StoreUnreachable):
            writer.compact()
        s3.fault = lambda method, path: None
        store.refresh()
        same(store, pairs)
        writer.close()
        store.refresh()
        same(store, pairs)
        assert verify(store) == []


@pytest.mark.slow
def test_four_writers_over_a_bad_network(s3: Proxy, url: str) -> None:
    Store.open(url, "a").close()
    s3.share_fails(0.03, "500", "503", "drop", "cut")
    writers = [begin("write", url, "--first", n, "--step", 4, **s3.environment) for n in range(4)]
    for process in writers:
        go(process)
    for process in writers:
        finish(process)
    s3.fault = lambda method, path: None
    complete(url)
    with Store.open(url, "a") as store:
        prune(store)
        assert verify(store) == []


def test_few_requests(s3: Proxy, url: str) -> None:
    """Folding, verifying and reading take some requests, however many spans there are."""
    pairs = in_journal(url)
    store = Store.open(url, "a")
    addresses = [a for a, _ in pairs]
    assert all(map(store.contains, addresses))
    with s3.counting() as counts:
        for got, (_, rows) in zip(store.read_many(addresses), pairs, strict=True):
            bits(got, rows)
    assert counts.total() <= 5, counts
    with s3.counting() as counts:
        assert verify(store) == []
    # A listing, the spans, the descriptions, the list of the part's files, and the store's mark.
    assert counts.total() <= 5, counts
    writer = store.writer()
    for a, rows in pairs:
        writer.write(a, rows)
    writer.flush()
    with s3.counting() as counts:
        writer.compact()
    assert counts.total() <= 5, counts
    with s3.counting() as counts:
        writer.close()  # the segment goes, and the lease
    assert counts.total() <= 3, counts
    store.refresh()
    with s3.counting() as counts:
        same_many = store.read_many(addresses)
    assert counts.total() <= 5, counts
    for got, (_, rows) in zip(same_many, pairs, strict=True):
        bits(got, rows)


def test_names_of_all_videos_take_few_requests(s3: Proxy, url: str) -> None:
    in_journal(url)
    with s3.counting() as counts:
        store = Store.open(url, "inspect")
        assert store.videos == {f"{number:064x}": video(number) for number in range(VIDEOS)}
        assert store.fingerprints.keys() == {"1" * 32}
    assert counts.total() <= 8, counts  # four of them open the store
    with s3.counting() as counts:
        times = [store.videos[f"{number:064x}"].times_s for number in range(VIDEOS)]
    assert counts.total() == VIDEOS // 2, counts
    for number, got in enumerate(times):
        expected = video(number).times_s
        assert (got is None) == (expected is None)
        assert got is None or np.array_equal(got, expected)  # type: ignore[arg-type]


def test_what_many_flushes_described_is_one_file_in_the_end(s3: Proxy, url: str) -> None:
    with Store.open(url, "a") as store:
        writer = store.writer()
        for number in range(VIDEOS):
            writer.describe(video(number))
            writer.write(*features(number))
            writer.flush()
        reader = Store.open(url, "inspect")
        known = reader.videos
        assert len(store.files.children("descriptions")) == VIDEOS
        writer.close()
        assert len(store.files.children("descriptions")) == 1
        assert verify(store) == []
        for number in range(VIDEOS):  # also who read the files that are gone
            found = known[f"{number:064x}"].times_s
            assert (found is None) == (number % 2 == 0)
            assert found is None or np.array_equal(found, video(number).times_s)  # type: ignore[arg-type]
        reader.refresh()
        assert reader.videos == known


def test_a_user_sets_retries_and_timeouts(s3: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    own = {"connect_timeout": 77, "retries": {"max_attempts": 9}}
    of: Any = open_files("s3://bucket/a")
    assert of.system.config_kwargs["connect_timeout"] < 10
    assert of.system.config_kwargs["read_timeout"] < 60
    monkeypatch.setitem(fsspec.config.conf, "s3", fsspec.config.conf["s3"] | {"config_kwargs": own})
    of = open_files("s3://bucket/a")
    assert of.system.config_kwargs.items() >= own.items()
    assert of.system.config_kwargs["read_timeout"] < 60
    assert of.system.endpoint_url == s3.url


@pytest.mark.slow
def test_show_says_in_one_line_that_there_is_no_server(s3: Proxy, url: str) -> None:
    """Within 10 s, of which imports may take half; a busy machine must not count."""
    filled(url, 2)
    code = (
        "import runpy, sys, time, s3fs, cache.show, train.cache_entries.verdicts\n"
        "began = time.process_time()\n"
        "try: runpy.run_path('cache/show.py', run_name='__main__')\n"
        "finally: print(time.process_time() - began)"
    )
    with s3.outage():
        done = subprocess.run(
            [sys.executable, "-c", code, url],
            cwd=REPOSITORY,
            env=os.environ | s3.environment,
            capture_output=True,
            text=True,
        )
    assert done.returncode == 1 and done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1 and url in done.stderr, done.stderr
    assert float(done.stdout) + sum(WAITS_S) < 5


class Flaky(MemoryFileSystem):  # type: ignore[misc]
    """A client with one connection, which breaks at the first request and does not come back."""

    protocol = "flaky"
    cachable = False
    opened = 0
    errors: ClassVar[list[BaseException]] = []

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        Flaky.opened += 1
        self.broken: BaseException | None = None

    def pipe_file(self, path: str, value: bytes, **options: Any) -> None:
        self.broken = self.broken or (Flaky.errors.pop() if Flaky.errors else None)
        if self.broken is not None:
            raise self.broken
        super().pipe_file(path, value, **options)


@pytest.mark.parametrize(
    "error",
    [
        EOFError(),
        *map(slow, [asyncio.CancelledError(), RuntimeError("loop"), OSError("closed"), KeyError()]),
    ],
)
def test_a_client_with_one_connection_connects_again(error: BaseException) -> None:
    fsspec.register_implementation("flaky", Flaky, clobber=True)
    files = open_files(f"flaky://{uuid4()}/store")
    Flaky.opened, Flaky.errors = 0, [error]
    files.write("a", [b"x"])
    assert files.children("") == {"a": 1} and Flaky.opened == 1
    Flaky.errors = [error] * 100
    with pytest.raises(StoreUnreachable, match=type(error).__name__):
        files.write("b", [b"x"])
    Flaky.errors = []
    files.write("b", [b"x"])
    assert files.size("b") == 1


class Speechless(Exception):
    """An error whose text is one more error."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


class Vague(MemoryFileSystem):  # type: ignore[misc]
    """A client that lists files without their sizes, and whose errors have no text."""

    protocol = "vague"
    cachable = False

    def ls(self, path: str, detail: bool = True, **options: Any) -> Any:
        found = super().ls(path, detail=detail, **options)
        return [each | {"size": None} for each in found] if detail else found

    def find(self, path: str, detail: bool = False, **options: Any) -> Any:
        return {file: {"name": file, "size": None} for file in super().find(path, **options)}

    def cat_ranges(self, *args: Any, **options: Any) -> Any:
        raise Speechless


def test_whatever_a_client_says_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cache.storage.remote.WAITS_S", ())
    fsspec.register_implementation("vague", Vague, clobber=True)
    files = open_files(f"vague://{uuid4()}/store")
    files.write("folder/a", [b"x"])
    with pytest.raises(StoreUnreachable, match=r"\(Speechless\)$"):
        files.read([("folder/a", 0, 1)])
    for ask in (files.children, files.walk, files.grandchildren):
        with pytest.raises(StoreUnreachable, match="TypeError"):
            ask("folder")
