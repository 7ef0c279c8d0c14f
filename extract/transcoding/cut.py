"""Segments of videos as files of their own: copied where that is exact, else encoded again.

A clip has the frames that are shown within its segment: from the one on the screen when it begins
to the one on the screen just before it ends. Its stored packets are copied only where this gives
the same frames at the same times: the first frame is a keyframe, the packets after it in the file
are those of the following frames and of no other, and the clip, read again, shows what the source
does.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace
from numpy.typing import NDArray

from configs.atomic import atomic_path
from extract.identity.digest import video_digest
from extract.transcoding.encode import (
    EncoderSettings,
    make_timeline,
    read_stamp,
    split_stretches,
    write_mp4,
)
from extract.video.index import VideoError, VideoIndex, open_video
from extract.video.reader import VideoReader

# Raise the number when the same segment gives another file.
STAMP = "palindrome: segment 1"
ROUNDING_S = 1e-3  # by which times of segments may miss those of frames
COPIED = ("av1", "h264", "hevc", "mpeg4", "vp9")  # what mp4 players know
GOP = 25  # frames from one keyframe of an encoded clip to the next
OPTIONS = {"preset": "veryfast", "crf": "18"}
TAGS = {"colorspace": Colorspace.ITU601.value, "color_range": ColorRange.MPEG.value}
# Levels of 255 by which the same frame may differ between readers.
SAME_PIXEL = 4


def find_frames(index: VideoIndex, start_s: float, end_s: float) -> tuple[int, int]:
    """Return the first and the last frame that are shown within a segment."""
    times = index.times(np.arange(len(index.pts)))
    first = int(np.searchsorted(times, start_s + ROUNDING_S, "right")) - 1
    last = int(np.searchsorted(times, end_s - ROUNDING_S, "right")) - 1
    first = max(0, first)
    return first, max(first, last)


def cut_segment(reader: VideoReader, start_s: float, end_s: float, target: Path) -> bool:
    """Write a segment without sound to an .mp4 file; aside, then renamed.

    A target that is this segment of this file already stays as it is.

    Returns:
        Whether its packets are copied.

    Raises:
        ValueError: the target is something else, and so must not be replaced.
        VideoError: the source cannot be decoded.
        OSError: the file cannot be written.
    """
    first, last = find_frames(reader.index, start_s, end_s)
    digest, size = video_digest(reader.path), reader.path.stat().st_size
    stamp = f"{STAMP}, frames {first} to {last} of {digest}, {size} bytes"
    copied, encoded = f"{stamp}, copied", f"{stamp}, encoded"
    if target.exists():
        found = read_stamp(target)
        if found not in (copied, encoded):
            raise ValueError(
                f"{target}: is not this segment and would be replaced; remove it or choose "
                "another folder"
            )
        return found == copied
    with atomic_path(target) as aside:
        if _copy_packets(reader, first, last, aside, copied) and _is_same(
            reader, first, last, aside
        ):
            return True
        _encode(reader, first, last, aside, encoded)
    return False


def _copy_packets(reader: VideoReader, first: int, last: int, target: Path, stamp: str) -> bool:
    """Write the packets of these frames; return False where they do not stand together."""
    index = reader.index
    begin = int(index.pts[first])
    if index.access == "sequence" or index.rotation or begin not in index.keyframes:
        return False
    try:
        with open_video(reader.path) as source:
            if len(source.streams.video) > 1:
                return False
            stream: Any = source.streams.video[0]
            if stream.codec_context.name.removeprefix("lib") not in (*COPIED, "dav1d"):
                return False
            source.seek(begin, stream=stream)
            packets = _packets_from(source.demux(stream), begin, last + 1 - first)
            times = sorted(packet.pts for packet in packets)
            if times != index.pts[first : last + 1].tolist():
                return False
            with av.open(str(target.resolve()), "w", format="mp4") as container:
                container.metadata["comment"] = stamp
                copy: Any = container.add_stream_from_template(stream)
                for packet in packets:
                    packet.pts -= begin
                    packet.dts -= begin
                    packet.stream = copy
                    container.mux(packet)
    except (av.FFmpegError, TypeError, ValueError):  # what cannot be copied is encoded
        return False
    return True


def _packets_from(packets: Iterator[Any], begin: int, count: int) -> list[Any]:
    """Return `count` packets in the order of the file from the keyframe at `begin` on."""
    found: list[Any] = []
    for packet in packets:
        if packet.pts is None or packet.dts is None or packet.is_discard or not packet.size:
            continue
        if found or (packet.pts == begin and packet.is_keyframe):
            found.append(packet)
            if len(found) == count:
                break
        elif packet.dts > begin:
            break
    return found


def _is_same(reader: VideoReader, first: int, last: int, clip: Path) -> bool:
    """Return whether a clip shows these frames at the times of the source."""
    try:
        copy = VideoReader(clip)
        numbers = np.arange(last + 1 - first)
        if len(copy) != len(numbers):
            return False
        wanted = reader.times(numbers + first) - reader.times(np.array([first]))
        # Clocks may differ by less than a tenth of a millisecond, as mp4's and Matroska's do.
        if not np.allclose(copy.times(numbers), wanted, rtol=0, atol=1e-4):
            return False
        pairs = zip(copy.chunks(numbers), reader.chunks(numbers + first), strict=True)
        return all(_look_alike(one, other) for one, other in pairs)
    except VideoError:
        return False


def _look_alike(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> bool:
    if one.shape != other.shape:
        return False
    return bool(np.abs(one.astype(np.int16) - other).max() <= SAME_PIXEL)


def _encode(reader: VideoReader, first: int, last: int, target: Path, stamp: str) -> None:
    pictures = reader.chunks(np.arange(first, last + 1))
    height, width = reader.frames(np.array([first])).shape[1:3]
    # H.264 with subsampled colours has even sides.
    across, down = (max(2, side // 2 * 2) for side in (width, height))
    encoder = EncoderSettings("libx264", "yuv420p", across, down, OPTIONS, TAGS)
    shown = replace(reader.index, pts=reader.index.pts[first : last + 1])
    # One frame tells no rate.
    line = replace(make_timeline(shown, backwards=False), fps=reader.index.fps)
    parts = split_stretches(_frames(pictures, encoder), GOP)
    write_mp4(target, parts, encoder, line, stamp, backwards=False)


def _frames(
    pictures: Iterator[NDArray[np.uint8]], encoder: EncoderSettings
) -> Iterator[av.VideoFrame]:
    for chunk in pictures:
        for picture in chunk:
            yield av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(
                width=encoder.width,
                height=encoder.height,
                format=encoder.pixels,
                dst_colorspace=Colorspace.ITU601,
                dst_color_range=ColorRange.MPEG,
            )
