"""Rows as bytes: compression, checksums, and tensors seen as bytes.

Payloads of the journal and chunks of the arrays are the same thing: a Blosc frame and its CRC-32C,
which covers every byte of the data.
"""

from typing import Literal, NamedTuple

import google_crc32c
import numpy as np
import torch
from numcodecs import blosc
from numpy.typing import NDArray

from cache.address import DTYPES, Dtype
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
# In blocks this large zstd sees each part alone: twice the gain and reading speed of Blosc's own
# choice of block. benchmarks/store.py has the table.
CODEC = Codec("zstd", 1, "shuffle", 2**20)

_SHUFFLES = {"shuffle": blosc.SHUFFLE, "bitshuffle": blosc.BITSHUFFLE}

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
    return bytes(blosc.compress(data, name.encode(), level, _SHUFFLES[shuffle], block, typesize))


def decompress(frame: Bytes, out: Bytes, file: str) -> None:
    """Fill `out` from a frame whose checksum was right.

    Raises:
        Damaged: it is no frame of that many bytes.
    """
    # Blosc writes as many bytes as the frame's header says: it has to be `out`'s size.
    size = int.from_bytes(frame[4:8].tobytes(), "little") if len(frame) >= 16 else -1
    if size != len(out):
        raise Damaged(file, f"a block has {size} bytes instead of {len(out)}")
    try:
        blosc.decompress(frame, out)
    except RuntimeError as error:
        raise Damaged(file, f"a block cannot be decompressed ({error})") from error
