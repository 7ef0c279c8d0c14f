"""Frames of a file, frame-exact; forward and reversed from one decode."""

import re
from pathlib import Path

import numpy as np
import torch  # noqa: F401  (decord must be loaded after torch)

import decord  # isort: skip
from numpy.typing import NDArray


class VideoError(ValueError):
    """A video that cannot be read; the message names the file and the cause."""


class VideoReader:
    """Random access to the frames of one file. Open it in the process that reads it."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            what = "is a folder" if self.path.is_dir() else "does not exist"
            raise VideoError(f"{path}: cannot be read as video: it {what}")
        if not self.path.stat().st_size:
            raise VideoError(f"{path}: cannot be read as video: the file is empty")
        try:
            # One thread: workers decode in parallel, and more threads slow each other down.
            self._reader = decord.VideoReader(str(path), num_threads=1)
            self.fps = float(self._reader.get_avg_fps())
        except Exception as error:
            raise VideoError(f"{path}: cannot be read as video: {_cause(error)}") from error
        if not len(self) or not self.fps > 0:
            raise VideoError(f"{path}: cannot be read as video: it has no frames")

    def __len__(self) -> int:
        return len(self._reader)

    def frames(self, indices: NDArray[np.integer]) -> NDArray[np.uint8]:
        """Return frames uint8 [N, H, W, 3] (RGB) at `indices`, in that order, repeats allowed.

        Raises:
            IndexError: an index lies outside the video.
            VideoError: the file cannot be decoded there.
        """
        indices = np.asarray(indices, np.int64)
        if not len(indices):
            raise IndexError(f"{self.path}: no frames asked for")
        if indices.min() < 0 or indices.max() >= len(self):
            raise IndexError(
                f"{self.path}: frames {indices.min()}–{indices.max()} asked for, "
                f"the video has 0–{len(self) - 1}"
            )
        # Asked backwards, decord seeks to a keyframe for every frame (10 to 80 times slower).
        unique, inverse = np.unique(indices, return_inverse=True)
        try:
            decoded = self._reader.get_batch(unique).asnumpy()
        except Exception as error:
            raise VideoError(f"{self.path}: cannot be decoded: {_cause(error)}") from error
        return np.asarray(decoded)[inverse]

    def times(self, indices: NDArray[np.integer]) -> NDArray[np.float64]:
        """Return the presentation times of frames [N] in seconds."""
        stamps = self._reader.get_frame_timestamp(np.asarray(indices, np.int64))
        return np.asarray(stamps, np.float64)[:, 0]


def _cause(error: Exception) -> str:
    """The first line of a decoder's message, without its own source positions."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    if "Check failed" in lines[0]:
        return "its data are damaged"
    return re.sub(r"^.*?(\[\d\d:\d\d:\d\d\] )?\S+\.(cc|h):\d+: ?", "", lines[0]) or lines[0]
