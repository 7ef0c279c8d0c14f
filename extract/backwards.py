"""A video file turned round: its frames in the opposite order, its times mirrored.

One sequential decode, so nothing depends on where a decoder can begin. A stretch of frames at a
time is held, encoded backwards and put on disk; then the stretches are joined, the last one first.
"""

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

import av
import numpy as np
from av.video.frame import PictureType
from numpy.typing import NDArray

from configs.files import written_aside
from extract.digest import video_digest
from extract.index import VideoError, VideoIndex, open_video
from extract.patience import patience
from extract.video import VideoReader

SUFFIX = ".mp4"
HELD_BYTES = 128 * 1024**2  # of decoded frames
STRETCH = 8, 128  # frames from one keyframe to the next, fewest and most, as HELD_BYTES allows
PLANES = {  # what libx264 keeps exactly
    *(f"yuv{kind}p{bits}" for kind in ("420", "422", "444") for bits in ("", "10le")),
    *("yuvj420p", "yuvj422p", "yuvj444p", "gray", "gray10le"),
}
# Stretches change places when they are joined: each must begin with an IDR picture, hold no other
# one, and show its frames in the order they are stored.
OPTIONS = {"bf": "0", "g": "1000000", "sc_threshold": "0", "forced-idr": "1"}
LOSSLESS = {"qp": "0", "preset": "ultrafast"}


class _InexactError(Exception):
    """These planes would not come back as the pictures that the project sees in the source."""


@dataclass(frozen=True)
class _Way:
    """How frames are encoded: as the `context` they come from has its planes, or as RGB."""

    codec: str
    pixels: str
    width: int
    height: int
    options: dict[str, str]
    source: Any  # the codec context whose colours are kept; None: RGB


@dataclass
class _Spool:
    """Encoded frames on disk: per frame where its packet begins, and whether it is a keyframe."""

    file: IO[bytes]
    begins: list[int] = field(default_factory=lambda: [0])
    is_key: list[bool] = field(default_factory=list)

    def add(self, packets: list[Any]) -> None:
        for packet in packets:
            self.begins.append(self.begins[-1] + self.file.write(bytes(packet)))
            self.is_key.append(packet.is_keyframe)

    def last_stretch_first(self) -> Iterator[tuple[bytes, bool]]:
        """Yield every packet: the stretches turned round, each in itself as it is."""
        keys = [number for number, is_key in enumerate(self.is_key) if is_key]
        stops = [*keys[1:], len(self.is_key)]
        for first, stop in zip(reversed(keys), reversed(stops), strict=True):
            self.file.seek(self.begins[first])
            for number in range(first, stop):
                size = self.begins[number + 1] - self.begins[number]
                yield self.file.read(size), self.is_key[number]


def is_finished(source: Path, target: Path, crf: int | None) -> bool:
    """Say whether `target` is this source reversed in this way; False if there is no such file.

    Raises:
        ValueError: it is something else, which is not ours to replace.
        OSError: the source cannot be read.
    """
    if not target.exists():
        return False
    made_of = None
    with suppress(av.FFmpegError, OSError), open_video(target) as container:
        made_of = container.metadata.get("comment")
    if made_of != _stamp(source, crf):
        raise ValueError(
            f"{target}: is no reversed {source} of these settings; "
            "remove it or choose another --out"
        )
    return True


def write_reversed(
    source: Path,
    target: Path,
    crf: int | None = None,
    threads: int = 1,
    tell: Callable[[int], None] = lambda frames: None,
) -> bool:
    """Write a video's frames in the opposite order, upright and without sound.

    Frame i of the new file is frame N − 1 − i of the old one, at t_last − t. The file is written
    aside and renamed; while it is made, its packets lie on the same disk a second time.

    Args:
        target: an .mp4 file.
        crf: quality of x264, 1 to 51 (worst); None: every pixel as VideoReader gives it.
        threads: of the decoder and of the encoder.
        tell: called with the number of frames that were done; below 0 if they are done again.

    Returns:
        Whether the file holds RGB: where VideoReader would convert the planes of an H.264 file in
        another way than the source's (it reads that with another decoder), or they are rotated.

    Raises:
        VideoError: the source cannot be decoded.
        OSError: the file cannot be written.
    """
    with patience(source, 0):
        reader = VideoReader(source)
    told = 0

    def count(frames: int) -> None:
        nonlocal told
        told += frames
        tell(frames)

    with open_video(source) as container:
        context = container.streams.video[0].codec_context
        planes, rgb = _ways(reader, context, crf)
        if planes is not None:
            try:
                frames = _planes(source, reader.index, threads)
                with written_aside(target) as aside:
                    _write(aside, frames, reader, planes, _stamp(source, crf), threads, count)
                    if crf is None:
                        _refuse_different(reader, aside)
                return False
            except _InexactError:
                tell(-told)
        with written_aside(target) as aside:
            _write(aside, _upright(reader, rgb), reader, rgb, _stamp(source, crf), threads, tell)
    return True


def _stamp(source: Path, crf: int | None) -> str:
    quality = "lossless" if crf is None else f"crf {crf}"
    return f"palindrome: reversed, {quality}, of {video_digest(source)}"


def _ways(reader: VideoReader, context: Any, crf: int | None) -> tuple[_Way | None, _Way]:
    """Return how to write the source's own planes, if that may be exact, and its pictures."""
    rotation, width, height = reader.index.rotation, context.width, context.height
    whole = "444" in (context.pix_fmt or "") or not (width % 2 or height % 2)
    planes = None
    # An unrotated H.264 mp4 file with IDR pictures is what decord is trusted with.
    exact = reader.index.access == "decord" or crf is not None
    if exact and not rotation and context.pix_fmt in PLANES and whole:
        planes = _Way("libx264", context.pix_fmt, width, height, _options(crf), context)
    if rotation % 180:
        width, height = height, width
    if crf is None:
        return planes, _Way("libx264rgb", "rgb24", width, height, _options(crf), None)
    pixels = "yuv444p" if width % 2 or height % 2 else "yuv420p"
    return planes, _Way("libx264", pixels, width, height, _options(crf), None)


def _options(crf: int | None) -> dict[str, str]:
    return OPTIONS | (LOSSLESS if crf is None else {"crf": str(crf), "preset": "veryfast"})


def _planes(path: Path, index: VideoIndex, threads: int) -> Iterator[av.VideoFrame]:
    """Yield the frames as they are decoded; _InexactError where they are not those of the index."""
    number = -1
    with open_video(path) as container:
        stream: Any = container.streams.video[0]
        stream.thread_count, stream.thread_type = threads, "AUTO"
        size = stream.codec_context.width, stream.codec_context.height, stream.codec_context.pix_fmt
        try:
            for number, frame in enumerate(container.decode(stream)):
                known = number < len(index.pts) and frame.pts == index.pts[number]
                same = (frame.width, frame.height, frame.format.name) == size
                # What stands in for damaged parts differs from decoder to decoder.
                if not (known and same) or frame.is_corrupt:
                    raise _InexactError
                yield frame
        except av.FFmpegError as error:
            raise _InexactError from error
    if number + 1 < len(index.pts):
        raise _InexactError


def _upright(reader: VideoReader, way: _Way) -> Iterator[av.VideoFrame]:
    """Yield the frames as the project sees them, in the pixels of `way`."""
    for chunk in reader.chunks(np.arange(len(reader))):
        if chunk.shape[1:3] != (way.height, way.width):
            raise VideoError(
                f"{reader.path}: its pictures are {chunk.shape[2]} × {chunk.shape[1]}, its header "
                f"says {way.width} × {way.height}; encode it anew in one size"
            )
        for picture in chunk:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            yield frame if way.pixels == "rgb24" else frame.reformat(format=way.pixels)


def _write(
    path: Path,
    frames: Iterator[av.VideoFrame],
    reader: VideoReader,
    way: _Way,
    stamp: str,
    threads: int,
    tell: Callable[[int], None],
) -> None:
    """Encode the frames backwards and join the stretches, the last one first.

    Raises:
        VideoError: more or fewer frames come than the index knows.
    """
    size = _bytes_of(av.VideoFormat(way.pixels, way.width, way.height))
    length = int(np.clip(HELD_BYTES // size, *STRETCH))
    rate = Fraction(reader.fps).limit_denominator(10_000) or Fraction(1, 10_000)
    with (
        av.open(str(path), "w", format="mp4") as container,
        # Nameless: nothing of it is left behind a kill.
        TemporaryFile(dir=path.parent, prefix=path.name) as file,
    ):
        container.metadata["comment"] = stamp
        stream: Any = container.add_stream(way.codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = way.width, way.height, way.pixels
        stream.options = way.options | {"threads": str(threads)}
        times, stream.time_base = mirrored_times(reader.index)
        if way.source is not None:
            for name in ("color_range", "colorspace", "color_primaries", "color_trc"):
                setattr(stream.codec_context, name, getattr(way.source, name))
            if way.source.sample_aspect_ratio:
                stream.codec_context.sample_aspect_ratio = way.source.sample_aspect_ratio
        spool = _Spool(file)
        number = 0
        for stretch in _stretches(frames, length, reader.path):
            tell(len(stretch))
            for place in range(len(stretch)):
                frame = stretch.pop()
                frame.pict_type = PictureType.NONE if place else PictureType.I
                frame.pts, frame.time_base = number, 1 / rate
                spool.add(stream.encode(frame))
                number += 1
        spool.add(stream.encode(None))
        if len(spool.is_key) != len(times):
            raise VideoError(
                f"{reader.path}: cannot be encoded: {len(spool.is_key)} of {len(times)} frames came"
            )
        time_base = stream.time_base  # the container changes its own when it begins
        duration = max(1, round(1 / reader.fps / float(time_base)))
        for time, (content, is_key) in zip(times, spool.last_stretch_first(), strict=True):
            packet = av.Packet(content)
            packet.stream, packet.is_keyframe, packet.time_base = stream, is_key, time_base
            packet.pts = packet.dts = int(time)
            packet.duration = duration
            container.mux(packet)


def _bytes_of(pixels: av.VideoFormat) -> int:
    """Return the size of a decoded frame."""
    bits = sum(
        component.width * component.height * (16 if component.bits > 8 else 8)
        for component in pixels.components
    )
    return max(1, bits // 8)


def _stretches(
    frames: Iterator[av.VideoFrame], length: int, path: Path
) -> Iterator[list[av.VideoFrame]]:
    """Yield lists of `length` frames, the last one shorter; ends a decoder that hangs."""
    while True:
        stretch: list[av.VideoFrame] = []
        with patience(path, length):
            for frame in frames:
                stretch.append(frame)
                if len(stretch) == length:
                    break
        if not stretch:
            return
        yield stretch


def mirrored_times(index: VideoIndex) -> tuple[NDArray[np.int64], Fraction]:
    """Return the reversed frames' times, int [N] from 0 and rising, and their unit in seconds."""
    times = np.sort(index.pts[-1] - index.pts)
    if times[0] == times[-1]:  # they all claim the same time
        return np.arange(len(times)), index.time_base
    times -= times[0]
    if np.all(np.diff(times) > 0):
        return times, index.time_base
    # Some files whose frames had to be counted; an mp4 file needs times that rise.
    finer = 1000 * times
    order = np.arange(len(times))
    return np.maximum.accumulate(finer - order) + order, index.time_base / 1000


def _refuse_different(reader: VideoReader, path: Path) -> None:
    """Raise _InexactError unless the new file's ends and middle are the source's, backwards."""
    made, last = VideoReader(path), len(reader) - 1
    if len(made) != len(reader) or made.index.access != reader.index.access:
        raise _InexactError
    places = np.array([0, last // 2, last])
    if not np.array_equal(made.frames(places), reader.frames(last - places)):
        raise _InexactError
