"""torchcodec, the fastest, which loads FFmpeg's shared libraries from the system."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from extract.video.decoders.decoder import CHUNK
from extract.video.index import VideoIndex, file_name

try:
    import torchcodec as module
except Exception:  # not installed, made for another torch, or there is no FFmpeg (RuntimeError)
    torchcodec: Any = None
else:  # since 0.17 it is imported without FFmpeg, too, and fails at the first file
    torchcodec = None if getattr(module, "ffmpeg_major_version", "") is None else module


def torchcodec_version() -> str:
    """Return which torchcodec decodes with which FFmpeg, nothing if none does."""
    if torchcodec is None:
        return ""
    version = torchcodec.__version__.partition("+")[0]
    return f"-torchcodec{version}-ffmpeg{getattr(torchcodec, 'ffmpeg_major_version', '')}"


class TorchcodecDecoder:
    """Reads a file whose `index.torchcodec` is true.

    It finds a frame by its time, and begins where the index says that a decoder may.

    Raises:
        Exception: of any kind; torchcodec cannot be loaded or does not read the file.
    """

    def __init__(self, path: str | Path, index: VideoIndex) -> None:
        self.index = index
        height, width = index.upright_size
        self._shape = height, width, 3
        self._decoder = torchcodec.decoders.VideoDecoder(
            file_name(path),
            dimension_order="NHWC",
            num_ffmpeg_threads=1,
            device="cpu",
            custom_frame_mappings=_frame_mappings(index),
        )

    def chunks(self, rising: NDArray[np.int64]) -> Iterator[NDArray[np.uint8]]:
        unit = float(self.index.time_base)
        for start in range(0, len(rising), CHUNK):
            asked = rising[start : start + CHUNK]
            batch = self._decoder.get_frames_at(asked.tolist())
            # Where a packet has no frame, the one that is shown at its time would come.
            late = np.abs(batch.pts_seconds.numpy() - self.index.pts[asked] * unit)
            if late.max() > unit / 2 or batch.data.shape[1:] != self._shape:
                raise ValueError("other frames came than those asked for")
            yield batch.data.numpy()


def _frame_mappings(index: VideoIndex) -> str:
    """Return the index as torchcodec takes it; else it reads the whole file to make its own."""
    lengths = np.diff(index.pts)
    lengths = np.append(lengths, lengths[-1] if len(lengths) else 1)
    keys = np.isin(index.pts, index.keyframes)
    return json.dumps(
        {
            "frames": [
                {"pts": pts, "duration": length, "key_frame": int(key)}
                for pts, length, key in zip(
                    index.pts.tolist(), lengths.tolist(), keys.tolist(), strict=True
                )
            ]
        }
    )
