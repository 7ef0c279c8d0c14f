"""Trials of reading: frames for the network from videos, from proxies and from decoded frames."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.transforms import v2

from extract.sampling.transforms import PixelConfig, apply, evaluation_transform, train_transform
from extract.sampling.window_frames import window_frames
from extract.sampling.windows import Window, random_window
from extract.transcoding.proxy import ProxyConfig, write_sample
from extract.video.reader import CHUNK, VideoReader
from train.config import Experiment
from train.cost.workload import stored_size
from train.data.videos import VideoItem

ENOUGH_S = 1.5  # longer windows are not read to their end
SAMPLE = 128  # frames of a proxy


@dataclass(frozen=True)
class Reading:
    """Seconds that a process needs for a window's frames.

    Args:
        begin_s: to open the file and to reach the window.
        drawn_s: a frame, augmented for training; `plain_s`: one for evaluation.
    """

    begin_s: float
    drawn_s: float
    plain_s: float


@dataclass(frozen=True)
class Making:
    """Making proxies: seconds of one process, and bytes, for each frame of the file."""

    frame_s: float
    frame_bytes: float


def training_window(item: VideoItem, config: Experiment) -> Window:
    """Return a window as training draws them."""
    rng = np.random.default_rng(config.training.seed)
    return random_window(rng, item.frames, item.segments, config.sampling)


def read(path: Path, frames: NDArray[np.int64], pixels: PixelConfig) -> Reading:
    """Read frames at rising indices of a video, or as many of them as are enough.

    Raises:
        VideoError: they cannot be read.
    """
    begin_s, drawn_s = _seconds(path, frames, train_transform(pixels))
    _, plain_s = _seconds(path, frames, evaluation_transform(pixels))
    return Reading(begin_s, drawn_s, plain_s)


def read_stored(folder: Path, item: VideoItem, pixels: PixelConfig) -> Reading:
    """Read decoded frames from a file as a cache of frames has it, in the system's memory."""
    rng = np.random.default_rng(0)
    each = []
    for cropped, transform in (
        (pixels.random_crop is not None, train_transform(pixels)),
        (False, evaluation_transform(pixels)),
    ):
        shape = (CHUNK, *stored_size(item.path, pixels, cropped), 3)
        np.save(folder / "frames.npy", rng.integers(0, 256, shape, np.uint8))
        stored = np.load(folder / "frames.npy", mmap_mode="r")
        apply(transform, np.array(stored))  # warms up
        began, chunks = time.perf_counter(), 0
        while time.perf_counter() - began < ENOUGH_S / 3:
            apply(transform, np.array(stored), seed=chunks)
            chunks += 1
        each.append((time.perf_counter() - began) / (CHUNK * chunks))
    return Reading(0.0, *each)


def read_proxy(
    folder: Path, item: VideoItem, window: Window, config: ProxyConfig, pixels: PixelConfig
) -> tuple[Making, Reading]:
    """Make a proxy of a stretch of a video, where a window lies, and read that.

    Raises:
        VideoError: the video cannot be read.
        OSError: the proxy cannot be written.
    """
    first = max(0, min(int(window.frames[0]), item.frames - SAMPLE))
    stretch = range(first, min(first + SAMPLE, item.frames))
    target = folder / f"{item.name}.mp4"
    began = time.perf_counter()
    write_sample(item.path, target, config, stretch)
    made_s = time.perf_counter() - began
    making = Making(made_s / len(stretch), target.stat().st_size / len(stretch))
    spacing = max(1, round(float(np.diff(window.frames).mean()))) if len(window.frames) > 1 else 1
    return making, read(target, np.arange(0, len(stretch), spacing), pixels)


@contextmanager
def as_a_worker(workers: int) -> Iterator[None]:
    """Give torch the threads that whoever decodes has: a loader's worker has one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if workers else threads)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _seconds(path: Path, frames: NDArray[np.int64], transform: v2.Transform) -> tuple[float, float]:
    """Return the seconds until decoding is under way, and those for each frame."""
    pieces = [
        Window(part, 0.0, 1.0, len(part), len(part), 0.0)
        for part in np.split(frames, range(CHUNK, len(frames), CHUNK))
    ]
    for _ in window_frames(VideoReader(path), pieces[:1], transform):
        pass  # reads the file's index, which a run does once, and warms up
    passed, last = list[float](), time.perf_counter()
    for _ in window_frames(VideoReader(path), pieces, transform):
        now = time.perf_counter()
        passed.append(now - last)
        last = now
        if sum(passed) > ENOUGH_S:
            break
    first, rest = passed[0], passed[1:]
    if not rest:
        return 0.0, first / len(pieces[0].frames)
    frame_s = sum(rest) / sum(len(piece.frames) for piece in pieces[1 : len(passed)])
    return max(0.0, first - frame_s * len(pieces[0].frames)), frame_s
