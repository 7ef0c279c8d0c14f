"""Frames into an mp4 file of our own: in their order, or stretch by stretch backwards.

A stretch is encoded at once: it begins with an IDR picture, holds no other one, and shows its
frames in the order they are stored. So a decoder can begin at any of them, decord's indexed access
is exact, and stretches may change places: backwards, the last one comes first.
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

from extract.video.index import Progress, VideoError, VideoIndex, open_video
from extract.video.reader import VideoReader

SUFFIX = ".mp4"
OPTIONS = {"bf": "0", "g": "1000000", "sc_threshold": "0", "forced-idr": "1"}


@dataclass(frozen=True)
class Way:
    """How frames are encoded.

    Args:
        pixels: the name of their pixel format.
        options: the encoder's own, beside OPTIONS.
        tags: what the stream says of its pictures (colours, aspect), by PyAV's names.
    """

    codec: str
    pixels: str
    width: int
    height: int
    options: dict[str, str]
    tags: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Timeline:
    """When frames are shown: int [N], rising from 0, in units of `unit` seconds."""

    times: NDArray[np.int64]
    unit: Fraction
    fps: float


def timeline(index: VideoIndex, backwards: bool) -> Timeline:
    """Return the times of a file's frames, from the first one or, turned round, from the last."""
    times = np.sort(index.pts[-1] - index.pts if backwards else index.pts)
    times, unit = times - times[0], index.time_base
    if not times[-1]:  # they all claim the same time
        times = np.arange(len(times))
    elif np.any(np.diff(times) == 0):
        # Some files whose frames had to be counted; an mp4 file needs times that rise, in a unit
        # that FFmpeg can hold.
        finer = max(1, min(1000, (2**31 - 1) // unit.denominator))
        order = np.arange(len(times))
        times = np.maximum.accumulate(finer * times - order) + order
        unit /= finer
    return Timeline(times, unit, index.fps)


def made_of(path: Path) -> str | None:
    """Return the stamp of a file that `write_mp4` wrote, some other comment or None."""
    with suppress(av.FFmpegError, OSError), open_video(path) as container:
        return container.metadata.get("comment")
    return None


def upright_size(index: VideoIndex, context: Any) -> tuple[int, int]:
    """Return the width and height of a file's pictures, as its header tells."""
    width, height = context.width, context.height
    return (height, width) if index.rotation % 180 else (width, height)


def upright_chunks(reader: VideoReader, width: int, height: int) -> Iterator[NDArray[np.uint8]]:
    """Yield all frames as the project sees them, uint8 [n, height, width, 3], a few at a time.

    Raises:
        VideoError: they cannot be decoded, or have another size.
    """
    for chunk in reader.chunks(np.arange(len(reader))):
        if chunk.shape[1:3] != (height, width):
            raise VideoError(
                f"{reader.path}: its pictures are {chunk.shape[2]} × {chunk.shape[1]}, its header "
                f"says {width} × {height}; encode it anew in one size"
            )
        yield chunk


def stretches(
    frames: Iterator[av.VideoFrame], length: int, first: int | None = None
) -> Iterator[list[av.VideoFrame]]:
    """Yield lists of `length` frames; the last one may be shorter.

    Args:
        first: frames of the first list, if they are to be others.
    """
    wanted = first or length
    while stretch := list(islice(frames, wanted)):
        yield stretch
        wanted = length


def write_mp4(
    path: Path,
    parts: Iterator[list[av.VideoFrame]],
    way: Way,
    line: Timeline,
    stamp: str,
    backwards: bool,
    threads: int = 1,
    progress: Progress = lambda frames: None,
) -> None:
    """Encode stretches of frames, in the order of the source, into a new file.

    Args:
        parts: the stretches; they are emptied.
        stamp: what the file is made of, for `made_of`.
        backwards: turn the frames round; their packets then lie on the same disk a second time.
        progress: called with the number of frames that were done; with 0 at other steps.

    Raises:
        ValueError: more or fewer frames come than there are times.
        OSError: the file cannot be written.
    """
    rate = Fraction(line.fps).limit_denominator(10_000) or Fraction(1, 10_000)
    with (
        av.open(str(path), "w", format="mp4") as container,
        # Nameless: nothing of it is left behind a kill.
        TemporaryFile(dir=path.parent, prefix=path.name) as file,
    ):
        container.metadata["comment"] = stamp
        stream: Any = container.add_stream(way.codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = way.width, way.height, way.pixels
        stream.options = OPTIONS | way.options | {"threads": str(threads)}
        stream.time_base = line.unit
        for name, value in way.tags.items():
            if value is not None:
                setattr(stream.codec_context, name, value)
        packets = _encoded(stream, 1 / rate, parts, backwards, progress)
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
            # The stream's own unit becomes another one when the container begins.
            packet.stream, packet.is_keyframe, packet.time_base = stream, is_key, line.unit
            packet.pts = packet.dts = int(line.times[number])
            packet.duration = duration
            container.mux(packet)
            progress(0)
        if number + 1 != len(line.times):
            few_or_many = "fewer" if number < len(line.times) else "more"
            raise ValueError(f"{few_or_many} than its {len(line.times)} frames came")


def _encoded(
    stream: Any,
    time_base: Fraction,
    parts: Iterator[list[av.VideoFrame]],
    backwards: bool,
    progress: Progress,
) -> Iterator[tuple[bytes, bool]]:
    """Yield every packet, and whether it is a keyframe; turns each stretch round in itself."""
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
    """Encoded frames on disk: per frame where its packet begins, and whether it is a keyframe."""

    file: IO[bytes]
    begins: list[int] = field(default_factory=lambda: [0])
    is_key: list[bool] = field(default_factory=list)

    def add(self, packets: Iterator[tuple[bytes, bool]]) -> None:
        for content, is_key in packets:
            self.begins.append(self.begins[-1] + self.file.write(content))
            self.is_key.append(is_key)

    def last_stretch_first(self) -> Iterator[tuple[bytes, bool]]:
        """Yield every packet: the stretches turned round, each in itself as it is."""
        keys = [number for number, is_key in enumerate(self.is_key) if is_key]
        stops = [*keys[1:], len(self.is_key)]
        for first, stop in zip(reversed(keys), reversed(stops), strict=True):
            self.file.seek(self.begins[first])
            for number in range(first, stop):
                size = self.begins[number + 1] - self.begins[number]
                yield self.file.read(size), self.is_key[number]
