"""Reversed video files: the frames in the opposite order, their times mirrored.

One sequential decode, so nothing depends on where a decoder can begin. A stretch of frames at a
time is kept, encoded backwards and written to disk; then the stretches are joined, the last first.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np

from configs.atomic import atomic_path
from extract.identity.digest import video_digest
from extract.transcoding.encode import (
    EncoderSettings,
    make_timeline,
    read_stamp,
    split_stretches,
    write_mp4,
)
from extract.video.index import Progress, VideoIndex, open_video, video_stream
from extract.video.reader import VideoReader

STRETCH_BYTES = 128 * 1024**2  # of decoded frames
STRETCH = 8, 128  # frames from one keyframe to the next, fewest and most, as STRETCH_BYTES allows
PLANES = {  # pixel formats that libx264 keeps exactly
    *(f"yuv{kind}p{bits}" for kind in ("420", "422", "444") for bits in ("", "10le")),
    *("yuvj420p", "yuvj422p", "yuvj444p", "gray", "gray10le"),
}
LOSSLESS = {"qp": "0", "preset": "ultrafast"}


class _InexactError(Exception):
    """Planes that would not be decoded to the same pictures as those of the source."""


def is_current_reversal(source: Path, target: Path, crf: int | None) -> bool:
    """Return whether `target` is the source reversed with this quality; False if it is missing.

    Raises:
        ValueError: it is another file, which must not be replaced.
        OSError: the source cannot be read.
    """
    if not target.exists():
        return False
    if read_stamp(target) != _make_stamp(source, crf):
        raise ValueError(
            f"{target}: is not {source} reversed with these settings; "
            "remove it or choose another --out"
        )
    return True


def write_reversed(
    source: Path,
    target: Path,
    crf: int | None = None,
    threads: int = 1,
    progress: Progress = lambda frames: None,
) -> bool:
    """Write a video's frames in the opposite order, upright and without sound.

    Frame i of the new file is frame N − 1 − i of the old one, at t_last − t. The file is written
    aside and renamed; meanwhile its packets are on the same disk twice.

    Args:
        target: an .mp4 file.
        crf: quality of x264, 1 to 51 (worst); None: every pixel as VideoReader returns it.
        threads: of the decoder and of the encoder.
        progress: called with the number of frames that were encoded, below 0 if that is repeated;
            with 0 at other steps.

    Returns:
        Whether the file holds RGB: if VideoReader would convert the planes of an H.264 file to
        other pixels than the source's (read with another decoder), or if they are rotated.

    Raises:
        VideoError: the source cannot be decoded.
        OSError: the file cannot be written.
    """
    reader = VideoReader(source, progress)
    done = 0

    def count(frames: int) -> None:
        nonlocal done
        done += frames
        progress(frames)

    def write(aside: Path, frames: Iterator[av.VideoFrame], encoder: EncoderSettings) -> None:
        size = _frame_bytes(av.VideoFormat(encoder.pixels, encoder.width, encoder.height))
        length = int(np.clip(STRETCH_BYTES // size, *STRETCH))
        parts, line = split_stretches(frames, length), make_timeline(reader.index, backwards=True)
        write_mp4(aside, parts, encoder, line, _make_stamp(source, crf), True, threads, count)

    with open_video(source) as container:
        context = video_stream(container).codec_context
        planes, rgb = _encoder_settings(reader, context, crf)
    if planes is not None:
        try:
            with atomic_path(target) as aside:
                write(aside, _decode_planes(source, reader.index, threads), planes)
                if crf is None:
                    _check_same(reader, aside, progress)
            return False
        except _InexactError:
            progress(-done)
    with atomic_path(target) as aside:
        write(aside, _decode_upright(reader, rgb), rgb)
    return True


def _make_stamp(source: Path, crf: int | None) -> str:
    quality = "lossless" if crf is None else f"crf {crf}"
    return f"palindrome: reversed, {quality}, of {video_digest(source)}"


def _encoder_settings(
    reader: VideoReader, context: Any, crf: int | None
) -> tuple[EncoderSettings | None, EncoderSettings]:
    """Return settings for the source's own planes, if they may be exact, and for RGB pictures."""
    width, height = context.width, context.height
    whole = "444" in (context.pix_fmt or "") or not (width % 2 or height % 2)
    planes = None
    # Access by number is exact for an unrotated H.264 mp4 file with IDR pictures.
    exact = reader.index.access == "indexed" or crf is not None
    exact = exact and not reader.index.rotation and reader.index.size == (height, width)
    if exact and context.pix_fmt in PLANES and whole:
        names = ("color_range", "colorspace", "color_primaries", "color_trc", "sample_aspect_ratio")
        tags = {name: getattr(context, name) for name in names}
        planes = EncoderSettings("libx264", context.pix_fmt, width, height, _options(crf), tags)
    height, width = reader.index.upright_size
    if crf is None:
        return planes, EncoderSettings("libx264rgb", "rgb24", width, height, _options(crf))
    pixels = "yuv444p" if width % 2 or height % 2 else "yuv420p"
    return planes, EncoderSettings("libx264", pixels, width, height, _options(crf))


def _options(crf: int | None) -> dict[str, str]:
    return LOSSLESS if crf is None else {"crf": str(crf), "preset": "veryfast"}


def _decode_planes(path: Path, index: VideoIndex, threads: int) -> Iterator[av.VideoFrame]:
    """Yield the frames as they are decoded; raise _InexactError if they are not the index's."""
    number = -1
    with open_video(path) as container:
        stream: Any = video_stream(container)
        stream.thread_count, stream.thread_type = threads, "AUTO"
        size = stream.codec_context.width, stream.codec_context.height, stream.codec_context.pix_fmt
        try:
            for number, frame in enumerate(container.decode(stream)):
                expected = number < len(index.pts) and frame.pts == index.pts[number]
                same = (frame.width, frame.height, frame.format.name) == size
                # Decoders conceal damaged parts in different ways.
                if not (expected and same) or frame.is_corrupt:
                    raise _InexactError
                yield frame
        except av.FFmpegError as error:
            raise _InexactError from error
    if number + 1 < len(index.pts):
        raise _InexactError


def _decode_upright(reader: VideoReader, encoder: EncoderSettings) -> Iterator[av.VideoFrame]:
    """Yield the frames as `VideoReader` returns them, in the pixel format of `encoder`."""
    for chunk in reader.chunks(np.arange(len(reader))):
        for picture in chunk:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            yield frame if encoder.pixels == "rgb24" else frame.reformat(format=encoder.pixels)


def _frame_bytes(pixels: av.VideoFormat) -> int:
    """Return the size of a decoded frame."""
    bits = sum(
        component.width * component.height * (16 if component.bits > 8 else 8)
        for component in pixels.components
    )
    return max(1, bits // 8)


def _check_same(reader: VideoReader, path: Path, progress: Progress) -> None:
    """Raise _InexactError unless the new file's ends and middle are the source's, reversed."""
    made, last = VideoReader(path, progress), len(reader) - 1
    if len(made) != len(reader) or made.index.access != reader.index.access:
        raise _InexactError
    for place in (0, last // 2, last):
        (frame,) = made.frames(np.array([place]))
        if not np.array_equal(frame, reader.frame_stepwise(last - place, progress)):
            raise _InexactError
