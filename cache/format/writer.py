"""Writing activations: into a journal, which readers see at once, and from there into arrays."""

import json
import secrets
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from shlex import quote

import numpy as np
import torch
from tqdm import tqdm

from cache.address import DIRECTIONS, DTYPES, SPANS, Address, FingerprintInfo, VideoInfo
from cache.errors import Damaged, StoreError, StoreUnreachable
from cache.format.compaction import PlacedEntry, compact
from cache.format.descriptions import (
    Descriptions,
    encode_description,
    newest,
    write_descriptions,
)
from cache.format.index import CONTENTS, PARTS, Index
from cache.format.records import (
    RECORD,
    Description,
    Entry,
    Group,
    IndexTable,
    compute_digest,
    encode_table,
)
from cache.storage.base import Content, Files
from cache.storage.codec import Bytes, as_bytes, checksum, compress, itemsize
from cache.storage.leases import Lease
from configs.messages import format_bytes

FLUSH_BYTES, FLUSH_SECONDS = 2**26, 30.0
COMPACT_BYTES, COMPACT_SEGMENTS = 2**28, 64
PAYLOAD_BYTES = 2**26  # larger writes are divided: Blosc's limit is 2 GiB


def encode_contents(tables: dict[str, int]) -> bytes:
    """Return the bytes of a part's list of its tables, with their sizes."""
    listed = json.dumps({"tables": dict(sorted(tables.items()))}, indent=1)
    return f"{compute_digest(listed.encode()).hex()}\n{listed}\n".encode()


def decode_contents(data: Bytes) -> dict[str, int] | None:
    """Return what `encode_contents` listed; None if the bytes are not those that were written."""
    try:
        tables: dict[str, int] = json.loads(data.tobytes().partition(b"\n")[2])["tables"]
    except (ValueError, KeyError, TypeError):
        return None
    return tables if encode_contents(tables) == data.tobytes() else None


class Writer:
    """Writer of one part of a store, a folder that nobody else writes into.

    Args:
        files: of the store.
        index, descriptions: return those of the store as they were last read. What was described
            is relied on only if it was listed after this writer's lease was written.
        flush_bytes, flush_seconds: how much may wait in memory, and for how long.
        compact_bytes: size of the journal at which it becomes arrays.
    """

    def __init__(
        self,
        files: Files,
        index: Callable[[], Index],
        descriptions: Callable[[], Descriptions],
        flush_bytes: int = FLUSH_BYTES,
        flush_seconds: float = FLUSH_SECONDS,
        compact_bytes: int = COMPACT_BYTES,
    ) -> None:
        self.files, self.index, self.descriptions = files, index, descriptions
        self.part = f"{time.strftime('%Y%m%d')}-{secrets.token_hex(5)}"
        self._folder = f"{PARTS}/{self.part}"
        self.flush_bytes, self.flush_seconds = flush_bytes, flush_seconds
        self.compact_bytes = self._compact_at_bytes = compact_bytes
        self._compact_at_segments = COMPACT_SEGMENTS
        self.waiting = 0  # bytes that a kill would lose
        # The lease is written before the part: `prune` may take a part that has no lease.
        try:
            self.lease = Lease(self.files, self.part)
        except OSError as error:
            raise self._write_error(error) from error
        self.closed = False
        self._flushed = time.monotonic()
        self._time = 0
        self._tie_break = secrets.randbits(16)
        self._payloads: list[bytes] = []
        self._entries: list[Entry] = []  # their `place` is found when they are flushed
        self._groups: dict[Group, int] = {}
        self._videos: dict[str, int] = {}
        self._described: dict[str, VideoInfo | FingerprintInfo] = {}  # here, by name
        self._waiting_descriptions: list[Description] = []
        self._descriptions: dict[str, list[Description]] = {}  # written here, by subject
        self._description_files: list[str] = []
        self._tables: dict[str, int] = {}
        self._listed: dict[str, int] | None = None  # in contents.json; None if that is not there
        self._segments: dict[str, list[Entry]] = {}  # not compacted yet
        self._obsolete: list[str] = []  # segments that are compacted and no longer listed
        self._arrays_written = self._segments_written = 0

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def describe(self, info: VideoInfo | FingerprintInfo) -> None:
        """Take a description of a video or a fingerprint; written with the next flush."""
        known = self.descriptions()
        current: VideoInfo | FingerprintInfo | None
        if isinstance(info, VideoInfo):
            name, current = f"video {info.name}", known.videos_by_name.get(info.name)
        else:
            name, current = info.fingerprint, known.fingerprints.get(info.fingerprint)
        if self._described.get(name, current) != info:
            self.copy_description(Description(self._now(known.latest), info))
        self._described[name] = info

    def copy_description(self, description: Description) -> None:
        """Take a description with its sequence; written with the next flush."""
        self._waiting_descriptions.append(description)

    def write(self, address: Address, rows: torch.Tensor, start: int = 0) -> None:
        """Take a whole activation or some rows of it, and flush if that is due.

        Args:
            rows: [n, *row_shape], any floating dtype; converted to the address's.
            start: the first of them in the activation.

        Raises:
            StoreError: the rows do not fit the address, or the numbers not its dtype.
            OSError: a flush was due and failed; the rows are kept for the next one.
        """
        if self.closed:
            raise StoreError(f"{self.files.url}: this writer is closed; take a new one")
        rows = self._as_stored(address, rows, start)
        group = Group(address.fingerprint, address.dtype, tuple(rows.shape[1:]))
        limit = max(PAYLOAD_BYTES // group.row_bytes, 1)
        for offset in range(0, len(rows), limit):
            piece = rows[offset : offset + limit]
            payload = compress(as_bytes(piece), itemsize(address.dtype))
            self._add(
                Entry(
                    hi=int.from_bytes(address.key[:8], "little"),
                    lo=int.from_bytes(address.key[8:], "little"),
                    time=self._now(self.index().latest),
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
                    direction=DIRECTIONS.index(address.direction),
                    span=SPANS.index(address.span),
                    writer=self._tie_break,
                    table=0,
                ),
                group,
                address.video,
                payload,
            )
        self._flush_if_due()

    def copy_rows(self, entry: Entry, group: Group, video: str, rows: Bytes) -> None:
        """Take rows [bytes] that are already elsewhere in the store, with their record."""
        payload = compress(rows, itemsize(group.dtype))
        changed = entry._replace(size=len(payload), checksum=checksum(payload))
        self._add(changed, group, video, payload)
        self._flush_if_due()

    def flush(self) -> None:
        """Commit what was written: it survives a kill and a power cut, and readers see it.

        Raises:
            OSError: the disk is full or gone. What was committed stays good, and what waits is
                kept: flush again when there is room.
        """
        try:
            self._write_descriptions(self._waiting_descriptions)
            self._waiting_descriptions = []
            if self._entries:
                self._write_segment()
            if (
                self._journal_bytes >= self._compact_at_bytes
                or len(self._segments) >= self._compact_at_segments
            ):
                self.compact()
            self._write_contents()
        except OSError as error:
            raise self._write_error(error) from error
        finally:
            self._flushed = time.monotonic()

    def compact(self) -> None:
        """Move the journal into arrays; it stays as it is if the disk has no room for both.

        The segments are deleted with the next flush, which lists the arrays in their place.
        """
        segments = dict(self._segments)
        if not segments:
            return
        commits: dict[str, bytes] = {}
        try:
            self._write_arrays(segments, commits)
            for name, index in commits.items():
                self.files.write(f"{self._folder}/{name}.idx", [index])
        except (OSError, Damaged) as error:
            for name in commits:
                # What cannot be deleted is a leftover, or is there twice: `prune` removes both.
                with suppress(StoreUnreachable):
                    self.files.delete(f"{self._folder}/{name}.idx")
                    self.files.delete_folder(f"{self._folder}/{name}")
            if isinstance(error, Damaged):
                damage = Damaged(error.file, error.what, self.files.url)
                tqdm.write(f"warning: {damage} (the rest of the journal is compacted)")
                del self._segments[error.file.rpartition("/")[2]]
                self.compact()
                return
            tqdm.write(
                f"warning: {self._write_error(error)}; nothing is lost, the journal is just not "
                "compacted into arrays yet "
                f"(`python cache/show.py {quote(self.files.url)} --prune` does it later)"
            )
            self._compact_at_bytes = self.compact_bytes + self._journal_bytes
            self._compact_at_segments = COMPACT_SEGMENTS + len(self._segments)
            return
        # Committed: the segments are no longer needed.
        self._tables.update({f"{name}.idx": len(index) for name, index in commits.items()})
        for name in segments:
            del self._tables[name], self._segments[name]
        self._obsolete += segments
        self._compact_at_bytes, self._compact_at_segments = self.compact_bytes, COMPACT_SEGMENTS

    def close(self) -> None:
        """Flush, compact the rest and release the part; nothing happens the second time."""
        if self.closed:
            return
        self.flush()
        self.compact()
        self._write_contents()
        self._join_descriptions()
        self.closed = True
        self.lease.release()

    @property
    def _journal_bytes(self) -> int:
        """Bytes of the segments that are not compacted yet."""
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
            # Before any segment: from now on a missing list means damage.
            self._write_contents(force=True)
        place = 0
        entries = []
        for entry in self._entries:
            entries.append(entry._replace(place=place))
            place += entry.size
        table = self._make_table(entries)
        self._segments_written += 1
        name = f"j{self._segments_written:06}.bin"
        content: Content = [*self._payloads, encode_table(table, place)]
        try:
            self.files.write(f"{self._folder}/{name}", content)
        except OSError:
            # It may be there all the same, and read: what is written next has another name.
            self._obsolete.append(name)
            raise
        # Committed.
        self._tables[name] = sum(len(piece) for piece in content)
        self._segments[name] = entries
        self._payloads, self._entries, self.waiting = [], [], 0

    def _make_table(self, entries: Sequence[Entry]) -> IndexTable:
        """Return the table of a segment."""
        groups, videos = list(self._groups), list(self._videos)
        used_groups = sorted({entry.group for entry in entries})
        used_videos = sorted({entry.video for entry in entries})
        group_number = {old: new for new, old in enumerate(used_groups)}
        video_number = {old: new for new, old in enumerate(used_videos)}
        records = np.array(
            [
                entry._replace(group=group_number[entry.group], video=video_number[entry.video])
                for entry in entries
            ],
            RECORD,
        )
        table = IndexTable(
            records, [groups[i] for i in used_groups], [videos[i] for i in used_videos]
        )
        table.described = self._hashes_of(table.subjects)
        return table

    def _hashes_of(self, subjects: Sequence[str]) -> list[list[str]]:
        """Return the hashes of each subject's descriptions that have files."""
        known, own = self.descriptions().by_subject, self._descriptions
        every = [newest([*known.get(each, ()), *own.get(each, ())]) for each in subjects]
        return [[each.hash for each in of if each.hash] for of in every]

    def _write_descriptions(self, descriptions: Sequence[Description]) -> None:
        encoded = [encode_description(each) for each in descriptions]
        if not encoded:
            return
        self._description_files.append(write_descriptions(self.files, encoded))
        for each, _, _ in encoded:
            self._descriptions.setdefault(each.subject, []).append(each)

    def _join_descriptions(self) -> None:
        """Write into one file what every flush described in one of its own."""
        before = self._description_files
        if len(before) > 1:
            with suppress(OSError):  # they are good as they are
                self._description_files = []
                self._write_descriptions([e for of in self._descriptions.values() for e in of])
                self.files.delete(*(file for file in before if file not in self._description_files))

    def _write_contents(self, force: bool = False) -> None:
        if force or (self._listed is not None and self._listed != self._tables):
            self.files.write(f"{self._folder}/{CONTENTS}", [encode_contents(self._tables)])
            self._listed = dict(self._tables)
            if self._obsolete:
                self.files.delete(*(f"{self._folder}/{name}" for name in self._obsolete))
            self._obsolete = []

    def _write_arrays(self, segments: dict[str, list[Entry]], commits: dict[str, bytes]) -> None:
        """Write the segments' arrays, and add the content of their indexes to `commits`."""
        groups, videos = list(self._groups), list(self._videos)
        placed: dict[int, list[PlacedEntry]] = {}
        for name, entries in segments.items():
            for entry in entries:
                placed.setdefault(entry.group, []).append((f"{self._folder}/{name}", entry))
        for group, records in placed.items():
            self._arrays_written += 1
            name = f"a{self._arrays_written:06}"
            commits[name] = b""
            used_videos = sorted({entry.video for _, entry in records})
            number = {old: new for new, old in enumerate(used_videos)}
            renumbered = [(file, e._replace(video=number[e.video])) for file, e in records]
            digests = [videos[i] for i in used_videos]
            commits[name] = compact(
                self.files,
                f"{self._folder}/{name}",
                groups[group],
                renumbered,
                digests,
                self._hashes_of([*digests, groups[group].fingerprint]),
            )

    def _as_stored(self, address: Address, rows: torch.Tensor, start: int) -> torch.Tensor:
        """Return the rows in the address's dtype, in the host's memory, contiguous.

        Raises:
            StoreError: they do not fit the address, or the numbers not its dtype.
        """
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

    def _now(self, latest: int) -> int:
        """Return the time in nanoseconds since 1970, but later than `latest` and than before.

        So what is written after something was seen counts as newer, whatever the clocks say.
        """
        self._time = max(time.time_ns(), self._time + 1, latest + 1)
        return self._time

    def _write_error(self, error: OSError) -> OSError:
        waits = f"{format_bytes(self.waiting)} wait in memory, " if self.waiting else ""
        room = "" if isinstance(error, StoreUnreachable) else "make room and "
        text = (
            f"cannot write into {self.files.url}: {error.strerror or error}; what was committed "
            f"before is good; {waits}{room}flush again"
        )
        if isinstance(error, StoreUnreachable):
            return StoreUnreachable(text)
        return OSError(error.errno, text) if error.errno else OSError(text)
