"""Arrays of activations laid end to end, which zarr describes and any zarr can open.

An array is ordinary zarr (format 3, sharded, Blosc, CRC-32C). Its shards are written here, for zarr
does not compress the bytes of numbers apart, and read here: zarr takes a missing chunk for zeros,
decodes a shard's chunks one after another and starts a thread that does not survive a fork. The
array's index table has the chunks' offsets and checksums. benchmarks/store.py compares the two.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cache.dtypes import Dtype
from cache.errors import Damaged
from cache.format.records import CHUNK, FOOTER, ArrayInfo, Group, compute_digest
from cache.storage import codec
from cache.storage.base import Files
from cache.storage.codec import Bytes, checksum, compress, decompress, itemsize

if TYPE_CHECKING:
    from zarr.codecs import BloscCodec

# Uncompressed; benchmarks/results/small_reads.md and benchmarks/store.py have the tables.
CHUNK_BYTES, SHARD_BYTES = 2**20, 2**26
CHUNK_ROWS = 128  # at most: a random window touches few chunks more than it has rows
RANGE_BYTES = 2**22  # compressed, fetched at a time: some chunks, which the CPU's cache can hold

# Neither NumPy nor zarr has bfloat16: its bits are kept.
STORED: dict[Dtype, str] = {"float32": "float32", "float16": "float16", "bfloat16": "uint16"}


class FileGone(Exception):
    """A file that is not there; another process may have moved its rows."""

    def __init__(self, file: str) -> None:
        super().__init__(file)
        self.file = file


class RowRequest(NamedTuple):
    """Rows `start` to `stop` of an array, to be read into `out` [bytes]."""

    start: int
    stop: int
    out: Bytes


def choose_layout(rows: int, row_bytes: int) -> tuple[int, int]:
    """Return the rows of a chunk and of a shard for an array of so many rows."""
    chunk = min(max(CHUNK_BYTES // row_bytes, 1), CHUNK_ROWS, rows)
    chunks = min(max(SHARD_BYTES // (chunk * row_bytes), 1), -(-rows // chunk))
    return chunk, chunk * chunks


def blosc_codec(dtype: Dtype) -> BloscCodec:
    """Return the journal's compression as a codec of zarr."""
    from zarr.codecs import BloscCodec  # half a second, which who only reads does not pay

    name, level, shuffle, block = codec.CODEC
    return BloscCodec(
        typesize=itemsize(dtype), cname=name, clevel=level, shuffle=shuffle, blocksize=block
    )


def shard_name(folder: str, group: Group, shard: int) -> str:
    """Return the file of a shard, as zarr names it."""
    return "/".join([folder, "c", str(shard), *("0" for _ in group.row_shape)])


def write_array(
    files: Files, folder: str, group: Group, rows: int, pieces: Iterator[Bytes]
) -> ArrayInfo:
    """Write an array, each shard once, and return what its index is to say of it.

    Args:
        pieces: the rows' bytes in order, in pieces of whole rows.
    """
    chunk_rows, shard_rows = choose_layout(rows, group.row_bytes)
    description = _describe_array(group, rows, chunk_rows, shard_rows)
    files.write(f"{folder}/zarr.json", [description])
    chunks = np.empty(-(-rows // chunk_rows), CHUNK)
    shards: list[tuple[int, int]] = []
    content: list[bytes] = []
    per_shard, size = shard_rows // chunk_rows, 0
    buffer = np.empty(chunk_rows * group.row_bytes, np.uint8)
    for number, chunk in enumerate(_fill_chunks(buffer, rows * group.row_bytes, pieces)):
        frame = compress(chunk, itemsize(group.dtype))
        ending = checksum(frame)
        chunks[number] = size, len(frame) + 4, ending
        content += [frame, ending.to_bytes(4, "little")]
        size += len(frame) + 4
        if (number + 1) % per_shard and number + 1 < len(chunks):
            continue
        shard = len(shards)
        index = _encode_shard_index(chunks[shard * per_shard : number + 1], per_shard)
        files.write(shard_name(folder, group, shard), [*content, index])
        shards.append((size + len(index), int.from_bytes(index[-4:], "little")))
        content, size = [], 0
    return ArrayInfo(
        rows, chunk_rows, shard_rows, compute_digest(description).hex(), shards, chunks
    )


def _describe_array(group: Group, rows: int, chunk_rows: int, shard_rows: int) -> bytes:
    """Return zarr.json, as zarr writes it."""
    import zarr
    from zarr.codecs import BytesCodec, Crc32cCodec
    from zarr.storage import MemoryStore

    written: dict[str, Any] = {}
    zarr.create_array(
        MemoryStore(written),
        shape=(rows, *group.row_shape),
        dtype=STORED[group.dtype],
        chunks=(chunk_rows, *group.row_shape),
        shards=(shard_rows, *group.row_shape),
        serializer=BytesCodec(endian="little"),
        compressors=[blosc_codec(group.dtype), Crc32cCodec()],
        filters=None,
        fill_value=0,
        attributes={"fingerprint": group.fingerprint, "dtype": group.dtype},
    )
    return bytes(written["zarr.json"].to_bytes())


def _encode_shard_index(chunks: NDArray[Any], capacity: int) -> bytes:
    """Return what a shard ends with: its chunks' offsets and sizes, and a checksum of these.

    Args:
        chunks: CHUNK [n]; the rest of `capacity` is marked absent.
    """
    index = np.full((capacity, 2), 2**64 - 1, "<u8")
    index[: len(chunks), 0], index[: len(chunks), 1] = chunks["offset"], chunks["size"]
    data = index.tobytes()
    return data + checksum(data).to_bytes(4, "little")


def _fill_chunks(buffer: Bytes, total: int, pieces: Iterator[Bytes]) -> Iterator[Bytes]:
    """Yield the buffer each time that pieces have filled it, zeros after what ends the last."""
    filled = done = 0
    for piece in pieces:
        while len(piece):
            count = min(len(piece), len(buffer) - filled)
            buffer[filled : filled + count] = piece[:count]
            piece, filled, done = piece[count:], filled + count, done + count
            if filled == len(buffer) or done == total:
                buffer[filled:] = 0
                yield buffer
                filled = 0
    assert done == total and not filled


def trailing_checksum(data: Bytes) -> int:
    """Return the checksum that a chunk, or a shard's index, ends with."""
    return int.from_bytes(data[-4:].tobytes(), "little")


def check_chunk(block: Bytes, start: int, stop: int, expected: int, file: str) -> Bytes:
    """Return the frame of a chunk, read from bytes `start` to `stop` of a shard.

    Raises:
        Damaged: it is not the chunk that was written there.
    """
    if len(block) < stop - start:
        raise Damaged(file, f"it ends after {start + len(block)} bytes")
    # The checksum in the chunk is not enough: it may be another chunk.
    if not checksum(block[:-4]) == trailing_checksum(block) == expected:
        raise Damaged(file, f"the checksum of bytes {start}–{stop} is wrong")
    return block[:-4]


class Array:
    """Reader of one array."""

    def __init__(
        self, files: Files, folder: str, group: Group, info: ArrayInfo, index_bytes: int = 0
    ) -> None:
        """Of an `info` without chunks, `index_bytes` is the size of the index that has them."""
        self.files = files
        self.folder = folder
        self.group = group
        self.info = info
        self.row_bytes = group.row_bytes
        self.chunk_bytes = info.chunk_rows * self.row_bytes
        self._index_bytes = index_bytes

    @cached_property
    def chunks(self) -> NDArray[Any]:
        """CHUNK [n]; read when they are first needed, for a store has many arrays.

        Raises:
            FileGone: the index is not there. Damaged: it ends early.
        """
        if self.info.chunks is not None:
            return self.info.chunks
        file, stop = f"{self.folder}.idx", self._index_bytes - FOOTER.size
        start = stop - -(-self.info.rows // self.info.chunk_rows) * CHUNK.itemsize
        (data,) = self.files.read([(file, start, stop)])
        if data is None:
            raise FileGone(file)
        if len(data) < stop - start:
            raise Damaged(file, f"it ends after {start + len(data)} bytes")
        return np.frombuffer(data, CHUNK)

    def read(self, wanted: Sequence[RowRequest]) -> None:
        """Fill every `out`, fetching and decoding each chunk once.

        Raises:
            FileGone: a shard is not there. Damaged: it is not what was written.
        """
        targets: dict[int, list[RowRequest]] = {}  # per chunk, rows counted in it
        rows, width = self.info.chunk_rows, self.row_bytes
        for start, stop, out in wanted:
            for chunk in range(start // rows, (stop - 1) // rows + 1):
                low, high = max(start, chunk * rows), min(stop, (chunk + 1) * rows)
                part = out[(low - start) * width : (high - start) * width]
                here = RowRequest(low - chunk * rows, high - chunk * rows, part)
                targets.setdefault(chunk, []).append(here)

        for batch in self._batches(sorted(targets)):
            found = self.files.read([(each.file, each.start, each.stop) for each in batch])
            for fetched, data in zip(batch, found, strict=True):
                if data is None:
                    raise FileGone(fetched.file)
                for chunk, begin, end, expected in fetched.chunks:
                    block = data[begin - fetched.start : end - fetched.start]
                    frame = check_chunk(block, begin, end, expected, fetched.file)
                    self._deliver(frame, targets[chunk], fetched.file)

    def _deliver(self, frame: Bytes, wanted: Sequence[RowRequest], file: str) -> None:
        """Decompress a chunk once, and copy what is asked for of it."""
        low, high, decoded = wanted[0]
        if low == 0 and high == self.info.chunk_rows:
            wanted = wanted[1:]
        else:
            decoded = np.empty(self.chunk_bytes, np.uint8)
        decompress(frame, decoded, file)
        for low, high, out in wanted:
            out[:] = decoded[low * self.row_bytes : high * self.row_bytes]

    def _batches(self, chunks: Sequence[int]) -> Iterator[list[_ByteRange]]:
        """Yield lists of ranges to fetch at once; neighbouring chunks are joined in one range."""
        batch: list[_ByteRange] = []
        total = 0
        per_shard = self.info.shard_rows // self.info.chunk_rows
        for chunk in chunks:
            file = shard_name(self.folder, self.group, chunk // per_shard)
            offset, size, expected = self.chunks[chunk].tolist()
            place = (chunk, offset, offset + size, expected)
            last = batch[-1] if batch else None
            if (
                last is not None
                and (last.file, last.stop) == (file, offset)
                and offset + size - last.start <= RANGE_BYTES
            ):
                batch[-1] = _ByteRange(file, last.start, offset + size, [*last.chunks, place])
            else:
                if total and total + size > self.files.batch_bytes:
                    yield batch
                    batch, total = [], 0
                batch.append(_ByteRange(file, offset, offset + size, [place]))
            total += size
        if batch:
            yield batch


class _ByteRange(NamedTuple):
    """Bytes of a shard that are fetched at once, and the chunks in them, with their checksums."""

    file: str
    start: int
    stop: int
    chunks: list[tuple[int, int, int, int]]
