"""Savings by proxies: of bytes, and of time to decode."""

import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from configs.progress import ProgressBar
from extract.sampling.transforms import evaluation_transform
from extract.sampling.window_frames import window_frames
from extract.sampling.windows import sliding_windows
from extract.settings.pixels import PixelConfig
from extract.settings.sampling import SamplingConfig
from extract.video.reader import VideoReader

MEASURED = 3  # files
REPEATS = 3
SAMPLING = SamplingConfig(window_size=64)


@dataclass(frozen=True)
class Savings:
    """Sizes of all files in bytes; speeds of `measured` ones in input frames/s, None if none."""

    files: int
    bytes_before: int
    bytes_after: int
    measured: tuple[str, ...] = ()
    size: int = 0
    speed_before: float | None = None
    speed_after: float | None = None

    @property
    def saved(self) -> float:
        """The share of bytes that is saved."""
        return 1 - self.bytes_after / self.bytes_before if self.bytes_before else 0.0

    @property
    def gain(self) -> float | None:
        """The speed of decoding proxies over that of their sources."""
        if self.speed_before is None or self.speed_after is None:
            return None
        return self.speed_after / self.speed_before

    def to_dict(self) -> dict[str, Any]:
        """Return all fields, the share that is saved and the gain in speed."""
        return asdict(self) | {"saved": self.saved, "gain": self.gain}

    def to_markdown(self) -> str:
        """Return a Markdown table of one row."""
        names = (
            "files",
            "bytes before",
            "after",
            "saved",
            "input frames/s before",
            "after",
            "gain",
        )
        speeds = [
            "–" if speed is None else f"{speed:.0f}"
            for speed in (self.speed_before, self.speed_after)
        ]
        row = (
            *(f"{count:,}" for count in (self.files, self.bytes_before, self.bytes_after)),
            f"{self.saved:.1%}",
            *speeds,
            "–" if self.gain is None else f"{self.gain:.1f}×",
        )
        lines = (names, ["---"] * len(names), row)
        return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def measure_savings(pairs: Sequence[tuple[Path, Path]], size: int) -> Savings:
    """Return the savings of proxies over their sources; a few are decoded to input of size × size.

    Raises:
        OSError, VideoError: a file has vanished or cannot be read.
    """
    before, after = (sum(path.stat().st_size for path in side) for side in zip(*pairs, strict=True))
    step = -(-len(pairs) // MEASURED)
    chosen = pairs[step // 2 :: step]
    names = tuple(source.stem for source, _ in chosen)
    frames, old, new = (sum(values) for values in zip(*_measure_pairs(chosen, size), strict=True))
    return Savings(len(pairs), before, after, names, size, frames / old, frames / new)


def _measure_pairs(pairs: Sequence[tuple[Path, Path]], size: int) -> list[tuple[int, float, float]]:
    """Return per pair the number of input frames, and the median seconds of either file."""
    measured = []
    for pair in ProgressBar(pairs, desc="measuring", unit="video", delay=2, leave=False):
        seconds: tuple[list[float], list[float]] = ([], [])
        for _ in range(REPEATS):  # alternating, so that both are exposed to the same noise
            for path, times in zip(pair, seconds, strict=True):
                frames, elapsed_s = _time_decoding(path, size)
                times.append(elapsed_s)
        before, after = map(statistics.median, seconds)
        measured.append((frames, before, after))
    return measured


def _time_decoding(path: Path, size: int) -> tuple[int, float]:
    """Return how many frames a window in a video's middle has, and the seconds to read them."""
    VideoReader(path)  # reads the file's index, which a run does once
    began = time.perf_counter()
    reader = VideoReader(path)
    windows = sliding_windows(len(reader), 0.0, SAMPLING)
    window = windows[len(windows) // 2]
    transform = evaluation_transform(PixelConfig(size))
    (frames,) = window_frames(reader, [window], transform)
    return len(frames), time.perf_counter() - began
