"""Verification of every checksum of a store."""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from cache.errors import Damaged
from cache.format.arrays import Array, check_chunk, shard_name, trailing_checksum
from cache.format.compaction import decode_payload, fetch_payloads
from cache.format.descriptions import (
    DESCRIPTIONS,
    FILES_AT_ONCE,
    check_description,
    folder_of,
    select_descriptions,
)
from cache.format.index import CONTENTS, PARTS, RETIRED, TABLE_NAME, list_tables, load_tables
from cache.format.records import Entry, IndexTable, compute_digest
from cache.format.writer import decode_contents
from cache.storage.base import Files, read_whole, split_batches
from cache.storage.codec import checksum, decompress
from cache.store import FORMAT, FORMAT_1, MARKER, Store
from configs.progress import ProgressBar

LIST_ONLY = (
    "; the tables that are there were checked all the same, but one that is lost, too, cannot be "
    "noticed; --prune writes it anew"
)


class Problem(NamedTuple):
    """A damaged or missing file of the store, and what is wrong with it."""

    file: str
    what: str


def verify(store: Store, progress: bool = False) -> list[Problem]:
    """Read everything that is committed and return the problems, at most one of each file.

    Others may write, compact and prune meanwhile. What a killed process did not finish is no
    problem: nothing refers to it, and `prune` removes it.
    """
    files = store.files
    found = []
    mark = read_whole(files, MARKER, None)
    if mark is None or mark.tobytes() not in (FORMAT, FORMAT_1):
        found.append(Problem(MARKER, "it is missing" if mark is None else "it is not as written"))
    parts = files.grandchildren(PARTS)
    tables, unreadable = load_tables(files, list_tables(parts))
    stored = sum(_stored_bytes(table) for table in tables.values())
    with ProgressBar(
        total=stored, unit="B", unit_scale=True, desc="verify", disable=not progress
    ) as bar:
        for file, damage in unreadable.items():
            found += _if_still_there(files, file, [Problem(file, damage.what)])
        for file, table in tables.items():
            if table.array is None:
                problems = _check_segment(files, file, table, bar)
            else:
                problems = _check_array(files, file, table, bar)
            found += _if_still_there(files, file, problems)
    lists = [
        (f"{PARTS}/{part}/{CONTENTS}", names.get(CONTENTS) or 0) for part, names in parts.items()
    ]
    contents = files.read([(file, 0, size) for file, size in lists])
    for (part, names), data in zip(parts.items(), contents, strict=True):
        listed = None if data is None else decode_contents(data)
        if CONTENTS in names and listed is not None and listed.keys() <= names.keys():
            continue  # for which no part has to be listed again
        # What is compacted, renamed or deleted meanwhile is not missing twice.
        if missing := _check_contents(files, part):
            again = _check_contents(files, part)
            found += [each for each in missing if each in again]
    return found + _check_descriptions(files, tables)


def _check_segment(files: Files, file: str, table: IndexTable, bar: Any) -> list[Problem]:
    found = []
    entries = [Entry._make(values) for values in table.records.tolist()]
    for (_, entry), data in fetch_payloads(files, [(file, entry) for entry in entries]):
        try:
            decode_payload(data, entry, table.groups[entry.group].row_bytes, file)
        except Damaged as damage:
            found.append(damage.what)
        bar.update(entry.size)
    return _merge_by_file([(file, what) for what in found])


def _check_array(files: Files, file: str, table: IndexTable, bar: Any) -> list[Problem]:
    info = table.array
    assert info is not None
    folder = file.removesuffix(".idx")
    found: list[tuple[str, str]] = []
    description = read_whole(files, f"{folder}/zarr.json", None)
    if description is None:
        found.append((f"{folder}/zarr.json", "it is missing"))
    elif compute_digest(description).hex() != info.description:
        found.append((f"{folder}/zarr.json", "it is not as written"))
    array = Array(files, folder, table.groups[0], info)
    for shard, (size, _) in enumerate(info.shards):
        name = shard_name(folder, table.groups[0], shard)
        found += [(name, what) for what in _check_shard(files, name, array, shard)]
        bar.update(size)
    return _merge_by_file(found)


def _check_shard(files: Files, name: str, array: Array, shard: int) -> Iterator[str]:
    """Yield what is wrong with a shard: its length, the index that zarr reads, its chunks."""
    info, (size, expected) = array.info, array.info.shards[shard]
    per_shard = info.shard_rows // info.chunk_rows
    chunks = array.chunks[shard * per_shard : (shard + 1) * per_shard].tolist()
    # One byte more than there should be: a file that is too long is found without asking for sizes.
    ranges = [(name, offset, offset + length) for offset, length, _ in chunks]
    ranges.append((name, size - 16 * per_shard - 4, size + 1))
    scratch = np.empty(array.chunk_bytes, np.uint8)
    number = 0
    for some in split_batches([stop - start for _, start, stop in ranges], files.batch_bytes):
        for (_, start, stop), data in zip(ranges[some], files.read(ranges[some]), strict=True):
            if data is None:
                yield "it is missing"
                return
            if number < len(chunks):
                try:
                    frame = check_chunk(data, start, stop, chunks[number][2], name)
                    decompress(frame, scratch, name)
                except Damaged as damage:
                    yield damage.what
            elif len(data) != stop - 1 - start:
                there = files.size(name)
                yield f"it has {there} bytes, {size} were written"
            elif not checksum(data[:-4]) == trailing_checksum(data) == expected:
                yield "the index at its end, which zarr reads, is not as written"
            number += 1


def _check_contents(files: Files, part: str) -> list[Problem]:
    """Return the tables that a part lists and does not have, or what is wrong with the list.

    Others may change both between the two requests: only what is found twice is a problem.
    """
    folder = f"{PARTS}/{part}"
    data = read_whole(files, f"{folder}/{CONTENTS}", None)
    there = files.children(folder)
    if data is None:
        if not any(TABLE_NAME.match(name) for name in there):
            return []  # not begun, or pruned
        return [Problem(f"{folder}/{CONTENTS}", f"it is missing{LIST_ONLY}")]
    listed = decode_contents(data)
    if listed is None:
        return [Problem(f"{folder}/{CONTENTS}", f"it is not as written{LIST_ONLY}")]
    return [
        Problem(f"{folder}/{name}", "it is missing")
        for name in listed
        if name not in there and name + RETIRED not in there
    ]


def _check_descriptions(files: Files, tables: dict[str, IndexTable]) -> list[Problem]:
    """Return the descriptions that are damaged, and those that tables list and are missing."""
    found: list[Problem] = []
    there: set[str] = set()
    for folder in DESCRIPTIONS:
        # What was found damaged or missing before has left an empty file.
        children = files.children(folder)
        names = (name.removesuffix(RETIRED).split("-") for name in children)
        there |= {f"{folder}/{'-'.join(name[:2])}" for name in names}
        sizes = list(select_descriptions(folder, children).items())
        for first in range(0, len(sizes), FILES_AT_ONCE):
            some = sizes[first : first + FILES_AT_ONCE]
            contents = files.read([(file, 0, size) for file, size in some])
            for (file, _), data in zip(some, contents, strict=True):
                try:
                    if data is not None:
                        check_description(files, file, data)
                except Damaged as damage:
                    found.append(Problem(file, damage.what))
    for file, table in tables.items():
        listed = zip(table.subjects, table.described, strict=False)  # version 1 lists none
        wanted = {f"{folder_of(who)}/{who}-{each}" for who, hashes in listed for each in hashes}
        missing = [Problem(each, "it is missing") for each in sorted(wanted - there)]
        found += _if_still_there(files, file, missing)
    return list(dict.fromkeys(found))


def _if_still_there(files: Files, file: str, problems: list[Problem]) -> list[Problem]:
    """Return the problems of a table, none if it was compacted or pruned while it was read."""
    folder, _, name = file.rpartition("/")
    return problems if problems and name in files.children(folder) else []


def _merge_by_file(found: Iterable[tuple[str, str]]) -> list[Problem]:
    """Return one problem for each file, the first, with the number of the others."""
    by_file: dict[str, list[str]] = {}
    for file, what in found:
        by_file.setdefault(file, []).append(what)
    return [
        Problem(file, whats[0] + (f" (and {len(whats) - 1} more)" if len(whats) > 1 else ""))
        for file, whats in by_file.items()
    ]


def _stored_bytes(table: IndexTable) -> int:
    if table.array is not None:
        return sum(size for size, _ in table.array.shards)
    return int(table.records["size"].sum())
