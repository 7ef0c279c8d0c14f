"""Writes activations: into a journal that readers see at once, from there into arrays."""

import json
import secrets
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from tqdm import tqdm

from cache.address import DTYPES, Address, FingerprintInfo, VideoInfo
from cache.errors import Damaged, StoreError
from cache.format.compaction import Placed, compact
from cache.format.index import CONTENTS, PARTS, Index, newest
from cache.format.records import (
    RECORD,
    Entry,
    Group,
    IndexTable,
    Metadata,
    digest,
    direction_number,
    encode,
    span_number,
)
from cache.storage.base import Content, Files
from cache.storage.codec import Bytes, as_bytes, checksum, compress, itemsize
from cache.storage.leases import Lease

FLUSH_BYTES, FLUSH_SECONDS = 2**26, 30.0
FOLD_BYTES, FOLD_SEGMENTS = 2**28, 64
PAYLOAD_BYTES = 2**26  # more rows at once are cut: Blosc ends at 2 GiB


def contents(tables: dict[str, int]) -> bytes:
    """Return a part's list of its tables and their bytes: what is missing can be named."""
    listed = json.dumps({"tables": dict(sorted(tables.items()))}, indent=1)
    return f"{digest(listed.encode()).hex()}\n{listed}\n".encode()


def read_contents(data: Bytes) -> dict[str, int] | None:
    """Return what `contents` listed; None if the bytes are not those that were written."""
    try:
        tables: dict[str, int] = json.loads(data.tobytes().partition(b"\n")[2])["tables"]
    except (ValueError, KeyError, TypeError):
        return None
    return tables if contents(tables) == data.tobytes() else None


class Writer:
    """Owns one part of a store, a folder that nobody else writes into.

    Args:
        files: where the store is.
        index: returns what the store's owner knows of it at the moment.
    """

    def __init__(
        self,
        files: Files,
        index: Callable[[], Index],
        flush_bytes: int = FLUSH_BYTES,
        flush_seconds: float = FLUSH_SECONDS,
        fold_bytes: int = FOLD_BYTES,
    ) -> None:
        self.files, self.index = files, index
        self.part = f"{time.strftime('%Y%m%d')}-{secrets.token_hex(5)}"
        self._here = f"{PARTS}/{self.part}"
        self.flush_bytes, self.flush_seconds = flush_bytes, flush_seconds
        self.fold_bytes = self._fold_at = fold_bytes
        self._fold_segments_at = FOLD_SEGMENTS
        self.waiting = 0  # bytes that a kill would lose
        # The lease stands before the part does: a part without one is nobody's.
        try:
            self.lease = Lease(self.files, self.part)
        except OSError as error:
            raise self._cannot_write(error) from error
        self.closed = False
        self._flushed = time.monotonic()
        self._time = 0
        self._payloads: list[bytes] = []
        self._entries: list[Entry] = []  # their `place` is found when they are flushed
        self._groups: dict[Group, int] = {}
        self._videos: dict[str, int] = {}
        self._described: dict[str, VideoInfo | FingerprintInfo] = {}
        self._metadata: dict[str, list[Metadata]] = {}  # by subject
        self._new_subjects: set[str] = set()  # described since the last flush
        self._tables: dict[str, int] = {}
        self._listed: dict[str, int] | None = None  # what contents.json says; None if not there
        self._segments: dict[str, list[Entry]] = {}  # not folded yet
        self._obsolete: list[str] = []  # segments that are folded and off the list
        self._folds = self._flushes = 0

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def describe(self, info: VideoInfo | FingerprintInfo) -> None:
        """Say what a digest or a fingerprint stands for; written with the next flush."""
        known: VideoInfo | FingerprintInfo | None
        if isinstance(info, VideoInfo):
            name, known = f"video {info.name}", self.index().videos_by_name.get(info.name)
        else:
            name, known = info.fingerprint, self.index().fingerprints.get(info.fingerprint)
        if self._described.get(name, known) != info:
            self.copy_metadata(Metadata(self._now(), info))
        self._described[name] = info

    def copy_metadata(self, metadata: Metadata) -> None:
        """Write an earlier description again, with its time."""
        self._metadata.setdefault(metadata.subject, []).append(metadata)
        self._new_subjects.add(metadata.subject)

    def put(self, address: Address, rows: torch.Tensor, start: int = 0) -> None:
        """Take a whole activation or some rows of it; flushed when much or old enough.

        Args:
            rows: [n, *row_shape], any floating dtype; converted to the address's.
            start: the activation's row that comes first.

        Raises:
            StoreError: the rows do not fit the address, or the numbers not its dtype.
            OSError: it was time to flush, and that failed; the rows are kept for the next flush.
        """
        if self.closed:
            raise StoreError(f"{self.files.url}: this writer is closed; take a new one")
        rows = self._checked(address, rows, start)
        group = Group(address.fingerprint, address.dtype, tuple(rows.shape[1:]))
        at_once = max(PAYLOAD_BYTES // group.row_bytes, 1)
        for offset in range(0, len(rows), at_once):
            piece = rows[offset : offset + at_once]
            payload = compress(as_bytes(piece), itemsize(address.dtype))
            self._add(
                Entry(
                    hi=int.from_bytes(address.key[:8], "little"),
                    lo=int.from_bytes(address.key[8:], "little"),
                    time=self._now(),
                    place=0,
                    size=len(payload),
                    first=int(address.frames.min()),
                    last=int(address.frames.max()),
                    samples=len(address.frames),
                    start=start + offset,
                    rows=len(piece),
                    total=address.rows,
                    group=0,
                    video=0,
                    checksum=checksum(payload),
                    direction=direction_number(address.direction),
                    span=span_number(address.span),
                    spare=0,
                    table=0,
                ),
                group,
                address.video,
                payload,
            )
        self._flush_if_due()

    def copy(self, entry: Entry, group: Group, video: str, rows: Bytes) -> None:
        """Take rows [bytes] that already stand elsewhere in the store, with their record."""
        payload = compress(rows, itemsize(group.dtype))
        changed = entry._replace(size=len(payload), checksum=checksum(payload))
        self._add(changed, group, video, payload)
        self._flush_if_due()

    def flush(self) -> None:
        """Commit what was put: it survives a kill and a power cut, and readers see it.

        Raises:
            OSError: the disk is full or gone. What was committed stays good, what waits is kept:
                flush again when there is room.
        """
        try:
            if self._entries or self._new_subjects:
                self._write_segment()
            self._write_contents()
        except OSError as error:
            raise self._cannot_write(error) from error
        finally:
            self._flushed = time.monotonic()
        if self._journal_bytes >= self._fold_at or len(self._segments) >= self._fold_segments_at:
            self.compact()

    def compact(self) -> None:
        """Move the journal into arrays; a disk without room for both leaves it as it is."""
        segments = dict(self._segments)
        if not any(segments.values()):
            return  # descriptions stay where they are
        commits: dict[str, bytes] = {}
        try:
            self._fold(segments, commits)
            for name, index in commits.items():
                self.files.write(f"{self._here}/{name}.idx", [index])
        except (OSError, Damaged) as error:
            for name in commits:
                self.files.delete(f"{self._here}/{name}.idx")
                self.files.delete(f"{self._here}/{name}")
            if isinstance(error, Damaged):
                damage = Damaged(error.file, error.what, self.files.url)
                tqdm.write(f"warning: {damage} (the rest of the journal is folded)")
                del self._segments[error.file.rpartition("/")[2]]
                self.compact()
                return
            tqdm.write(
                f"warning: {self._cannot_write(error)}; nothing is lost, the journal is just not "
                f"folded into arrays yet (`python cache/show.py {self.files.url} --prune` does it "
                "later)"
            )
            self._fold_at = self.fold_bytes + self._journal_bytes
            self._fold_segments_at = FOLD_SEGMENTS + len(self._segments)
            return
        # Committed: the segments are not needed any more.
        self._tables.update({f"{name}.idx": len(index) for name, index in commits.items()})
        for name in segments:
            del self._tables[name], self._segments[name]
        self._obsolete += segments
        self._fold_at, self._fold_segments_at = self.fold_bytes, FOLD_SEGMENTS
        self._write_contents()

    def close(self) -> None:
        """Flush, fold what is left and give the part away; nothing happens the second time."""
        if self.closed:
            return
        self.flush()
        self.compact()
        self._write_contents()
        self.closed = True
        self.lease.release()

    @property
    def _journal_bytes(self) -> int:
        """Bytes of the segments that are not folded yet."""
        return sum(self._tables[name] for name in self._segments)

    def _add(self, entry: Entry, group: Group, video: str, payload: bytes) -> None:
        number = self._groups.setdefault(group, len(self._groups))
        digest_number = self._videos.setdefault(video, len(self._videos))
        self._entries.append(entry._replace(group=number, video=digest_number))
        self._payloads.append(payload)
        self.waiting += len(payload)

    def _flush_if_due(self) -> None:
        old = time.monotonic() - self._flushed >= self.flush_seconds
        if old or self.waiting >= self.flush_bytes:
            self.flush()

    def _write_segment(self) -> None:
        if self._listed is None:
            # Before anything else: from now on a missing list is a damage.
            self._write_contents(force=True)
        place = 0
        entries = []
        for entry in self._entries:
            entries.append(entry._replace(place=place))
            place += entry.size
        table, local = self._table(entries)
        name = f"j{self._flushes + 1:06}.bin"
        content: Content = [*self._payloads, encode(table, place)]
        self.files.write(f"{self._here}/{name}", content)
        # Committed.
        self._flushes += 1
        self._tables[name] = sum(len(piece) for piece in content)
        self._segments[name] = entries
        self._payloads, self._entries, self.waiting = [], [], 0
        self._new_subjects -= local

    def _table(self, entries: Sequence[Entry]) -> tuple[IndexTable, set[str]]:
        """Return the table of a segment, and what it tells of."""
        groups, videos = list(self._groups), list(self._videos)
        used = sorted({entry.group for entry in entries})
        seen = sorted({entry.video for entry in entries})
        group_number = {old: new for new, old in enumerate(used)}
        video_number = {old: new for new, old in enumerate(seen)}
        records = np.array(
            [
                entry._replace(group=group_number[entry.group], video=video_number[entry.video])
                for entry in entries
            ],
            RECORD,
        )
        table = IndexTable(records, [groups[i] for i in used], [videos[i] for i in seen])
        names = {group.fingerprint for group in table.groups} | {*table.videos} | self._new_subjects
        table.metadata.extend(self._metadata_of(names))
        return table, names

    def _metadata_of(self, names: set[str]) -> list[Metadata]:
        """Return the descriptions of digests and fingerprints, from here or from others."""
        found: list[Metadata] = []
        for name in sorted(names):
            if name not in self._metadata and (metadata := self.index().metadata.get(name)):
                self._metadata[name] = list(metadata)
            found += newest(self._metadata.get(name, [])).values()
        return found

    def _write_contents(self, force: bool = False) -> None:
        if force or (self._listed is not None and self._listed != self._tables):
            self.files.write(f"{self._here}/{CONTENTS}", [contents(self._tables)])
            self._listed = dict(self._tables)
            for name in self._obsolete:
                self.files.delete(f"{self._here}/{name}")
            self._obsolete = []

    def _fold(self, segments: dict[str, list[Entry]], commits: dict[str, bytes]) -> None:
        """Write the segments' arrays; `commits` becomes the content of their indexes."""
        groups, videos = list(self._groups), list(self._videos)
        placed: dict[int, list[Placed]] = {}
        for name, entries in segments.items():
            for entry in entries:
                placed.setdefault(entry.group, []).append((f"{self._here}/{name}", entry))
        described_before: set[str] = set()
        for group, records in placed.items():
            self._folds += 1
            name = f"a{self._folds:06}"
            commits[name] = b""
            seen = sorted({entry.video for _, entry in records})
            number = {old: new for new, old in enumerate(seen)}
            renumbered = [(file, e._replace(video=number[e.video])) for file, e in records]
            names = {videos[i] for i in seen} | {groups[group].fingerprint}
            if group == max(placed):
                # What no record mentions is kept, too.
                names |= self._metadata.keys() - described_before
            described_before |= names
            digests = [videos[i] for i in seen]
            commits[name] = compact(
                *(self.files, f"{self._here}/{name}", groups[group], renumbered),
                *(digests, self._metadata_of(names)),
            )

    def _checked(self, address: Address, rows: torch.Tensor, start: int) -> torch.Tensor:
        """Return rows in the address's dtype, in this machine's memory, contiguous."""
        if not rows.is_floating_point() or rows.ndim < 1 or not rows.numel():
            raise StoreError(
                f"an activation is floating point [rows, …], not {rows.dtype} of shape "
                f"{[*rows.shape]}; of {address}"
            )
        if start < 0 or start + len(rows) > address.rows:
            raise StoreError(
                f"rows {start} to {start + len(rows)} are not within the {address.rows} of "
                f"{address}"
            )
        rows = rows.detach()
        stored = rows.to(DTYPES[address.dtype]).cpu().contiguous()
        if bool(stored.isinf().any()) and bool((stored.isinf() & ~rows.cpu().isinf()).any()):
            raise StoreError(
                f"numbers up to {rows.abs().max():.3g} do not fit into {address.dtype}; store "
                f"them as bfloat16 or float32; of {address}"
            )
        return stored

    def _now(self) -> int:
        """Nanoseconds since 1970, later than any that was given before."""
        self._time = max(time.time_ns(), self._time + 1)
        return self._time

    def _cannot_write(self, error: OSError) -> OSError:
        waits = f"{self.waiting / 1e6:.1f} MB wait in memory, " if self.waiting else ""
        text = (
            f"cannot write into {self.files.url}: {error.strerror or error}; what was committed "
            f"before is good; {waits}make room and flush again"
        )
        return OSError(error.errno, text) if error.errno else OSError(text)
