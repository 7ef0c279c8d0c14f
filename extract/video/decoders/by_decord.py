"""decord, which is faster than PyAV and exact where access by a frame's number is.

Nobody maintains it, and it exists for x86_64 on Linux and Windows only: nothing else imports it.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch  # noqa: F401  (decord must be loaded after torch)
from numpy.typing import NDArray

from extract.video.decoders.decoder import CHUNK
from extract.video.index import VideoIndex, file_name

try:
    import decord as module
except (ImportError, OSError, RuntimeError):  # not installed, or without what it was built for
    decord: Any = None
else:
    decord = module

# decord fails for frames of 72 px and some smaller widths: it takes padded lines for whole ones.
MISREAD_WIDTH = 72


class DecordDecoder:
    """Reads a file whose access is `indexed`.

    Raises:
        Exception: of any kind; decord is not installed or does not read the file, as some Matroska
            files that were written live.
    """

    def __init__(self, path: str | Path, index: VideoIndex) -> None:
        if index.size[1] <= MISREAD_WIDTH:
            raise ValueError(f"decord misreads frames of {index.size[1]} px")
        self._reader = decord.VideoReader(file_name(path), num_threads=1)
        if len(self._reader) != len(index.pts):
            raise ValueError("decord finds another number of frames")

    def chunks(self, rising: NDArray[np.int64]) -> Iterator[NDArray[np.uint8]]:
        for start in range(0, len(rising), CHUNK):
            yield np.asarray(self._reader.get_batch(rising[start : start + CHUNK]).asnumpy())
