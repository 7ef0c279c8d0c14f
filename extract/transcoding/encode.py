"""Encoding of frames into an mp4 file: in their order, or reversed stretch by stretch.

A stretch is encoded as one: it begins with an IDR picture, holds no other one, and shows its frames
in the order they are stored. So a decoder can begin at any stretch, access by a frame's number is
exact, and stretches may change places: reversed, the last one comes first.
"""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import islice
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

import av
import numpy as np
from av.video.frame import PictureType
from numpy.typing import NDArray

from extract.video.index import Progress, VideoIndex, file_name, open_video

SUFFIX = ".mp4"
OPTIONS = {"bf": "0", "g": "1000000", "sc_threshold": "0", "forced-idr": "1"}


@dataclass(frozen=True)
class EncoderSettings:
    """Settings of an encoder.

    Args:
        pixels: the name of the pixel format.
        options: of the encoder, in addition to OPTIONS.
        tags: colours and aspect ratio in the stream's header, by PyAV's names.
    """

    codec: str
    pixels: str
    width: int
    height: int
    options: dict[str, str]
    tags: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Timeline:
    """Times at which frames are shown: int [N], rising from 0, in units of `unit` seconds."""

    times: NDArray[np.int64]
    unit: Fraction
    fps: float


def make_timeline(index: VideoIndex, backwards: bool) -> Timeline:
    """Return the times of a file's frames, from the first or, `backwards`, from the last one."""
    times = np.sort(index.pts[-1] - index.pts if backwards else index.pts)
    times, unit = times - times[0], index.time_base
    if not times[-1]:  # they all have the same time
        times = np.arange(len(times))
    elif np.any(np.diff(times) == 0):
        # Some files whose frames had to be counted; an mp4 file needs times that rise, in a unit
        # that FFmpeg can hold.
        finer = max(1, min(1000, (2**31 - 1) // unit.denominator))
        order = np.arange(len(times))
        times = np.maximum.accumulate(finer * times - order) + order
        unit /= finer
    return Timeline(times, unit, index.fps)


def read_stamp(path: Path) -> str | None:
    """Return the stamp of a file that `write_mp4` wrote, some other comment or None."""
    with suppress(av.FFmpegError, OSError), open_video(path) as container:
        return container.metadata.get("comment")
    return None


def split_stretches(
    frames: Iterator[av.VideoFrame], length: int, first: int | None = None
) -> Iterator[list[av.VideoFrame]]:
    """Yield lists of `length` frames; the last one may be shorter.

    Args:
        first: length of the first list, if it is another one.
    """
    count = first or length
    while stretch := list(islice(frames, count)):
        yield stretch
        count = length


def write_mp4(
    path: Path,
    parts: Iterator[list[av.VideoFrame]],
    encoder: EncoderSettings,
    line: Timeline,
    stamp: str,
    backwards: bool,
    threads: int = 1,
    progress: Progress = lambda frames: None,
) -> None:
    """Encode stretches of frames, in the order of the source, into a new file.

    Args:
        parts: the stretches; they are emptied.
        stamp: describes source and settings; `read_stamp` returns it.
        backwards: reverse the frames; their packets are then written to the same disk twice.
        progress: called with the number of frames that were encoded; with 0 at other steps.

    Raises:
        ValueError: more or fewer frames come than there are times.
        OSError: the file cannot be written.
    """
    rate = Fraction(line.fps).limit_denominator(10_000) or Fraction(1, 10_000)
    with (
        av.open(file_name(path), "w", format="mp4") as container,
        # Without a name: it does not outlive this process.
        TemporaryFile(dir=path.parent, prefix=path.name) as file,
    ):
        container.metadata["comment"] = stamp
        stream: Any = container.add_stream(encoder.codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = encoder.width, encoder.height, encoder.pixels
        stream.options = OPTIONS | encoder.options | {"threads": str(threads)}
        stream.time_base = line.unit
        for name, value in encoder.tags.items():
            if value is not None:
                setattr(stream.codec_context, name, value)
        packets = _encode_packets(stream, 1 / rate, parts, backwards, progress)
        if backwards:
            spool = _Spool(file)
            spool.add(packets)
            packets = spool.last_stretch_first()
        duration = max(1, round(1 / line.fps / float(line.unit)))
        number = -1
        for number, (content, is_key) in enumerate(packets):
            if number == len(line.times):
                break
            packet = av.Packet(content)
            # The stream gets another unit when the container's header is written.
            packet.stream, packet.is_keyframe, packet.time_base = stream, is_key, line.unit
            packet.pts = packet.dts = int(line.times[number])
            packet.duration = duration
            container.mux(packet)
            progress(0)
        if number + 1 != len(line.times):
            few_or_many = "fewer" if number < len(line.times) else "more"
            raise ValueError(f"{few_or_many} than its {len(line.times)} frames were decoded")


def _encode_packets(
    stream: Any,
    time_base: Fraction,
    parts: Iterator[list[av.VideoFrame]],
    backwards: bool,
    progress: Progress,
) -> Iterator[tuple[bytes, bool]]:
    """Yield every packet, and whether it is a keyframe; `backwards` reverses each stretch."""
    number = 0
    for part in parts:
        progress(len(part))
        if not backwards:
            part.reverse()
        for place in range(len(part)):
            frame = part.pop()
            frame.pict_type = PictureType.NONE if place else PictureType.I
            frame.pts, frame.time_base = number, time_base
            for packet in stream.encode(frame):
                yield bytes(packet), packet.is_keyframe
            number += 1
    for packet in stream.encode(None):
        yield bytes(packet), packet.is_keyframe


@dataclass
class _Spool:
    """Encoded frames on disk: where each packet begins, and whether it is a keyframe."""

    file: IO[bytes]
    begins: list[int] = field(default_factory=lambda: [0])
    is_key: list[bool] = field(default_factory=list)

    def add(self, packets: Iterator[tuple[bytes, bool]]) -> None:
        for content, is_key in packets:
            self.begins.append(self.begins[-1] + self.file.write(content))
            self.is_key.append(is_key)

    def last_stretch_first(self) -> Iterator[tuple[bytes, bool]]:
        """Yield every packet: stretches in reverse order, each with its own packets in order."""
        keys = [number for number, is_key in enumerate(self.is_key) if is_key]
        stops = [*keys[1:], len(self.is_key)]
        for first, stop in zip(reversed(keys), reversed(stops), strict=True):
            self.file.seek(self.begins[first])
            for number in range(first, stop):
                size = self.begins[number + 1] - self.begins[number]
                yield self.file.read(size), self.is_key[number]
