"""Time the three decoders behind the reader: the same frames, in sequence and from the middle.

    OMP_NUM_THREADS=1 python -m benchmarks.readers [FILE ...] [--repeats 7]

Without files, one like THUMOS-14's is made (see benchmarks/decode.py). A decoder is left out where
it is not installed or does not read a file exactly. All take turns within one run; numbers are
frames asked for per second of processor time, medians. A new reader is opened each time, as for
every window of a training run.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.decode import write_synthetic
from extract.video.decoders.by_decord import DecordDecoder
from extract.video.decoders.by_pyav import PyavDecoder
from extract.video.decoders.by_torchcodec import TorchcodecDecoder
from extract.video.decoders.decoder import Decoder
from extract.video.index import VideoIndex
from extract.video.indexing import video_index

NAMES = ("PyAV", "decord", "torchcodec")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("files", type=Path, nargs="*", help="videos")
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(f"| file | frames | {' | '.join(NAMES)} | torchcodec / PyAV | torchcodec / decord |")
    print("|---" * (4 + len(NAMES)) + "|")
    with tempfile.TemporaryDirectory() as folder:
        for file in args.files or [write_synthetic(Path(folder) / "synthetic.mp4", 2000)]:
            index = video_index(file)
            for name, wanted in selections(len(index.pts)).items():
                print(race(file, index, name, wanted, args.repeats), flush=True)


def selections(count: int) -> dict[str, NDArray[np.int64]]:
    """Return the frames that are asked for: of a whole pass, and of windows in the middle."""
    middle = np.arange(count // 2, min(count, count // 2 + 768))
    return {
        "all": np.arange(count),
        "every fourth": np.arange(0, count, 4),
        "a window in the middle": middle[:192],
        "a window of every fourth": middle[::4],
    }


def race(file: Path, index: VideoIndex, name: str, wanted: NDArray[np.int64], repeats: int) -> str:
    """Return a row of the table."""
    ways: dict[str, Callable[[Path, VideoIndex], Decoder]] = {"PyAV": PyavDecoder}
    if index.access == "indexed":
        ways["decord"] = DecordDecoder
    if index.torchcodec:
        ways["torchcodec"] = TorchcodecDecoder
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(repeats):
        for way, build in ways.items():
            began = time.process_time()
            for _chunk in build(file, index).chunks(wanted):
                pass
            seconds[way].append(time.process_time() - began)
    rates = {way: len(wanted) / statistics.median(taken) for way, taken in seconds.items()}
    cells = [f"{rates[way]:.0f}" if way in rates else "" for way in NAMES]
    ratios = [
        f"{rates['torchcodec'] / rates[other]:.2f}" if {"torchcodec", other} <= rates.keys() else ""
        for other in ("PyAV", "decord")
    ]
    return f"| {file.name} | {name} | {' | '.join((*cells, *ratios))} |"


if __name__ == "__main__":
    main()
