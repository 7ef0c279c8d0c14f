"""What is put into a store comes out as it was, or not at all."""

import base64
import errno
import hashlib
import os
import pickle
import random
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import google_crc32c
import numpy as np
import pytest
import torch
import zarr
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from cache.address import DTYPES, Address, FingerprintInfo, VideoInfo
from cache.dtypes import Dtype
from cache.errors import Damaged, Missing, StoreError
from cache.format.descriptions import encode_description, write_descriptions
from cache.format.records import Description
from cache.storage.codec import Codec
from cache.storage.local import LocalFiles
from cache.store import FORMAT, MARKER, Mode, Store
from cache.upkeep.prune import prune
from cache.upkeep.verify import verify
from tests.store_writer import activation, described
from tests.test_disk import files_end_at

PRINT, VIDEO = "0123456789abcdef" * 2, "0123456789abcdef" * 4


def address(rows: int, number: int = 0, dtype: Dtype = "float32") -> Address:
    return Address(PRINT, dtype, VIDEO, "forward", "window", np.arange(2 * rows) + number, rows)


def filled(url: str | Path, count: int, **options: Any) -> list[tuple[Address, torch.Tensor]]:
    """Write known activations and return them."""
    pairs = [activation(number) for number in range(count)]
    with Store.open(url, "a") as store, store.writer(**options) as writer:
        for number, pair in enumerate(pairs):
            for info in described(number):
                writer.describe(info)
            writer.write(*pair)
    return pairs


@pytest.fixture(autouse=True)
def memory_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes die here, machines do not: nothing has to reach the disk."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture(params=["local", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "store") if request.param == "local" else f"memory://{uuid4()}/store"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (1,), (384,), (7, 33), (2, 3, 5)])
def test_what_is_put_comes_out(url: str, dtype: Dtype, shape: tuple[int, ...]) -> None:
    pairs = [
        (address(rows, number, dtype), torch.randn(rows, *shape).to(DTYPES[dtype]))
        for number, rows in enumerate((1, 2, 384, 7, 1000))
    ]
    special = [0.0, -0.0, float("inf"), -float("inf"), float("nan"), 1e-7, 65504.0, -1.0]
    pairs[2][1].view(-1)[:8] = torch.tensor(special).to(DTYPES[dtype])
    pairs[4] = (pairs[4][0], torch.zeros_like(pairs[4][1]))  # chunks of zeros are chunks
    store = Store.open(url, "a")
    reader = Store.open(url)
    with store.writer() as writer:
        for a, rows in pairs:
            writer.write(a, rows)
            assert not reader.contains(a)
        writer.flush()
        reader.refresh()
        same(reader, pairs)  # out of the journal
    same(reader, pairs)  # the journal is gone, and the reader finds that out
    same(Store.open(url), pairs)
    assert verify(reader) == []


def same(store: Store, pairs: list[tuple[Address, torch.Tensor]]) -> None:
    """Check whole activations, rows of them, and many at once, bit for bit."""
    rng = random.Random(0)
    for a, rows in pairs:
        assert store.contains(a)
        bits(store.read(a), rows)
        start = rng.randint(0, a.rows)
        stop = rng.randint(start, a.rows)
        bits(store.read(a, start, stop), rows[start:stop])
        bits(store.read(a, start), rows[start:])
    shuffled = rng.sample(pairs, len(pairs))
    for got, (_, rows) in zip(store.read_many([a for a, _ in shuffled]), shuffled, strict=True):
        bits(got, rows)


def bits(got: torch.Tensor, expected: torch.Tensor) -> None:
    assert got.dtype == expected.dtype and got.shape == expected.shape
    assert (
        got.contiguous()
        .view(-1)
        .view(torch.uint8)
        .equal(expected.contiguous().view(-1).view(torch.uint8))
    )


Step = tuple[str, int, int, int]
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.integers(0, 2), st.integers(0, 11), st.integers(1, 12)),
        st.tuples(st.sampled_from(["flush", "fold", "new writer", "prune"]), *[st.just(0)] * 3),
    ),
    max_size=24,
)


@example([("put", 0, 1, 6), ("put", 0, 0, 4), ("put", 0, 0, 1)])  # the oldest and newest meet
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps=STEPS)
def test_pieces_in_any_order_and_the_newest_wins(steps: list[Step]) -> None:
    url = f"memory://{uuid4()}"
    with Store.open(url, "a") as store, Store.open(url) as reader:
        put_and_compare(store, reader, steps)


def put_and_compare(store: Store, reader: Store, steps: list[Step]) -> None:
    writer = store.writer()
    put = np.full((3, 12), -1.0, np.float32)  # what the store should hold; −1 is nothing
    value = 0.0
    for what, which, start, count in steps:
        if what == "put":
            stop = min(start + count, 12)
            value += 1
            put[which, start:stop] = value
            writer.write(address(12, which), torch.full((stop - start, 3), value), start)
        elif what == "flush":
            writer.flush()
        elif what == "fold":
            writer.flush()
            writer.compact()
        else:
            writer.close()
            if what == "prune":
                prune(store)
            writer = store.writer()
    writer.close()
    reader.refresh()
    for which, rows in enumerate(put):
        a = address(12, which)
        assert reader.contains(a) == bool((rows >= 0).all())
        for start, stop in ((0, 12), (3, 7), (11, 12), (0, 1)):
            if (rows[start:stop] >= 0).all():
                got = reader.read(a, start, stop)
                assert got.tolist() == [[row] * 3 for row in rows[start:stop]]
            else:
                with pytest.raises(Missing, match=r"window of frames .* of video 0123456789ab"):
                    reader.read(a, start, stop)


def test_addresses_differ_in_everything() -> None:
    one = Address(PRINT, "float32", VIDEO, "forward", "window", np.arange(8), 4)
    others = [
        replace(one, fingerprint=PRINT[::-1]),
        replace(one, dtype="float16"),
        replace(one, video=VIDEO[::-1]),
        replace(one, direction="reversed"),
        replace(one, span="video"),
        replace(one, frames=np.arange(8)[::-1]),
        replace(one, frames=np.arange(9)),
        replace(one, rows=5),
    ]
    assert len({one, *others}) == 9 and len({a.key for a in (one, *others)}) == 9
    assert one == replace(one, frames=np.arange(8, dtype=np.int32).astype(np.int64))
    assert len(one.key) == 16
    for wrong in (
        {"fingerprint": "x" * 32},
        {"video": "ab"},
        {"direction": "backward"},
        {"span": "clip"},
        {"dtype": "float64"},
        {"rows": 0},
        {"frames": np.zeros((2, 2), np.int64)},
    ):
        with pytest.raises(ValueError):
            replace(one, **wrong)


def test_wrong_rows_are_refused(tmp_path: Path) -> None:
    with Store.open(tmp_path, "a").writer() as writer:
        for rows, start in ((torch.zeros(5, 2), 0), (torch.zeros(2, 2), 3), (torch.zeros(1), -1)):
            with pytest.raises(StoreError, match="are not within the 4"):
                writer.write(address(4), rows, start)
        with pytest.raises(StoreError, match="floating point"):
            writer.write(address(4), torch.zeros(4, dtype=torch.int64))
        with pytest.raises(StoreError, match=r"up to 7e\+04 do not fit into float16"):
            writer.write(address(1, dtype="float16"), torch.tensor([[1.0, 7e4]]))
        writer.write(address(1, dtype="float16"), torch.tensor([[1.0, float("inf")]]))
    with pytest.raises(StoreError, match="closed"):
        writer.write(address(1), torch.zeros(1, 1))
    store = Store.open(tmp_path)
    for start, stop in ((-1, 1), (0, 2), (1, 0)):
        with pytest.raises(StoreError, match="no rows"):
            store.read(address(1, dtype="float16"), start, stop)


def test_errors_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=f"{tmp_path}.* no .*python extract/run.py.*{tmp_path}"):
        Store.open(tmp_path)
    with pytest.raises(StoreError, match=r"memory://nothing.*extract/run.py"):
        Store.open("memory://nothing")
    with pytest.raises(StoreError, match="cannot reach nosuch://bucket"):
        Store.open("nosuch://bucket")
    Store.open(tmp_path, "a")
    with pytest.raises(StoreError, match='mode "a"'):
        Store.open(tmp_path).writer()
    with pytest.raises(StoreError, match='mode "a"'):
        prune(Store.open(tmp_path))
    modes: tuple[Mode, ...] = ("r", "a", "inspect")
    for mark, says in ((FORMAT.replace(b"3", b"4"), "newer"), (b"{gar", "--verify --prune")):
        (tmp_path / MARKER).write_bytes(mark)
        for mode in modes:
            with pytest.raises(StoreError, match=f"{tmp_path}/{MARKER}.*{says}"):
                Store.open(tmp_path, mode)
    slashes, copies = (
        "neither a URL .*; write {meant}, or",
        "{url}: .*give the place itself: {meant}$",
    )
    for url, meant, says in (
        ("s3:bucket/x", "s3://bucket/x", slashes),
        ("gs:/bucket/x", "gs://bucket/x", slashes),
        ("file:x/y", "x/y", slashes),
        ("local:/x/y", "/x/y", slashes),
        ("simplecache::memory://copied", "memory://copied", copies),
        ("filecache::s3://bucket/x", "s3://bucket/x", copies),
        ("blockcache::dir::memory://copied", "memory://copied", copies),
    ):
        with pytest.raises(StoreError, match=says.format(url=url, meant=meant)):
            Store.open(url, "a")


def test_who_only_looks_leaves_no_trace(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "none" / "cache", "inspect")
    assert not store.contains(activation(0)[0]) and not list(tmp_path.iterdir())
    free = store.files.free_bytes()
    assert free is not None and free > 0
    with pytest.raises(StoreError, match='mode "a"'):
        store.writer()
    pairs = filled(tmp_path, 3)
    store = Store.open(tmp_path, "inspect")
    same(store, pairs)
    assert not list((tmp_path / "users").iterdir())


def test_infos_are_written_as_ever(tmp_path: Path) -> None:
    times = np.array([0.1, 0.2, 1 / 3])
    video = VideoInfo(VIDEO, "a.mp4", 10, 2, 25.0, times)
    linear = VideoInfo(PRINT * 2, "b.mp4", 10, 2, 25.0, (np.arange(3) + 0.5) / 25)
    about = FingerprintInfo(PRINT, "ladder", "last.pt", {"size": 160, "mean": [0.1, 2.0]})
    # What version 1 wrote is read for ever.
    encoded = base64.b64encode(times.tobytes()).decode()
    fields = {"digest": VIDEO, "name": "a.mp4", "size": 10, "frames": 2, "fps": 25.0}
    old = VideoInfo.from_version_1(fields | {"times_s": encoded})
    assert old == video and old.times_s is not None and old.times_s.tolist() == times.tolist()
    assert VideoInfo.from_version_1(fields | {"times_s": None}) == video
    every = [encode_description(Description(5, info)) for info in (video, linear, about)]
    data = (tmp_path / write_descriptions(LocalFiles(tmp_path), every)).read_bytes()
    (file,) = tmp_path.glob("descriptions/*")
    size = int(file.name.partition("-")[2])
    assert hashlib.blake2b(data[:size], digest_size=16).hexdigest() == file.name.partition("-")[0]
    lines, places = [], []
    for line, info in zip(data[:size].splitlines(), (video, linear, about), strict=True):
        check, rest = line.split(b" ", 1)
        assert int(check, 16) == google_crc32c.value(rest + b"\n")
        name, told = rest.split(b" ", 1)
        subject, named, sequence, start, stop = name.decode().split("-")
        assert (subject, sequence) == (getattr(info, "digest", PRINT), "5")
        assert hashlib.blake2b(told + b"\n", digest_size=16).hexdigest()[:16] == named
        lines.append(told.decode())
        places.append((int(start), int(stop)))
    assert places == [(0, len(data) - size)] + [(len(data) - size,) * 2] * 2
    times_digest = hashlib.blake2b(data[size:], digest_size=16).hexdigest()
    assert lines[0] == (
        f'{{"digest": "{VIDEO}", "name": "a.mp4", "size": 10, "frames": 2, "fps": 25.0, '
        f'"times": {{"count": 3, "digest": "{times_digest}"}}}}'
    )
    assert lines[1].endswith('"times": [0.5, 25.0, 3]}')
    assert lines[2] == (
        f'{{"fingerprint": "{PRINT}", "cut": "ladder", "checkpoint": "last.pt", '
        '"about": {"size": 160, "mean": [0.1, 2.0]}}'
    )
    assert FingerprintInfo.from_dict(about.to_dict()) == about


def test_what_was_told_is_known(url: str) -> None:
    first = VideoInfo(VIDEO, "a.mp4", 10, 2, 25.0)
    uneven = VideoInfo(VIDEO[::-1], "b.mp4", 11, 2, 30000 / 1001, np.array([0.1, 0.2, 1 / 3]))
    about = FingerprintInfo(PRINT, 7, "runs/a/last.pt", {"size": 160, "mean": [0.1, 2.0]})
    store = Store.open(url, "a")
    with store.writer() as writer:
        for info in (first, uneven, about):
            writer.describe(info)
        writer.write(address(2), torch.zeros(2, 2))
    store.refresh()
    assert store.videos == {VIDEO: first, VIDEO[::-1]: uneven}
    assert store.fingerprints == {PRINT: about}
    times = store.videos[VIDEO[::-1]].times_s
    assert times is not None and times.tolist() == [0.1, 0.2, 1 / 3]
    with store.writer() as writer:
        # The file was renamed, and another one took its name.
        writer.describe(replace(first, name="c.mp4"))
        writer.describe(VideoInfo("f" * 64, "a.mp4", 12, 3, 25.0))
        writer.describe(VideoInfo("f" * 64, "d.mp4", 12, 3, 25.0))
    prune(store)
    store = Store.open(url)
    assert store.videos[VIDEO].name == "c.mp4" and store.videos_by_name["c.mp4"].digest == VIDEO
    assert store.videos_by_name["a.mp4"].digest == "f" * 64
    listed = store.files.grandchildren("parts")
    prune(Store.open(url, "a"))
    assert store.files.grandchildren("parts") == listed
    (summary,) = store.summaries()
    assert (summary.fingerprint, summary.spans, summary.rows) == (PRINT, 1, 2)


def test_any_zarr_reads_the_arrays(tmp_path: Path) -> None:
    pairs = filled(tmp_path, 12)
    assert not list(tmp_path.glob("parts/*/*.bin"))
    store = Store.open(tmp_path)
    read = 0
    for loaded in store.index.tables.values():
        assert loaded.array is not None
        array = zarr.open_array(tmp_path / loaded.array.folder, mode="r")
        everything = np.asarray(array[:])
        for a, rows in pairs:
            for entry in store.index.find(a.key):
                if store.index.tables[entry.table] is loaded:
                    stored = everything[entry.place : entry.place + entry.rows]
                    assert stored.tobytes() == rows.view(torch.uint8).numpy().tobytes()
                    assert array.attrs["dtype"] == a.dtype
                    read += 1
    assert read == 12


def test_it_is_flushed_by_size_and_by_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, reader = Store.open(tmp_path, "a"), Store.open(tmp_path)
    now = [0.0]
    monkeypatch.setattr("cache.format.writer.time.monotonic", lambda: now[0])
    with store.writer(flush_bytes=50_000) as writer:
        for number in range(10):
            writer.write(address(10, number), torch.randn(10, 1000))
            reader.refresh()
            assert writer.waiting < 50_000
            assert sum(reader.contains(address(10, n)) for n in range(11)) == (number + 1) // 2 * 2
        writer.write(address(10, 10), torch.zeros(10, 10))
        now[0] = 29.0
        writer.write(address(10, 11), torch.zeros(10, 10))
        assert writer.waiting
        now[0] = 30.0
        writer.write(address(10, 12), torch.zeros(10, 10))
        assert not writer.waiting
    assert all(Store.open(tmp_path).contains(address(10, n)) for n in range(13))


def test_the_journal_is_compacted_when_it_grows(tmp_path: Path) -> None:
    store = Store.open(tmp_path, "a")
    with store.writer(compact_bytes=100_000) as writer:
        for number in range(20):
            writer.write(address(10, number), torch.randn(10, 1000))
            writer.flush()
            sizes = [file.stat().st_size for file in tmp_path.glob("parts/*/*.bin")]
            assert sum(sizes) < 100_000
    assert len(list(tmp_path.glob("parts/*/*.idx"))) == 7
    many = tmp_path / "many"
    with Store.open(many, "a").writer() as writer:
        for number in range(70):
            writer.write(address(1, number), torch.zeros(1, 1))
            writer.flush()
        assert len(list(many.glob("parts/*/*.bin"))) < 10  # small ones are many at some time


def test_a_store_goes_to_other_processes(tmp_path: Path) -> None:
    pairs = filled(tmp_path, 3)
    store = Store.open(tmp_path)
    sent = pickle.dumps(store)
    assert len(sent) < 400
    same(pickle.loads(sent), pairs)
    error = pickle.loads(pickle.dumps(Damaged("a file", "gone", "s3://b")))
    assert (error.file, error.what, error.url) == ("a file", "gone", "s3://b")
    assert "s3://b/a file is damaged: gone; `python cache/show.py s3://b --verify" in str(error)


# What may be left of a file, given its bytes and a position; None removes it.
HARMS: dict[str, Callable[[bytes, int], bytes | None]] = {
    "flipped": lambda data, at: data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :],
    "zeroed": lambda data, at: data[:at] + bytes(min(64, len(data) - at)) + data[at + 64 :],
    "truncated": lambda data, at: data[:at],
    "removed": lambda data, at: None,
}


@pytest.mark.parametrize(
    "harm", [pytest.param(h, marks=[pytest.mark.slow] * (h != "flipped")) for h in HARMS]
)
def test_damage_anywhere_is_named_and_never_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, harm: str
) -> None:
    monkeypatch.setattr("cache.format.arrays.CHUNK_BYTES", 3000)  # several chunks and shards each
    monkeypatch.setattr("cache.format.arrays.SHARD_BYTES", 9000)
    pairs = filled(tmp_path, 18)
    abandoned = Store.open(tmp_path, "a").writer()
    for number in range(18, 26):
        pairs.append(activation(number))
        abandoned.write(*pairs[-1])
        if number % 4 == 1:
            abandoned.flush()
    files = [path for path in sorted(tmp_path.glob("parts/**/*")) if path.is_file()]
    files.append(next(tmp_path.glob("descriptions/*")))
    files.append(tmp_path / MARKER)
    assert len([file for file in files if file.parent.name in "0123"]) > 12
    rng = random.Random(0)
    before = Store.open(tmp_path)
    for file in files:
        data = file.read_bytes()
        places = {0, len(data) - 1, len(data) // 2, *(rng.randrange(len(data)) for _ in range(1))}
        for place in places if harm != "removed" else [0]:
            left = HARMS[harm](data, place)
            if left == data:
                continue  # zeros were there before
            if left is None:
                file.unlink()
            else:
                file.write_bytes(left)
            problems = verify(before)
            named = {problem.file for problem in problems}
            name = file.relative_to(tmp_path).as_posix()
            if harm == "removed" and file.parent.name == "descriptions":
                for each in data.splitlines():
                    if found := re.match(rb"[0-9a-f]{8} ([0-9a-f]+-[0-9a-f]+)-", each):
                        assert f"descriptions/{found[1].decode()}" in named
            else:
                assert name in named, (file, place)
            if file.name == MARKER:
                with pytest.raises(StoreError, match=MARKER):
                    Store.open(tmp_path)
                stores = [before]
            else:
                stores = [before, Store.open(tmp_path)]
            for store in stores:
                for a, rows in pairs:
                    try:
                        bits(store.read(a), rows)
                    except Damaged as damage:
                        assert damage.file in named
                    except Missing:
                        assert file.suffix in (".bin", ".idx")
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(data)
        before = Store.open(tmp_path)
        assert verify(before) == []
    same(Store.open(tmp_path), pairs)


def test_shards_do_not_stand_in_for_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cache.format.arrays.CHUNK_BYTES", 4000)
    monkeypatch.setattr("cache.format.arrays.SHARD_BYTES", 8000)
    # Equal sizes: even their own indexes are the same.
    monkeypatch.setattr("cache.storage.codec.CODEC", Codec("lz4", 1, "shuffle", 2**20))
    rng = np.random.default_rng(0)
    noise = rng.integers(2**30, size=(8, 1000), dtype=np.int32).view(np.float32)
    with Store.open(tmp_path, "a").writer() as writer:
        writer.write(address(8), torch.from_numpy(noise))
    first, second = sorted(tmp_path.glob("parts/*/a000001/c/*/0"))[:2]
    assert first.stat().st_size == second.stat().st_size
    assert first.read_bytes()[-36:] == second.read_bytes()[-36:]
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)
    with pytest.raises(Damaged, match=r"a000001/c/\d/0 is damaged"):
        Store.open(tmp_path).read(address(8))


def test_what_is_damaged_can_be_put_again_and_pruned(tmp_path: Path) -> None:
    pairs = filled(tmp_path, 30)
    shard = next(p for p in tmp_path.glob("parts/*/a*/c/0/**/0") if p.is_file())
    content = shard.read_bytes()
    shard.write_bytes(content[:20] + b"x" + content[21:])
    store = Store.open(tmp_path, "a")
    damaged = 0
    with store.writer() as writer:
        for a, rows in pairs:
            try:
                store.read(a)
            except Damaged:
                writer.write(a, rows)
                damaged += 1
    assert damaged
    store.refresh()
    same(store, pairs)
    problems = verify(store)
    assert problems
    report = prune(store, problems=problems)
    assert report.damaged == damaged and report.moved == 0  # nothing else stood there
    assert verify(store) == []
    same(Store.open(tmp_path), pairs)


def test_lost_lists_and_marks_are_written_anew(tmp_path: Path) -> None:
    pairs = filled(tmp_path, 6)
    (listed,) = tmp_path.glob("parts/*/contents.json")
    for harm in (listed.unlink, lambda: listed.write_bytes(b"x")):
        harm()
        store = Store.open(tmp_path, "a")
        (problem,) = verify(store)
        assert problem.file.endswith("contents.json") and "--prune rewrites it" in problem.what
        report = prune(store, problems=[problem])
        assert (report.repaired, report.damaged, report.dropped) == (1, 0, 0)
        assert verify(store) == []
    (tmp_path / MARKER).unlink()
    with pytest.raises(StoreError, match=f"{MARKER} is missing; .*--verify --prune"):
        Store.open(tmp_path)
    same(Store.open(tmp_path, "a"), pairs)
    assert verify(Store.open(tmp_path)) == []


def test_unreadable_files_are_pruned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pairs = filled(tmp_path, 30)
    index, other = sorted(tmp_path.glob("parts/*/*.idx"))[:2]
    index.write_bytes(index.read_bytes()[:-1])
    next(p for p in other.with_suffix("").glob("c/0/**/0") if p.is_file()).unlink()
    store = Store.open(tmp_path, "a")
    told = capsys.readouterr().out
    assert re.match(f"warning: {tmp_path}/.*a000001.idx cannot be read .*{tmp_path} --prune", told)
    problems = verify(store)
    assert len(problems) == 2
    report = prune(store, problems=problems)
    assert report.damaged > 3
    assert verify(store) == []
    left = [pair for pair in pairs if store.contains(pair[0])]
    assert 5 < len(left) < 30
    same(Store.open(tmp_path), left)


@pytest.mark.parametrize("name", [r"\.bin$", r"contents\.json$", r"zarr\.json$", r"/c/", r"\.idx$"])
def test_a_full_disk_is_told_and_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    """Each kind of file is once the one that does not fit."""
    pairs = filled(tmp_path, 10)
    write = LocalFiles.write
    full = [True]

    def limited(files: LocalFiles, file: str, *rest: Any, **options: Any) -> None:
        if full[0] and re.search(name, file):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(files, file, *rest, **options)

    store = Store.open(tmp_path, "a")
    writer = store.writer()
    monkeypatch.setattr(LocalFiles, "write", limited)
    for number in range(10, 20):
        pairs.append(activation(number))
        writer.write(*pairs[-1])
    if name in (r"\.bin$", r"contents\.json$"):
        for _ in range(2):
            with pytest.raises(OSError, match=f"{tmp_path}: No space left .* good; .*make room"):
                writer.flush()
    else:
        writer.flush()
        writer.compact()
        told = capsys.readouterr().out
        assert re.match(f"warning: .* No space left .*nothing is lost.*{tmp_path} --prune", told)
        same(Store.open(tmp_path), pairs)
    same(Store.open(tmp_path), pairs[:10])
    assert verify(Store.open(tmp_path)) == []
    full[0] = False
    writer.close()
    same(Store.open(tmp_path), pairs)
    assert verify(Store.open(tmp_path)) == []
    assert not list(tmp_path.glob("parts/*/*.bin"))
    assert len(list(tmp_path.glob("parts/*/a*/"))) == len(list(tmp_path.glob("parts/*/*.idx"))) * 1


def test_files_that_may_not_grow(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The operating system refuses in the middle of a file."""
    store = Store.open(tmp_path, "a")
    writer = store.writer()
    rows = torch.randn(100, 1000)
    writer.write(address(100), rows)
    with files_end_at(100_000), pytest.raises(OSError, match="File too large"):
        writer.flush()
    assert not list(tmp_path.glob("parts/*/*.part"))
    writer.flush()
    with files_end_at(100_000):
        writer.compact()
    assert re.match("warning: .*File too large", capsys.readouterr().out)
    with files_end_at(100_000):
        bits(Store.open(tmp_path).read(address(100)), rows)
    writer.close()
    assert not list(tmp_path.glob("parts/*/*.part")) and verify(store) == []
    bits(Store.open(tmp_path).read(address(100)), rows)


def test_a_segment_that_is_damaged_before_it_is_compacted_stays(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    writer = Store.open(tmp_path, "a").writer()
    pairs = [activation(number) for number in range(12)]
    for number, pair in enumerate(pairs):
        writer.write(*pair)
        if number % 4 == 3:
            writer.flush()
    segment = sorted(tmp_path.glob("parts/*/*.bin"))[1]
    segment.write_bytes(b"x" + segment.read_bytes()[1:])
    writer.close()
    told = capsys.readouterr().out
    assert re.match(f"warning: {tmp_path}/.*j000002.bin is damaged.*{tmp_path} .*the rest", told)
    assert sorted(tmp_path.glob("parts/*/*.bin")) == [segment]
    store = Store.open(tmp_path, "a")
    assert [problem.file for problem in verify(store)] == [segment.relative_to(tmp_path).as_posix()]
    with pytest.raises(Damaged, match=r"j000002.bin"):
        store.read(pairs[4][0])
    report = prune(store)
    assert (report.damaged, report.moved) == (1, 3)
    assert verify(store) == []
    same(store, pairs[:4] + pairs[5:])


def test_places_may_refuse_ranges_behind_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """As object stores do."""
    url = f"memory://{uuid4()}"
    pairs = filled(url, 6)
    store = Store.open(url)
    system = store.files.system  # type: ignore[attr-defined]
    cat = type(system).cat_file

    def strict(self: Any, path: str, start: int = 0, end: int | None = None, **_: Any) -> bytes:
        if start and start >= self.size(path):
            raise OSError("range not satisfiable")
        return bytes(cat(self, path, start, end))

    monkeypatch.setattr(type(system), "cat_file", strict)
    same(Store.open(url), pairs)
    (shard,) = (p for p in system.find(url) if "/a000001/c/" in p)
    system.pipe_file(shard, b"short")
    assert len(verify(store)) == 1
    damaged = 0
    for a, rows in pairs:
        try:
            bits(Store.open(url).read(a), rows)
        except Damaged:
            damaged += 1
    assert damaged == 1


def test_a_full_disk_can_be_pruned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(tmp_path, 10)
    left = Store.open(tmp_path, "a").writer()
    left.write(*activation(20))
    left.flush()
    left.lease.release()

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(LocalFiles, "write", full)
        report = prune(Store.open(tmp_path, "a"), lambda info: True)
    assert report.dropped == 11 and report.kept_bytes == 0


def test_a_disk_that_is_full_until_something_goes_is_pruned_without_a_false_alarm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(tmp_path, 6)
    index = sorted(tmp_path.glob("parts/*/*.idx"))[0]
    index.write_bytes(index.read_bytes()[:-1])
    store = Store.open(tmp_path, "a")
    write, freed = LocalFiles.write, [False]

    def write_if_free(*arguments: Any, **options: Any) -> None:
        if not freed[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(*arguments, **options)

    def delete_folder(*arguments: Any, delete: Any = LocalFiles.delete_folder) -> None:
        delete(*arguments)
        freed[0] = True

    with monkeypatch.context() as patch:
        patch.setattr(LocalFiles, "write", write_if_free)
        patch.setattr(LocalFiles, "delete_folder", delete_folder)
        assert prune(store).damaged == 1
    assert freed[0] and verify(store) == []


def test_a_copied_store_is_the_same(tmp_path: Path) -> None:
    pairs = filled(tmp_path / "a", 5)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    same(Store.open(tmp_path / "b"), pairs)
    same(Store.open(f"file://{tmp_path}/b"), pairs)
