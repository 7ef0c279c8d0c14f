"""The index of a video file: its frames' times, and which access to them can be trusted.

decord is the fastest reader, but its indexed access silently returns wrong frames where a keyframe
does not reset the decoder (open GOPs, many H.265 files) or where the container's times are not the
frames' (AVI). The packets show it, without being decoded. `extract.video.probe` reads them in
processes that may hang or crash, and keeps the indexes.
"""

import io
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any, Literal, cast

import av
import numpy as np
from numpy.typing import NDArray

from extract.identity import user_cache
from extract.identity.digest import remembered_digest
from extract.video.h264 import contains_idr, is_recovery_picture, nal_length_bytes, split_units

Access = Literal["decord", "seek", "sequence"]
Progress = Callable[
    [int], None
]  # called with how much more is done; 0 if only that it is not stuck
PROBED_FRAMES = 48  # frames decoded to see whether they carry their packets' times
# Titles in other encodings than UTF-8; PyAV reads them by default from 19 on.
TITLE_OPTIONS: dict[str, Any] = (
    {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}
)
# Raise the number when the same file gets another index.
CACHE_FOLDER = f"index-2-av{av.__version__}-decord{version('decord')}"


class VideoError(ValueError):
    """A video that cannot be read; the message names the file and the cause."""


@dataclass(frozen=True)
class VideoIndex:
    """The frames of a file in the order they are shown.

    Args:
        access: `decord` where its indexed access is exact; `seek` where a frame is found by its
            time; `sequence` where only counting from the first frame is certain.
        pts: presentation time of every frame, int [N], in units of `time_base` seconds.
        keyframes: times of the frames at which decoding can begin.
        rotation: degrees, a multiple of 90, by which frames are rotated to be upright.
    """

    access: Access
    pts: NDArray[np.int64]
    keyframes: NDArray[np.int64]
    time_base: Fraction
    rotation: int

    @property
    def fps(self) -> float:
        """Frames per second, on average."""
        span = int(self.pts[-1] - self.pts[0]) * self.time_base
        if not span:  # one frame, or frames that all have the same time
            return float(1 / self.time_base)
        return float((len(self.pts) - 1) / span)

    def times(self, indices: NDArray[np.integer]) -> NDArray[np.float64]:
        """Return the presentation times of frames, in seconds from the first one."""
        return (self.pts[indices] - self.pts[0]) * float(self.time_base)

    def to_bytes(self) -> bytes:
        """Return the index as the content of a small file, with checksums."""
        file = io.BytesIO()
        np.savez_compressed(
            file,
            access=np.array(self.access),
            steps=np.diff(self.pts, prepend=0),  # nearly constant, so they compress well
            keyframes=self.keyframes,
            time_base=np.array(self.time_base.as_integer_ratio()),
            rotation=np.array(self.rotation),
        )
        return file.getvalue()

    @classmethod
    def from_bytes(cls, content: bytes) -> "VideoIndex":
        """Return the index that `to_bytes` encoded; damaged content raises some exception."""
        with np.load(io.BytesIO(content)) as saved:
            return cls(
                access=cast(Access, str(saved["access"])),
                pts=np.cumsum(saved["steps"]),
                keyframes=saved["keyframes"],
                time_base=Fraction(*map(int, saved["time_base"])),
                rotation=int(saved["rotation"]),
            )


@dataclass(frozen=True)
class _FileState:
    """A version of a file; `progress` is called with 0 at every step of reading it."""

    path: str
    size: int
    modified: int
    progress: Progress = field(compare=False)


def video_index(path: str | Path, progress: Progress = lambda done: None) -> VideoIndex:
    """Return a file's index: from memory, from the user's cache folder, or read from it.

    Args:
        progress: called with 0 at every step of reading, which for some files takes minutes.

    Raises:
        VideoError: the file is missing, empty, no video, or its first frames do not decode.
    """
    size, modified = check_readable(path)
    return _load_index(_FileState(str(path), size, modified, progress))


def open_video(path: str | Path) -> av.container.InputContainer:
    """Return a file opened for reading, whatever the encoding of its titles."""
    return av.open(str(path), mode="r", **TITLE_OPTIONS)


def check_readable(path: str | Path) -> tuple[int, int]:
    """Return size and time of change.

    Raises:
        VideoError: no decoder needs to open the file to know that it is no video.
    """
    try:
        status = Path(path).stat()
    except FileNotFoundError:
        cause = "it does not exist"
    except OSError as error:
        cause = str(error.strerror)
    else:
        if stat.S_ISDIR(status.st_mode):
            cause = "it is a folder"
        elif not stat.S_ISREG(status.st_mode):
            cause = "it is no regular file"  # opening a named pipe may block for ever
        elif not status.st_size:
            cause = "the file is empty"
        else:
            return status.st_size, status.st_mtime_ns
    raise VideoError(f"{path}: cannot be read as video: {cause}")


def remembered_index(digest: str) -> VideoIndex | None:
    """Return the index of a digest from the user's cache folder, None if it is not there."""
    content = user_cache.load(f"{CACHE_FOLDER}/{digest}.npz")
    try:
        return VideoIndex.from_bytes(content) if content else None
    except Exception:  # whatever is wrong with it: the file itself can be read
        return None


def remember_index(digest: str, index: VideoIndex) -> None:
    """Write the index of a file that can be decoded into the user's cache folder."""
    user_cache.save(f"{CACHE_FOLDER}/{digest}.npz", index.to_bytes())


@lru_cache(maxsize=64)
def _load_index(file: _FileState) -> VideoIndex:
    try:
        digest = remembered_digest(file.path)
        return (digest and remembered_index(digest)) or _read_index(file)
    except (av.FFmpegError, OSError) as error:
        damaged = isinstance(error, av.InvalidDataError)
        cause = "its data are damaged or no video" if damaged else error.strerror
        raise VideoError(f"{file.path}: cannot be read as video: {cause}") from error


def _read_index(file: _FileState) -> VideoIndex:
    path = file.path
    with open_video(path) as container:
        if not container.streams.video:
            raise VideoError(f"{path}: cannot be read as video: it has no video stream")
        stream = container.streams.video[0]
        # From PyAV 19 on this is a rational number of PyAV's own type.
        time_base = Fraction(stream.time_base or 0)
        length_bytes = nal_length_bytes(stream.codec_context)
        is_h264 = stream.codec_context.name == "h264"
        # In other containers (FLV) decord's last frames are wrong.
        trusted = not {"mp4", "matroska"}.isdisjoint(container.format.name.split(","))
        resets = bool(length_bytes) and trusted
        times, keys = [], []
        for packet in container.demux(stream):
            file.progress(0)
            if packet.size and not packet.is_discard:
                times.append(packet.pts)
                if packet.is_keyframe:
                    parts = list(split_units(bytes(packet), length_bytes)) if is_h264 else []
                    resets = resets and contains_idr(parts)
                    if not is_h264 or contains_idr(parts) or is_recovery_picture(parts):
                        keys.append(packet.pts)
    first = _probe_first_frames(path)
    if not times or not first or not time_base:
        raise VideoError(f"{path}: cannot be read as video: it has no frames")
    pts = np.unique(np.array([t for t in times if t is not None], np.int64))
    rotation = first[0][1] % 360
    if len(pts) < len(times) or [time for time, _ in first] != pts[: len(first)].tolist():
        return _index_by_decoding(file, time_base, rotation)
    keyframes = np.unique(np.array([pts[0], *keys], np.int64))
    access: Access = "decord" if resets and not rotation else "seek"
    return VideoIndex(access, pts, keyframes, time_base, rotation)


def _probe_first_frames(path: str) -> list[tuple[int | None, int]]:
    """Return (time, rotation) of the first frames, without their pixels."""
    with open_video(path) as container:
        container.streams.video[0].thread_count = 1
        decoded = container.decode(video=0)
        return [(frame.pts, frame.rotation) for frame in islice(decoded, PROBED_FRAMES)]


def _index_by_decoding(file: _FileState, time_base: Fraction, rotation: int) -> VideoIndex:
    """Return the index of a file whose packets do not show its frames, by decoding all of it."""
    times = []
    with open_video(file.path) as container:
        for frame in container.decode(video=0):
            file.progress(0)
            times.append(frame.time)
        rate = container.streams.video[0].average_rate or Fraction(1)
    seconds = [i / float(rate) if t is None else t for i, t in enumerate(times)]
    pts = np.round(np.array(seconds) / float(time_base)).astype(np.int64)
    return VideoIndex("sequence", pts, pts[:1], time_base, rotation)
