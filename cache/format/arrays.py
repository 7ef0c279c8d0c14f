"""Arrays of activations laid end to end: written with zarr, read without.

An array is ordinary zarr (format 3, sharded, Blosc, CRC-32C) and any zarr can open it. It is read
here without zarr, which takes a missing chunk for zeros, decodes a shard's chunks one after another
and starts a thread that does not survive a fork. The array's index table has the chunks' offsets
and checksums. benchmarks/store.py compares the two.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec
from zarr.storage import MemoryStore

from cache.address import Dtype
from cache.errors import Damaged
from cache.format.records import CHUNK, FOOTER, ArrayInfo, Group, compute_digest
from cache.storage import codec
from cache.storage.base import Files
from cache.storage.codec import Bytes, checksum, decompress, itemsize

CHUNK_BYTES, SHARD_BYTES = 2**20, 2**26  # uncompressed; benchmarks/store.py has the table
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
    chunk = min(max(CHUNK_BYTES // row_bytes, 1), rows)
    chunks = min(max(SHARD_BYTES // (chunk * row_bytes), 1), -(-rows // chunk))
    return chunk, chunk * chunks


def blosc_codec(dtype: Dtype) -> BloscCodec:
    """Return the journal's compression as a codec of zarr."""
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
    # zarr encodes into memory; the files are written here, where they are forced to the disk.
    encoded: dict[str, Any] = {}
    array = zarr.create_array(
        MemoryStore(encoded),
        shape=(rows, *group.row_shape),
        dtype=STORED[group.dtype],
        chunks=(chunk_rows, *group.row_shape),
        shards=(shard_rows, *group.row_shape),
        serializer=BytesCodec(endian="little"),
        compressors=[blosc_codec(group.dtype), Crc32cCodec()],
        filters=None,
        fill_value=0,
        attributes={"fingerprint": group.fingerprint, "dtype": group.dtype},
        config={"write_empty_chunks": True},  # an absent chunk is damage, never zeros
    )
    description = encoded.pop("zarr.json").to_bytes()
    files.write(f"{folder}/zarr.json", [description])
    shards, chunks = [], []
    buffer = np.empty(min(shard_rows, rows) * group.row_bytes, np.uint8)
    for number, content in enumerate(_fill_shards(buffer, rows * group.row_bytes, pieces)):
        begin = number * shard_rows
        numbers = content.view(STORED[group.dtype]).reshape(-1, *group.row_shape)
        array[begin : begin + len(numbers)] = numbers
        name = shard_name(folder, group, number)
        data = encoded.pop(name.removeprefix(folder + "/")).as_numpy_array().view(np.uint8)
        files.write(name, [data])
        shards.append((len(data), _trailing_checksum(data)))
        count, capacity = -(-len(numbers) // chunk_rows), shard_rows // chunk_rows
        chunks.append(_chunk_records(data, count, capacity))
    description_digest = compute_digest(description).hex()
    return ArrayInfo(
        rows, chunk_rows, shard_rows, description_digest, shards, np.concatenate(chunks)
    )


def _chunk_records(shard: Bytes, count: int, capacity: int) -> NDArray[Any]:
    """Return CHUNK [count] of a shard that zarr encoded and whose index has `capacity` rows."""
    index = shard[-16 * capacity - 4 : -4].view("<u8").reshape(capacity, 2)[:count]
    found = np.empty(count, CHUNK)
    found["offset"], found["size"] = index.T
    for chunk, (offset, size) in zip(found, index.tolist(), strict=True):
        chunk["checksum"] = _trailing_checksum(shard[offset : offset + size])
    return found


def _fill_shards(buffer: Bytes, total: int, pieces: Iterator[Bytes]) -> Iterator[Bytes]:
    """Yield the buffer each time that pieces have filled it; the last time it may be part full."""
    filled = done = 0
    for piece in pieces:
        while len(piece):
            count = min(len(piece), len(buffer) - filled)
            buffer[filled : filled + count] = piece[:count]
            piece, filled, done = piece[count:], filled + count, done + count
            if filled == len(buffer) or done == total:
                yield buffer[:filled]
                filled = 0
    assert done == total and not filled


def _trailing_checksum(data: Bytes) -> int:
    """Return the checksum that a chunk, or a shard's index, ends with."""
    return int.from_bytes(data[-4:].tobytes(), "little")


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
        self.chunk_bytes = info.chunk_rows * group.row_bytes
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
        rows, width = self.info.chunk_rows, self.group.row_bytes
        for start, stop, out in wanted:
            for chunk in range(start // rows, (stop - 1) // rows + 1):
                low, high = max(start, chunk * rows), min(stop, (chunk + 1) * rows)
                part = out[(low - start) * width : (high - start) * width]
                here = RowRequest(low - chunk * rows, high - chunk * rows, part)
                targets.setdefault(chunk, []).append(here)

        def deliver(chunk: int, frame: Bytes, file: str) -> None:
            low, high, out = targets[chunk][0]
            if low == 0 and high == rows:
                decompress(frame, out, file)
                others, decoded = targets[chunk][1:], out
            else:
                decoded = np.empty(self.chunk_bytes, np.uint8)
                decompress(frame, decoded, file)
                others = targets[chunk]
            for low, high, out in others:
                out[:] = decoded[low * width : high * width]

        self.read_chunks(sorted(targets), deliver)

    def read_chunks(
        self, chunks: Sequence[int], deliver: Callable[[int, Bytes, str], None]
    ) -> None:
        """Call `deliver(chunk, compressed, file)` for chunks in rising order, checksums right.

        Raises:
            FileGone: a shard is not there. Damaged: it is not what was written.
        """
        for batch in self._batches(chunks):
            found = self.files.read([(part.file, part.start, part.stop) for part in batch])
            for part, data in zip(batch, found, strict=True):
                if data is None:
                    raise FileGone(part.file)
                if len(data) < part.stop - part.start:
                    raise Damaged(part.file, f"it ends after {part.start + len(data)} bytes")
                for chunk, start, stop in part.chunks:
                    block = data[start - part.start : stop - part.start]
                    # The checksum in the chunk is not enough: it may be another chunk.
                    expected = int(self.chunks["checksum"][chunk])
                    if not checksum(block[:-4]) == _trailing_checksum(block) == expected:
                        raise Damaged(part.file, f"the checksum of bytes {start}–{stop} is wrong")
                    deliver(chunk, block[:-4], part.file)

    def _batches(self, chunks: Sequence[int]) -> Iterator[list["_ByteRange"]]:
        """Yield lists of ranges to fetch at once; neighbouring chunks are joined in one range."""
        batch: list[_ByteRange] = []
        total = 0
        per_shard = self.info.shard_rows // self.info.chunk_rows
        for chunk in chunks:
            file = shard_name(self.folder, self.group, chunk // per_shard)
            offset, size, _ = self.chunks[chunk].tolist()
            place = (chunk, offset, offset + size)
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
    """Bytes of a shard that are fetched at once, and the chunks in them."""

    file: str
    start: int
    stop: int
    chunks: list[tuple[int, int, int]]
