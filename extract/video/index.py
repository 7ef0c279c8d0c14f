"""The frames of a video file as its readers know them, and how a file is opened."""

import io
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, cast

import av
import numpy as np
from av.stream import Disposition
from numpy.typing import NDArray

Access = Literal["indexed", "seek", "sequence"]
Progress = Callable[
    [int], None
]  # called with how much more is done; 0 if only that it is not stuck
# Titles in other encodings than UTF-8; PyAV reads them by default from 19 on.
TITLE_OPTIONS: dict[str, Any] = (
    {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}
)


class VideoError(ValueError):
    """A video that cannot be read; the message names the file and the cause."""


@dataclass(frozen=True)
class VideoIndex:
    """The frames of a file in the order they are shown.

    Args:
        access: `indexed` where every decoder's access by a frame's number is exact; `seek` where a
            frame is found by its time; `sequence` where only counting from the first is certain.
        pts: presentation time of every frame, int [N], in units of `time_base` seconds.
        keyframes: times of the frames at which decoding can begin.
        rotation: degrees, a multiple of 90, by which frames are rotated to be upright.
        size: height and width of the first frame as it is stored. Frames of another size are
            scaled to it.
        rate: frames per second according to the header, or None.
        repaired: number of frames whose time was missing, or not after the one before, and was
            replaced. `pts` rises in any case.
        other_size: height and width of some later frame, if it is known to have another size.
        torchcodec: whether it was tried, and its frames were PyAV's.
    """

    access: Access
    pts: NDArray[np.int64]
    keyframes: NDArray[np.int64]
    time_base: Fraction
    rotation: int
    size: tuple[int, int] = (0, 0)
    rate: Fraction | None = None
    repaired: int = 0
    other_size: tuple[int, int] | None = None
    torchcodec: bool = False

    @property
    def fps(self) -> float:
        """Frames per second, on average."""
        span = int(self.pts[-1] - self.pts[0]) * self.time_base
        if not span:  # one frame
            return float(self.rate or 1 / self.time_base)
        return float((len(self.pts) - 1) / span)

    @property
    def upright_size(self) -> tuple[int, int]:
        """Height and width of the frames that `VideoReader` returns."""
        height, width = self.size
        return (width, height) if self.rotation % 180 else (height, width)

    def describe_repair(self) -> str:
        """Return what was wrong with the clock, as a sentence's end."""
        return (
            f"{self.repaired} of its {len(self.pts)} frames have no time or none after the one "
            "before (as where recordings were joined); each is taken to be one frame's length later"
        )

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
            size=np.array(self.size),
            rate=np.array((self.rate or Fraction(0)).as_integer_ratio()),
            repaired=np.array(self.repaired),
            other_size=np.array(self.other_size or (0, 0)),
            torchcodec=np.array(self.torchcodec),
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
                size=_as_size(saved["size"]),
                rate=Fraction(*map(int, saved["rate"])) or None,
                repaired=int(saved["repaired"]),
                other_size=_as_size(saved["other_size"]) if saved["other_size"].any() else None,
                torchcodec=bool(saved["torchcodec"]),
            )


def _as_size(numbers: NDArray[np.int64]) -> tuple[int, int]:
    height, width = map(int, numbers)
    return height, width


def open_video(path: str | Path) -> av.container.InputContainer:
    """Return a file opened for reading, whatever its name and the encoding of its titles."""
    return av.open(file_name(path), mode="r", **TITLE_OPTIONS)


def file_name(path: str | Path) -> str:
    """Return a path as decoders open it: FFmpeg takes `10:15.mp4` for the address of a protocol."""
    return os.path.abspath(path)


def video_stream(container: av.container.InputContainer) -> av.VideoStream:
    """Return the one stream that every reader reads: the default one, else the first.

    Raises:
        VideoError: there is none; cover pictures do not count.
    """
    streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if not streams:
        raise VideoError(f"{container.name}: cannot be read as video: it has no video stream")
    return next((s for s in streams if s.disposition & Disposition.default), streams[0])


def keyframe_before(index: VideoIndex, frame: np.int64, steps_back: int = 0) -> int:
    """Return the time of the last keyframe not after a frame, or of an earlier one."""
    position = int(np.searchsorted(index.keyframes, index.pts[frame], side="right"))
    position -= 1 + steps_back
    return int(index.keyframes[position]) if position >= 0 else int(index.pts[0])


def check_readable(path: str | Path) -> tuple[int, int]:
    """Return size and time of change.

    Raises:
        VideoError: no decoder needs to open the file to know that it is not a video.
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
            cause = "it is not a regular file"  # opening a named pipe may block for ever
        elif not status.st_size:
            cause = "the file is empty"
        else:
            return status.st_size, status.st_mtime_ns
    raise VideoError(f"{path}: cannot be read as video: {cause}")
