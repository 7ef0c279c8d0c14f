"""Which records of a store may go: stale, damaged, there twice, or over a budget."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from cache.address import FingerprintInfo
from cache.errors import Damaged
from cache.format.arrays import Gone, RowRequest
from cache.format.compaction import payload
from cache.format.index import Index, Loaded
from cache.format.records import Entry, Metadata
from cache.storage.base import Files

MetadataKey = tuple[str, str, int]
"""Subject, name and time of a description."""


@dataclass
class Choice:
    """What stays and what goes, of the tables that may be touched.

    Args:
        files: where the store is; `index`: what is in it.
        mine: numbers of the tables of dead writers; others stay whatever they hold.
        used: fingerprints that living processes use.
        keep: whether a record stays [n].
    """

    files: Files
    index: Index
    mine: dict[int, Loaded]
    used: set[str]
    keep: NDArray[np.bool_]

    def rows(self, table: int) -> NDArray[np.int64]:
        """Return which records are a table's."""
        order, tables = self._by_table
        return order[tables.searchsorted(table) : tables.searchsorted(table, "right")]

    @cached_property
    def _by_table(self) -> tuple[NDArray[np.int64], NDArray[np.uint32]]:
        order = np.argsort(self.index.records["table"], kind="stable")
        return order, self.index.records["table"][order]

    def entry(self, row: int) -> Entry:
        return Entry._make(self.index.records[row].tolist())

    def stays(self, table: int) -> bool:
        """Return whether anything of a table stays."""
        return bool(self.keep[self.rows(table)].any())

    def drop_stale(self, drop: Callable[[FingerprintInfo], bool]) -> tuple[int, set[str]]:
        """Return how many records go, and fingerprints that should but are used."""
        stale = {name for name, info in self.index.fingerprints.items() if drop(info)}
        groups = self.index.groups
        going = [n for n, g in enumerate(groups) if g.fingerprint in stale - self.used]
        dropped = 0
        for table in self.mine:
            rows = self.rows(table)
            there = rows[np.isin(self.index.records["group"][rows], going)]
            self.keep[there] = False
            dropped += len(there)
        return dropped, stale & self.used

    def drop_damaged(self, named: set[str]) -> int:
        """Of tables that `verify` named, drop the records that cannot be read."""
        damaged = 0
        for table, loaded in self.mine.items():
            for row in self.rows(table) if loaded.file in named else ():
                if self.keep[row] and self.read(self.entry(row)) is None:
                    self.keep[row] = False
                    damaged += 1
        return damaged

    def drop_doubles(self) -> int:
        """Drop records all of whose rows stand in a newer record, or in an equal one."""
        doubled = 0
        for rows in self._same_keys():
            there = [(row, self.entry(row)) for row in rows if self.keep[row]]
            there.sort(key=lambda item: self._preference(item[1]))
            kept: list[Entry] = []
            for row, entry in there:
                if entry.table in self.mine and any(_covers(other, entry) for other in kept):
                    self.keep[row] = False
                    doubled += 1
                else:
                    kept.append(entry)
        return doubled

    def drop_over(self, budget: int) -> tuple[int, set[str]]:
        """Drop whole tables, oldest first; return records that go, and used fingerprints."""
        tables = self.index.tables
        stored = sum(tables[n].stored for n in tables if n not in self.mine or self.stays(n))
        dropped = 0
        spared: set[str] = set()
        rest = [table for table in self.mine if self.stays(table)]
        for table in sorted(rest, key=self._newest):
            if stored <= budget:
                break
            if used := self.mine[table].fingerprints & self.used:
                spared |= used
                continue
            rows = self.rows(table)
            dropped += int(self.keep[rows].sum())
            self.keep[rows] = False
            stored -= self.mine[table].stored
        return dropped, spared

    def read(self, entry: Entry) -> NDArray[np.uint8] | None:
        """Return a record's rows as bytes; None if they cannot be read."""
        loaded = self.index.tables[entry.table]
        width = self.index.groups[entry.group].row_bytes
        try:
            if loaded.array is None:
                return payload(self.files, loaded.file, entry, width)
            out = np.empty(entry.rows * width, np.uint8)
            loaded.array.read([RowRequest(entry.place, entry.place + entry.rows, out)])
        except (Damaged, Gone):
            return None
        return out

    def needed(self) -> dict[MetadataKey, Metadata]:
        """Return the descriptions of videos and fingerprints that stay.

        And who else had a name of theirs last, or the name would mean the former video again.
        """
        index, records = self.index, self.index.records[self.keep]
        stay = {index.digests[video] for video in np.unique(records["video"])}
        stay |= {index.groups[group].fingerprint for group in np.unique(records["group"])}
        needed = [metadata for subject in stay for metadata in index.metadata.get(subject, ())]
        for name in [metadata.key[1] for metadata in needed if metadata.key[1]]:
            last = index.metadata[index.videos_by_name[name].digest]
            needed += [metadata for metadata in last if metadata.key[1] == name]
        return {(*metadata.key, metadata.time): metadata for metadata in needed}

    def metadata_keys(self, tables: Iterable[int]) -> set[MetadataKey]:
        """Return which descriptions some tables hold."""
        every = (metadata for table in tables for metadata in self.index.tables[table].metadata)
        return {(*metadata.key, metadata.time) for metadata in every}

    def _same_keys(self) -> Iterator[range]:
        """Yield the records of every key that has more than one; they are neighbours."""
        hi = self.index.hi
        same = np.flatnonzero(hi[1:] == hi[:-1])
        for begin in same[np.r_[True, np.diff(same) > 1]] if len(same) else ():
            yield range(int(begin), int(hi.searchsorted(hi[begin], "right")))

    def _newest(self, table: int) -> int:
        return int(self.index.records["time"][self.rows(table)].max())

    def _preference(self, entry: Entry) -> tuple[int, bool, str, int]:
        loaded = self.index.tables[entry.table]
        return -entry.time, loaded.array is None, loaded.file, entry.place


def _covers(other: Entry, entry: Entry) -> bool:
    same = (other.hi, other.lo, other.group) == (entry.hi, entry.lo, entry.group)
    return same and (
        other.start <= entry.start and entry.start + entry.rows <= other.start + other.rows
    )
