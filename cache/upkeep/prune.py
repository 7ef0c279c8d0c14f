"""Pruning: freeing what is stale, damaged or left behind, while others write and read.

Nothing that somebody relies on is removed before its replacement is committed, and no process
writes records into another's part: what is to stay is copied into a part of this process, and then
the file that it came from is retired. So pruning may be killed at any moment.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from cache.address import FingerprintInfo
from cache.errors import StoreError
from cache.format.descriptions import FOLDERS, is_description_file
from cache.format.index import CONTENTS, PARTS, RETIRED, TABLE_NAME, LoadedTable
from cache.format.writer import Writer, encode_contents
from cache.storage.leases import Lease, User, list_users
from cache.store import Store
from cache.upkeep.join import join_descriptions
from cache.upkeep.retention import Retention
from cache.upkeep.verify import Problem
from configs.progress import ProgressBar


@dataclass
class PruneReport:
    """Counts of what `prune` did.

    Args:
        freed_bytes, kept_bytes: on the disk; kept is the size of the store now.
        dropped, damaged, duplicates: spans, or pieces of them, that were freed: stale or over the
            budget, unreadable, and stored twice.
        repaired: lists of a part's tables that were rewritten.
        moved: spans that were copied out of files whose other spans were freed.
        leftovers: files and folders of killed processes.
        in_use: fingerprints that were to go but are in use.
        active_parts: parts that are being written; they are not touched.
    """

    freed_bytes: int = 0
    kept_bytes: int = 0
    dropped: int = 0
    damaged: int = 0
    duplicates: int = 0
    repaired: int = 0
    moved: int = 0
    leftovers: int = 0
    in_use: set[str] = field(default_factory=set)
    active_parts: int = 0


def prune(
    store: Store,
    drop: Callable[[FingerprintInfo], bool] = lambda info: False,
    keep_bytes: int | None = None,
    problems: Sequence[Problem] = (),
    progress: bool = False,
) -> PruneReport:
    """Free what is not wanted, then the oldest over a budget, and clean up after killed processes.

    Journals of killed writers become arrays. Parts of living writers and fingerprints that living
    processes use stay; so does a fingerprint without a description, unless over the budget.

    Args:
        store: open for writing.
        drop: returns whether to free a fingerprint.
        keep_bytes: largest size that the store may have afterwards.
        problems: from `verify`; the spans in these files that cannot be read are freed.

    Raises:
        StoreError: the store is not open for writing, another process prunes it, or a lease cannot
            be parsed.
        OSError: the disk is full; the store is good.
    """
    if store.mode != "a":
        raise StoreError(f'{store.url} is open for reading; open it with mode "a" to prune it')
    lease = None
    with suppress(OSError):  # a disk that is full for a lease is one to prune
        lease = Lease(store.files, prunes=True)
    try:
        return _Pruner(store, lease, problems, progress).prune(drop, keep_bytes)
    finally:
        if lease is not None:
            lease.release()


class _Pruner:
    """One run of `prune`."""

    def __init__(
        self, store: Store, lease: Lease | None, problems: Sequence[Problem], progress: bool
    ) -> None:
        self.store, self.files = store, store.files
        self.own_leases = {own.name for own in (store.lease, lease) if own is not None}
        self.problems, self.progress = problems, progress
        self.damaged = {_table_of(file) for file, _ in problems}
        self.report = PruneReport()

    def prune(self, drop: Callable[[FingerprintInfo], bool], keep_bytes: int | None) -> PruneReport:
        # Parts before users: the lease of a part that is listed was there before it.
        parts = self.files.grandchildren(PARTS)
        before = sum(self.files.walk(PARTS).values())
        processes = self._other_users()
        for user in processes:
            if user.prunes and user.alive:
                raise StoreError(
                    f"{self.store.url} is being pruned ({user.name}); try again when that is done"
                )
        living = {user.part for user in processes if user.alive}
        self.used = _used_fingerprints(processes)
        self.parts = {part: names for part, names in parts.items() if part not in living}
        self.report.active_parts = len(parts) - len(self.parts)
        self._tidy()
        self.store.refresh()
        self._apply(self._choose(drop, keep_bytes))
        self._delete_empty_parts()
        self.store.refresh()
        if not self.report.active_parts:  # a writer may rely on what is not used yet
            join_descriptions(self.store, self.damaged, self._is_written)
        self.report.kept_bytes = sum(self.files.walk(PARTS).values())
        self.report.freed_bytes = max(before - self.report.kept_bytes, 0)
        return self.report

    def _other_users(self) -> list[User]:
        """Return all users but this process; delete the leases of dead ones."""
        found = [user for user in list_users(self.files) if user.name not in self.own_leases]
        for user in found:
            if user.unreadable:
                raise StoreError(
                    f"{self.store.url}/{user.name} is damaged, so it is unknown what its process "
                    "uses; delete it if that process has ended, or wait half a minute"
                )
            if not user.alive:
                self.files.delete(user.name)
        return found

    def _is_written(self) -> bool:
        """Return whether another process writes just now."""
        return any(user.part and user.alive for user in self._other_users())

    def _tidy(self) -> None:
        """Undo what killed processes began in parts that nobody writes any more."""
        for part, names in self.parts.items():
            for file, size in ((f"{PARTS}/{part}/{name}", size) for name, size in names.items()):
                if file.endswith(RETIRED) and size:
                    with suppress(FileNotFoundError):  # whether it goes is decided again
                        self.files.move(file, file.removesuffix(RETIRED))
                elif file.endswith(".part"):
                    self.files.delete(file)
                    self.report.leftovers += 1
            # Listed again: a table may just have been moved back.
            for name in _orphaned_arrays(self.files.children(f"{PARTS}/{part}")):
                self.files.delete_folder(f"{PARTS}/{part}/{name}")
                self.report.leftovers += 1

    def _choose(self, drop: Callable[[FingerprintInfo], bool], keep_bytes: int | None) -> Retention:
        index, report = self.store.index, self.report
        prunable = {n: t for n, t in index.tables.items() if self._is_prunable(t.file)}
        retention = Retention(self.files, index, self.store.fingerprints, prunable, self.used)
        report.dropped, report.in_use = retention.drop_stale(drop)
        report.damaged = retention.drop_damaged(self.damaged)
        report.duplicates = retention.drop_duplicates()
        if keep_bytes is not None:
            dropped, in_use = retention.drop_oldest(keep_bytes)
            report.dropped += dropped
            report.in_use |= in_use
        return retention

    def _apply(self, retention: Retention) -> None:
        """Free, move and repair as `retention` says."""
        prunable = retention.prunable
        staying = [table for table in prunable if retention.keeps_any(table)]
        gone = prunable.keys() - staying
        moving = [table for table in staying if self._must_move(retention, table)]
        if self.store.descriptions.unwritten:
            self.store.writer().close()  # it writes them
        self._retire([prunable[table] for table in gone])
        if moving:
            with self.store.writer() as writer:
                for table in ProgressBar(moving, desc="prune", disable=not self.progress):
                    self._move(writer, retention, table)
                    writer.flush()
                    self._retire([prunable[table]])
        for file in retention.index.unreadable:
            if self._is_prunable(file):
                self.report.damaged += 1
                self._delete(file)
        for file, _ in self.problems:
            if file.split("/")[0] in FOLDERS and not is_description_file(file):
                self.files.write(file + RETIRED, [])  # it is known to be lost
                self.report.damaged += 1
        files = [file for file, _ in self.problems if self._is_prunable(file)]
        for part in {file.split("/")[1] for file in files if file.count("/") == 2}:
            self._repair_contents(part)

    def _must_move(self, retention: Retention, table: int) -> bool:
        """Return whether the rest of a table moves: of a journal, or a damaged or emptied array."""
        loaded, keep = retention.prunable[table], retention.keep[retention.rows_of(table)]
        mostly_freed = 2 * int(keep.sum()) < len(keep)
        return loaded.array is None or loaded.file in self.damaged or mostly_freed

    def _move(self, writer: Writer, retention: Retention, table: int) -> None:
        """Copy the records of a table that stay into a part of this process."""
        rows, index = retention.rows_of(table), retention.index
        for entry, data in retention.read_table(table, rows[retention.keep[rows]]):
            if data is None:
                self.report.damaged += 1
                continue
            writer.copy_rows(entry, index.groups[entry.group], index.digests[entry.video], data)
            self.report.moved += 1

    def _retire(self, tables: Sequence[LoadedTable]) -> None:
        """Rename tables, then delete them, or rename those back that have come into use."""
        renamed = []
        for loaded in tables:
            with suppress(FileNotFoundError):  # deleted by hand
                self.files.move(loaded.file, loaded.file + RETIRED)
                renamed.append(loaded)
        if not renamed:
            return
        # A reader adds a fingerprint to its lease before it asks whether that is stored.
        try:
            newly_used = _used_fingerprints(self._other_users()) - self.used
        except BaseException:
            for loaded in renamed:
                self.files.move(loaded.file + RETIRED, loaded.file)
            raise
        for loaded in renamed:
            if names := loaded.fingerprints & newly_used:
                self.report.in_use |= names
                self.files.move(loaded.file + RETIRED, loaded.file)
            else:
                self._delete(loaded.file)

    def _delete(self, file: str) -> None:
        """Delete a table and its array, leaving an empty file so that they do not count as lost."""
        # Empty means final: after a kill nothing moves the table back.
        try:
            self.files.write(file + RETIRED, [])
            marked = True
        except OSError:
            # No room even for an empty file: better a table that counts as lost than half a one.
            self.files.delete(file + RETIRED)
            marked = False
        self.files.delete(file)
        if file.endswith(".idx"):
            self.files.delete_folder(file.removesuffix(".idx"))
        if not marked:
            with suppress(OSError):  # there is room now
                self.files.write(file + RETIRED, [])

    def _repair_contents(self, part: str) -> None:
        """Rewrite the list of a dead writer's part from the tables that are there."""
        names = self.files.children(f"{PARTS}/{part}")
        if tables := {n: size for n, size in names.items() if TABLE_NAME.match(n) and size}:
            self.files.write(f"{PARTS}/{part}/{CONTENTS}", [encode_contents(tables)])
            self.report.repaired += 1

    def _delete_empty_parts(self) -> None:
        for part in self.parts:
            names = self.files.children(f"{PARTS}/{part}")
            if not any(TABLE_NAME.match(name) for name in names):
                # The list first: what says that its tables were retired goes with the part.
                self.files.delete(f"{PARTS}/{part}/{CONTENTS}")
                self.files.delete_folder(f"{PARTS}/{part}")

    def _is_prunable(self, file: str) -> bool:
        """Return whether a file is in a part that nobody writes."""
        return file.startswith(f"{PARTS}/") and file.split("/")[1] in self.parts


def _used_fingerprints(processes: Iterable[User]) -> set[str]:
    return {name for user in processes if user.alive for name in user.fingerprints}


def _table_of(file: str) -> str:
    """Return the table that a file belongs to: of a shard, its array's index; else the file."""
    names = file.split("/")
    return "/".join(names[:3]) + ".idx" if len(names) > 3 else file


def _orphaned_arrays(names: dict[str, int | None]) -> list[str]:
    """Return a part's arrays without an index: of a killed compaction, or half deleted."""
    return [n for n, size in names.items() if size is None and f"{n}.idx" not in names]
