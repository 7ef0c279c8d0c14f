"""Random windows cost little more than their rows: counted in bytes, not timed."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from numcodecs import blosc

from cache.address import DTYPES, Address
from cache.dtypes import Dtype
from cache.format import arrays
from cache.format.arrays import Array, RowRequest, choose_layout, shard_name, write_array
from cache.format.records import Group
from cache.storage.base import Range
from cache.storage.codec import CODEC, Bytes, compress, decompress
from cache.storage.local import LocalFiles
from cache.store import Store
from cache.upkeep.verify import verify

PRINT = "0123456789abcdef" * 2
MOST = 6  # bytes decoded for a byte that is wanted


def features(rows: int, width: int, seed: int = 0) -> torch.Tensor:
    """Return numbers that compress as activations do: of one size, their last digits noise."""
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


def pieces_of(rows: torch.Tensor, count: int) -> Iterator[Bytes]:
    for piece in rows.split(count):
        yield piece.contiguous().view(torch.uint8).reshape(-1).numpy()


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that gets the bytes of each chunk that is decoded."""
    sizes: list[int] = []

    def count(frame: Bytes, out: Bytes, file: str) -> None:
        sizes.append(len(out))
        decompress(frame, out, file)

    monkeypatch.setattr(arrays, "decompress", count)
    return sizes


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize(("width", "window"), [(96, 48), (384, 192), (1280, 192)])
def test_a_random_window_decodes_few_bytes_more_than_it_has(
    tmp_path: Path, decoded: list[int], dtype: Dtype, width: int, window: int
) -> None:
    rng = np.random.default_rng(0)
    videos = []
    with Store.open(tmp_path, "a") as store, store.writer() as writer:
        for number in range(6):
            rows = int(rng.integers(window, 1500))
            frames = np.arange(2 * rows) + number
            a = Address(PRINT, dtype, f"{number:064x}", "forward", "video", frames, rows)
            videos.append((a, features(rows, width, number).to(DTYPES[dtype])))
            writer.write(*videos[-1])
    store = Store.open(tmp_path)
    for _ in range(100):
        a, rows_there = videos[int(rng.integers(len(videos)))]
        start = int(rng.integers(a.rows - window + 1))
        decoded.clear()
        read = store.read(a, start, start + window)
        assert torch.equal(read, rows_there[start : start + window])
        assert 0 < sum(decoded) <= MOST * read.nbytes


def test_small_chunks_cost_no_space(tmp_path: Path) -> None:
    rows = features(4096, 96).half()
    data = next(pieces_of(rows, 4096))
    files, group = LocalFiles(tmp_path), Group(PRINT, "float16", (96,))
    info = write_array(files, "a", group, len(rows), pieces_of(rows, 100))
    assert info.chunk_rows == 128
    # Chunks of a mebibyte, as they were before; signs and exponents are what is gained.
    assert sum(size for size, _ in info.shards) < 1.02 * len(compress(data, 2)) < 0.9 * len(data)


def test_rows_are_found_by_any_chunks_that_an_array_says_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = features(3000, 96).half()
    files, group = LocalFiles(tmp_path), Group(PRINT, "float16", (96,))
    for chunk_rows in (1, 7, 128, 1365, 3000):
        shard_rows = chunk_rows * -(-900 // chunk_rows)
        monkeypatch.setattr(arrays, "choose_layout", lambda *_, c=chunk_rows, s=shard_rows: (c, s))
        folder = f"a{chunk_rows}"
        info = write_array(files, folder, group, 3000, pieces_of(rows, 700))
        assert (info.chunk_rows, len(info.shards)) == (chunk_rows, -(-3000 // shard_rows))
        out = np.empty(777 * group.row_bytes, np.uint8)
        Array(files, folder, group, info).read([RowRequest(1111, 1888, out)])
        assert out.tobytes() == rows[1111:1888].numpy().tobytes()


@pytest.mark.parametrize("dtype", ["float16", "float32", "bfloat16"])
@pytest.mark.parametrize("shape", [(), (96,), (3, 40)])
def test_zarr_reads_every_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: Dtype, shape: tuple[int, ...]
) -> None:
    monkeypatch.setattr(arrays, "SHARD_BYTES", 2**16)
    rows = torch.randn(1000, *shape, generator=torch.Generator().manual_seed(0)).to(DTYPES[dtype])
    files, group = LocalFiles(tmp_path), Group(PRINT, dtype, shape)
    info = write_array(files, "a", group, 1000, pieces_of(rows, 333))
    numbers = np.asarray(zarr.open_array(tmp_path / "a", mode="r")[:])
    assert numbers.tobytes() == b"".join(piece.tobytes() for piece in pieces_of(rows, 1000))
    assert len(info.shards) > 1 or not shape
    for shard, (size, _) in enumerate(info.shards):
        assert (tmp_path / shard_name("a", group, shard)).stat().st_size == size


def test_neighbouring_chunks_are_fetched_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = features(60_000, 96).half()  # 11.5 MB
    frames = np.arange(len(rows))
    a = Address(PRINT, "float16", "0" * 64, "forward", "video", frames, len(rows))
    with Store.open(tmp_path, "a") as store, store.writer() as writer:
        writer.write(a, rows)
    ranges: list[Range] = []
    read = LocalFiles.read

    def count(files: LocalFiles, wanted: list[Range]) -> list[Bytes | None]:
        ranges.extend(each for each in wanted if "/c/" in each[0])
        return read(files, wanted)

    store = Store.open(tmp_path)
    monkeypatch.setattr(LocalFiles, "read", count)
    assert torch.equal(store.read(a), rows)
    assert len(ranges) <= -(-rows.nbytes // arrays.RANGE_BYTES)
    ranges.clear()
    store.read(a, 100, 148)  # two chunks
    assert len(ranges) == 1
    assert verify(store) == []


def test_layouts_are_bounded_by_rows_and_by_bytes() -> None:
    assert choose_layout(10**6, 192) == (128, 2730 * 128)
    assert choose_layout(50, 192) == (50, 50)
    assert choose_layout(10**6, 100 * 384 * 2)[0] == 13
    assert choose_layout(10**6, 2**24) == (1, 4)


@pytest.mark.parametrize("typesize", [2, 4])
@pytest.mark.parametrize("kind", ["noise", "numbers", "zeros"])
def test_frames_of_any_size_come_out_of_blosc(typesize: int, kind: str) -> None:
    rng = np.random.default_rng(0)
    numbers = rng.standard_normal(2**20 // typesize + 2**14).astype(f"f{typesize}").view(np.uint8)
    noise = rng.integers(0, 256, len(numbers), np.uint8)
    data = {"noise": noise, "numbers": numbers, "zeros": np.zeros_like(noise)}[kind]
    limit = CODEC.block_bytes
    sizes = (*range(1, 600), 12_345, *(limit // typesize + more for more in (-1, 0, 1, 5000)))
    for count in sizes:
        part = data[: count * typesize]
        frame = np.frombuffer(compress(part, typesize), np.uint8)
        out = np.empty(len(part), np.uint8)
        decompress(frame, out, "frame")
        assert np.array_equal(out, part)
        assert blosc.decompress(frame) == part.tobytes()
        assert len(frame) <= len(part) + blosc.MAX_OVERHEAD


def test_bytes_of_numbers_are_compressed_apart() -> None:
    frame = np.frombuffer(
        compress(features(128, 96).half().numpy().view(np.uint8).ravel(), 2), np.uint8
    )
    assert not frame[2] & 16  # Blosc's flag of frames whose blocks are one stream
