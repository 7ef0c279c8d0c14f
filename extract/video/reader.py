"""Frame-exact reading of a video file, in any order."""

import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import av
import numpy as np
import torch  # noqa: F401  (decord must be loaded after torch)

import decord  # isort: skip
from numpy.typing import NDArray

from extract.video.index import (
    Progress,
    VideoError,
    VideoIndex,
    file_name,
    open_video,
    video_stream,
)
from extract.video.indexing import video_index

__all__ = ["CHUNK", "VideoError", "VideoReader"]

# decord fails for frames of 72 px and some smaller widths: it takes padded lines for whole ones.
MISREAD_WIDTH = 72
CHUNK = 16  # frames decoded at once: 100 MB of 1920 × 1080, and few enough calls of the decoder


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
        self._decord: decord.VideoReader | None = None
        if self.index.access == "decord" and self.index.size[1] > MISREAD_WIDTH:
            try:
                # One thread: workers decode in parallel, and more threads would slow them down.
                self._decord = decord.VideoReader(file_name(path), num_threads=1)
            except Exception:  # some files (Matroska written live) only PyAV reads
                self._decord = None
            if self._decord is not None and len(self._decord) != len(self):
                self._decord = None

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
        find = _find_by_counting if self.index.access == "sequence" else _find_by_time
        pictures = find(self.path, self.index, rising)
        for start in range(0, len(rising), CHUNK):
            yield self._decode(rising[start : start + CHUNK], pictures)

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
        begin = np.searchsorted(self.index.pts, _keyframe_before(self.index, np.int64(first)))
        return last + 1 - int(begin)

    def _decode(
        self, indices: NDArray[np.int64], pictures: Iterator[NDArray[np.uint8]]
    ) -> NDArray[np.uint8]:
        """Return the frames at rising indices; without decord they are the next `pictures`."""
        try:
            if self._decord is not None:
                return np.asarray(self._decord.get_batch(indices).asnumpy())
            return np.stack(list(islice(pictures, len(indices))))
        except VideoError:
            raise
        except Exception as error:
            raise VideoError(
                f"{self.path}: cannot be decoded: {_summarise_error(error)}"
            ) from error

    def times(self, indices: NDArray[np.integer]) -> NDArray[np.float64]:
        """Return the presentation times of frames [N], in seconds from the first frame."""
        return self.index.times(np.asarray(indices, np.int64))


def _find_by_time(
    path: Path, index: VideoIndex, wanted: NDArray[np.int64]
) -> Iterator[NDArray[np.uint8]]:
    """Yield the wanted frames (rising indices), finding each by its time and seeking over gaps."""
    done, steps_back = 0, 0
    with open_video(path) as container:
        stream = video_stream(container)
        stream.thread_count = 1
        while done < len(wanted):
            start = _keyframe_before(index, wanted[done], steps_back)
            container.seek(start, stream=stream)
            found = 0
            for picture in _scan_after_seek(container.decode(stream), index, wanted[done:]):
                yield picture
                found += 1
            done += found
            # Some containers seek to after the keyframe that was asked for: try an earlier one.
            steps_back = 0 if found else steps_back + 1
            if not found and start == index.pts[0]:
                break
    if done < len(wanted):
        yield from _scan_from_start(path, index, wanted[done:])


def _find_by_counting(
    path: Path, index: VideoIndex, wanted: NDArray[np.int64]
) -> Iterator[NDArray[np.uint8]]:
    """Yield the wanted frames (rising indices), counting from the first frame on."""
    yield from _scan_from_start(path, index, wanted, counting=True)


def _scan_from_start(
    path: Path, index: VideoIndex, wanted: NDArray[np.int64], counting: bool = False
) -> Iterator[NDArray[np.uint8]]:
    """Yield the wanted frames (rising indices) from decoding all, found by time or by number."""
    done = 0
    with open_video(path) as container:
        stream = video_stream(container)
        stream.thread_count = 1
        for number, frame in enumerate(container.decode(stream)):
            if (number == wanted[done]) if counting else (frame.pts == index.pts[wanted[done]]):
                yield _to_picture(frame, index)
                done += 1
                if done == len(wanted):
                    return
    raise VideoError(f"{path}: cannot be decoded: frame {wanted[done]} is not found")


def _scan_after_seek(
    decoded: Iterator[av.VideoFrame], index: VideoIndex, wanted: NDArray[np.int64]
) -> Iterator[NDArray[np.uint8]]:
    """Yield wanted frames until one was missed, or until seeking to a later keyframe is faster.

    Frames before the first keyframe may be wrong: some containers seek to between two.
    """
    done, reached_keyframe = 0, False
    for frame in decoded:
        reached_keyframe = reached_keyframe or frame.pts in index.keyframes
        if frame.pts is None or frame.pts < index.pts[wanted[done]]:
            continue
        if frame.pts > index.pts[wanted[done]] or not reached_keyframe:
            return
        yield _to_picture(frame, index)
        done += 1
        if done == len(wanted) or _keyframe_before(index, wanted[done]) > frame.pts:
            return


def _keyframe_before(index: VideoIndex, frame: np.int64, steps_back: int = 0) -> int:
    """Return the time of the last keyframe not after a frame, or of an earlier one."""
    position = int(np.searchsorted(index.keyframes, index.pts[frame], side="right"))
    position -= 1 + steps_back
    return int(index.keyframes[position]) if position >= 0 else int(index.pts[0])


def _to_picture(frame: av.VideoFrame, index: VideoIndex) -> NDArray[np.uint8]:
    """Return a frame upright, in the size of the file's first one."""
    height, width = index.size
    if (frame.height, frame.width) == index.size or not height:
        picture = np.asarray(frame.to_ndarray(format="rgb24"), np.uint8)
    else:
        scaled = frame.reformat(width, height, "rgb24", interpolation="BICUBIC")
        picture = np.asarray(scaled.to_ndarray(), np.uint8)
    return np.rot90(picture, index.rotation // 90) if index.rotation else picture


def _summarise_error(error: Exception) -> str:
    """Return the first line of a decoder's message, without positions in the decoder's source."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    if "Check failed" in lines[0] or isinstance(error, av.InvalidDataError):
        return "its data are damaged"
    return re.sub(r"^.*?(\[\d\d:\d\d:\d\d\] )?\S+\.(cc|h):\d+: ?", "", lines[0]) or lines[0]
