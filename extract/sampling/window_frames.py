"""The frames of many windows of one video from one sequential decode, resized at once."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from extract.identity.digest import video_digest
from extract.sampling.transforms import Shrink, Transform, crop_frames, shrink_frames
from extract.sampling.windows import Window
from extract.settings.sampling import Direction
from extract.video.reader import CHUNK, VideoError, VideoReader
from extract.video.watchdog import kill_if_stuck


class FrameSelection(Protocol):
    """Frames of a video by number, not falling; a `Window` is one."""

    @property
    def frames(self) -> NDArray[np.int64]: ...


def open_unchanged(path: Path, frames: int, digest: str | None = None) -> VideoReader:
    """Return a reader of a video that was probed before.

    Args:
        frames: number of frames that it had; `digest`: of its content, None if any will do.

    Raises:
        VideoError: it cannot be read, or has changed since.
    """
    with kill_if_stuck(path, frames):
        reader = VideoReader(path)
    if len(reader) != frames:
        raise VideoError(
            f"{path}: was replaced during the run: it has {len(reader)} frames and had {frames}"
        )
    check_unchanged(path, digest)
    return reader


def check_unchanged(path: Path, digest: str | None) -> None:
    """Raise VideoError unless a file still has the content of a digest; None matches any."""
    try:
        same = digest is None or video_digest(path) == digest
    except OSError as error:
        raise VideoError(f"{path}: vanished during the run: {error.strerror}") from error
    if not same:
        raise VideoError(f"{path}: was replaced during the run: its content has changed")


def window_frames(
    reader: VideoReader, windows: Sequence[FrameSelection], transform: Transform, seed: int = 0
) -> Iterator[list[Tensor]]:
    """Yield per window its valid frames, uint8 [3, h, w] each, in the order of the file.

    Each frame is decoded and transformed once, however many windows share it, and kept as long as
    a later window needs it.

    Args:
        windows: of this video; each begins and ends no earlier than the one before.
        seed: of the augmentation; one draw for all of them.

    Raises:
        IndexError, VideoError: as `VideoReader.frames`, when that frame is reached.
    """
    chunks = resized_chunks(reader, wanted_frames(windows), transform.shrink)
    yield from assign_to_windows(windows, chunks, transform, seed)


def wanted_frames(windows: Sequence[FrameSelection]) -> NDArray[np.int64]:
    """Return the numbers of all frames of a video's windows, rising, each once."""
    return np.unique(np.concatenate([window.frames for window in windows]))


def resized_chunks(
    reader: VideoReader, wanted: NDArray[np.int64], to: Shrink
) -> Iterator[NDArray[np.uint8]]:
    """Yield frames uint8 [n, h, w, 3] at rising indices, resized as soon as they are decoded.

    Every n but the last is CHUNK.

    Raises:
        IndexError, VideoError: as `VideoReader.frames`.
    """
    chunks = reader.chunks(wanted)
    for start in range(0, len(wanted), CHUNK):
        part = wanted[start : start + CHUNK]
        with kill_if_stuck(reader.path, reader.frames_to_decode(int(part[0]), int(part[-1]))):
            chunk = next(chunks)
        small = shrink_frames(chunk, to)
        del chunk  # the big frames must not be kept while the small ones are in use
        yield small


def assign_to_windows(
    windows: Sequence[FrameSelection],
    chunks: Iterable[NDArray[np.uint8]],
    transform: Transform,
    seed: int = 0,
) -> Iterator[list[Tensor]]:
    """Yield per window its augmented frames, as `window_frames`, from frames that are resized.

    Args:
        chunks: uint8 [n, h, w, 3], all frames of the windows, in the order of the file.
    """
    wanted = wanted_frames(windows)
    frames = (frame for small in chunks for frame in crop_frames(small, transform, seed).unbind(1))
    kept: list[Tensor] = []
    first = 0  # kept[0] is frame wanted[first]
    for window in windows:
        positions = np.searchsorted(wanted, window.frames)
        kept = kept[positions[0] - first :]
        first = positions[0]
        kept += islice(frames, int(positions[-1]) + 1 - first - len(kept))
        yield [kept[position - first] for position in positions]


def arrange(frames: Sequence[Tensor], window: Window, direction: Direction) -> Tensor:
    """Return a window's padded input uint8 [3, F, size, size], stacked from its valid frames.

    Reversed input has the same frames in another order: one decode serves both directions.
    """
    positions = np.searchsorted(window.frames, window.indices(direction))
    return torch.stack([frames[position] for position in positions], 1)
