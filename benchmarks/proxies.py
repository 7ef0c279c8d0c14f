"""Time proxies against ordinary 720p H.264: how much faster the project's reader gets its input.

    OMP_NUM_THREADS=1 python -m benchmarks.proxies [FILE ...] [--short-side 160] [--repeats 5]

Without files, some are made: videos of the demo, drawn at 1280 × 720, and longer clips with fine
detail and noise that move all the time; H.264 with B-frames and a keyframe every 250, as files from
the web are. A model's input (every fourth frame) is read in one thread, by
`extract/sampling/window_frames.py` with the project's evaluation transform, as one window in the
middle of a file (the cost of a training sample, opening the file included) and as the whole file.
Originals and proxies take turns; numbers are medians of input frames per second (`made/s`: frames
of the file). Ends with code 1 if the median gain of windows is below --aim.
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch

from benchmarks.decode import write_synthetic
from benchmarks.turns import median_seconds
from configs.progress import ProgressBar
from extract.sampling.transforms import evaluation_transform
from extract.sampling.window_frames import window_frames
from extract.sampling.windows import Window, sliding_windows
from extract.scenes import random_scene, render_scene
from extract.settings.pixels import PixelConfig
from extract.settings.sampling import SamplingConfig
from extract.transcoding.proxy import ProxyConfig, write_proxy
from extract.video.reader import VideoReader

HEIGHT, WIDTH, FPS = 720, 1280, 24
SAMPLING = SamplingConfig(window_size=96)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("files", type=Path, nargs="*", help="videos")
    parser.add_argument("--short-side", type=int, default=160)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=12, help="of each demo video that is made")
    parser.add_argument("--frames", type=int, default=600, help="of each longer clip")
    parser.add_argument("--aim", type=float, default=3.0, help="how many times faster")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print("| file | frames | bytes | proxy | saved | made/s | window | gain | whole | gain |")
    print("|---" * 10 + "|")
    with tempfile.TemporaryDirectory() as folder:
        files = args.files or write_videos(Path(folder), args.seconds, args.frames)
        proxy = Path(folder) / "proxy.mp4"
        gains = [race_proxy(file, proxy, args.short_side, args.repeats) for file in files]
    gain = statistics.median(gains)
    print(f"\nmedian gain of a window: {gain:.1f}")
    sys.exit(gain < args.aim)


def write_videos(folder: Path, seconds: int, frames: int) -> list[Path]:
    """Write two videos of the demo and two longer clips; return their paths."""
    files = [write_scene(folder / f"demo_{seed}.mp4", seed, seconds * FPS) for seed in range(2)]
    longer = ProgressBar(range(2), desc="writing clips", leave=False)
    return files + [
        write_synthetic(folder / f"clip_{number}.mp4", frames * (number + 1), HEIGHT, WIDTH)
        for number in longer
    ]


def write_scene(path: Path, seed: int, count: int) -> Path:
    """Write one of the demo's scenes at full size."""
    rng = np.random.default_rng(seed)
    scene = random_scene(rng, count / FPS)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=FPS)
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuv420p"
        stream.options = {"g": "250", "bf": "3", "preset": "veryfast"}
        for begin in ProgressBar(range(0, count, 16), desc=f"drawing {path.name}", leave=False):
            times = np.arange(begin, min(begin + 16, count)) / FPS
            for picture in render_scene(scene, times, HEIGHT, WIDTH, rng):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


def race_proxy(file: Path, proxy: Path, short_side: int, repeats: int) -> float:
    """Print a row of the table; return how many times faster a window of the proxy is read."""
    began = time.perf_counter()
    write_proxy(file, proxy, ProxyConfig(short_side))
    made_s = time.perf_counter() - began
    transform = evaluation_transform(PixelConfig(short_side))
    count = len(VideoReader(file))  # reads the file's index, which a run does once
    assert len(VideoReader(proxy)) == count
    windows = sliding_windows(count, 0.0, SAMPLING)
    middle = [windows[len(windows) // 2]]

    def read(path: Path, wanted: list[Window]) -> None:
        for _ in window_frames(VideoReader(path), wanted, transform):
            pass

    ways = [
        lambda path=path, wanted=wanted: read(path, wanted)
        for wanted in (middle, windows)
        for path in (file, proxy)
    ]
    one, small_one, whole, small_whole = median_seconds(tuple(ways), repeats)
    inputs = [sum(len(window.frames) for window in wanted) for wanted in (middle, windows)]
    before, after = file.stat().st_size, proxy.stat().st_size
    print(
        f"| {file.name} | {count} | {before:,} | {after:,} | {1 - after / before:.0%} "
        f"| {count / made_s:.0f} "
        f"| {inputs[0] / one:.0f} → {inputs[0] / small_one:.0f} | {one / small_one:.1f} "
        f"| {inputs[1] / whole:.0f} → {inputs[1] / small_whole:.0f} | {whole / small_whole:.1f} |",
        flush=True,
    )
    return one / small_one


if __name__ == "__main__":
    main()
