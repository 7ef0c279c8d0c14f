"""Time the way from mp4 to model input against bare readers, and whether training waits for it.

    OMP_NUM_THREADS=1 python -m benchmarks.decode [FILE ...] [--size 160] [--overlap 0 0.5]
    OMP_NUM_THREADS=1 python -m benchmarks.decode --wait [--workers 1 2] [--step-seconds 0.5]

Without files, a synthetic one like THUMOS-14's is made: 340 × 256, 30 frames/s, H.264 with B-frames
and a keyframe every 250. Read are all windows of a file and one from its middle. All decode with
one thread and alternate within one run; numbers are medians. Bare decord, PyAV and torchcodec, as
far as they are installed, give every needed frame once at full size and do nothing else; ours
resizes, crops and lays out windows, too. "By window" is a naive loader: decord, window by window.
--wait trains the demo's detector (or, with --step-seconds, sleeps as if a GPU worked) and prints
the share of time without a batch.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.turns import median_seconds
from configs.loader import load
from extract.sampling.transforms import evaluation_transform
from extract.sampling.window_frames import arrange, window_frames
from extract.sampling.windows import Window, sliding_windows
from extract.settings.pixels import PixelConfig
from extract.settings.sampling import SamplingConfig
from extract.video.decoders.by_decord import decord
from extract.video.decoders.by_torchcodec import torchcodec
from extract.video.reader import CHUNK, VideoReader
from train.config import Experiment
from train.data.items import VideoItem
from train.data.loading import EpochSampler
from train.data.video_files import probe_item
from train.data.windows import TrainingWindows, WindowInputs, training_loader
from train.detector.model import Detector

DEMO = Path(__file__).parent.parent / "configs/e2e/demo/forward.yaml"
STEPS = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("files", type=Path, nargs="*", help="videos that decord reads")
    parser.add_argument("--size", type=int, default=160, help="side of the model's input")
    parser.add_argument("--window", type=int, default=192, help="samples, every fourth frame")
    parser.add_argument("--overlap", type=float, nargs="+", default=[0.0, 0.5])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--wait", action="store_true", help="does training wait for data?")
    parser.add_argument("--workers", type=int, nargs="+", default=[1])
    parser.add_argument("--step-seconds", type=float, help="sleep instead of training")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        files = args.files or [write_synthetic(Path(folder) / "synthetic.mp4", 2000)]
        if args.wait:
            print("| workers | batch ready every | share of time waiting |")
            print("|---|---|---|")
            for workers in args.workers:
                print(measure_waiting(files, workers, args.step_seconds))
            return
        print(
            "| file | read | input frames | ours, frames/s | ours / fastest bare reader | "
            f"{' | '.join(BARE)} | decord by window |"
        )
        print("|---|---|---|---|---|" + "---|" * len(BARE) + "---|")
        for file in files:
            for overlap in args.overlap:
                windows = cut_windows(file, overlap, args.window)
                what = f"all windows, overlap {overlap:g}"
                print(race_readers(file, what, windows, args.size, args.repeats))
            middle = [windows[len(windows) // 2]]
            print(race_readers(file, "a window in the middle", middle, args.size, args.repeats))


def write_synthetic(path: Path, count: int, height: int = 256, width: int = 340) -> Path:
    """Write a moving picture with fine detail and some noise, encoded as THUMOS-14's are."""
    rng = np.random.default_rng(0)
    unit = height // 32  # pixels of the finest detail
    shape = height // unit + 16, width // unit + 16, 3
    scene = rng.integers(0, 256, shape, dtype=np.uint8).repeat(unit, 0).repeat(unit, 1)
    noise = rng.integers(0, 12, (8, height, width, 3), dtype=np.uint8)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.options = {"g": "250", "bf": "3", "preset": "veryfast"}
        for number in range(count):
            x, y = (int(7.5 * unit * (1 + turn(number / 40))) for turn in (np.cos, np.sin))
            picture = scene[y : y + height, x : x + width] // 2 + noise[number % 8]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


def cut_windows(file: Path, overlap: float, size: int) -> list[Window]:
    """Return a file's windows of `size` samples, every fourth frame; reads its index once."""
    sampling = SamplingConfig(window_size=size, snippet_stride=4)
    return sliding_windows(len(VideoReader(file)), overlap, sampling)


def race_readers(file: Path, what: str, windows: list[Window], size: int, repeats: int) -> str:
    """Return a row of the table; each way opens its own reader, as for a new video."""
    transform = evaluation_transform(PixelConfig(size))

    def ours() -> None:
        decoded = window_frames(VideoReader(file), windows, transform)
        for window, frames in zip(windows, decoded, strict=True):
            arrange(frames, window, "forward")

    def by_window() -> None:
        reader = decord.VideoReader(str(file), num_threads=1)
        for window in windows:
            reader.get_batch(window.frames).asnumpy()

    needed = unique_frames(windows)
    bare = [partial(read, file, needed) for read in BARE.values()]
    frames = sum(len(window.frames) for window in windows)
    mine, naive, *rates = (
        frames / seconds for seconds in median_seconds([ours, by_window, *bare], repeats)
    )
    return (
        f"| {file.name} | {what} | {frames} | {mine:.0f} | {mine / max(rates):.2f} | "
        f"{' | '.join(f'{rate:.0f}' for rate in rates)} | {naive:.0f} |"
    )


def read_by_decord(file: Path, needed: NDArray[np.int64]) -> None:
    reader = decord.VideoReader(str(file), num_threads=1)
    for start in range(0, len(needed), CHUNK):
        reader.get_batch(needed[start : start + CHUNK]).asnumpy()


def read_by_pyav(file: Path, needed: NDArray[np.int64]) -> None:
    """From the keyframe before the first needed frame to the last; constant frame rates only."""
    with av.open(str(file)) as container:
        (stream,) = container.streams.video
        stream.codec_context.thread_count = 1
        assert stream.average_rate is not None and stream.time_base is not None
        step = 1 / (stream.average_rate * stream.time_base)
        begin = stream.start_time or 0
        container.seek(int(begin + needed[0] * step), stream=stream)
        wanted, last = set(needed.tolist()), needed[-1]
        for frame in container.decode(stream):
            number = round((frame.pts - begin) / step)  # type: ignore[operator]
            if number in wanted:
                frame.to_ndarray(format="rgb24")
            if number >= last:
                break


def read_by_torchcodec(file: Path, needed: NDArray[np.int64]) -> None:
    reader = torchcodec.decoders.VideoDecoder(
        str(file), num_ffmpeg_threads=1, seek_mode="approximate"
    )
    for start in range(0, len(needed), CHUNK):
        _ = reader.get_frames_at(needed[start : start + CHUNK].tolist()).data


BARE: dict[str, Callable[[Path, NDArray[np.int64]], None]] = {
    "decord": read_by_decord,
    "PyAV": read_by_pyav,
}
if torchcodec is not None:
    BARE["torchcodec"] = read_by_torchcodec


def unique_frames(windows: list[Window]) -> NDArray[np.int64]:
    return np.unique(np.concatenate([window.frames for window in windows]))


def measure_waiting(files: list[Path], workers: int, step_seconds: float | None) -> str:
    """Return a row of the table for some steps on windows of `files`, after the first two."""
    config = load(Experiment, DEMO, [f"--training.workers={workers}"])
    items = [with_action(probe_item(file)) for file in files]
    dataset = TrainingWindows(
        items * (STEPS * config.training.global_batch // len(items)),
        WindowInputs.of(config),
    )
    sampler = EpochSampler(len(dataset), config.training.global_batch, 0, 1, seed=0)
    step = build_sleeper(step_seconds) if step_seconds is not None else build_trainer(config)
    waited, began = 0.0, 0.0
    batches = iter(training_loader(dataset, sampler, workers))
    for number in range(sampler.steps):
        if number == 2:  # workers have started, and their first batches are ready
            waited, began = 0.0, time.perf_counter()
        asked = time.perf_counter()
        batch = next(batches)
        waited += time.perf_counter() - asked
        step(batch)
    total = time.perf_counter() - began
    return f"| {workers} | {total / (sampler.steps - 2):.2f} s | {waited / total:.1%} |"


def with_action(item: VideoItem) -> VideoItem:
    """Return the item with one action, without which it is no training video."""
    middle = np.array([[0.45, 0.55]]) * item.frames
    return replace(item, segments=middle, labels=np.zeros(1, np.int64))


def build_sleeper(seconds: float) -> Callable[[Any], None]:
    return lambda batch: time.sleep(seconds)


def build_trainer(config: Experiment) -> Callable[[Any], None]:
    """Return a function that does the costly part of a training step: forward and backward."""
    detector = Detector(config, ("action",)).train()
    detector.load_pretrained()

    def step(batch: Any) -> None:
        (output,) = detector(batch.inputs, batch.mask, batch.reflection)
        logits, distances, _ = output.flat()
        (logits.mean() + distances.mean()).backward()
        detector.zero_grad()

    return step


if __name__ == "__main__":
    main()
