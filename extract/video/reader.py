"""Frame-exact reading of a video file, in any order."""

import re
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from extract.video.decoders.by_pyav import PyavDecoder
from extract.video.decoders.by_torchcodec import TorchcodecDecoder
from extract.video.decoders.choice import open_decoder
from extract.video.decoders.decoder import CHUNK
from extract.video.index import Progress, VideoError, keyframe_before
from extract.video.indexing import video_index

__all__ = ["CHUNK", "VideoError", "VideoReader"]


class VideoReader:
    """Random access to the frames of one file. Open it in the process that reads it.

    Frame i is the i-th frame of sequential decoding, in whatever order frames are read.

    Args:
        progress: called with 0 while the file is read for the first time, which may take minutes.
    """

    def __init__(self, path: str | Path, progress: Progress = lambda done: None) -> None:
        self.path = Path(path)
        self.index = video_index(path, progress)
        self.fps = self.index.fps
        self._decoder = open_decoder(path, self.index)

    def __len__(self) -> int:
        return len(self.index.pts)

    def frames(self, indices: NDArray[np.integer]) -> NDArray[np.uint8]:
        """Return frames uint8 [N, H, W, 3] (RGB) at `indices`, in that order, repeats allowed.

        Raises:
            IndexError: an index lies outside the video.
            VideoError: the file cannot be decoded there.
        """
        indices = np.asarray(indices, np.int64)
        if not len(indices):
            raise IndexError(f"{self.path}: no frames asked for")
        # In falling order a decoder seeks to a keyframe for every frame (10 to 80 times slower).
        unique, inverse = np.unique(indices, return_inverse=True)
        return np.concatenate(list(self.chunks(unique)))[inverse]

    def chunks(self, rising: NDArray[np.int64]) -> Iterator[NDArray[np.uint8]]:
        """Yield frames uint8 [n, H, W, 3] at rising indices from one pass over the file.

        Every n but the last is CHUNK. Nothing is kept here: big frames live as long as the caller
        holds them.

        Raises:
            IndexError, VideoError: as `frames`.
        """
        if rising[0] < 0 or rising[-1] >= len(self):
            raise IndexError(
                f"{self.path}: frames {rising[0]}–{rising[-1]} asked for, "
                f"the video has 0–{len(self) - 1}"
            )
        chunks = self._decoder.chunks(rising)
        for start in range(0, len(rising), CHUNK):
            try:
                yield next(chunks)
            except VideoError:
                raise
            except Exception as error:
                if not isinstance(self._decoder, TorchcodecDecoder):
                    cause = _summarise_error(error)
                    raise VideoError(f"{self.path}: cannot be decoded: {cause}") from error
                # Where the file is damaged, for one: PyAV tells what is wrong.
                self._decoder = PyavDecoder(self.path, self.index)
                yield from self.chunks(rising[start:])
                return

    def frame_stepwise(self, number: int, progress: Progress) -> NDArray[np.uint8]:
        """Return one frame uint8 [H, W, 3], decoding chunk by chunk from the keyframe before it.

        Args:
            progress: called with 0 after every chunk.

        Raises:
            IndexError, VideoError: as `frames`.
        """
        path_to_it = np.arange(number + 1 - self.frames_to_decode(number, number), number + 1)
        for chunk in self.chunks(path_to_it):
            progress(0)
            frame = chunk[-1]
        return frame

    def frames_to_decode(self, first: int, last: int) -> int:
        """Return how many frames are decoded at most to get the frames from first to last."""
        begin = np.searchsorted(self.index.pts, keyframe_before(self.index, np.int64(first)))
        return last + 1 - int(begin)

    def times(self, indices: NDArray[np.integer]) -> NDArray[np.float64]:
        """Return the presentation times of frames [N], in seconds from the first frame."""
        return self.index.times(np.asarray(indices, np.int64))


def _summarise_error(error: Exception) -> str:
    """Return the first line of a decoder's message, without positions in the decoder's source."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    if "Check failed" in lines[0] or isinstance(error, av.InvalidDataError):
        return "its data are damaged"
    return re.sub(r"^.*?(\[\d\d:\d\d:\d\d\] )?\S+\.(cc|h):\d+: ?", "", lines[0]) or lines[0]
