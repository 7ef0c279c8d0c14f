"""Rows as bytes: compression, checksums, and tensors seen as bytes.

Payloads of the journal and chunks of the arrays are the same thing: a Blosc frame and its CRC-32C,
which covers every byte of the data.
"""

import struct
from typing import Literal, NamedTuple

import google_crc32c
import numpy as np
import torch
from numcodecs import blosc, zstd
from numpy.typing import NDArray

from cache.address import DTYPES
from cache.dtypes import Dtype
from cache.errors import Damaged

Bytes = NDArray[np.uint8]


class Codec(NamedTuple):
    """Settings of Blosc.

    Args:
        name, level: of the compressor.
        shuffle: by bytes or by bits of a number.
        block_bytes: compressed at once, at most.
    """

    name: Literal["lz4", "zstd"]
    level: int
    shuffle: Literal["shuffle", "bitshuffle"]
    block_bytes: int


# Shuffled, an activation is a part that hardly varies (signs and exponents) and one that is noise.
# Each alone is compressed best: in blocks of a whole chunk, parts apart, twice as much is gained as
# in blocks of Blosc's own choice, and read twice as fast. benchmarks/store.py has the table.
CODEC = Codec("zstd", 1, "shuffle", 2**20)

_SHUFFLES = {"shuffle": blosc.SHUFFLE, "bitshuffle": blosc.BITSHUFFLE}

SPLIT_BYTES = 128  # of each number's bytes a block must have so many for Blosc to take it for split

# Versions of Blosc's format and of zstd's in it, flags, bytes of a number, of the data, of a block
# and of the frame, and where the only block begins.
_FRAME = struct.Struct("<BBBBIIII")
_ZSTD_SHUFFLED = 4 << 5 | 1

# Blosc's own threads do not survive a fork, and loaders fork.
blosc.use_threads = False


def as_buffer(data: bytes | Bytes) -> bytes | memoryview:
    """Return bytes as files and hashes accept them."""
    return data if isinstance(data, bytes) else data.data


def itemsize(dtype: Dtype) -> int:
    """Return the bytes of a number."""
    return DTYPES[dtype].itemsize


def checksum(data: Bytes | bytes) -> int:
    """Return the CRC-32C."""
    return int(google_crc32c.value(data))


def as_bytes(rows: torch.Tensor) -> Bytes:
    """Return a contiguous tensor's memory [bytes]; nothing is copied."""
    return rows.reshape(-1).view(torch.uint8).numpy()


def compress(data: Bytes, typesize: int) -> bytes:
    """Return a Blosc frame."""
    name, level, shuffle, block = CODEC
    if (name, shuffle) == ("zstd", "shuffle") and SPLIT_BYTES * typesize <= len(data) <= block:
        frame = _compress_apart(data, typesize, level)
        if len(frame) < len(data):
            return frame
    return bytes(blosc.compress(data, name.encode(), level, _SHUFFLES[shuffle], block, typesize))


def _compress_apart(data: Bytes, typesize: int, level: int) -> bytes:
    """Return a Blosc frame of one block, whose numbers' first bytes are a stream, and so on.

    Blosc itself, which reads such frames, gives zstd all of a block as one stream. Below zstd's own
    block of 128 KiB one table of symbols then serves all parts, and hardly anything is gained. Set
    to split, which counts for a whole process, Blosc writes small frames that it cannot read.
    """
    parts = []
    for part in np.ascontiguousarray(data.reshape(-1, typesize).T):
        packed = zstd.compress(part, level)
        stream = packed if len(packed) < len(part) else part.tobytes()  # as it is, by its length
        parts += [len(stream).to_bytes(4, "little"), stream]
    size = _FRAME.size + sum(map(len, parts))
    header = _FRAME.pack(2, 1, _ZSTD_SHUFFLED, typesize, len(data), len(data), size, _FRAME.size)
    return b"".join([header, *parts])


def decompress(frame: Bytes, out: Bytes, file: str) -> None:
    """Fill `out` from a frame whose checksum was right.

    Raises:
        Damaged: it is not a frame of that many bytes.
    """
    # Blosc writes as many bytes as the frame's header says: it has to be `out`'s size.
    size = int.from_bytes(frame[4:8].tobytes(), "little") if len(frame) >= 16 else -1
    if size != len(out):
        raise Damaged(file, f"a block has {size} bytes instead of {len(out)}")
    try:
        blosc.decompress(frame, out)
    except RuntimeError as error:
        raise Damaged(file, f"a block cannot be decompressed ({error})") from error
