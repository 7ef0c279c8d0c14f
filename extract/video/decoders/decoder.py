"""What a decoder is to the reader."""

from collections.abc import Iterator
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

CHUNK = 16  # frames decoded at once: 100 MB of 1920 × 1080, and few enough calls of the decoder


class Decoder(Protocol):
    """One file opened by one library, decoded with one thread: workers decode in parallel."""

    def chunks(self, rising: NDArray[np.int64]) -> Iterator[NDArray[np.uint8]]:
        """Yield frames uint8 [n, H, W, 3] (RGB), upright, at rising indices; n as in `VideoReader`.

        A frame that cannot be decoded is an exception of any kind.
        """
