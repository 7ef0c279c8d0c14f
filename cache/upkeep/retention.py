"""Retention: which records of a store go, being stale, damaged, duplicates or over a budget."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from cache.address import FingerprintInfo
from cache.errors import Damaged
from cache.format.arrays import FileGone, RowRequest
from cache.format.compaction import decode_payload, fetch_payloads
from cache.format.index import Index, LoadedTable
from cache.format.records import Entry
from cache.storage.base import Files


@dataclass
class Retention:
    """Which records of a store stay.

    Args:
        files, index, fingerprints: of the store.
        prunable: tables of dead writers, by number; all others stay, whatever they hold.
        used: fingerprints that living processes use.

    Attributes:
        keep: whether a record stays [n]; at first all do.
    """

    files: Files
    index: Index
    fingerprints: dict[str, FingerprintInfo]
    prunable: dict[int, LoadedTable]
    used: set[str]
    keep: NDArray[np.bool_] = field(init=False)

    def __post_init__(self) -> None:
        self.keep = np.ones(len(self.index.records), bool)

    def rows_of(self, table: int) -> NDArray[np.int64]:
        """Return the numbers of a table's records."""
        order, tables = self._by_table
        return order[tables.searchsorted(table) : tables.searchsorted(table, "right")]

    @cached_property
    def _by_table(self) -> tuple[NDArray[np.int64], NDArray[np.uint32]]:
        order = np.argsort(self.index.records["table"], kind="stable")
        return order, self.index.records["table"][order]

    def entry_at(self, row: int) -> Entry:
        return Entry._make(self.index.records[row].tolist())

    def keeps_any(self, table: int) -> bool:
        """Return whether anything of a table stays."""
        return bool(self.keep[self.rows_of(table)].any())

    def drop_stale(self, drop: Callable[[FingerprintInfo], bool]) -> tuple[int, set[str]]:
        """Drop stale records; return how many, and the stale fingerprints that are in use."""
        stale = {name for name, info in self.fingerprints.items() if drop(info)}
        groups = self.index.groups
        going = [n for n, g in enumerate(groups) if g.fingerprint in stale - self.used]
        dropped = 0
        for table in self.prunable:
            rows = self.rows_of(table)
            stale_rows = rows[np.isin(self.index.records["group"][rows], going)]
            self.keep[stale_rows] = False
            dropped += len(stale_rows)
        return dropped, stale & self.used

    def drop_damaged(self, tables: set[str]) -> int:
        """Drop the records of damaged tables that cannot be read; return how many."""
        damaged = 0
        for table, loaded in self.prunable.items():
            for row in self.rows_of(table) if loaded.file in tables else ():
                if self.keep[row] and self.read_rows(self.entry_at(row)) is None:
                    self.keep[row] = False
                    damaged += 1
        return damaged

    def drop_duplicates(self) -> int:
        """Drop records all of whose rows are in a newer or equal record; return how many."""
        duplicates = 0
        for rows in self._same_keys():
            entries = [(row, self.entry_at(row)) for row in rows if self.keep[row]]
            entries.sort(key=lambda item: self.index.age(item[1]))
            kept: list[Entry] = []
            for row, entry in entries:
                if entry.table in self.prunable and any(_covers(other, entry) for other in kept):
                    self.keep[row] = False
                    duplicates += 1
                else:
                    kept.append(entry)
        return duplicates

    def drop_oldest(self, budget: int) -> tuple[int, set[str]]:
        """Drop whole tables, oldest first, until the store fits into a budget.

        Returns:
            How many records go, and the fingerprints that would have gone but are in use.
        """
        stored = sum(
            loaded.stored_bytes
            for table, loaded in self.index.tables.items()
            if table not in self.prunable or self.keeps_any(table)
        )
        dropped = 0
        in_use: set[str] = set()
        candidates = [table for table in self.prunable if self.keeps_any(table)]
        for table in sorted(candidates, key=self._newest_time):
            if stored <= budget:
                break
            if used := self.prunable[table].fingerprints & self.used:
                in_use |= used
                continue
            rows = self.rows_of(table)
            dropped += int(self.keep[rows].sum())
            self.keep[rows] = False
            stored -= self.prunable[table].stored_bytes
        return dropped, in_use

    def read_table(
        self, table: int, rows: NDArray[np.int64]
    ) -> Iterator[tuple[Entry, NDArray[np.uint8] | None]]:
        """Yield records of a table as they are placed, each as `read_rows` returns it."""
        rows = rows[np.argsort(self.index.records["place"][rows])]
        entries, loaded = [self.entry_at(row) for row in rows], self.index.tables[table]
        if loaded.array is not None:
            yield from ((entry, self.read_rows(entry)) for entry in entries)
            return
        for (file, entry), data in fetch_payloads(
            self.files, [(loaded.file, entry) for entry in entries]
        ):
            try:
                width = self.index.groups[entry.group].row_bytes
                yield entry, decode_payload(data, entry, width, file)
            except Damaged:
                yield entry, None

    def read_rows(self, entry: Entry) -> NDArray[np.uint8] | None:
        """Return a record's rows as bytes; None if they cannot be read."""
        loaded = self.index.tables[entry.table]
        width = self.index.groups[entry.group].row_bytes
        try:
            if loaded.array is None:
                ((_, data),) = fetch_payloads(self.files, [(loaded.file, entry)])
                return decode_payload(data, entry, width, loaded.file)
            out = np.empty(entry.rows * width, np.uint8)
            loaded.array.read([RowRequest(entry.place, entry.place + entry.rows, out)])
        except (Damaged, FileGone):
            return None
        return out

    def _same_keys(self) -> Iterator[range]:
        """Yield the records of every key that has more than one; they are neighbours."""
        hi = self.index.hi
        same = np.flatnonzero(hi[1:] == hi[:-1])
        for begin in same[np.r_[True, np.diff(same) > 1]] if len(same) else ():
            yield range(int(begin), int(hi.searchsorted(hi[begin], "right")))

    def _newest_time(self, table: int) -> int:
        return int(self.index.records["time"][self.rows_of(table)].max())


def _covers(other: Entry, entry: Entry) -> bool:
    same = (other.hi, other.lo, other.group) == (entry.hi, entry.lo, entry.group)
    return same and (
        other.start <= entry.start and entry.start + entry.rows <= other.start + other.rows
    )
