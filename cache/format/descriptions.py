"""Descriptions of videos and fingerprints: one small file each, read when they are first asked for.

    STORE/videos/DIGEST-HASH-SEQUENCE
    STORE/fingerprints/FINGERPRINT-HASH-SEQUENCE

A file is a line of JSON, whose hash is in the name, and the frame times of a video where they are
uneven, whose digest is in the line: they are read for one video at a time, if at all. Of several
descriptions of the same video and name, or of the same fingerprint, that of the highest sequence
counts. Index tables list the hashes, so that a missing description is noticed.
"""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from cache.address import FingerprintInfo, VideoInfo
from cache.errors import Damaged, Missing, StoreUnreachable
from cache.format.records import Description, compute_digest
from cache.storage.base import Files, read_whole
from cache.storage.codec import Bytes, compress, decompress

DESCRIPTIONS = VIDEOS, FINGERPRINTS = "videos", "fingerprints"
FILE_NAME = re.compile(r"^(?P<subject>[0-9a-f]+)-(?P<hash>[0-9a-f]{16})-(?P<sequence>\d+)$")
LINE_BYTES = 2**10  # of a video, read at first: nearly all lines fit
FILES_AT_ONCE = 1024


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
    """Times that are read from a description's file when they are first asked for.

    Args:
        start: the byte of the file at which they begin, compressed.
        count: of the times; `digest`: of the bytes that hold them.
    """

    files: Files
    file: str
    start: int
    count: int
    digest: str

    def __call__(self) -> NDArray[np.float64]:
        """Return the times.

        Raises:
            Missing: the file is gone. Damaged: it is not what was written.
        """
        return self._times

    def __reduce__(self) -> tuple[type["StoredTimes"], tuple[Files, str, int, int, str]]:
        # Another process reads them itself, if it needs them.
        return StoredTimes, (self.files, self.file, self.start, self.count, self.digest)

    @cached_property
    def _times(self) -> NDArray[np.float64]:
        data = read_whole(self.files, self.file, None)
        if data is None:
            raise Missing(f"{self.files.url}/{self.file} is missing; it has a video's frame times")
        try:
            return self.decode(data)
        except Damaged as damage:
            raise Damaged(damage.file, damage.what, self.files.url) from damage

    def decode(self, data: Bytes) -> NDArray[np.float64]:
        """Return the times from the content of the file.

        Raises:
            Damaged: it is not what was written.
        """
        if compute_digest(data[self.start :]).hex() != self.digest:
            raise Damaged(self.file, "its frame times are not as written")
        times = np.empty(8 * self.count, np.uint8)
        decompress(data[self.start :], times, self.file)
        return times.view("<f8").astype(np.float64)


def write_description(files: Files, description: Description) -> Description:
    """Write a description's file and return the description with its name."""
    line, times = _encode(description.info)
    subject = description.subject
    file = f"{folder_of(subject)}/{subject}-{_hash(line)}-{description.sequence}"
    files.write(file, [line, times])
    return description._replace(file=file)


def folder_of(subject: str) -> str:
    """Return where a digest or a fingerprint is described."""
    return VIDEOS if len(subject) == 64 else FINGERPRINTS


def newest(descriptions: Iterable[Description]) -> list[Description]:
    """Return the descriptions that count, in the order of their sequences."""
    # Equal sequences are of writers that did not see each other.
    ordered = sorted(descriptions, key=lambda each: (each.sequence, each.file))
    last = {each.key: each for each in ordered}
    return [each for each in ordered if each is last[each.key]]


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
        self._parsed: dict[str, Description | Damaged] = earlier._parsed if earlier else {}
        self._listed: dict[str, dict[str, int]] = dict(earlier._listed) if earlier else {}

    @cached_property
    def videos(self) -> dict[str, VideoInfo]:
        """The videos by digest."""
        return {info.digest: info for info in self._video_infos}

    @cached_property
    def videos_by_name(self) -> dict[str, VideoInfo]:
        """The videos by every name that they had; a name stands for the last that had it."""
        return {info.name: info for info in self._video_infos}

    @cached_property
    def fingerprints(self) -> dict[str, FingerprintInfo]:
        """The fingerprints, the last described at the end."""
        infos = (each.info for each in self._of_fingerprints)
        return {info.fingerprint: info for info in infos if isinstance(info, FingerprintInfo)}

    @cached_property
    def by_subject(self) -> dict[str, list[Description]]:
        """The descriptions of each digest and fingerprint; a video may have several names."""
        found: dict[str, list[Description]] = {}
        for each in chain(self._of_videos, self._of_fingerprints):
            found.setdefault(each.subject, []).append(each)
        return found

    @cached_property
    def latest(self) -> int:
        """The highest sequence; 0 if there is none."""
        return max((e.sequence for e in chain(self._of_videos, self._of_fingerprints)), default=0)

    @property
    def _video_infos(self) -> Iterator[VideoInfo]:
        return (each.info for each in self._of_videos if isinstance(each.info, VideoInfo))

    @cached_property
    def _of_videos(self) -> list[Description]:
        embedded = [each for each in self._embedded if isinstance(each.info, VideoInfo)]
        return newest([*embedded, *self._read(VIDEOS)])

    @cached_property
    def _of_fingerprints(self) -> list[Description]:
        embedded = [each for each in self._embedded if isinstance(each.info, FingerprintInfo)]
        return newest([*embedded, *self._read(FINGERPRINTS)])

    def _read(self, folder: str) -> list[Description]:
        try:
            sizes = select_descriptions(folder, self.files.children(folder))
            new = [file for file in sizes if file not in self._parsed]
            for first in range(0, len(new), FILES_AT_ONCE):
                self._parse({file: sizes[file] for file in new[first : first + FILES_AT_ONCE]})
            self._listed[folder] = sizes
        except StoreUnreachable:
            if folder not in self._listed:
                raise
        found = (self._parsed.get(file) for file in self._listed[folder])
        return [each for each in found if isinstance(each, Description)]

    def _parse(self, sizes: dict[str, int]) -> None:
        some = {
            file: min(size, LINE_BYTES) if file.startswith(VIDEOS) else size
            for file, size in sizes.items()
        }
        heads = self.files.read([(file, 0, stop) for file, stop in some.items()])
        for (file, stop), data in zip(some.items(), heads, strict=True):
            if data is not None and stop < sizes[file] and b"\n" not in data.tobytes():
                data = read_whole(self.files, file, sizes[file])
            if data is None:
                continue  # pruned meanwhile
            try:
                self._parsed[file] = decode_description(self.files, file, data)
            except Damaged as damage:
                self._parsed[file] = damage
                tqdm.write(
                    f"warning: {Damaged(damage.file, damage.what, self.files.url)}; until then "
                    "what it describes has no name"
                )


def select_descriptions(folder: str, children: dict[str, int | None]) -> dict[str, int]:
    """Return the description files among what is in a folder, with their sizes."""
    return {
        f"{folder}/{name}": size
        for name, size in children.items()
        if size is not None and FILE_NAME.match(name)
    }


def decode_description(files: Files, file: str, data: Bytes) -> Description:
    """Return what a file describes, given its bytes up to the end of the line at least.

    Raises:
        Damaged: the line is not what was written.
    """
    name = FILE_NAME.match(file.rpartition("/")[2])
    assert name is not None
    line, end, _ = data.tobytes().partition(b"\n")
    if _hash(line + end) != name["hash"]:
        raise Damaged(file, "it is not as written")
    fields: dict[str, Any] = json.loads(line)
    sequence = int(name["sequence"])
    if file.startswith(FINGERPRINTS):
        return Description(sequence, FingerprintInfo.from_dict(fields), file)
    times = fields["times"]
    if isinstance(times, list):
        fields["times"] = LinearTimes(*times)
    elif times is not None:
        fields["times"] = StoredTimes(files, file, len(line) + 1, **times)
    return Description(sequence, VideoInfo(**fields), file)


def check_description(files: Files, file: str, data: Bytes) -> None:
    """Raise Damaged unless a file's content is what was written."""
    info = decode_description(files, file, data).info
    if isinstance(info, VideoInfo) and isinstance(info.times, StoredTimes):
        info.times.decode(data)


def _encode(info: VideoInfo | FingerprintInfo) -> tuple[bytes, bytes]:
    """Return a description's line, and what follows it."""
    fields, times = info.to_dict(), b""
    if isinstance(info, VideoInfo):
        fields["times"], times = _encode_times(info)
    return json.dumps(fields).encode() + b"\n", times


def _encode_times(info: VideoInfo) -> tuple[object, bytes]:
    """Return what a line says of a video's frame times, and what follows it; nothing is rounded."""
    times = info.times_s
    if times is None:
        return None, b""
    offset = float(times[0] * info.fps)
    for each in (round(offset, 6), offset):
        if np.array_equal(LinearTimes(each, info.fps, len(times))(), times):
            return [each, info.fps, len(times)], b""
    data = compress(np.ascontiguousarray(times, "<f8").view(np.uint8), 8)
    return {"count": len(times), "digest": compute_digest(data).hex()}, data


def _hash(line: bytes) -> str:
    return compute_digest(line).hex()[:16]
