"""Verification of every checksum of a store."""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from cache.errors import Damaged
from cache.format.arrays import Array, check_chunk, shard_name, trailing_checksum
from cache.format.compaction import decode_payload
from cache.format.descriptions import (
    FOLDER,
    FOLDERS,
    decode_descriptions,
    is_description_file,
    list_folders,
)
from cache.format.index import CONTENTS, PARTS, RETIRED, TABLE_NAME, list_tables
from cache.format.records import Entry, IndexTable, compute_digest, decode_table
from cache.format.writer import decode_contents
from cache.storage.base import Files, read_whole, split_batches
from cache.storage.codec import Bytes, checksum, decompress
from cache.store import FORMATS, MARKER, Store
from configs.progress import ProgressBar

LIST_ONLY = (
    "; the tables that are there were checked all the same, but one that is lost, too, cannot be "
    "noticed; --prune rewrites it"
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
    sizes = files.walk()
    found = []
    mark = read_whole(files, MARKER, None)
    if mark is None or mark.tobytes() not in FORMATS:
        found.append(Problem(MARKER, "it is missing" if mark is None else "it is not as written"))
    in_parts = {file: size for file, size in sizes.items() if file.startswith(f"{PARTS}/")}
    parts: dict[str, dict[str, int | None]] = {}
    for file, size in in_parts.items():
        if file.count("/") == 2:
            parts.setdefault(file.split("/")[1], {})[file.split("/")[2]] = size
    tables = list_tables(parts)
    described: dict[str, set[str]] = {}
    with ProgressBar(
        total=sum(in_parts.values()), unit="B", unit_scale=True, desc="verify", disable=not progress
    ) as bar:
        for file, data in _read_files(files, tables):
            bar.update(len(data))
            try:
                if len(data) != tables[file]:
                    raise Damaged(file, f"it ends after {len(data)} of {tables[file]} bytes")
                table = decode_table(data, len(data), file)
            except Damaged as damage:
                found += _if_still_there(files, file, [Problem(file, damage.what)])
                continue
            subjects = zip(table.subjects, table.described, strict=False)  # version 1 has none
            described[file] = {f"{subject}-{each}" for subject, all_ in subjects for each in all_}
            if table.array is None:
                problems = _check_segment(data, file, table)
            else:
                problems = _check_array(files, file, table, bar)
            found += _if_still_there(files, file, problems)
    lists = {file: size for file, size in in_parts.items() if file.endswith(f"/{CONTENTS}")}
    contents = {file: decode_contents(data) for file, data in _read_files(files, lists)}
    for part, names in parts.items():
        listed = contents.get(f"{PARTS}/{part}/{CONTENTS}")
        if listed is not None and listed.keys() <= names.keys():
            continue  # for which no part has to be listed again
        # What is compacted, renamed or deleted meanwhile is not missing twice.
        if missing := _check_contents(files, part):
            again = _check_contents(files, part)
            found += [each for each in missing if each in again]
    return found + _check_descriptions(files, sizes, described)


def _read_files(files: Files, sizes: dict[str, int]) -> Iterator[tuple[str, Bytes]]:
    """Yield files with what they hold, some read at a time; those that are gone are left out."""
    names = list(sizes)
    for some in split_batches(list(sizes.values()), files.batch_bytes):
        found = files.read([(name, 0, sizes[name]) for name in names[some]])
        for name, data in zip(names[some], found, strict=True):
            if data is not None:
                yield name, data


def _check_segment(data: Bytes, file: str, table: IndexTable) -> list[Problem]:
    found = []
    for entry in map(Entry._make, table.records.tolist()):
        payload = data[entry.place : entry.place + entry.size]
        try:
            decode_payload(payload, entry, table.groups[entry.group].row_bytes, file)
        except Damaged as damage:
            found.append((file, damage.what))
    return _merge_by_file(found)


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


def _check_descriptions(
    files: Files, sizes: dict[str, int], described: dict[str, set[str]]
) -> list[Problem]:
    """Return the descriptions that are damaged, and those that tables list and are missing."""
    there, found = _find_descriptions(files, sizes)
    missing = {file: wanted - there for file, wanted in described.items() if wanted - there}
    if missing:
        # Others may join files between listing and reading them: what is missing is so twice.
        again = {file: size for file, size in list_folders(files).items() if size is not None}
        there |= _find_descriptions(files, again)[0]
    for file, wanted in missing.items():
        lost = [Problem(f"{FOLDER}/{each}", "it is missing") for each in sorted(wanted - there)]
        found += _if_still_there(files, file, lost)
    return list(dict.fromkeys(found))


def _find_descriptions(files: Files, sizes: dict[str, int]) -> tuple[set[str], list[Problem]]:
    """Return the names of the descriptions that can be read, and which files are damaged.

    Descriptions that `prune` found damaged or missing have left a name.
    """
    there: set[str] = set()
    found = []
    readable: dict[str, int] = {}
    for file, size in sizes.items():
        original = file.removesuffix(RETIRED)
        if original.split("/")[0] in FOLDERS and original != file and not size:
            there.add("-".join(original.rpartition("/")[2].split("-")[:2]))
        elif is_description_file(original):
            readable[file] = size
    for file, data in _read_files(files, readable):
        intact, wrong = decode_descriptions(files, file.removesuffix(RETIRED), data)
        there |= {f"{each.subject}-{each.hash}" for each, _, _ in intact}
        if wrong:
            found.append(Problem(file, wrong))
    return there, found


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
