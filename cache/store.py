"""The store of activations: opened by URL, read by address, written by any number of writers.

    STORE/palindrome.json           format and version
    STORE/parts/PART/contents.json  the part's tables: what is missing can be named
    STORE/parts/PART/j000001.bin    journal: what one flush wrote, and its index
    STORE/parts/PART/a000001/       a zarr array, folded from the journal
    STORE/parts/PART/a000001.idx    its index; written last, which commits it
    STORE/users/*.json              leases of those who read and write now

A part belongs to one writer, and a file never changes once it is there, so nobody waits for
anybody. Icechunk, the transactional engine for zarr, would give this and history, but warns that
concurrent commits are not safe on a local file system, where most stores are.
"""

import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from cache.address import DTYPES, Address, FingerprintInfo, VideoInfo
from cache.errors import Damaged, Missing, StoreError
from cache.format.arrays import Gone, RowRequest
from cache.format.compaction import unpack
from cache.format.index import PARTS, Index, Loaded, Summary, refreshed, summaries
from cache.format.records import Entry, Group, Metadata
from cache.format.writer import Writer
from cache.storage.base import Files, Range, read_whole
from cache.storage.codec import Bytes, as_bytes
from cache.storage.leases import USERS, Lease
from cache.storage.open import files_at

__all__ = ["Damaged", "Missing", "Store", "StoreError"]

MARK = "palindrome.json"
FORMAT = b'{"format": "palindrome activations", "version": 1}\n'
NEWER = re.compile(rb'{"format": "palindrome activations", "version": \d+.*}\n', re.DOTALL)

Mode = Literal["r", "a", "look"]


class _RowCopy(NamedTuple):
    """Rows of one record, to be put into `out` [bytes]."""

    entry: Entry
    low: int
    high: int
    out: Bytes


class Store:
    """Activations by address. Cheap to send to another process, which opens it anew."""

    videos: dict[str, VideoInfo]
    fingerprints: dict[str, FingerprintInfo]

    def __init__(self, url: str | Path, mode: Mode = "r") -> None:
        """See `open`."""
        self.url, self.mode = str(url), mode
        self.files: Files = files_at(url)
        self._check_mark()
        self._lease: Lease | None = None
        self._warned = False
        # Before the index is read: what is in it may not be pruned from then on.
        self._claim()
        self._index = Index.empty()
        self.refresh()

    @classmethod
    def open(cls, url: str | Path, mode: Mode = "r") -> "Store":
        """Open a store; mode "a" creates it if need be, and can write.

        Mode "look" takes a store that is not there for an empty one and leaves no trace: nothing
        keeps others from pruning what it saw.

        Args:
            url: a path or any URL that fsspec knows.

        Raises:
            StoreError: there is no store, or none that this version can read.
        """
        return cls(url, mode)

    def __reduce__(self) -> tuple[type["Store"], tuple[str, Mode]]:
        return Store, (self.url, self.mode)

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the lease of this process; the end of the process does that, too."""
        if self._lease is not None:
            self._lease.release()
            self._lease = None

    def contains(self, address: Address) -> bool:
        """Return whether all rows of an activation are there."""
        self._use(address.fingerprint)
        return bool(self._index.pieces(address, 0, address.rows))

    def read(self, address: Address, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """Return rows of an activation [stop − start, *row_shape] in the dtype they have there.

        Raises:
            Missing: it is not there, or not all of these rows.
            Damaged: what is there is not what was written.
        """
        return self._read([(address, start, address.rows if stop is None else stop)])[0]

    def read_many(self, addresses: Sequence[Address]) -> list[torch.Tensor]:
        """Return whole activations; those that stand side by side are fetched and decoded at once.

        Raises:
            Missing: one is not there, or not all of it.
            Damaged: what is there is not what was written.
        """
        return self._read([(address, 0, address.rows) for address in addresses])

    def refresh(self) -> None:
        """See what others have flushed and pruned since the store was opened or refreshed."""
        self._index = refreshed(self._index, self.files)
        self.videos, self.fingerprints = self._index.videos, self._index.fingerprints

    @property
    def videos_by_name(self) -> dict[str, VideoInfo]:
        """The videos by every name that they had; a name means the one that had it last."""
        return self._index.videos_by_name

    @property
    def index(self) -> Index:
        """What is where at this moment; for upkeep."""
        return self._index

    @property
    def lease(self) -> Lease | None:
        """What says that this process uses the store; None where that cannot be written."""
        return self._lease

    @property
    def bytes(self) -> int:
        """Size of what is committed."""
        return sum(loaded.stored for loaded in self._index.tables.values())

    def summaries(self) -> list[Summary]:
        """Return what is there by fingerprint, dtype, direction and kind of span."""
        return summaries(self._index)

    def metadata_of(self, subject: str) -> list[Metadata]:
        """Return what the store knows of a video's digest or a fingerprint, and since when."""
        return self._index.metadata.get(subject, [])

    def writer(self, **options: Any) -> Writer:
        """Return a new writer with a part of its own; `options` are those of `Writer`."""
        if self.mode != "a":
            raise StoreError(f'{self.url} is open for reading; open it with mode "a" to write')
        return Writer(self.files, lambda: self._index, **options)

    def _check_mark(self) -> None:
        found = read_whole(self.files, MARK, None)
        if found is None and self.mode == "a":
            self.files.write(MARK, [FORMAT])
            return
        if found is None and self.mode == "look":
            return
        if found is None and self.files.children(PARTS):
            raise StoreError(f"{self.url}/{MARK} is missing; {self._remark()}")
        if found is None:
            raise StoreError(
                f"{self.url}: there is no activation cache here (no {MARK}); make one with "
                "`python extract/run.py --config CONFIG --checkpoint CHECKPOINT "
                f"--cache {self.url}`"
            )
        if found.tobytes() == FORMAT:
            return
        if NEWER.fullmatch(found.tobytes()):
            raise StoreError(
                f"{self.url}/{MARK}: a newer version of Palindrome made this cache; update, or "
                "choose another --cache"
            )
        raise StoreError(
            f"{self.url}/{MARK} is damaged, or of another program; if this is a cache of "
            f"Palindrome, delete this one file: {self._remark()}"
        )

    def _remark(self) -> str:
        """Return what the user can do to write the mark anew."""
        return (
            f"`python cache/show.py {self.url} --verify --prune` then writes it anew and checks "
            "the rest"
        )

    def _claim(self) -> None:
        if self.mode == "look":
            return
        # Whatever the place raises: a store that cannot be written can still be read.
        try:
            self._lease = Lease(self.files)
        except Exception as error:
            self._warn(error)

    def _use(self, fingerprint: str) -> None:
        """Note in the lease that a fingerprint is used, before looking whether it is there."""
        lease = self._lease
        if lease is None:
            return
        if lease.pid != os.getpid():
            # A forked child needs a lease of its own.
            self._lease = None
            self._claim()
            lease = self._lease
        if lease is not None and fingerprint not in lease.fingerprints:
            try:
                lease.use(fingerprint)
            except Exception as error:
                self._warn(error)
            # Somebody may have pruned it before that could be seen.
            self.refresh()

    def _warn(self, error: Exception) -> None:
        """Print, the first time, that a lease cannot be written and what that means."""
        if self._warned:
            return
        self._warned = True
        reason = (isinstance(error, OSError) and error.strerror) or error
        print(
            f"warning: {self.url}: cannot write a lease into {USERS}/ ({reason}); it can be read, "
            "but no other process sees that this one reads it: do not prune it meanwhile",
            file=sys.stderr,
            flush=True,
        )

    def _read(self, wanted: Sequence[tuple[Address, int, int]]) -> list[torch.Tensor]:
        for fingerprint in {address.fingerprint for address, _, _ in wanted}:
            self._use(fingerprint)
        for address, start, stop in wanted:
            if not 0 <= start <= stop <= address.rows:
                raise StoreError(f"there are no rows {start} to {stop} of {address}")
        while True:
            index = self._index
            outs, jobs = self._plan(index, wanted)
            try:
                for table, there in jobs.items():
                    _fetch(self.files, index, index.tables[table], there)
                return outs
            except Gone as gone:
                # Folded or pruned since: a new look finds where its rows are now. Whoever deletes
                # takes the table away first, so a table that is still there misses a file.
                self.refresh()
                if table in self._index.tables:
                    raise Damaged(gone.file, "it is missing", self.url) from gone
            except Damaged as damage:
                raise Damaged(damage.file, damage.what, self.url) from damage

    def _plan(
        self, index: Index, wanted: Sequence[tuple[Address, int, int]]
    ) -> tuple[list[torch.Tensor], dict[int, list[_RowCopy]]]:
        """Return tensors to be filled, and by table what fills them."""
        outs = []
        jobs: dict[int, list[_RowCopy]] = {}
        for address, start, stop in wanted:
            found = index.pieces(address, start, stop)
            if not found:
                raise Missing(
                    f"{self.url} does not hold {address}, or not all of it; make it with "
                    "`python extract/run.py`"
                )
            group = index.groups[found[0][0].group]
            out = torch.empty(stop - start, *group.row_shape, dtype=DTYPES[group.dtype])
            data, width = as_bytes(out), group.row_bytes
            for entry, low, high in found:
                part = data[(low - start) * width : (high - start) * width]
                job = _RowCopy(entry, low - entry.start, high - entry.start, part)
                if low < high:
                    jobs.setdefault(entry.table, []).append(job)
            outs.append(out)
        return outs, jobs


def _fetch(files: Files, index: Index, table: Loaded, jobs: Sequence[_RowCopy]) -> None:
    """Fill what one table's file or array holds.

    Raises:
        Gone: a file is not there. Damaged: it is not what was written.
    """
    if table.array is not None:
        table.array.read(
            [RowRequest(j.entry.place + j.low, j.entry.place + j.high, j.out) for j in jobs]
        )
        return
    jobs = sorted(jobs, key=lambda job: job.entry.place)
    while jobs:
        count = _batch([job.entry.size for job in jobs], files.batch_bytes)
        ranges: list[Range] = [
            (table.file, job.entry.place, job.entry.place + job.entry.size) for job in jobs[:count]
        ]
        for job, data in zip(jobs[:count], files.read(ranges), strict=True):
            if data is None:
                raise Gone(table.file)
            _take(data, job, index.groups[job.entry.group], table.file)
        jobs = jobs[count:]


def _take(data: Bytes, job: _RowCopy, group: Group, file: str) -> None:
    """Put a payload's rows where they are wanted."""
    size = job.entry.rows * group.row_bytes
    if len(job.out) == size:
        unpack(data, job.entry, job.out, file)
        return
    rows = torch.empty(size, dtype=torch.uint8).numpy()
    unpack(data, job.entry, rows, file)
    job.out[:] = rows[job.low * group.row_bytes : job.high * group.row_bytes]


def _batch(sizes: Sequence[int], limit: int) -> int:
    """Return how many of the first sizes stay within a limit, one at least."""
    total = 0
    for count, size in enumerate(sizes):
        total += size
        if count and total > limit:
            return count
    return len(sizes)


def open_cache(url: str) -> Store:
    """Open a store for writing, or make one.

    Raises:
        ValueError: that is impossible there.
    """
    try:
        return Store.open(url, "a")
    except OSError as error:
        raise ValueError(
            f"--cache: cannot keep activations in {url}: {error.strerror or error}; choose a "
            "folder that can be written"
        ) from error
