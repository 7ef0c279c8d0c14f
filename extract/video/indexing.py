"""The index of a video file: its frames' times, and which access to them can be trusted.

Access by a frame's number silently gives wrong frames, in decord for one, where a keyframe does not
reset the decoder (open GOPs, many H.265 files) or where the container's times are not the frames'
(AVI). The packets show it, without being decoded; where they leave a doubt, all frames are decoded
once. `extract.video.probe` reads them in processes that may hang or crash, and keeps the indexes.
"""

from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from extract.identity import user_cache
from extract.identity.digest import remembered_digest
from extract.video.clock import repair_clock
from extract.video.decoders.by_torchcodec import torchcodec_version
from extract.video.decoders.choice import check_torchcodec
from extract.video.h264 import (
    contains_idr,
    is_recovery_picture,
    is_settings,
    nal_length_bytes,
    split_units,
)
from extract.video.index import (
    Progress,
    VideoError,
    VideoIndex,
    check_readable,
    open_video,
    video_stream,
)

PROBED_FRAMES = 48  # frames decoded to see whether they carry their packets' times
MOST_REORDERED = 16  # frames that a decoder holds back at most to show them in another order
PROBED_KEYFRAMES = 16  # decoded to see whether the pictures' size changes
# Containers that say where their keyframes are; in others (GIF) a decoder may begin between two.
SEEKABLE = {"asf", "avi", "flv", "matroska", "mp4", "mpeg", "mpegts", "mxf"}
# Codecs whose keyframes hold all that a decoder needs for pictures of another size.
SELF_CONTAINED = {"av1", "h264", "hevc", "libdav1d", "vp8", "vp9", "libvpx", "libvpx-vp9"}
# Containers whose clock restarts wherever two recordings were joined. Their frames are at most
# 0.7 s apart (ISO 13818-1, 2.7.4); FFmpeg takes a longer gap than this for a jump, too.
STREAMS, STREAM_GAP_S = {"mpeg", "mpegts"}, 10.0
# Raise the number when the same file gets another index.
CACHE_FOLDER = f"index-4-av{av.__version__}{torchcodec_version()}"


@dataclass(frozen=True)
class _FileState:
    """A version of a file; `progress` is called with 0 at every step of reading it."""

    path: str
    size: int
    modified: int
    progress: Progress = field(compare=False)


def video_index(path: str | Path, progress: Progress = lambda done: None) -> VideoIndex:
    """Return a file's index: from memory, from the user's cache folder, or from the file itself.

    Args:
        progress: called with 0 at every step of reading, which for some files takes minutes.

    Raises:
        VideoError: the file is missing, empty, no video, or its first frames do not decode.
    """
    size, modified = check_readable(path)
    return _load_index(_FileState(str(path), size, modified, progress))


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
        cause = "its data are damaged or not a video" if damaged else error.strerror
        raise VideoError(f"{file.path}: cannot be read as video: {cause}") from error


@dataclass
class _Packets:
    """What a stream's packets say, in the order they are stored.

    Args:
        times, decode_times: None where there is none.
        keys: places of the packets that are called keyframes.
        begins: times of those at which decoding can begin.
        resets: whether every keyframe resets the decoder, so that access by number is exact.
        length: of the first one, 0 if unknown.
    """

    times: list[int | None] = field(default_factory=list)
    decode_times: list[int] = field(default_factory=list)
    keys: list[int] = field(default_factory=list)
    begins: list[int | None] = field(default_factory=list)
    resets: bool = False
    length: int = 0


@dataclass(frozen=True)
class _Picture:
    """What is known of a decoded frame beside its pixels."""

    pts: int | None
    rotation: int
    size: tuple[int, int]
    damaged: bool


def _read_index(file: _FileState) -> VideoIndex:
    path = file.path
    with open_video(path) as container:
        stream = video_stream(container)
        # From PyAV 19 on these are rational numbers of PyAV's own type.
        time_base = Fraction(stream.time_base or 0)
        rate = Fraction(stream.average_rate or stream.codec_context.framerate or 0) or None
        formats = set(container.format.name.split(","))
        packets = _read_packets(file, container, stream)
        length = packets.length or stream.duration or 0
        if rate is None and len(packets.times) == 1 and length * time_base > 0:
            rate = 1 / (length * time_base)
        only_one = len(container.streams.video) == 1  # else other decoders may choose another
        codec = stream.codec_context.name
    first = _probe_first_frames(path)
    if packets.times and not first:
        raise VideoError(
            f"{path}: cannot be read as video: no frame of it decodes; it is damaged or encrypted"
        )
    if not packets.times or not time_base:
        raise VideoError(f"{path}: cannot be read as video: it has no frames")
    if all(picture.damaged for picture in first):
        raise VideoError(
            f"{path}: cannot be read as video: the decoder finds every one of its first frames "
            "damaged; it may be encrypted"
        )
    rotation = first[0].rotation % 360
    kept = rotation, first[0].size, rate
    rising = _rise_when_sorted(packets)
    pts = np.unique(np.array([t for t in packets.times if t is not None], np.int64))
    gap = float(np.diff(pts).max(initial=0) * time_base)
    jumps = bool(formats & STREAMS) and gap > STREAM_GAP_S
    exact = [picture.pts for picture in first] == pts[: len(first)].tolist()
    if not rising or jumps or not exact:
        return _index_by_decoding(file, time_base, formats, rising, *kept)
    keyframes = np.unique(np.array([pts[0], *packets.begins], np.int64))
    # In other containers (FLV) the last frames of decord, and of torchcodec, are wrong.
    trusted = bool(formats & {"mp4", "matroska"}) and only_one
    if packets.resets and trusted and not rotation:
        index = VideoIndex("indexed", pts, keyframes, time_base, *kept)
        return replace(index, torchcodec=check_torchcodec(path, index, file.progress))
    possible, other = _probe_keyframes(file, keyframes, first[0].size)
    possible = possible and bool(formats & SEEKABLE)
    if not possible or (other and codec not in SELF_CONTAINED):
        return _index_by_decoding(file, time_base, formats, rising, *kept)
    index = VideoIndex("seek", pts, keyframes, time_base, *kept, other_size=other)
    if trusted and not other:
        index = replace(index, torchcodec=check_torchcodec(path, index, file.progress))
    return index


def _read_packets(
    file: _FileState, container: av.container.InputContainer, stream: av.VideoStream
) -> _Packets:
    found = _Packets()
    length_bytes = nal_length_bytes(stream.codec_context)
    is_h264 = stream.codec_context.name == "h264"
    settings = stream.codec_context.extradata or b""
    found.resets = bool(length_bytes)
    for packet in container.demux(stream):
        file.progress(0)
        if _has(packet, "encryption_info"):
            raise VideoError(f"{file.path}: cannot be read as video: it is encrypted")
        if not packet.size or packet.is_discard:
            continue
        found.times.append(packet.pts)
        found.length = found.length or packet.duration or 0
        if packet.dts is not None:
            found.decode_times.append(packet.dts)
        if _has(packet, "new_extradata"):
            found.resets = False
        if packet.is_keyframe:
            found.keys.append(len(found.times) - 1)
            parts = list(split_units(bytes(packet), length_bytes)) if is_h264 else []
            # Pictures of another size begin with settings of their own.
            same = all(unit in settings for unit in parts if is_settings(unit))
            found.resets = found.resets and contains_idr(parts) and same
            if not is_h264 or contains_idr(parts) or is_recovery_picture(parts):
                found.begins.append(packet.pts)
    return found


def _has(packet: Any, kind: str) -> bool:
    """Return whether a packet comes with such data; PyAV before 15 cannot tell."""
    ask = getattr(packet, "has_sidedata", None)
    return ask is not None and ask(kind)


def _rise_when_sorted(packets: _Packets) -> bool:
    """Return whether a decoder shows packets in the order of their times, as far as these tell.

    It does not where recordings were joined whose clocks overlap, for one.
    """
    if None in packets.times or np.any(np.diff(packets.decode_times) < 0):
        return False
    times = np.array(packets.times, np.int64)
    order = np.argsort(times, kind="stable")
    if np.any(np.diff(times[order]) == 0):
        return False
    if np.abs(order - np.arange(len(times))).max(initial=0) > MOST_REORDERED:
        return False
    keys = np.array([place for place in packets.keys if place], np.int64)
    # Whatever is stored before a keyframe is shown before it.
    return bool(np.all(np.maximum.accumulate(times)[keys - 1] < times[keys]))


def _probe_first_frames(path: str) -> list[_Picture]:
    """Return the first frames, without their pixels."""
    with open_video(path) as container:
        stream = video_stream(container)
        stream.thread_count = 1
        return [
            _Picture(frame.pts, frame.rotation, (frame.height, frame.width), frame.is_corrupt)
            for frame in islice(container.decode(stream), PROBED_FRAMES)
        ]


def _probe_keyframes(
    file: _FileState, keyframes: NDArray[np.int64], size: tuple[int, int]
) -> tuple[bool, tuple[int, int] | None]:
    """Return whether decoding can begin at some of the keyframes, and any other size met there."""
    numbers = np.unique(np.linspace(0, len(keyframes) - 1, PROBED_KEYFRAMES).astype(int))
    with open_video(file.path) as container:
        stream = video_stream(container)
        stream.thread_count = 1
        for start in keyframes[numbers]:
            file.progress(0)
            try:
                container.seek(int(start), stream=stream)
                frame = next(container.decode(stream), None)
            except (av.FFmpegError, OSError):
                return False, None
            if frame is not None and (frame.height, frame.width) != size:
                return True, (frame.height, frame.width)
    return True, None


def _index_by_decoding(
    file: _FileState,
    time_base: Fraction,
    formats: set[str],
    rising: bool,
    rotation: int,
    size: tuple[int, int],
    rate: Fraction | None,
) -> VideoIndex:
    """Return the index of a file whose packets do not show its frames, by decoding all of it.

    Args:
        rising: whether its packets' times are sound, although frames come with those of others.
    """
    times: list[int | None] = []
    other: tuple[int, int] | None = None
    with open_video(file.path) as container:
        stream = video_stream(container)
        stream.thread_count = 1  # frames of damaged files depend on it
        for frame in container.decode(stream):
            file.progress(0)
            times.append(frame.pts)
            if (frame.height, frame.width) != size:
                other = other or (frame.height, frame.width)
    if (rising or "avi" in formats) and None not in times:
        times.sort(key=lambda time: time or 0)
    longest_s = STREAM_GAP_S if formats & STREAMS else np.inf
    pts, time_base, repaired = repair_clock(times, time_base, rate, longest_s)
    return VideoIndex("sequence", pts, pts[:1], time_base, rotation, size, rate, repaired, other)
