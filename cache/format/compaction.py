"""Compaction of journal segments into arrays, in which the pieces of an activation are joined."""

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np

from cache.errors import Damaged
from cache.format.arrays import write_array
from cache.format.records import RECORD, Entry, Group, IndexTable, encode_table
from cache.storage.base import Files, Range, split_batches
from cache.storage.codec import Bytes, checksum, decompress

PlacedEntry = tuple[str, Entry]
"""A segment's file and a record in it."""


def fetch_payloads(
    files: Files, placed: Sequence[PlacedEntry]
) -> Iterator[tuple[PlacedEntry, Bytes | None]]:
    """Yield records with their payloads, None where a file is gone; neighbours come together."""
    for some in split_batches([entry.size for _, entry in placed], files.batch_bytes):
        batch = placed[some]
        ranges: list[Range] = [(file, e.place, e.place + e.size) for file, e in batch]
        yield from zip(batch, files.read(ranges), strict=True)


def decode_payload(data: Bytes | None, entry: Entry, row_bytes: int, file: str) -> Bytes:
    """Return a record's rows as bytes, uncompressed.

    Raises:
        Damaged: they are not there as they were written.
    """
    if data is None:
        raise Damaged(file, "it is missing")
    out = np.empty(entry.rows * row_bytes, np.uint8)
    unpack_payload(data, entry, out, file)
    return out


def unpack_payload(data: Bytes, entry: Entry, out: Bytes, file: str) -> None:
    """Verify a record's payload and decompress it into `out`.

    Raises:
        Damaged: it is not what was written.
    """
    if len(data) < entry.size:
        raise Damaged(file, f"it ends after {entry.place + len(data)} bytes")
    if checksum(data) != entry.checksum:
        raise Damaged(file, f"the checksum of bytes from {entry.place} is wrong")
    decompress(data, out, file)


def compact(
    files: Files,
    folder: str,
    group: Group,
    placed: Sequence[PlacedEntry],
    videos: Sequence[str],
    described: Sequence[list[str]],
) -> bytes:
    """Write one array and return its index, whose writing commits it.

    Args:
        folder: of the array, new.
        placed: records of that group; `video` is a number into `videos`.
        described: as in `IndexTable`.
    """
    placed = _group_pieces(placed)
    rows = sum(entry.rows for _, entry in placed)
    width = group.row_bytes

    def pieces() -> Iterator[Bytes]:
        for (file, entry), data in fetch_payloads(files, placed):
            yield decode_payload(data, entry, width, file)

    info = write_array(files, folder, group, rows, pieces())
    stored = sum(size for size, _ in info.shards)
    rewritten = _rewritten_keys(placed)
    entries: list[Entry] = []
    place = 0
    for _, entry in placed:
        entry = entry._replace(place=place, group=0, checksum=0)
        place += entry.rows
        last = entries[-1] if entries else None
        key = (entry.hi, entry.lo)
        adjoins = last and (last.hi, last.lo, last.start + last.rows) == (*key, entry.start)
        if last and adjoins and key not in rewritten:
            # Adjoining pieces of one activation become one record.
            joined_rows, time = last.rows + entry.rows, max(last.time, entry.time)
            entries[-1] = last._replace(rows=joined_rows, time=time)
        else:
            entries.append(entry)
    sized = [entry._replace(size=stored * entry.rows // rows) for entry in entries]
    records = np.array(sized, RECORD)
    return encode_table(IndexTable(records, [group], list(videos), list(described), info))


def _rewritten_keys(placed: Sequence[PlacedEntry]) -> set[tuple[int, int]]:
    """Return keys some of whose rows occur more than once; only their times tell which count."""
    found = set()
    for (_, last), (_, entry) in pairwise(placed):
        key = (entry.hi, entry.lo)
        if key == (last.hi, last.lo) and entry.start < last.start + last.rows:
            found.add(key)
    return found


def _group_pieces(placed: Sequence[PlacedEntry]) -> list[PlacedEntry]:
    """Return the pieces of each activation together, the activations in the order they came in."""
    first: dict[tuple[int, int], int] = {}
    for number, (_, entry) in enumerate(placed):
        first.setdefault((entry.hi, entry.lo), number)
    return sorted(placed, key=lambda item: (first[item[1].hi, item[1].lo], item[1].start))
