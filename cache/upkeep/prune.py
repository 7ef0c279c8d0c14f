"""Freeing what is stale, damaged or left over, while others write and read.

Nothing that somebody relies on is taken away before its replacement is committed, and nobody writes
records into another's part: what shall stay is copied into a part of this process, and then the
file that it came from is retired. So it may be killed at any moment.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np
from tqdm import tqdm

from cache.address import FingerprintInfo
from cache.errors import Damaged, StoreError
from cache.format.index import CONTENTS, PARTS, RETIRED, TABLE_NAME, Loaded
from cache.format.records import decode
from cache.format.writer import Writer, contents
from cache.storage.base import read_whole
from cache.storage.leases import Lease, User, users
from cache.store import Store
from cache.upkeep.retention import Choice
from cache.upkeep.verify import Problem


@dataclass
class PruneReport:
    """What `prune` did.

    Args:
        freed_bytes, kept_bytes: on the disk; kept is what the store takes now.
        dropped, damaged, doubled: spans, or pieces of them, that are gone: as asked or over the
            budget, unreadable, and there twice.
        mended: lists of a part's tables that were missing or damaged and are written anew.
        moved: spans that were copied out of files of which the rest went.
        leftovers: files and folders of killed processes.
        in_use: fingerprints that were to go but are used.
        writing: parts that are being written; they were left alone.
    """

    freed_bytes: int = 0
    kept_bytes: int = 0
    dropped: int = 0
    damaged: int = 0
    doubled: int = 0
    mended: int = 0
    moved: int = 0
    leftovers: int = 0
    in_use: set[str] = field(default_factory=set)
    writing: int = 0


def prune(
    store: Store,
    drop: Callable[[FingerprintInfo], bool] = lambda info: False,
    keep_bytes: int | None = None,
    problems: Sequence[Problem] = (),
    progress: bool = False,
) -> PruneReport:
    """Free what is not wanted, oldest first over a budget, and tidy up after the dead.

    Journals of killed writers become arrays. Parts of living writers and fingerprints that living
    processes use stay; a fingerprint that nothing is known of stays, too, unless over the budget.

    Args:
        store: open for writing.
        drop: says which fingerprints to free.
        keep_bytes: size that the store shall have at most.
        problems: what `verify` found; the spans in these files that cannot be read are freed.

    Raises:
        StoreError: the store is not open for writing, another process prunes it, or it cannot be
            known who uses it.
        OSError: the disk is full; the store is good.
    """
    if store.mode != "a":
        raise StoreError(f'{store.url} is open for reading; open it with mode "a" to prune it')
    lease = None
    with suppress(OSError):  # a disk that is full for a lease is one to prune
        lease = Lease(store.files, prunes=True)
    try:
        return _Prune(store, lease, problems, progress).run(drop, keep_bytes)
    finally:
        if lease is not None:
            lease.release()


class _Prune:
    """One run of `prune`."""

    def __init__(
        self, store: Store, lease: Lease | None, problems: Sequence[Problem], progress: bool
    ) -> None:
        self.store, self.files = store, store.files
        self.mine = {own.name for own in (store.lease, lease) if own is not None}
        self.problems, self.progress = problems, progress
        self.damaged = {_table_of(file) for file, _ in problems}
        self.report = PruneReport()

    def run(self, drop: Callable[[FingerprintInfo], bool], keep_bytes: int | None) -> PruneReport:
        # Parts before users: a part that is listed had its lease before.
        parts = self.files.grandchildren(PARTS)
        before = self.files.usage(PARTS)
        everyone = self._users()
        for user in everyone:
            if user.prunes and user.alive:
                raise StoreError(
                    f"{self.store.url} is being pruned ({user.name}); try again when that is done"
                )
        living = {user.part for user in everyone if user.alive}
        self.used = _used(everyone)
        self.parts = {part: names for part, names in parts.items() if part not in living}
        self.report.writing = len(parts) - len(self.parts)
        self._tidy()
        self.store.refresh()
        self._free(self._choose(drop, keep_bytes))
        self._forget_empty_parts()
        self.store.refresh()
        self.report.kept_bytes = self.files.usage(PARTS)
        self.report.freed_bytes = max(before - self.report.kept_bytes, 0)
        return self.report

    def _users(self) -> list[User]:
        """Return everybody but this prune and its store; the leases of the dead are deleted."""
        found = [user for user in users(self.files) if user.name not in self.mine]
        for user in found:
            if user.unreadable:
                raise StoreError(
                    f"{self.store.url}/{user.name} is damaged, so it is unknown what its process "
                    "uses; delete it if that process has ended, or wait half a minute"
                )
            if not user.alive:
                self.files.delete(user.name)
        return found

    def _tidy(self) -> None:
        """Finish what killed processes began in parts that nobody writes any more."""
        for part, names in self.parts.items():
            folder = f"{PARTS}/{part}"
            for name, size in names.items():
                if name.endswith(RETIRED) and size:
                    self._finish(f"{folder}/{name}", size)
                elif name.endswith(".part"):
                    self.files.delete(f"{folder}/{name}")
                    self.report.leftovers += 1
            # Looked at again: something may just have been put back.
            for name in _without_index(self.files.children(folder)):
                self.files.delete(f"{folder}/{name}")
                self.report.leftovers += 1

    def _finish(self, retired: str, size: int) -> None:
        """End a retirement that was cut short: back if it is used now, else for good."""
        file = retired.removesuffix(RETIRED)
        data = read_whole(self.files, retired, size)
        if data is None:
            return
        try:
            used = {group.fingerprint for group in decode(data, size, retired).groups} & self.used
        except Damaged:
            used = set()
        if used:
            with suppress(FileNotFoundError):
                self.files.move(retired, file)
            return
        self._delete(file)
        self.report.leftovers += 1

    def _choose(self, drop: Callable[[FingerprintInfo], bool], keep_bytes: int | None) -> Choice:
        index, report = self.store.index, self.report
        mine = {n: loaded for n, loaded in index.tables.items() if self._is_mine(loaded.file)}
        choice = Choice(self.files, index, mine, self.used, np.ones(len(index.records), bool))
        report.dropped, report.in_use = choice.drop_stale(drop)
        report.damaged = choice.drop_damaged(self.damaged)
        report.doubled = choice.drop_doubles()
        if keep_bytes is not None:
            dropped, spared = choice.drop_over(keep_bytes)
            report.dropped += dropped
            report.in_use |= spared
        return choice

    def _free(self, choice: Choice) -> None:
        """Bring the choice about."""
        mine, tables = choice.mine, choice.index.tables.keys()
        full = [table for table in mine if len(choice.rows(table))]
        gone = [table for table in full if not choice.stays(table)]
        moving = [table for table in full if table not in gone and self._moves(choice, table)]
        needed = choice.needed()
        orphans = needed.keys() - choice.metadata_keys(tables - {*gone, *moving})
        # Tables of descriptions only: they stay while nobody else tells what they do.
        empty = [table for table in mine if table not in full]
        elsewhere = choice.metadata_keys(tables - {*gone, *moving, *empty})
        gone += [t for t in empty if not (choice.metadata_keys([t]) & needed.keys()) - elsewhere]
        if orphans:
            # On a full disk nothing of this works; the first thing then is to make room.
            with suppress(OSError), self.store.writer() as writer:
                for key in sorted(orphans):
                    writer.copy_metadata(needed[key])
        self._retire([mine[table] for table in gone])
        if moving:
            with self.store.writer() as writer:
                for table in tqdm(moving, desc="prune", disable=not self.progress):
                    self._move(writer, choice, table)
                    writer.flush()
                    self._retire([mine[table]])
        for file in choice.index.unreadable:
            if self._is_mine(file):
                self.report.damaged += 1
                self._delete(file)
        for file, _ in self.problems:
            self._mend(file)

    def _moves(self, choice: Choice, table: int) -> bool:
        """Return whether what stays moves: from journals and arrays damaged or mostly freed."""
        loaded, keep = choice.mine[table], choice.keep[choice.rows(table)]
        mostly = 2 * int(keep.sum()) < len(keep)
        return loaded.array is None or loaded.file in self.damaged or mostly

    def _move(self, writer: Writer, choice: Choice, table: int) -> None:
        """Copy what stays into a part of this process."""
        rows, index = choice.rows(table), choice.index
        rows = rows[choice.keep[rows]]
        for row in rows[np.argsort(index.records["place"][rows])]:
            entry = choice.entry(row)
            data = choice.read(entry)
            if data is None:
                self.report.damaged += 1
                continue
            writer.copy(entry, index.groups[entry.group], index.digests[entry.video], data)
            self.report.moved += 1

    def _retire(self, tables: Sequence[Loaded]) -> None:
        """Take tables away, look who came meanwhile, then delete or put back."""
        taken = []
        for loaded in tables:
            with suppress(FileNotFoundError):  # deleted by hand
                self.files.move(loaded.file, loaded.file + RETIRED)
                taken.append(loaded)
        if not taken:
            return
        # Whoever asks for a fingerprint says so first and then looks what is there.
        try:
            came = _used(self._users()) - self.used
        except BaseException:
            for loaded in taken:
                self.files.move(loaded.file + RETIRED, loaded.file)
            raise
        for loaded in taken:
            if names := loaded.fingerprints & came:
                self.report.in_use |= names
                self.files.move(loaded.file + RETIRED, loaded.file)
            else:
                self._delete(loaded.file)

    def _delete(self, file: str) -> None:
        """Delete a table and its array; what remains tells that they are not missed."""
        # Empty means decided: a kill after this leaves nothing that could be put back.
        try:
            self.files.write(file + RETIRED, [])
        except OSError:
            # No room for an empty file: rather a table that is missed than one half there.
            self.files.delete(file + RETIRED)
        self.files.delete(file)
        if file.endswith(".idx"):
            self.files.delete(file.removesuffix(".idx"))

    def _mend(self, file: str) -> None:
        """Make the list of a dead writer's part say what is there."""
        if not self._is_mine(file):
            return
        part, name = file.split("/")[1], file.split("/")[2]
        there = self.files.children(f"{PARTS}/{part}")
        if name == CONTENTS and there:
            tables = {n: size for n, size in there.items() if TABLE_NAME.match(n) and size}
            self.files.write(f"{PARTS}/{part}/{CONTENTS}", [contents(tables)])
            self.report.mended += 1
        elif TABLE_NAME.match(name) and name not in there:
            self.files.write(file + RETIRED, [])

    def _forget_empty_parts(self) -> None:
        for part in self.parts:
            names = self.files.children(f"{PARTS}/{part}")
            pending = any(name.endswith(RETIRED) and size for name, size in names.items())
            if not pending and not any(TABLE_NAME.match(name) for name in names):
                self.files.delete(f"{PARTS}/{part}")

    def _is_mine(self, file: str) -> bool:
        """Return whether a file stands in a part that nobody writes."""
        return file.startswith(f"{PARTS}/") and file.split("/")[1] in self.parts


def _used(everyone: Iterable[User]) -> set[str]:
    return {name for user in everyone if user.alive for name in user.fingerprints}


def _table_of(file: str) -> str:
    """Return the table that a file belongs to: a shard's array's index, or the file itself."""
    names = file.split("/")
    return "/".join(names[:3]) + ".idx" if len(names) > 3 else file


def _without_index(names: dict[str, int | None]) -> list[str]:
    """Return a part's arrays that nothing refers to: of a killed fold, or half deleted."""
    return [
        name
        for name, size in names.items()
        if size is None and f"{name}.idx" not in names and not names.get(f"{name}.idx{RETIRED}")
    ]
