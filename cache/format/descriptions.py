"""Descriptions of videos and fingerprints: many in a file, read when they are first asked for.

    STORE/descriptions/DIGEST-BYTES

A file begins with BYTES of lines, one for each description that its writer had to write just then:

    CHECKSUM SUBJECT-HASH-SEQUENCE-START-STOP JSON

SUBJECT is the digest of a video or a fingerprint, HASH that of the JSON. START and STOP, counted
from the end of the lines, tell where a video's frame times are, if they are uneven; they are read
for one video at a time, if at all. Of several descriptions of the same video and name, or of the
same fingerprint, that of the highest sequence counts. Index tables list the hashes, so that a
missing description is noticed.

Format version 2 had a file of each, videos/SUBJECT-HASH-SEQUENCE or fingerprints/…, of a line of
JSON and the times. They are read, too, until `prune` joins them.
"""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from cache.address import FingerprintInfo, VideoInfo
from cache.errors import Damaged, Missing, StoreUnreachable
from cache.format.records import Description, compute_digest
from cache.storage.base import Files
from cache.storage.codec import Bytes, checksum, compress, decompress

FOLDER = "descriptions"
FOLDERS = ("videos", "fingerprints", FOLDER)  # where there are or were some
FILE_NAME = re.compile(r"^[0-9a-f]{32}-\d+$|^[0-9a-f]{32,64}-[0-9a-f]{16}-\d+$")
OLD_BYTES, OLD_LINE_BYTES = 2**24, 2**12  # of a file of version 2, at most; of its line
LINE = re.compile(
    rb"^([0-9a-f]{8}) (?P<rest>[0-9a-f]+-(?P<hash>[0-9a-f]{16})-(?P<sequence>\d+)"
    rb"-(?P<start>\d+)-(?P<stop>\d+) (?P<fields>.*\n))$"
)


@dataclass(frozen=True)
class LinearTimes:
    """Times (i + offset) / rate, computed when they are asked for."""

    offset: float
    rate: float
    count: int

    def __call__(self) -> NDArray[np.float64]:
        return (np.arange(self.count, dtype=np.float64) + self.offset) / self.rate


@dataclass(frozen=True)
class StoredTimes:
    """Times that are read from a file of descriptions when they are first asked for.

    Args:
        start, stop: the bytes of the file that hold them, compressed.
        count: of the times; `digest`: of these bytes.
    """

    files: Files
    file: str
    start: int
    stop: int
    count: int
    digest: str

    def __call__(self) -> NDArray[np.float64]:
        """Return the times.

        Raises:
            Missing: they are gone. Damaged: they are not what was written.
        """
        return self._times

    def __reduce__(self) -> tuple[type["StoredTimes"], tuple[Files, str, int, int, int, str]]:
        # Another process reads them itself, if it needs them.
        where = self.files, self.file, self.start, self.stop
        return StoredTimes, (*where, self.count, self.digest)

    @cached_property
    def _times(self) -> NDArray[np.float64]:
        (data,) = self.files.read([(self.file, self.start, self.stop)])
        if data is None:
            return self._find_moved()._times
        if not self.are_in(data):
            raise Damaged(self.file, "frame times in it are not as written", self.files.url)
        times = np.empty(8 * self.count, np.uint8)
        decompress(data, times, self.file)
        return times.view("<f8").astype(np.float64)

    def are_in(self, data: Bytes) -> bool:
        """Return whether these are the bytes that were written."""
        return compute_digest(data).hex() == self.digest

    def _find_moved(self) -> "StoredTimes":
        """Return the same times in the file that replaced theirs."""
        for info in Descriptions(self.files).videos.values():
            if isinstance(info.times, StoredTimes) and info.times.digest == self.digest:
                return info.times
        raise Missing(f"{self.files.url}/{self.file} is missing; it has a video's frame times")


class EncodedDescription(NamedTuple):
    """A description with the bytes of its JSON and of its times."""

    description: Description
    fields: bytes
    times: bytes | Bytes


def encode_description(description: Description) -> EncodedDescription:
    """Return a description with its hash and its bytes."""
    fields, times = _encode(description.info)
    return EncodedDescription(description._replace(hash=_hash(fields)), fields, times)


def write_descriptions(files: Files, encoded: Sequence[EncodedDescription]) -> str:
    """Write descriptions into one file and return its name, which tells its content."""
    lines, end = [], 0
    for description, fields, times in encoded:
        place = f"{description.sequence}-{end}-{end + len(times)}"
        rest = f"{description.subject}-{description.hash}-{place} ".encode() + fields
        lines.append(f"{checksum(rest):08x} ".encode() + rest)
        end += len(times)
    head = b"".join(lines)
    file = f"{FOLDER}/{compute_digest(head).hex()}-{len(head)}"
    files.write(file, [head, *(times for _, _, times in encoded)])
    return file


def decode_descriptions(
    files: Files, file: str, data: Bytes, with_times: bool = True
) -> tuple[list[EncodedDescription], str]:
    """Return what a file holds as it was written, and what is wrong with it, if anything is.

    Args:
        data: the whole file; without times, it may end after its lines.
    """
    end = _line_bytes(file, len(data))
    lines = data[:end].tobytes().splitlines(keepends=True)
    if not file.startswith(FOLDER):
        lines = lines[:1]
    found = []
    for line in lines:
        each = _decode_line(files, file, line, end)
        times = None if each is None else _stored_times(each.description)
        if each is not None and with_times and times is not None:
            part = data[times.start : times.stop]
            each = each._replace(times=part) if times.are_in(part) else None
        if each is not None:
            found.append(each)
    if not lines or len(data) < end:
        return found, f"it ends after {len(data)} bytes"
    lost = len(lines) - len(found)
    return found, f"{lost} of its descriptions are not as written" if lost else ""


def newest(descriptions: Iterable[Description]) -> list[Description]:
    """Return the descriptions that count, in the order of their sequences."""
    # Equal sequences are of writers that did not see each other.
    ordered = sorted(descriptions, key=lambda each: (each.sequence, each.hash))
    last = {each.key: each for each in ordered}
    return [each for each in ordered if each is last[each.key]]


def list_descriptions(files: Files) -> dict[str, int]:
    """Return the files of descriptions with their sizes."""
    listed = list_folders(files)
    return {f: size for f, size in listed.items() if size is not None and is_description_file(f)}


def list_folders(files: Files) -> dict[str, int | None]:
    """Return all that is in the folders of descriptions."""
    there = files.children("")  # for most stores have no old ones
    # Last the one that `prune` moves them to.
    folders = [folder for folder in FOLDERS if folder in there or folder == FOLDER]
    return {f"{at}/{name}": size for at in folders for name, size in files.children(at).items()}


def is_description_file(file: str) -> bool:
    folder, _, name = file.partition("/")
    return folder in FOLDERS and FILE_NAME.match(name) is not None


class Descriptions:
    """A store's descriptions as of one moment: when they are first asked for after a refresh.

    Args:
        embedded: descriptions in tables of format version 1.
        earlier: those before; files that it has read are not read again, and what it knew is known
            while the store does not answer.
    """

    def __init__(
        self,
        files: Files,
        embedded: Sequence[Description] = (),
        earlier: "Descriptions | None" = None,
    ) -> None:
        self.files, self._embedded = files, embedded
        self._parsed: dict[str, list[Description]] = earlier._parsed if earlier else {}
        self._listed: list[str] | None = earlier._listed if earlier else None

    @cached_property
    def videos(self) -> dict[str, VideoInfo]:
        """The videos by digest."""
        return {info.digest: info for info in self._videos}

    @cached_property
    def videos_by_name(self) -> dict[str, VideoInfo]:
        """The videos by every name that they had; a name stands for the last that had it."""
        return {info.name: info for info in self._videos}

    @cached_property
    def fingerprints(self) -> dict[str, FingerprintInfo]:
        """The fingerprints, the last described at the end."""
        infos = (each.info for each in self._newest)
        return {info.fingerprint: info for info in infos if isinstance(info, FingerprintInfo)}

    @cached_property
    def by_subject(self) -> dict[str, list[Description]]:
        """The descriptions of each digest and fingerprint; a video may have several names."""
        found: dict[str, list[Description]] = {}
        for each in self._newest:
            found.setdefault(each.subject, []).append(each)
        return found

    @cached_property
    def latest(self) -> int:
        """The highest sequence; 0 if there is none."""
        return max((each.sequence for each in self._newest), default=0)

    @property
    def unwritten(self) -> list[Description]:
        """The descriptions that only tables of format version 1 have, so that no file does."""
        return [each for each in self._newest if not each.hash] if self._embedded else []

    @property
    def _videos(self) -> Iterator[VideoInfo]:
        return (each.info for each in self._newest if isinstance(each.info, VideoInfo))

    @cached_property
    def _newest(self) -> list[Description]:
        return newest([*self._embedded, *self._read()])

    def _read(self) -> list[Description]:
        try:
            for _ in range(8):
                sizes = list_descriptions(self.files)
                self._parse({f: size for f, size in sizes.items() if f not in self._parsed})
                if sizes.keys() <= self._parsed.keys():
                    break  # or one was replaced between listing and reading it
            self._listed = list(sizes)
        except StoreUnreachable:
            if self._listed is None:
                raise
        return [each for file in self._listed for each in self._parsed.get(file, ())]

    def _parse(self, sizes: dict[str, int]) -> None:
        ranges = [(file, 0, _line_bytes(file, size)) for file, size in sizes.items()]
        for (file, _, _), data in zip(ranges, self.files.read(ranges), strict=True):
            if data is None:
                continue
            found, wrong = decode_descriptions(self.files, file, data, with_times=False)
            self._parsed[file] = [each.description for each in found]
            if wrong:
                tqdm.write(
                    f"warning: {Damaged(file, wrong, self.files.url)}; until then what they "
                    "describe has no name"
                )


def _line_bytes(file: str, size: int) -> int:
    """Return how many bytes of a file of descriptions hold all of its lines, at least."""
    if file.startswith(FOLDER):
        return int(file.rpartition("-")[2])
    return min(size, OLD_LINE_BYTES) if file.startswith("videos") else size


def _decode_line(files: Files, file: str, line: bytes, end: int) -> EncodedDescription | None:
    """Return what a line describes, without its times; None if it is not what was written."""
    if not file.startswith(FOLDER):
        _, expected, sequence = file.rpartition("/")[2].split("-")
        if _hash(line) != expected:
            return None
        return _decode_json(files, file, line, int(sequence), (len(line), OLD_BYTES))
    found = LINE.match(line)
    if not found or int(found[1], 16) != checksum(found["rest"]):
        return None
    times = end + int(found["start"]), end + int(found["stop"])
    return _decode_json(files, file, found["fields"], int(found["sequence"]), times)


def _decode_json(
    files: Files, file: str, encoded: bytes, sequence: int, place: tuple[int, int]
) -> EncodedDescription:
    fields: dict[str, Any] = json.loads(encoded)
    info: VideoInfo | FingerprintInfo
    if "fingerprint" in fields:
        info = FingerprintInfo.from_dict(fields)
    else:
        times = fields["times"]
        if isinstance(times, list):
            fields["times"] = LinearTimes(*times)
        elif times is not None:
            fields["times"] = StoredTimes(files, file, *place, **times)
        info = VideoInfo(**fields)
    return EncodedDescription(Description(sequence, info, _hash(encoded)), encoded, b"")


def _stored_times(description: Description) -> StoredTimes | None:
    info = description.info
    times = info.times if isinstance(info, VideoInfo) else None
    return times if isinstance(times, StoredTimes) else None


def _encode(info: VideoInfo | FingerprintInfo) -> tuple[bytes, bytes]:
    """Return a description's JSON and its times."""
    fields, times = info.to_dict(), b""
    if isinstance(info, VideoInfo):
        fields["times"], times = _encode_times(info)
    return json.dumps(fields).encode() + b"\n", times


def _encode_times(info: VideoInfo) -> tuple[object, bytes]:
    """Return what the JSON says of a video's frame times, and their bytes; nothing is rounded."""
    times = info.times_s
    if times is None:
        return None, b""
    offset = float(times[0] * info.fps)
    for each in (round(offset, 6), offset):
        if np.array_equal(LinearTimes(each, info.fps, len(times))(), times):
            return [each, info.fps, len(times)], b""
    data = compress(np.ascontiguousarray(times, "<f8").view(np.uint8), 8)
    return {"count": len(times), "digest": compute_digest(data).hex()}, data


def _hash(fields: bytes) -> str:
    return compute_digest(fields).hex()[:16]
