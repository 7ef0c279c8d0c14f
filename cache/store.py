"""A store of activations: opened by URL, read by address, written by any number of writers.

    STORE/palindrome.json           format and version
    STORE/parts/PART/contents.json  the part's tables, so that a missing one can be named
    STORE/parts/PART/j000001.bin    journal: what one flush wrote, and its index
    STORE/parts/PART/a000001/       a zarr array, compacted from the journal
    STORE/parts/PART/a000001.idx    its index; written last, which commits it
    STORE/descriptions/…            of videos (name, size, frame times) and of fingerprints
    STORE/users/*.json              leases of the processes that read and write now

A part belongs to one writer, and a file never changes once it is there, so nobody waits for
anybody. Icechunk, the transactional engine for zarr, would give this and history, but warns that
concurrent commits are not safe on a local file system, where most stores are.
"""

import os
import re
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from shlex import quote
from typing import Any, Literal, NamedTuple

import torch

from cache.address import DTYPES, Address, FingerprintInfo, VideoInfo
from cache.errors import Damaged, Missing, StoreError, StoreUnreachable
from cache.format.arrays import FileGone, RowRequest
from cache.format.compaction import fetch_payloads, unpack_payload
from cache.format.descriptions import Descriptions
from cache.format.index import PARTS, Index, LoadedTable, Summary, refresh_index, summarise_index
from cache.format.records import Entry, Group
from cache.format.shared import ReceivedIndex, SharedIndex, is_spawning
from cache.format.writer import Writer
from cache.storage.base import Files, read_whole
from cache.storage.codec import Bytes, as_bytes
from cache.storage.leases import USERS, Lease
from cache.storage.open import open_files

__all__ = ["Damaged", "Missing", "Store", "StoreError", "StoreUnreachable"]

MARKER = "palindrome.json"
FORMAT = b'{"format": "palindrome activations", "version": 3}\n'
# Read, too; they become version 3 when they are written to.
FORMAT_1, FORMAT_2 = FORMAT.replace(b"3", b"1"), FORMAT.replace(b"3", b"2")
FORMATS = (FORMAT, FORMAT_1, FORMAT_2)
NEWER_FORMAT = re.compile(rb'{"format": "palindrome activations", "version": \d+.*}\n', re.DOTALL)

Mode = Literal["r", "a", "inspect"]


class _RowCopy(NamedTuple):
    """Rows of one record, to be copied into `out` [bytes]."""

    entry: Entry
    low: int
    high: int
    out: Bytes


class Store:
    """Activations by address.

    Cheap to send to another process: one that is being spawned, such as a loader's worker, shares
    the index; any other opens the store again.
    """

    def __init__(
        self, url: str | Path, mode: Mode = "r", received: ReceivedIndex | None = None
    ) -> None:
        """See `open`; `received` is the index of the process that this one is a child of."""
        self.url, self.mode = str(url), mode
        self.files: Files = open_files(url)
        self._format = FORMAT
        if received is None:
            self._check_marker()
        self._lease: Lease | None = None
        self._warned = False
        # Before the index is read, so that nothing in it is pruned from then on.
        self._take_lease()
        self._index = Index.empty() if received is None else received.load(self.files)
        self._descriptions = Descriptions(self.files, self._index.embedded())
        self._shared: SharedIndex | None = None
        if received is None:
            self.refresh()

    @classmethod
    def open(cls, url: str | Path, mode: Mode = "r") -> "Store":
        """Return a store; mode "a" creates it if need be, and can write.

        Mode "inspect" treats a store that does not exist as an empty one and writes nothing, not
        even a lease: nothing keeps others from pruning what it found.

        Args:
            url: a path or any URL that fsspec knows.

        Raises:
            StoreError: there is no store, or none that this version can read.
        """
        return cls(url, mode)

    def __reduce__(self) -> tuple[type["Store"], tuple[str, Mode, SharedIndex | None]]:
        if not is_spawning():
            return Store, (self.url, self.mode, None)
        if self._shared is None or self._shared.index is not self._index:
            self._shared = None
            with suppress(OSError):  # no room for it: they open the store again
                self._shared = SharedIndex(self._index, self.files)
        return Store, (self.url, self.mode, self._shared)

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the lease of this process, as the end of the process does, too."""
        if self._lease is not None:
            self._lease.release()
            self._lease = None

    def contains(self, address: Address) -> bool:
        """Return whether all rows of an activation are stored."""
        self._record_use(address.fingerprint)
        return bool(self._index.find_rows(address, 0, address.rows))

    def read(self, address: Address, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """Return rows of an activation [stop − start, *row_shape] in the dtype of the address.

        Raises:
            Missing: these rows are not all stored.
            Damaged: what is stored is not what was written.
        """
        return self._read([(address, start, address.rows if stop is None else stop)])[0]

    def read_many(self, addresses: Sequence[Address]) -> list[torch.Tensor]:
        """Return whole activations; neighbours in a file are fetched and decoded together.

        Raises:
            Missing: one is not stored, or not all of it.
            Damaged: what is stored is not what was written.
        """
        return self._read([(address, 0, address.rows) for address in addresses])

    def refresh(self) -> None:
        """Read what other processes have flushed and pruned since the last time."""
        self._index = refresh_index(self._index, self.files)
        self._descriptions = Descriptions(self.files, self._index.embedded(), self._descriptions)

    @property
    def videos(self) -> dict[str, VideoInfo]:
        """The videos that the store knows, by digest."""
        return self._descriptions.videos

    @property
    def videos_by_name(self) -> dict[str, VideoInfo]:
        """The videos by every name that they had; a name stands for the last that had it."""
        return self._descriptions.videos_by_name

    @property
    def fingerprints(self) -> dict[str, FingerprintInfo]:
        """The fingerprints that the store knows, the last described at the end."""
        return self._descriptions.fingerprints

    @property
    def index(self) -> Index:
        """The index as it was last read; for `cache.upkeep`."""
        return self._index

    @property
    def descriptions(self) -> Descriptions:
        """The descriptions as they were last read; for `cache.upkeep`."""
        return self._descriptions

    @property
    def lease(self) -> Lease | None:
        """The lease of this process; None where it cannot be written."""
        return self._lease

    @property
    def bytes(self) -> int:
        """Bytes of everything that is committed."""
        return sum(loaded.stored_bytes for loaded in self._index.tables.values())

    def summaries(self) -> list[Summary]:
        """Return what is stored, by fingerprint, dtype, direction and kind of span."""
        return summarise_index(self._index)

    def writer(self, **options: Any) -> Writer:
        """Return a new writer with a part of its own; `options` are those of `Writer`."""
        if self.mode != "a":
            raise StoreError(f'{self.url} is open for reading; open it with mode "a" to write')
        if self._format != FORMAT:
            self.files.write(MARKER, [FORMAT])  # before there is a file that others cannot read
            self._format = FORMAT
        writer = Writer(self.files, lambda: self._index, lambda: self._descriptions, **options)
        # Listed again from now on: what is there then stays while the writer lives.
        self._descriptions = Descriptions(self.files, self._index.embedded(), self._descriptions)
        for each in self._descriptions.unwritten:
            writer.copy_description(each)
        return writer

    def _check_marker(self) -> None:
        found = read_whole(self.files, MARKER, None)
        if found is None and self.mode == "a":
            self.files.write(MARKER, [FORMAT])
            return
        if found is None and self.mode == "inspect":
            return
        if found is None and self.files.children(PARTS):
            raise StoreError(f"{self.url}/{MARKER} is missing; {self._repair_hint()}")
        if found is None:
            raise StoreError(
                f"{self.url}: there is no activation cache here (no {MARKER}); make one with "
                "`python extract/run.py --config CONFIG --checkpoint CHECKPOINT "
                f"--cache {quote(self.url)}`"
            )
        self._format = found.tobytes()
        if self._format in FORMATS:
            return
        if NEWER_FORMAT.fullmatch(found.tobytes()):
            raise StoreError(
                f"{self.url}/{MARKER}: a newer version of Palindrome made this cache; update, or "
                "choose another --cache"
            )
        raise StoreError(
            f"{self.url}/{MARKER} is damaged, or of another program; if this is a cache of "
            f"Palindrome, delete this one file: {self._repair_hint()}"
        )

    def _repair_hint(self) -> str:
        """Return what the user can do to have the marker file written again."""
        return (
            f"`python cache/show.py {quote(self.url)} --verify --prune` then rewrites it and "
            "checks the rest"
        )

    def _take_lease(self) -> None:
        if self.mode == "inspect":
            return
        # Whatever error it is: a store that cannot be written can still be read.
        try:
            self._lease = Lease(self.files)
        except Exception as error:
            self._warn_without_lease(error)

    def _record_use(self, fingerprint: str) -> None:
        """Add a fingerprint to the lease, before the index is asked whether it is stored."""
        lease = self._lease
        if lease is None:
            return
        if lease.pid != os.getpid():
            # A forked child needs a lease of its own.
            self._lease = None
            self._take_lease()
            lease = self._lease
        if lease is not None and fingerprint not in lease.fingerprints:
            try:
                lease.add_fingerprint(fingerprint)
            except Exception as error:
                self._warn_without_lease(error)
            # Another process may have pruned it before it could see the lease.
            with suppress(StoreUnreachable):  # what is known of the index still answers
                self.refresh()

    def _warn_without_lease(self, error: Exception) -> None:
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
            self._record_use(fingerprint)
        for address, start, stop in wanted:
            if not 0 <= start <= stop <= address.rows:
                raise StoreError(f"there are no rows {start} to {stop} of {address}")
        while True:
            index = self._index
            outs, copies = self._plan_copies(index, wanted)
            try:
                for table, from_table in copies.items():
                    _fetch_rows(self.files, index, index.tables[table], from_table)
                return outs
            except FileGone as gone:
                # Compacted or pruned since: the refreshed index says where its rows are now. A
                # table is deleted before its files, so if it is still there, a file is lost.
                self.refresh()
                if table in self._index.tables:
                    raise Damaged(gone.file, "it is missing", self.url) from gone
            except Damaged as damage:
                raise Damaged(damage.file, damage.what, self.url) from damage

    def _plan_copies(
        self, index: Index, wanted: Sequence[tuple[Address, int, int]]
    ) -> tuple[list[torch.Tensor], dict[int, list[_RowCopy]]]:
        """Return empty tensors, and by table the copies that fill them."""
        outs = []
        copies: dict[int, list[_RowCopy]] = {}
        for address, start, stop in wanted:
            found = index.find_rows(address, start, stop)
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
                copy = _RowCopy(entry, low - entry.start, high - entry.start, part)
                if low < high:
                    copies.setdefault(entry.table, []).append(copy)
            outs.append(out)
        return outs, copies


def _fetch_rows(files: Files, index: Index, table: LoadedTable, copies: Sequence[_RowCopy]) -> None:
    """Carry out the copies from one table's file or array.

    Raises:
        FileGone: a file is not there. Damaged: it is not what was written.
    """
    if table.array is not None:
        table.array.read(
            [RowRequest(c.entry.place + c.low, c.entry.place + c.high, c.out) for c in copies]
        )
        return
    by_place = sorted(copies, key=lambda copy: copy.entry.place)
    numbered = [(table.file, copy.entry) for copy in by_place]
    for copy, (_, data) in zip(by_place, fetch_payloads(files, numbered), strict=True):
        if data is None:
            raise FileGone(table.file)
        _copy_rows(data, copy, index.groups[copy.entry.group], table.file)


def _copy_rows(data: Bytes, copy: _RowCopy, group: Group, file: str) -> None:
    """Decompress a payload and copy the rows that are asked for."""
    size = copy.entry.rows * group.row_bytes
    if len(copy.out) == size:
        unpack_payload(data, copy.entry, copy.out, file)
        return
    rows = torch.empty(size, dtype=torch.uint8).numpy()
    unpack_payload(data, copy.entry, rows, file)
    copy.out[:] = rows[copy.low * group.row_bytes : copy.high * group.row_bytes]


def open_cache(url: str) -> Store:
    """Return a store that can be written, made if need be.

    Raises:
        ValueError: the place cannot be written.
    """
    try:
        return Store.open(url, "a")
    except StoreUnreachable:
        raise
    except OSError as error:
        raise ValueError(
            f"--cache: cannot keep activations in {url}: {error.strerror or error}; choose a "
            "folder that can be written"
        ) from error
