"""All index tables of a store joined in memory: where the rows of an address are."""

import re
from collections import deque
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from shlex import quote
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from cache.address import DIRECTIONS, SPANS, Address
from cache.errors import Damaged
from cache.format.arrays import Array
from cache.format.records import (
    RECORD,
    Description,
    Entry,
    Group,
    IndexTable,
    Records,
    decode_table,
    table_offset,
)
from cache.storage.base import Files

PARTS = "parts"
CONTENTS = "contents.json"
RETIRED = ".dropped"  # after a table's name; empty once its data may be deleted
TABLE_NAME = re.compile(r"^(j\d+\.bin|a\d+\.idx)$")
TAIL_BYTES = 2**16  # of a segment, read at first: most tables fit


@dataclass(frozen=True)
class LoadedTable:
    """A table in memory, its records joined into those of the index.

    Args:
        file: its name in the store; `bytes`: its size.
        fingerprints: those of its records.
        array: the array that it describes; None for a segment, which holds its rows itself.
        embedded: the descriptions in its header, which only format version 1 has.
    """

    file: str
    bytes: int
    fingerprints: frozenset[str]
    array: Array | None
    embedded: list[Description]

    @property
    def stored_bytes(self) -> int:
        """Bytes on the disk, the array's shards included."""
        shards = self.array.info.shards if self.array is not None else []
        return self.bytes + sum(size for size, _ in shards)


@dataclass(frozen=True)
class Index:
    """The content of a store at one moment; never changed, only replaced.

    Args:
        records: RECORD [n], sorted by `hi`; `group`, `video` and `table` index `groups`, `digests`
            and `tables` of this index.
        tables: by number; numbers are never reused.
        unreadable: damaged tables, with the error of each.
    """

    records: Records
    hi: NDArray[np.uint64]
    tables: dict[int, LoadedTable] = field(default_factory=dict)
    groups: list[Group] = field(default_factory=list)
    digests: list[str] = field(default_factory=list)
    unreadable: dict[str, Damaged] = field(default_factory=dict)
    next_table: int = 0

    @staticmethod
    def empty() -> "Index":
        return Index(np.empty(0, RECORD), np.empty(0, np.uint64))

    @cached_property
    def latest(self) -> int:
        """The highest time of a record; 0 if there is none."""
        return int(self.records["time"].max(initial=0))

    def subjects(self) -> set[str]:
        """Return the digests and fingerprints that records refer to."""
        found = {self.digests[number] for number in np.unique(self.records["video"])}
        return found | {self.groups[n].fingerprint for n in np.unique(self.records["group"])}

    def embedded(self) -> list[Description]:
        """Return the descriptions in tables of format version 1."""
        return [each for table in self.tables.values() for each in table.embedded]

    def find(self, key: bytes) -> list[Entry]:
        """Return the records of a key, the newest first."""
        hi = int.from_bytes(key[:8], "little")
        lo = int.from_bytes(key[8:], "little")
        begin = int(self.hi.searchsorted(np.uint64(hi)))
        end = begin + 1
        if end < len(self.hi) and self.hi[end] == hi:
            end = int(self.hi.searchsorted(np.uint64(hi), "right"))
        found = [Entry._make(values) for values in self.records[begin:end].tolist()]
        found = [entry for entry in found if (entry.hi, entry.lo) == (hi, lo)]
        if len(found) > 1:
            found.sort(key=self.age)
        return found

    def age(self, entry: Entry) -> tuple[int, int, str, int]:
        """Return what sorts records, the newest first; the same in all processes."""
        return -entry.time, -entry.writer, self.tables[entry.table].file, entry.place

    def find_rows(self, address: Address, start: int, stop: int) -> list[tuple[Entry, int, int]]:
        """Return the records that hold the rows, each with the rows to take from it.

        Of rows that were written more than once, the newest are taken. The list is empty if any row
        is missing.
        """
        entries = self.find(address.key)
        if not entries:
            return []
        if entries[0].start <= start and stop <= entries[0].start + entries[0].rows:
            return [(entries[0], start, stop)]
        group = self.groups[entries[0].group]
        missing, found = [(start, stop)], []
        for entry in entries:
            if self.groups[entry.group] != group:
                continue  # an earlier one, of another row shape
            still_missing = []
            for low, high in missing:
                begin, end = max(low, entry.start), min(high, entry.start + entry.rows)
                if begin >= end:
                    still_missing.append((low, high))
                    continue
                found.append((entry, begin, end))
                still_missing += [(a, b) for a, b in ((low, begin), (end, high)) if a < b]
            missing = still_missing
            if not missing:
                return found
        return []


def list_tables(parts: dict[str, dict[str, int | None]]) -> dict[str, int]:
    """Return the tables among the files of all parts, with their sizes."""
    return {
        f"{PARTS}/{part}/{name}": size
        for part, names in parts.items()
        for name, size in names.items()
        if size is not None and TABLE_NAME.match(name)
    }


def refresh_index(index: Index, files: Files) -> Index:
    """Return an index of what is committed now.

    A listing is not a snapshot: while a writer compacts, one may lack both the segment that it
    deletes and the array that it committed before. Two equal listings in a row lack nothing.
    """
    listed = list_tables(files.grandchildren(PARTS))
    for _ in range(8):
        index = _apply_listing(index, files, listed)
        previous, listed = listed, list_tables(files.grandchildren(PARTS))
        if previous == listed:
            break
    return index


def _read_tables(files: Files, sizes: dict[str, int]) -> Iterator[tuple[str, IndexTable | Damaged]]:
    """Yield tables, or how they are damaged; deleted ones are left out.

    Not all are in memory at once.
    """
    todo = deque(
        (name, max(size - TAIL_BYTES, 0) if name.endswith(".bin") else 0)
        for name, size in sizes.items()
    )
    while todo:
        batch = [todo.popleft()]
        total = sizes[batch[0][0]] - batch[0][1]
        while todo and (total := total + sizes[todo[0][0]] - todo[0][1]) <= files.batch_bytes:
            batch.append(todo.popleft())
        tails = files.read([(name, begin, sizes[name]) for name, begin in batch])
        for (name, begin), tail in zip(batch, tails, strict=True):
            if tail is None:
                continue
            size = sizes[name]
            try:
                if begin + len(tail) != size:
                    raise Damaged(name, f"it ends after {begin + len(tail)} of {size} bytes")
                needed = table_offset(tail, size, name)
                if needed < begin:
                    todo.append((name, needed))
                else:
                    yield name, decode_table(tail, size, name)
            except Damaged as damage:
                yield name, damage


def _apply_listing(index: Index, files: Files, listed: dict[str, int]) -> Index:
    """Return an index of the listed tables; those in `index` are not read again."""
    numbers = {loaded.file: number for number, loaded in index.tables.items()}
    gone = [number for file, number in numbers.items() if file not in listed]
    loaded_before = numbers.keys() | index.unreadable.keys()
    new = {file: size for file, size in listed.items() if file not in loaded_before}
    unreadable = {f: damage for f, damage in index.unreadable.items() if f in listed}
    if not (gone or new or len(unreadable) < len(index.unreadable)):
        return index
    records = index.records[~np.isin(index.records["table"], gone)]  # a copy, which may grow
    end = len(records)
    tables = {number: loaded for number, loaded in index.tables.items() if number not in gone}
    groups, digests = list(index.groups), list(index.digests)
    group_number, digest_number = _make_numbering(groups), _make_numbering(digests)
    embedded = {(each.key, each.sequence): each for each in index.embedded()}
    number = index.next_table
    for file, table in _read_tables(files, new):
        if isinstance(table, Damaged):
            unreadable[file] = table
            tqdm.write(
                f"warning: {files.url}/{file} cannot be read ({table.what}); what it holds "
                f"counts as missing; `python cache/show.py {quote(files.url)} --prune` removes it"
            )
            continue
        if end + len(table.records) > len(records):
            # In place where that is possible, for all records twice might be much.
            records.resize(end + len(table.records) + len(records) // 8, refcheck=False)
        joined = records[end : end + len(table.records)]
        end += len(joined)
        joined[:] = table.records
        if len(joined):
            to_group = np.array([group_number(group) for group in table.groups], np.uint32)
            to_video = np.array([digest_number(digest) for digest in table.videos], np.uint32)
            joined["group"] = to_group[joined["group"]]
            joined["video"] = to_video[joined["video"]]
        joined["table"] = number
        del joined  # or growing would leave it behind
        array = None
        if table.array is not None:
            info = replace(table.array, chunks=None)
            folder = file.removesuffix(".idx")
            array = Array(files, folder, table.groups[0], info, listed[file])
        used = frozenset(group.fingerprint for group in table.groups)
        # Version 1 repeats descriptions in every table: one of each is enough.
        same = [embedded.setdefault((each.key, each.sequence), each) for each in table.embedded]
        tables[number] = LoadedTable(file, listed[file], used, array, same)
        number += 1
    records.resize(end, refcheck=False)
    order = np.argsort(records["hi"], kind="stable")
    for name in RECORD.names or ():
        records[name] = records[name][order]
    hi = np.ascontiguousarray(records["hi"])
    return Index(records, hi, tables, groups, digests, unreadable, number)


T = TypeVar("T", bound=Hashable)


def _make_numbering(values: list[T]) -> Callable[[T], int]:
    """Return a function from a value to its index in the list, which appends new values."""
    numbers = {value: number for number, value in enumerate(values)}

    def number(value: T) -> int:
        if value not in numbers:
            numbers[value] = len(values)
            values.append(value)
        return numbers[value]

    return number


@dataclass(frozen=True)
class Summary:
    """Counts of a store's activations of one fingerprint, direction and kind of span.

    Args:
        spans: complete activations; `pieces`: records, of incomplete ones too.
        bytes: as stored; `oldest_s`, `newest_s`: when they were written, seconds since 1970.
    """

    fingerprint: str
    dtype: str
    row_shape: tuple[int, ...]
    direction: str
    span: str
    spans: int
    pieces: int
    videos: int
    rows: int
    bytes: int
    oldest_s: float
    newest_s: float


def summarise_index(index: Index) -> list[Summary]:
    """Return counts of what is stored, by group, direction and kind of span."""
    records = index.records
    kinds = (records["group"].astype(np.int64) * 2 + records["direction"]) * 2 + records["span"]
    found = []
    for kind in np.unique(kinds):
        chosen = records[kinds == kind]
        group = index.groups[int(chosen["group"][0])]
        found.append(
            Summary(
                *group,
                direction=DIRECTIONS[int(chosen["direction"][0])],
                span=SPANS[int(chosen["span"][0])],
                spans=_count_complete(chosen),
                pieces=len(chosen),
                videos=len(np.unique(chosen["video"])),
                rows=int(chosen["rows"].sum(dtype=np.int64)),
                bytes=int(chosen["size"].sum()),
                oldest_s=float(chosen["time"].min()) / 1e9,
                newest_s=float(chosen["time"].max()) / 1e9,
            )
        )
    return found


def _count_complete(records: Records) -> int:
    """Return how many addresses have all their rows; keys are compared by their first half."""
    ordered = records[np.lexsort((records["start"], records["hi"]))]
    stops = ordered["start"].astype(np.int64) + ordered["rows"]
    begins = np.flatnonzero(np.r_[True, ordered["hi"][1:] != ordered["hi"][:-1]])
    ends = np.r_[begins[1:], len(ordered)]
    single = begins[ends - begins == 1]
    complete = int((ordered["rows"][single] == ordered["total"][single]).sum())
    for begin, end in zip(begins[ends - begins > 1], ends[ends - begins > 1], strict=True):
        reached = 0
        for start, stop in zip(
            ordered["start"][begin:end].tolist(), stops[begin:end].tolist(), strict=True
        ):
            if start > reached:
                break
            reached = max(reached, stop)
        complete += reached == ordered["total"][begin]
    return complete
