"""Descriptions of videos and fingerprints, and which of several versions counts."""

import multiprocessing
import os
import pickle
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pytest
import torch

from cache.address import Address, FingerprintInfo, VideoInfo
from cache.errors import Damaged, Missing, StoreUnreachable
from cache.storage.local import LocalFiles
from cache.storage.remote import RemoteFiles
from cache.store import MARKER, Store
from cache.upkeep.prune import prune
from cache.upkeep.verify import Problem, verify
from tests.conftest import GOLDEN
from tests.marks import slow
from tests.store_writer import activation, described
from tests.test_store import address, bits, filled, same
from tests.test_store_together import preceded

KEPT = GOLDEN / "kept" / "store"  # written by format version 1
KEPT_2 = GOLDEN / "kept" / "store_2"  # by version 2, of commit 2cc5e61
HOUR_NS = 3600 * 10**9


@pytest.fixture(autouse=True)
def memory_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes die here, machines do not: nothing has to reach the disk."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


def uneven(number: int, frames: int = 1000) -> VideoInfo:
    """Return a video whose frames come at uneven times."""
    rng = np.random.default_rng(number)
    times = np.cumsum(rng.integers(2000, 4000, frames + 1)) / 90000
    return VideoInfo(f"{number:064x}", f"{number}.mp4", 10**6, frames, 29.97, times)


def span_of(info: VideoInfo, cut: int = 0) -> Address:
    frames = np.arange(8, dtype=np.int64)
    return Address(f"{cut:032x}", "float32", info.digest, "forward", "video", frames, 4)


def write_spans(url: str | Path, infos: list[VideoInfo], cuts: range = range(1)) -> None:
    """Write one activation of each video at each cut, each cut by a process of its own."""
    for cut in cuts:
        with Store.open(url, "a") as store, store.writer() as writer:
            writer.describe(FingerprintInfo(f"{cut:032x}", cut, "last.pt"))
            for info in infos:
                writer.describe(info)
                writer.write(span_of(info, cut), torch.zeros(4, 3))


def description_files(folder: Path) -> list[Path]:
    return sorted((folder / "descriptions").glob("*"))


def lines_in(file: Path) -> list[bytes]:
    return file.read_bytes()[: int(file.name.split("-")[1])].splitlines()


def test_frame_times_are_stored_once(tmp_path: Path) -> None:
    infos = [uneven(number) for number in range(8)]
    write_spans(tmp_path, infos, range(6))
    tables = sum(path.stat().st_size for path in tmp_path.glob("parts/*/*.idx"))
    assert tables < 6 * 8 * 400  # of them would be 6 * 8 * 8000
    # The first process described all videos, each of the others its fingerprint.
    assert sorted(map(len, map(lines_in, description_files(tmp_path)))) == [1] * 5 + [9]
    store = Store.open(tmp_path)
    for info in infos:
        times, expected = store.videos[info.digest].times_s, info.times_s
        assert times is not None and expected is not None
        assert times.tobytes() == expected.tobytes()
    assert verify(store) == []


@pytest.mark.parametrize("place", ["local", "memory"])
def test_descriptions_are_read_when_they_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    url = str(tmp_path) if place == "local" else f"memory://{uuid4()}"
    infos = [uneven(number) for number in range(5)]
    write_spans(url, infos)
    asked: list[tuple[str, int, int]] = []
    kind: Any = LocalFiles if place == "local" else RemoteFiles
    read = kind.read

    def counted(files: Any, ranges: list[tuple[str, int, int]]) -> Any:
        asked.extend(one for one in ranges if one[0].startswith("descriptions/"))
        return read(files, ranges)

    monkeypatch.setattr(kind, "read", counted)
    store = Store.open(url)
    assert store.contains(span_of(infos[0])) and not asked
    assert {info.name for info in store.videos.values()} == {info.name for info in infos}
    assert len(asked) == 1 and sum(stop - start for _, start, stop in asked) <= 5 * 1024
    found = store.videos[infos[3].digest]
    for _ in range(3):
        times = found.times_s
        assert times is not None and np.array_equal(times, infos[3].times_s)  # type: ignore[arg-type]
    assert len(asked) == 2  # once, and of no other video
    store.refresh()
    assert store.videos[infos[0].digest] == infos[0] and len(asked) == 2


def test_linear_times_are_two_numbers(tmp_path: Path) -> None:
    """As features are imported, of windows whose middle counts."""
    for number, (offset, fps) in enumerate(((7.5, 30000 / 1001), (0.0, 25.0), (-3.2, 29.97))):
        times = (np.arange(5001, dtype=np.float64) + offset) / fps
        info = VideoInfo(f"{number:064x}", f"{number}", 1, 5000, fps, times)
        write_spans(tmp_path, [info])
        found = Store.open(tmp_path).videos[info.digest].times_s
        assert found is not None and found.tobytes() == times.tobytes()
    sizes = [len(line) for path in description_files(tmp_path) for line in lines_in(path)]
    assert len(sizes) == 3 + 1 and max(sizes) < 330  # the fingerprint is described once
    assert sum(path.stat().st_size for path in description_files(tmp_path)) == sum(sizes) + 4


def set_clock(monkeypatch: pytest.MonkeyPatch, ns: int) -> None:
    monkeypatch.setattr("cache.format.writer.time.time_ns", lambda: ns)


@pytest.mark.parametrize("compacts", [True, False])
def test_what_is_written_later_wins_whatever_the_clock_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compacts: bool
) -> None:
    now = time.time_ns()
    a = address(4)
    first, last = FingerprintInfo(a.fingerprint, 1, "a.pt"), FingerprintInfo(a.fingerprint, 1, "b")
    store, reader = Store.open(tmp_path, "a"), Store.open(tmp_path)
    for value, (clock, name, fingerprint) in enumerate(
        [(now, "clip", first), (now - HOUR_NS, "clip", last)]
    ):
        set_clock(monkeypatch, clock)
        store.refresh()
        writer = store.writer()
        writer.describe(VideoInfo(f"{value:064x}", name, 1, 8, 25.0))  # the features changed
        writer.describe(fingerprint)
        writer.write(a, torch.full((4, 2), float(value)))
        writer.flush()
        if compacts:
            writer.close()
        else:
            writer.lease.release()
    for known in (reader, Store.open(tmp_path)):
        known.refresh()
        assert known.read(a).tolist() == [[1.0, 1.0]] * 4
        assert known.videos_by_name["clip"].digest == f"{1:064x}"
        assert known.fingerprints[a.fingerprint] == last
    prune(Store.open(tmp_path, "a"))
    assert Store.open(tmp_path).read(a).tolist() == [[1.0, 1.0]] * 4
    assert Store.open(tmp_path).fingerprints[a.fingerprint] == last


def test_equal_times_count_the_same_for_everybody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two writers that do not see each other, and whose clocks have stopped."""
    set_clock(monkeypatch, time.time_ns())
    for repeat in range(6):
        folder, a = tmp_path / str(repeat), address(4)
        stores = [Store.open(folder, "a") for _ in range(2)]
        readers = [Store.open(folder)]
        writers = [store.writer() for store in stores]
        for value, writer in enumerate(writers):
            writer.write(a, torch.full((4, 2), float(value)))
            writer.flush()
            readers[0].refresh()  # it sees one after the other, others see both at once
        readers.append(Store.open(folder))
        (won,) = {reader.read(a)[0, 0].item() for reader in readers}
        for writer in writers[::-1]:
            writer.close()
        readers.append(Store.open(folder))
        assert {reader.read(a)[0, 0].item() for reader in readers} == {won}
        prune(stores[0])
        prune(stores[0])
        readers.append(Store.open(folder))
        readers[0].refresh()
        assert {reader.read(a)[0, 0].item() for reader in readers} == {won}
        for store in stores:
            store.close()


# What version 1 understands of the file that says the version.
FORMAT_1 = b'{"format": "palindrome activations", "version": 1}\n'
NEWER_1 = re.compile(rb'{"format": "palindrome activations", "version": \d+.*}\n', re.DOTALL)


def test_a_store_of_version_1_is_read_and_written_on(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    shutil.copytree(KEPT, folder)
    before = {p: p.read_bytes() for p in folder.glob("parts/**/*") if p.is_file()}
    infos = [described(number)[0] for number in range(6)]

    def check(store: Store) -> None:
        for number in range(6):
            a, rows = activation(number)
            bits(store.read(a), rows)
        for info in infos:
            found = store.videos[info.digest]
            assert found == info == store.videos_by_name[info.name]
            assert (found.times_s is None) == (info.times_s is None)
            if info.times_s is not None:
                assert np.array_equal(found.times_s, info.times_s)  # type: ignore[arg-type]
        assert len(store.fingerprints) == 2 and verify(store) == []

    with Store.open(folder, "a") as store:
        check(store)
        assert (folder / MARKER).read_bytes() == FORMAT_1  # nothing is written yet
    with Store.open(folder, "a") as store:
        with store.writer() as writer:
            for number in (6, 13):
                writer.write(*activation(number))
            info = replace(described(6)[0], name="renamed.mp4")
            writer.describe(info)
        store.refresh()
        check(store)
        assert store.videos_by_name["renamed.mp4"] == info
        mark = (folder / MARKER).read_bytes()
        assert mark != FORMAT_1 and NEWER_1.fullmatch(mark)  # version 1 says: a newer version
    assert {p: p.read_bytes() for p in before} == before
    with Store.open(folder, "a") as store:
        report = prune(store)
        assert report.moved == 2  # out of the journal
        check(store)
    check(Store.open(folder))


def test_descriptions_go_with_what_they_describe(tmp_path: Path) -> None:
    infos = [uneven(number, 10) for number in range(6)]
    write_spans(tmp_path, infos[:4], range(1))
    write_spans(tmp_path, infos[2:], range(1, 2))
    with Store.open(tmp_path, "a") as store:
        with store.writer() as writer:
            writer.describe(VideoInfo("f" * 64, "nothing.mp4", 1, 1, 25.0))
            # A file of another content has the name now; later it is only a name.
            writer.describe(VideoInfo("e" * 64, infos[4].name, 1, 1, 25.0))
        prune(store)
        digests = {info.digest for info in infos} | {"e" * 64}
        assert store.videos.keys() == digests
        prune(store, lambda info: info.cut == 0)
        assert store.videos.keys() == digests - {infos[0].digest, infos[1].digest}
        assert store.videos_by_name[infos[4].name].digest == "e" * 64
        assert len(store.fingerprints) == 1
        (file,) = description_files(tmp_path)
        assert len(lines_in(file)) == 5 + 1 and verify(store) == []
        content = file.read_bytes()
        prune(store)
        assert description_files(tmp_path) == [file] and file.read_bytes() == content
        notes = tmp_path / "descriptions" / "notes.txt"
        notes.touch()
        prune(store, lambda info: True)
        notes.unlink()  # somebody else's
        assert not description_files(tmp_path)
        assert not store.videos and not store.fingerprints and verify(store) == []


@pytest.mark.parametrize("stride", [4, pytest.param(1, marks=pytest.mark.slow)])
def test_a_writer_that_begins_while_it_is_pruned_has_its_descriptions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stride: int
) -> None:
    """At every step of a prune another process writes what is just being forgotten."""
    infos = [uneven(number, 10) for number in range(2)]
    for ends in (True, False):
        for step in range(1, 80, stride):
            folder = tmp_path / f"{ends}{step}"
            write_spans(folder, infos)
            store, other = Store.open(folder, "a"), Store.open(folder, "a")
            assert other.videos.keys() == {info.digest for info in infos}
            count = [0]
            writers: list[Any] = []

            def write(
                count: list[int] = count,
                step: int = step,
                other: Store = other,
                writers: list[Any] = writers,
                ends: bool = ends,
            ) -> None:
                count[0] += 1
                if count[0] != step:
                    return
                writer = other.writer()
                writer.describe(FingerprintInfo(f"{0:032x}", 0, "last.pt"))
                for info in infos:
                    writer.describe(info)
                    writer.write(span_of(info, 1), torch.ones(4, 3))
                if ends:
                    writer.close()
                else:
                    writer.flush()
                    writers.append(writer)

            with monkeypatch.context() as patch:
                for name in ("move", "write", "delete", "delete_folder", "children", "read"):
                    change = getattr(LocalFiles, name)
                    if name == "read":
                        patch.setattr(LocalFiles, name, read_before(change, write))
                    else:
                        patch.setattr(LocalFiles, name, preceded(change, write))
                prune(store, lambda info: True)
            for writer in writers:
                writer.close()
            came = count[0] >= step
            with Store.open(folder) as reader:
                assert verify(reader) == [], step
                if came:
                    assert {info.digest for info in infos} <= reader.videos.keys(), step
                    for info in infos:
                        assert reader.read(span_of(info, 1)).tolist() == [[1.0] * 3] * 4
            store.close()
            other.close()
            if not came:
                break
        assert step > 20


def read_before(read: Callable[..., Any], ask: Callable[[], None]) -> Callable[..., Any]:
    inside = [False]

    def both(files: LocalFiles, ranges: Any) -> Any:
        if not inside[0] and not any(name.startswith("users") for name, _, _ in ranges):
            inside[0] = True
            ask()
            inside[0] = False
        return read(files, ranges)

    return both


@pytest.mark.parametrize("kind", ["videos", "fingerprints"])
@pytest.mark.parametrize("harm", ["flipped", "truncated", "times", "removed"])
def test_damaged_descriptions_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, harm: str
) -> None:
    infos = [uneven(number) for number in range(3)]
    write_spans(tmp_path, infos)
    (file,) = description_files(tmp_path)
    name, data = file.relative_to(tmp_path).as_posix(), file.read_bytes()
    lines = lines_in(file)
    place = next(at for at, line in enumerate(lines) if (b'"cut"' in line) == (kind != "videos"))
    begin = sum(len(line) + 1 for line in lines[:place])
    bad = 1
    if harm == "removed":
        file.unlink()
        bad = 4
    elif harm == "truncated":
        file.write_bytes(data[: begin + 40])
        bad = 4 - place
    else:
        if harm == "flipped" or kind == "fingerprints":
            at = begin + 30
        else:  # of the first video's times
            at = int(file.name.split("-")[1]) + 30
        file.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    store = Store.open(tmp_path, "a")
    problems = verify(store)
    named = [problem.file for problem in problems]
    missing = [each for each in named if each != name]
    assert (name in named) == (harm != "removed") and len(missing) == bad == len(set(missing))
    assert all(each.removeprefix("descriptions/").encode() in b"".join(lines) for each in missing)
    known = {**store.videos, **store.fingerprints}
    if harm == "times" and kind == "videos":
        assert len(known) == 4
        with pytest.raises(Damaged, match=r"frame times .*--verify --prune"):
            print(store.videos[infos[0].digest].times_s)
        bad = 0
    else:
        if harm == "truncated":
            assert not {line.split()[1].split(b"-")[0].decode() for line in lines[place:]} & {
                *known
            }
        elif harm == "flipped":
            assert lines[place].split()[1].split(b"-")[0].decode() not in known
        if harm != "removed":
            told = capsys.readouterr().out
            what = rf"it ends after {begin + 40}" if harm == "truncated" else f"{bad} of its"
            assert re.search(rf"warning: {tmp_path}/descriptions/.* is damaged: {what}", told)
    assert len(known) == 4 - bad
    for info in infos:
        assert store.read(span_of(info)).tolist() == [[0.0] * 3] * 4  # it has no name, that is all
    prune(store)  # what `verify` did not name stays as it is
    assert verify(store) == problems
    assert prune(store, problems=problems).damaged == len(missing)
    assert verify(store) == []
    write_spans(tmp_path, infos, range(2))  # the video is there still: it is described again
    store.refresh()
    assert store.videos.keys() == {info.digest for info in infos}
    for info in infos:
        assert np.array_equal(store.videos[info.digest].times_s, info.times_s)  # type: ignore[arg-type]
    assert verify(store) == []


def test_times_that_are_gone_are_told(tmp_path: Path) -> None:
    infos = [uneven(number) for number in range(2)]
    write_spans(tmp_path, infos)
    found = Store.open(tmp_path).videos[infos[0].digest]
    shutil.rmtree(tmp_path / "descriptions")
    with pytest.raises(Missing, match=r"descriptions/.* is missing; it has a video's frame times"):
        print(found.times_s)


def test_a_store_of_version_2_is_read_and_written_on(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    shutil.copytree(KEPT_2, folder)
    infos = {info.digest: info for info in (described(number)[0] for number in range(6))}

    def check(store: Store) -> None:
        for number in range(6):
            a, rows = activation(number)
            bits(store.read(a), rows)
        again = f"{2:064x}"
        assert store.videos == infos | {again: replace(infos[again], name="again.mp4")}
        assert store.videos_by_name[infos[again].name] == infos[again]
        for digest, info in infos.items():
            found = store.videos[digest].times_s
            assert (found is None) == (info.times_s is None)
            assert found is None or np.array_equal(found, info.times_s)  # type: ignore[arg-type]
        assert len(store.fingerprints) == 2 and verify(store) == []

    files = [path for kind in ("videos", "fingerprints") for path in (folder / kind).iterdir()]
    assert len(files) == 9
    with Store.open(folder) as store:
        check(store)
        before = (folder / MARKER).read_bytes()
        assert NEWER_1.fullmatch(before)
    with Store.open(folder, "a") as store:
        reader = Store.open(folder)
        known = reader.videos  # of the old files
        reader.close()
        with store.writer() as writer:
            writer.write(*activation(6))
        assert (folder / MARKER).read_bytes() != before  # version 2 says: a newer version
        check(store)
        assert not description_files(folder)  # they were described
        prune(store)
        check(store)
        (file,) = description_files(folder)
        assert len(lines_in(file)) == 9 and not any(path.exists() for path in files)
        for digest, info in infos.items():
            found = known[digest].times_s
            assert found is None or np.array_equal(found, info.times_s)  # type: ignore[arg-type]
    check(Store.open(folder))


@pytest.mark.parametrize("kind", ["videos", "fingerprints"])
@pytest.mark.parametrize("harm", ["flipped", "times", "removed"])
def test_damage_of_version_2_is_named(tmp_path: Path, kind: str, harm: str) -> None:
    folder = tmp_path / "store"
    shutil.copytree(KEPT_2, folder)
    file = sorted((folder / kind).iterdir())[1]
    data = file.read_bytes()
    if harm == "removed":
        file.unlink()
    else:
        at = 30 if harm == "flipped" else len(data) - 2
        file.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    with Store.open(folder, "a") as store:
        problems = verify(store)
        lost = Problem(f"descriptions/{file.name.rpartition('-')[0]}", "it is missing")
        damage = [p for p in problems if p.file == file.relative_to(folder).as_posix()]
        assert problems == [*damage, lost] and len(damage) == (harm != "removed")
        prune(store, problems=problems)
        assert verify(store) == []
        assert len(store.videos) == 6 - (kind == "videos") and len(store.fingerprints) == 2 - (
            kind == "fingerprints"
        )


@pytest.mark.parametrize("drops", [True, slow(False)])
def test_verify_beside_a_prune_alarms_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, drops: bool
) -> None:
    """Not even while a folder is deleted, file by file and in any order."""
    removed = os.unlink

    def check(reader: Store, found: list[list[Problem]]) -> None:
        found.append(verify(reader))

    def tree(path: Path, **_: object) -> None:
        """Delete a folder as the operating system lists it: here, what tells most comes last."""
        for file in sorted(Path(path).rglob("*"), key=lambda each: (len(each.parts), each.name))[
            ::-1
        ]:
            file.rmdir() if file.is_dir() else os.unlink(file)
        Path(path).rmdir()

    filled(tmp_path, 8)
    left = Store.open(tmp_path, "a").writer()
    for number in range(8, 12):
        left.write(*activation(number))
    left.flush()
    left.lease.release()
    found: list[list[Problem]] = []
    store, reader = Store.open(tmp_path, "a"), Store.open(tmp_path, "inspect")
    inside = [False]

    def unlink(path: Any, *rest: Any, **options: Any) -> None:
        removed(path, *rest, **options)
        if not inside[0] and "/users/" not in str(path):
            inside[0] = True
            check(reader, found)
            inside[0] = False

    with monkeypatch.context() as patch:
        patch.setattr("cache.storage.local.shutil.rmtree", tree)
        patch.setattr(os, "unlink", unlink)
        for name in ("move", "write", "delete", "delete_folder", "children"):
            change = getattr(LocalFiles, name)
            patch.setattr(LocalFiles, name, preceded(change, partial(check, reader, found)))
        prune(store, lambda info: drops)
    assert len(found) > 20 and not any(found)


def report_index(store: Store, number: int, answer: Connection) -> None:
    """Send what a process that was given a store finds in it."""
    a, rows = activation(number)
    before = len(store.index.records), store.index.records.flags.writeable
    there = store.contains(a) and torch.equal(store.read(a), rows)
    answer.send((before, there, len(store.index.records), store.videos[f"{1:064x}"].times_s))


@pytest.mark.slow
def test_a_spawned_process_shares_the_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, temporary = tmp_path / "store", tmp_path / "temporary"
    filled(url, 12)
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    context = multiprocessing.get_context("spawn")
    with Store.open(url) as store:
        with Store.open(url, "a") as other, other.writer() as writer:
            writer.write(*activation(20))
        ours, theirs = context.Pipe()
        process = context.Process(target=report_index, args=(store, 20, theirs))
        process.start()
        before, there, after, times = ours.recv()
        process.join()
        assert before == (12, False)  # mapped, not read
        assert there and after == 13  # what the parent has not seen yet
        assert np.array_equal(times, store.videos[f"{1:064x}"].times_s)  # type: ignore[arg-type]
        assert not list(temporary.iterdir())  # nothing to clean up


class Given:
    """A file's number as a spawned process has it."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def detach(self) -> int:
        return os.dup(self.descriptor)


@pytest.mark.parametrize("place", ["local", "memory", "read-only"])
def test_a_shared_index_reads_and_refreshes_as_any_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    url = f"memory://{uuid4()}" if place == "memory" else str(tmp_path)
    pairs = filled(url, 12)
    if place == "read-only":
        for lease in (tmp_path / "users").iterdir():
            lease.unlink()
        (tmp_path / "users").rmdir()
        (tmp_path / "users").touch()
    monkeypatch.setattr("cache.format.shared.DupFd", Given)
    monkeypatch.setattr("cache.store.is_spawning", lambda: True)
    with Store.open(url) as store, pickle.loads(pickle.dumps(store)) as child:
        assert not child.index.records.flags.writeable
        same(child, pairs)
        assert pickle.loads(pickle.dumps(child)).contains(pairs[0][0])  # a child of a child
        if place == "read-only":
            return
        pairs.append(activation(20))
        with Store.open(url, "a") as other, other.writer() as writer:
            writer.write(*pairs[-1])
        child.refresh()
        same(child, pairs)
        assert store.__reduce__()[1][2] is store.__reduce__()[1][2]  # written once for all workers
        store.refresh()
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nowhere"))
        same(pickle.loads(pickle.dumps(store)), pairs)  # no room for it: opened again


def test_what_was_known_is_known_while_the_store_does_not_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    infos = [uneven(number, 10) for number in range(2)]
    write_spans(tmp_path, infos)
    store, late = Store.open(tmp_path, "a"), Store.open(tmp_path)
    writer = store.writer()
    assert len(store.videos) == 2 and len(store.fingerprints) == 1

    def refuse(*_: object) -> None:
        raise StoreUnreachable("no answer")

    store.refresh()
    with monkeypatch.context() as patch:
        patch.setattr(LocalFiles, "children", refuse)
        patch.setattr(LocalFiles, "read", refuse)
        assert len(store.videos) == 2 and len(store.fingerprints) == 1
        writer.describe(VideoInfo("f" * 64, "new.mp4", 1, 1, 25.0))
        with pytest.raises(StoreUnreachable):  # rather than to say that there are none
            print(late.videos)
    writer.close()
    store.refresh()
    assert len(store.videos) == 3 and len(late.videos) == 3
