"""PyAV, which reads every file that this project reads: its frames are what others must give."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from extract.video.decoders.decoder import CHUNK
from extract.video.index import (
    VideoError,
    VideoIndex,
    keyframe_before,
    open_video,
    video_stream,
)


class PyavDecoder:
    """Begins at the keyframe before a frame or, where only counting is certain, at the first."""

    def __init__(self, path: str | Path, index: VideoIndex) -> None:
        self.path, self.index = Path(path), index

    def chunks(self, rising: NDArray[np.int64]) -> Iterator[NDArray[np.uint8]]:
        find = find_by_counting if self.index.access == "sequence" else find_by_time
        pictures = find(self.path, self.index, rising)
        for start in range(0, len(rising), CHUNK):
            yield np.stack(list(islice(pictures, len(rising[start : start + CHUNK]))))


def find_by_time(
    path: Path, index: VideoIndex, wanted: NDArray[np.int64]
) -> Iterator[NDArray[np.uint8]]:
    """Yield the wanted frames (rising indices), finding each by its time and seeking over gaps."""
    done, steps_back = 0, 0
    with open_video(path) as container:
        stream = video_stream(container)
        stream.thread_count = 1
        while done < len(wanted):
            start = keyframe_before(index, wanted[done], steps_back)
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


def find_by_counting(
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
        if done == len(wanted) or keyframe_before(index, wanted[done]) > frame.pts:
            return


def _to_picture(frame: av.VideoFrame, index: VideoIndex) -> NDArray[np.uint8]:
    """Return a frame upright, in the size of the file's first one."""
    height, width = index.size
    if (frame.height, frame.width) == index.size or not height:
        picture = np.asarray(frame.to_ndarray(format="rgb24"), np.uint8)
    else:
        scaled = frame.reformat(width, height, "rgb24", interpolation="BICUBIC")
        picture = np.asarray(scaled.to_ndarray(), np.uint8)
    return np.rot90(picture, index.rotation // 90) if index.rotation else picture
