"""Which decoder reads a file: torchcodec where it was seen to be right, decord, else PyAV.

All give the same frames, so this decides how fast they come and nothing else.
"""

from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from extract.video.decoders.by_decord import DecordDecoder
from extract.video.decoders.by_pyav import PyavDecoder
from extract.video.decoders.by_torchcodec import TorchcodecDecoder
from extract.video.decoders.decoder import CHUNK, Decoder
from extract.video.index import Progress, VideoIndex

MOST_FROM_KEYFRAME = 300  # frames that a check decodes between two reports of progress


def open_decoder(path: str | Path, index: VideoIndex) -> Decoder:
    """Return the fastest decoder that reads the file exactly."""
    if index.torchcodec:
        with suppress(Exception):  # FFmpeg's libraries are not where they were
            return TorchcodecDecoder(path, index)
    if index.access == "indexed":
        with suppress(Exception):
            return DecordDecoder(path, index)
    return PyavDecoder(path, index)


def check_torchcodec(path: str | Path, index: VideoIndex, progress: Progress) -> bool:
    """Return whether torchcodec gives the same frames as PyAV, bit for bit, where it is tried.

    Args:
        progress: called with 0 after every few frames.
    """
    try:
        ours, theirs = PyavDecoder(path, index), TorchcodecDecoder(path, index)
        for rising in _frames_to_compare(index):
            for left, right in zip(ours.chunks(rising), theirs.chunks(rising), strict=True):
                progress(0)
                if not np.array_equal(left, right):
                    return False
    except Exception:  # decoders meet files that they cannot read with errors of any kind
        return False
    return True


def _frames_to_compare(index: VideoIndex) -> list[NDArray[np.int64]]:
    """Return rising frames at the end, around a keyframe in the middle and at the beginning.

    Raises:
        ValueError: keyframes are too far apart to decode from one to another.
    """
    count = len(index.pts)
    keys = np.searchsorted(index.pts, index.keyframes)
    if np.diff(keys, append=count).max() > MOST_FROM_KEYFRAME:
        raise ValueError("its keyframes are too far apart")
    middle, before = int(keys[len(keys) // 2]), int(keys[max(0, len(keys) // 2 - 1)])
    around = [*range(before, middle, 4), *range(middle - 2, middle + CHUNK)]
    return [
        np.arange(max(0, count - CHUNK), count),
        np.unique(np.clip(np.array(around), 0, count - 1)),
        np.arange(min(CHUNK, count)),
    ]
