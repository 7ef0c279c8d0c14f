"""Many processes on one store: writers, readers and those who prune, and what one must not take."""

import errno
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from cache.address import Address, FingerprintInfo, VideoInfo
from cache.errors import Missing, StoreError
from cache.storage import leases
from cache.storage.base import Content, Range
from cache.storage.codec import Bytes
from cache.storage.leases import USERS, list_users
from cache.storage.local import LocalFiles
from cache.store import Store
from cache.upkeep.prune import prune
from cache.upkeep.verify import verify
from tests.store_writer import activation, described
from tests.test_store import address, bits, filled, same
from tests.test_store_kill import begin, complete, finish, go

ONE, TWO = f"{1:032x}", f"{2:032x}"  # fingerprints of even and odd activations


def drop_one(info: FingerprintInfo) -> bool:
    return info.fingerprint == ONE


@pytest.fixture(autouse=True)
def memory_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes die here, machines do not: nothing has to reach the disk."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


def leases_of(folder: Path) -> list[Path]:
    return sorted((folder / USERS).glob("*.json"))


@pytest.mark.slow
def test_four_writers_and_two_readers_at_once(tmp_path: Path) -> None:
    Store.open(tmp_path, "a").close()
    readers = [begin("read", tmp_path) for _ in range(2)]
    writers = [begin("write", tmp_path, "--first", n, "--step", 4) for n in range(4)]
    for process in (*readers, *writers):
        go(process)
    problems = []
    store = Store.open(tmp_path, "a")
    while any(writer.poll() is None for writer in writers):
        problems += verify(store)
        prune(store)
        time.sleep(0.1)
    store.close()
    assert not problems
    for process in (*writers, *readers):
        finish(process)
    complete(tmp_path)
    assert leases_of(tmp_path) == []


def test_what_is_used_stays(tmp_path: Path) -> None:
    pairs = filled(tmp_path, 40)
    user, store = Store.open(tmp_path), Store.open(tmp_path, "a")
    assert user.contains(pairs[0][0])
    report = prune(store, drop_one)
    assert report.in_use == {ONE} and report.freed_bytes == report.dropped == 0
    assert prune(store, keep_bytes=0).in_use == {ONE}
    store.refresh()
    for number, (a, rows) in enumerate(pairs):
        if number % 2 == 0:
            bits(user.read(a), rows)
        else:
            with pytest.raises(Missing):
                store.read(a)
    user.close()
    store.close()  # it asked for both
    report = prune(Store.open(tmp_path, "a"), drop_one)
    assert report.dropped == 20 and report.kept_bytes == 0 and report.freed_bytes > 1000
    assert list(tmp_path.glob("parts/*")) == []


def test_only_what_is_dropped_goes(tmp_path: Path) -> None:
    pairs = filled(tmp_path, 40)
    left = Store.open(tmp_path, "a").writer()
    for number in range(40, 60):  # both fingerprints in one segment
        pairs.append(activation(number))
        left.write(*pairs[-1])
    left.flush()
    left.lease.release()
    store = Store.open(tmp_path, "a")
    report = prune(store, drop_one)
    assert (report.dropped, report.moved) == (30, 10)
    same(store, pairs[1::2])
    assert not any(store.contains(a) for a, _ in pairs[::2])
    assert store.fingerprints.keys() == {TWO} and len(store.videos) == 7
    assert verify(store) == []
    assert report.kept_bytes == sum(
        file.stat().st_size for file in tmp_path.glob("parts/**/*") if file.is_file()
    )


def test_the_oldest_goes_first(tmp_path: Path) -> None:
    store = Store.open(tmp_path, "a")
    for number in range(6):
        with store.writer() as writer:
            writer.write(address(100, number), torch.randn(100, 100))
    store.refresh()
    for keep in (10**9, store.bytes, store.bytes // 2 + 5000, 0):
        report = prune(store, keep_bytes=keep)
        assert report.kept_bytes <= max(keep, 0) + 6 * 2000  # small files around the arrays
        there = [store.index.find(address(100, n).key) != [] for n in range(6)]
        assert there == sorted(there) and sum(there) == {0: 0}.get(keep, 3 if keep < 2e5 else 6)


def test_a_fold_in_the_middle_of_a_listing_hides_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder's listing may miss a file that comes and show one no more that goes."""
    pairs = [activation(number) for number in range(6)]
    writer = Store.open(tmp_path, "a").writer()
    for pair in pairs:
        writer.write(*pair)
    writer.flush()
    listings = LocalFiles.grandchildren
    early = listings(LocalFiles(tmp_path), "parts")
    writer.close()
    torn = [{part: {"contents.json": names["contents.json"]} for part, names in early.items()}]

    def list_once(files: LocalFiles, folder: str) -> Any:
        return torn.pop() if torn else listings(files, folder)

    monkeypatch.setattr(LocalFiles, "grandchildren", list_once)
    store = Store.open(tmp_path)
    assert len(store.index.records) == 6
    same(store, pairs)


def test_parts_of_living_writers_stay(tmp_path: Path) -> None:
    store = Store.open(tmp_path, "a")
    writer = store.writer(compact_bytes=10_000)
    pairs = [activation(number) for number in range(20)]
    for number, pair in enumerate(pairs):
        writer.describe(described(number)[1])
        writer.write(*pair)
        writer.flush()
    before = sorted(tmp_path.glob("parts/**/*"))
    other = Store.open(tmp_path, "a")
    report = prune(other, lambda info: True, keep_bytes=0)
    assert report.active_parts == 1 and report.freed_bytes == 0
    assert sorted(tmp_path.glob("parts/**/*")) == before
    writer.close()
    same(Store.open(tmp_path), pairs)


def test_who_comes_while_it_is_pruned_finds_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader asks at every step of the prune: it gets the rows, or is told that they are gone."""
    for step in range(1, 60):
        folder = tmp_path / str(step)
        pairs = filled(folder, 8)
        store, reader = Store.open(folder, "a"), Store.open(folder)
        count = [0]
        answers: dict[int, bool] = {}

        def ask(
            count: list[int] = count,
            answers: dict[int, bool] = answers,
            step: int = step,
            reader: Store = reader,
            pairs: list[tuple[Any, torch.Tensor]] = pairs,
        ) -> None:
            count[0] += 1
            if count[0] == step:
                answers.update({n: reader.contains(pairs[n][0]) for n in range(0, 8, 2)})

        with monkeypatch.context() as patch:
            for name in ("move", "write", "delete", "children"):
                patch.setattr(LocalFiles, name, preceded(getattr(LocalFiles, name), ask))
            prune(store, drop_one)
        for number, there in answers.items():
            a, rows = pairs[number]
            if there or reader.contains(a):
                bits(reader.read(a), rows)
            else:
                with pytest.raises(Missing):
                    reader.read(a)
        assert verify(store) == []
        if not answers:
            break
    assert step > 10


def preceded(change: Callable[..., Any], ask: Callable[[], None]) -> Callable[..., Any]:
    inside = [False]

    def both(files: LocalFiles, name: str, *rest: Any, **options: Any) -> Any:
        if not name.startswith(USERS) and not inside[0]:
            inside[0] = True
            ask()
            inside[0] = False
        return change(files, name, *rest, **options)

    return both


class Folding(LocalFiles):
    """A folder of a file system for which Name and name are the same, and that keeps neither."""

    def read(self, ranges: Sequence[Range]) -> list[Bytes | None]:
        return super().read([(name.lower(), start, stop) for name, start, stop in ranges])

    def size(self, name: str) -> int | None:
        return super().size(name.lower())

    def write(self, name: str, content: Content, durable: bool = True) -> None:
        super().write(name.lower(), content, durable)

    def move(self, old: str, new: str) -> None:
        super().move(old.lower(), new.lower())

    def delete(self, *names: str) -> None:
        super().delete(*(name.lower() for name in names))

    def delete_folder(self, name: str) -> None:
        super().delete_folder(name.lower())

    def children(self, folder: str) -> dict[str, int | None]:
        return super().children(folder.lower())


def test_a_folder_may_take_upper_and_lower_case_for_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names of files are made of digests in lower case; those of videos stand in files."""
    monkeypatch.setattr("cache.store.open_files", lambda url: Folding(Path(url)))
    monkeypatch.setattr("platform.node", lambda: "My-Machine")
    infos = [VideoInfo(f"{n:064x}", name, 1, 8, 25.0) for n, name in enumerate(("Clip", "clip"))]
    frames = np.arange(8, dtype=np.int64)
    addresses = [
        Address("a" * 32, "float32", info.digest, "forward", "window", frames, 4) for info in infos
    ]
    with Store.open(tmp_path, "a") as store:
        writers = [store.writer(), store.writer()]  # of parts of their own
        for value, writer in enumerate(writers):
            writer.describe(infos[value])
            writer.write(addresses[value], torch.full((4, 2), float(value)))
            writer.flush()
        writers[0].close()
        writers[1].lease.release()  # as if it were killed
    for _ in range(2):
        with Store.open(tmp_path, "a") as store:
            assert store.videos_by_name == {info.name: info for info in infos}
            for value, a in enumerate(addresses):
                assert store.read(a).tolist() == [[float(value)] * 2] * 4
            assert verify(store) == []
            report = prune(store)
            assert report.kept_bytes and not report.in_use and not report.active_parts
            assert not list_users(store.files)[1:]
    names = [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")]
    assert all(name == name.lower() for name in names)


def test_only_one_prunes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second one that begins at any step of the first is told to wait."""
    for step in range(1, 60, 3):
        folder = tmp_path / str(step)
        pairs = filled(folder, 10)
        left = Store.open(folder, "a").writer()
        for number in range(5, 15):
            left.write(*activation(number))
        left.flush()
        left.lease.release()
        pairs += [activation(number) for number in range(10, 15)]
        first, second = Store.open(folder, "a"), Store.open(folder, "a")
        count = [0]

        def also(count: list[int] = count, step: int = step, second: Store = second) -> None:
            count[0] += 1
            if count[0] == step:
                with pytest.raises(StoreError, match=r"is being pruned .*try again"):
                    prune(second, drop_one)

        with monkeypatch.context() as patch:
            for name in ("move", "write", "delete", "children"):
                patch.setattr(LocalFiles, name, preceded(getattr(LocalFiles, name), also))
            prune(first, drop_one)
        store = Store.open(folder, "a")
        assert verify(store) == []
        same(store, pairs[1::2])
        store.close()
        prune(Store.open(folder, "a"), drop_one)
        same(Store.open(folder), pairs[1::2])
        if count[0] < step:
            break
    assert step > 20


@pytest.mark.slow
def test_a_lease_ends_with_its_process(tmp_path: Path) -> None:
    filled(tmp_path, 2)
    code = (
        "import sys, time\nfrom cache.store import Store\nfrom tests.store_writer import activation"
        "\nstore = Store.open(sys.argv[1])\nassert store.contains(activation(0)[0])\n"
        "print('ready', flush=True)\nsys.stdin.readline()\n"
    )
    for ending in ("itself", "kill"):
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdin is not None and process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        (user,) = list_users(LocalFiles(tmp_path))
        assert user.alive and user.part is None and user.fingerprints == {ONE}
        assert f"-{process.pid}-" in user.name
        if ending == "itself":
            process.communicate("\n")
            assert leases_of(tmp_path) == []
            continue
        process.send_signal(signal.SIGKILL)
        while Path(f"/proc/{process.pid}/stat").read_text().split()[2] != "Z":
            time.sleep(0.01)  # nobody has waited for it yet
        (user,) = list_users(LocalFiles(tmp_path))
        assert not user.alive
        process.communicate()
        (user,) = list_users(LocalFiles(tmp_path))
        assert not user.alive
        prune(Store.open(tmp_path, "a"))
        assert all(user.alive for user in list_users(LocalFiles(tmp_path)))


def test_other_machines_live_by_their_signs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(tmp_path, 2)
    with Store.open(tmp_path) as store:
        assert store.contains(activation(0)[0]) and store.lease is not None
        path = tmp_path / store.lease.name
        said = json.loads(path.read_text())
        for change, alive in (
            ({}, True),
            ({"pid": 2**22 + 1}, False),
            ({"began": "1"}, False),  # another process has the number now
            ({"machine": "elsewhere", "pid": 2**22 + 1}, True),
            ({"machine": "elsewhere", "beat": time.time() - 500}, True),
            ({"machine": "elsewhere", "beat": time.time() - 700}, False),
        ):
            path.write_text(json.dumps(said | change))
            assert [user.alive for user in list_users(store.files)] == [alive], change
        path.write_text("{")
        (user,) = list_users(store.files)
        assert user.unreadable and user.alive
        with pytest.raises(StoreError, match=f"{path.name} is damaged"):
            prune(Store.open(tmp_path, "a"), drop_one)


def test_leases_are_renewed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "RENEW_S", 0.02)
    monkeypatch.setattr(leases, "_renewer", leases._Renewer())
    store = Store.open(tmp_path, "a")
    (path,) = leases_of(tmp_path)
    path.unlink()  # somebody thought that it was dead
    deadline = time.monotonic() + 20
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert path.exists()
    store.close()
    time.sleep(0.1)
    assert leases_of(tmp_path) == []


def test_a_store_that_cannot_be_written_is_read(tmp_path: Path) -> None:
    pairs = filled(tmp_path, 5)
    for lease in leases_of(tmp_path):
        lease.unlink()
    (tmp_path / USERS).rmdir()
    (tmp_path / USERS).touch()  # no lease can stand here; root could write anything else
    store = Store.open(tmp_path)
    assert store.lease is None
    same(store, pairs)
    assert verify(store) == []
    with pytest.raises(OSError, match="cannot write into"):
        Store.open(tmp_path, "a").writer()


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (PermissionError(errno.EACCES, os.strerror(errno.EACCES)), "(Permission denied)"),
        (RuntimeError("the bucket says no"), "(the bucket says no)"),
    ],
)
def test_a_lease_that_cannot_be_written_is_told_once(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    error: Exception,
    reason: str,
) -> None:
    pairs = filled(tmp_path, 4)

    def refuse(*_: object, **__: object) -> None:
        raise error

    def check_warned_once() -> None:
        err = capfd.readouterr().err
        (line,) = err.splitlines()
        assert line.startswith(f"warning: {tmp_path}: cannot write a lease") and reason in line
        assert "do not prune it" in line

    def read_in_child(store: Store) -> None:
        child = multiprocessing.get_context("fork").Process(target=same, args=(store, pairs))
        child.start()
        child.join()
        assert child.exitcode == 0

    before = Store.open(tmp_path)
    forked = Store.open(tmp_path)
    assert capfd.readouterr().err == ""
    monkeypatch.setattr(LocalFiles, "write", refuse)
    read_in_child(forked)  # which cannot claim it; its parent can
    check_warned_once()
    same(before, pairs)  # of two fingerprints
    read_in_child(before)
    check_warned_once()
    store = Store.open(tmp_path)
    check_warned_once()
    same(store, pairs)
    assert store.contains(pairs[0][0])
    Store.open(tmp_path, "inspect")
    assert capfd.readouterr().err == ""


class Windows(Dataset[torch.Tensor]):
    def __init__(self, store: Store) -> None:
        self.store = store

    def __len__(self) -> int:
        return 12

    def __getitem__(self, number: int) -> torch.Tensor:
        return self.store.read(activation(number)[0])


@pytest.mark.parametrize(
    ("method", "workers"), [pytest.param("spawn", 1, marks=pytest.mark.slow), ("fork", 2)]
)
def test_loaders_read_it(tmp_path: Path, method: str, workers: int) -> None:
    pairs = filled(tmp_path, 12)
    store = Store.open(tmp_path)
    context = multiprocessing.get_context(method)
    loader = DataLoader(
        Windows(store), batch_size=None, num_workers=workers, multiprocessing_context=context
    )
    for got, (_, rows) in zip(loader, pairs, strict=True):
        bits(got, rows)
    # The children's end is not the parent's.
    assert [user.name for user in list_users(store.files)].count(store.lease.name) == 1  # type: ignore[union-attr]
    assert len(list_users(store.files)) <= 3


def test_a_slow_renewal_takes_no_fingerprint_off(tmp_path: Path) -> None:
    """The thread that renews may be held up while another fingerprint comes into use."""
    lease = leases.Lease(LocalFiles(tmp_path))
    may_go, lock = threading.Event(), lease._lock

    class SlowForTheRenewer:
        def __enter__(self) -> None:
            if threading.current_thread() is renewer:
                assert may_go.wait(10)
            lock.acquire()

        def __exit__(self, *_: object) -> None:
            lock.release()

    lease._lock = SlowForTheRenewer()  # type: ignore[assignment]
    renewer = threading.Thread(target=lease.renew)
    renewer.start()
    time.sleep(0.2)  # until it waits for the lock
    lease.add_fingerprint("b")
    may_go.set()
    renewer.join(10)
    (user,) = list_users(lease.files)
    assert "b" in user.fingerprints
    lease.release()
