"""The index tables: where the rows of each activation are in one file or array.

A table is a JSON header (what its records refer to by number) and fixed-size records, followed by a
footer with a digest of both. It is the whole of an `.idx` file, or follows the payloads of a
journal segment; in both cases the file ends with the footer.
"""

import hashlib
import json
import math
import struct
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cache.address import FingerprintInfo, VideoInfo
from cache.dtypes import Dtype
from cache.errors import Damaged
from cache.storage.codec import Bytes, as_buffer, itemsize

RECORD = np.dtype(
    [
        ("hi", "<u8"),  # the address's key, in two halves
        ("lo", "<u8"),
        ("time", "<i8"),  # nanoseconds since 1970, later than all that was known; the newest wins
        ("place", "<i8"),  # first row in the array, or first byte in the segment
        ("size", "<i8"),  # stored bytes; in an array its share of them
        ("first", "<i8"),  # lowest and highest frame number, for people
        ("last", "<i8"),
        ("samples", "<u4"),
        ("start", "<u4"),  # first row of the activation that is here
        ("rows", "<u4"),  # how many are here
        ("total", "<u4"),  # of the whole activation
        ("group", "<u4"),  # numbers into the header
        ("video", "<u4"),
        ("checksum", "<u4"),  # of the payload in a segment; an array's chunks have their own
        ("direction", "u1"),
        ("span", "u1"),
        ("writer", "<u2"),  # a random number; of equal times the higher one wins
        ("table", "<u4"),  # set when tables are joined in memory
    ]
)

CHUNK = np.dtype(
    [
        ("offset", "<u8"),  # in its shard
        ("size", "<u4"),  # stored bytes
        ("checksum", "<u4"),  # that they end with
    ]
)

Records = NDArray[Any]
"""Structured array of RECORD."""


class Entry(NamedTuple):
    """One record as Python numbers; the fields of RECORD."""

    hi: int
    lo: int
    time: int
    place: int
    size: int
    first: int
    last: int
    samples: int
    start: int
    rows: int
    total: int
    group: int
    video: int
    checksum: int
    direction: int
    span: int
    writer: int
    table: int


class Group(NamedTuple):
    """What all rows of one array have in common."""

    fingerprint: str
    dtype: Dtype
    row_shape: tuple[int, ...]

    @property
    def row_bytes(self) -> int:
        """Bytes of a row, uncompressed."""
        return itemsize(self.dtype) * math.prod(self.row_shape)


class Description(NamedTuple):
    """A description of a video or a fingerprint, as a store holds it.

    Args:
        sequence: nanoseconds since 1970, but higher than any that its writer knew of.
        hash: of its content; empty if only a table of format version 1 has it.
    """

    sequence: int
    info: VideoInfo | FingerprintInfo
    hash: str = ""

    @property
    def subject(self) -> str:
        """The digest or the fingerprint that it describes."""
        info = self.info
        return info.digest if isinstance(info, VideoInfo) else info.fingerprint

    @property
    def key(self) -> tuple[str, str]:
        """Subject and name, of which a later description replaces an earlier one.

        A video may have several names at once.
        """
        return self.subject, self.info.name if isinstance(self.info, VideoInfo) else ""


@dataclass(frozen=True)
class ArrayInfo:
    """An array as it was committed.

    Args:
        rows: of the whole array.
        chunk_rows, shard_rows: of a chunk and of a shard.
        description: digest of the bytes of zarr.json, hex.
        shards: bytes of every shard, and the checksum at the end of its own index.
        chunks: CHUNK [n], over all shards in the order of the rows; None in an opened store, which
            reads them when it reads the array.
    """

    rows: int
    chunk_rows: int
    shard_rows: int
    description: str
    shards: list[tuple[int, int]]
    chunks: NDArray[Any] | None


@dataclass
class IndexTable:
    """The content of one table.

    Args:
        records: RECORD [n]; `group` and `video` are numbers into the lists here.
        groups, videos: those that records refer to; videos as digests.
        described: hashes of the descriptions of each of `subjects`.
        array: the array that the records point into; None for a journal segment.
        embedded: the descriptions themselves; only in tables of format version 1.
    """

    records: Records
    groups: list[Group]
    videos: list[str]
    described: list[list[str]] = field(default_factory=list)
    array: ArrayInfo | None = None
    embedded: list[Description] = field(default_factory=list)

    @property
    def subjects(self) -> list[str]:
        """The digests and fingerprints that records refer to."""
        return [*self.videos, *sorted({group.fingerprint for group in self.groups})]


FOOTER = struct.Struct("<QQ16s8s")  # where the table begins, its bytes, their digest, the magic
MAGIC = b"PALTABL1"


def compute_digest(data: bytes | Bytes) -> bytes:
    """Return a hash of 16 bytes."""
    return hashlib.blake2b(as_buffer(data), digest_size=16).digest()


def encode_table(table: IndexTable, offset: int = 0) -> bytes:
    """Return the bytes of a table with its footer, for the end of a file, from `offset` on."""
    array = table.array
    chunks = np.empty(0, CHUNK) if array is None or array.chunks is None else array.chunks
    header = json.dumps(
        {
            "groups": table.groups,
            "videos": table.videos,
            "described": table.described,
            "told": [],  # for processes of format version 1 that still run
            "records": len(table.records),
            "array": None if array is None else vars(array) | {"chunks": len(chunks)},
        }
    ).encode()
    body = len(header).to_bytes(8, "little") + header + table.records.tobytes() + chunks.tobytes()
    return body + FOOTER.pack(offset, len(body), compute_digest(body), MAGIC)


def table_offset(tail: Bytes, size: int, file: str) -> int:
    """Return the byte at which the table of a file begins, given the file's last bytes.

    Raises:
        Damaged: the file does not end with a footer that fits.
    """
    if len(tail) < FOOTER.size or size < FOOTER.size:
        raise Damaged(file, f"it ends after {min(size, len(tail))} bytes")
    offset, length, _, magic = FOOTER.unpack(tail[-FOOTER.size :].tobytes())
    if magic != MAGIC or offset + length + FOOTER.size != size:
        raise Damaged(file, "its end is missing or changed")
    return int(offset)


def decode_table(tail: Bytes, size: int, file: str) -> IndexTable:
    """Return the table that a file ends with.

    Args:
        tail: the file's last bytes, from `table_offset` on or from earlier.
        size: bytes of the file.

    Raises:
        Damaged: these are not the bytes that were written.
    """
    offset = table_offset(tail, size, file)
    body = tail[len(tail) - (size - offset) : -FOOTER.size]
    if compute_digest(body) != FOOTER.unpack(tail[-FOOTER.size :].tobytes())[2]:
        raise Damaged(file, "its index does not have the digest that was written with it")
    length = int.from_bytes(body[:8].tobytes(), "little")
    header = json.loads(body[8 : 8 + length].tobytes())
    end = 8 + length + header["records"] * RECORD.itemsize
    array = header["array"]
    if array is not None:
        shards = [(size, checksum) for size, checksum in array["shards"]]
        chunks = np.frombuffer(body[end:], CHUNK).copy()  # `body` need not stay in memory
        array = ArrayInfo(**(array | {"shards": shards, "chunks": chunks}))
    return IndexTable(
        records=np.frombuffer(body[8 + length : end], RECORD),
        groups=[Group(name, dtype, tuple(shape)) for name, dtype, shape in header["groups"]],
        videos=header["videos"],
        described=header.get("described", []),
        array=array,
        embedded=[
            Description(time, _parse_info(kind, info)) for time, kind, info in header["told"]
        ],
    )


def _parse_info(kind: str, fields: dict[str, Any]) -> VideoInfo | FingerprintInfo:
    if kind == "video":
        return VideoInfo.from_version_1(fields)
    return FingerprintInfo.from_dict(fields)
