"""Seconds that training takes here: reading a few windows of the videos, steps of the real loop."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray

from extract.parallel.processes import broadcast_object
from extract.sampling.transforms import (
    Transform,
    crop_frames,
    draw_augmentation,
    train_transform,
)
from extract.sampling.window_frames import open_unchanged, resized_chunks, wanted_frames
from extract.sampling.windows import random_window, whole_video
from extract.settings.backbone import Cut
from extract.settings.units import CLIP_FRAMES
from extract.video.reader import VideoError
from train.config import Experiment
from train.data.batch import Batch
from train.data.videos import VideoItem
from train.detector.model import Detector
from train.detector.postprocess import predict_windows
from train.detector.training import DetectionTask
from train.engine.loop import TrainingRun
from train.engine.sharding import gathered
from train.errors import SMALLER_BATCHES, translate_oom

FILES = 3  # videos that are read
REPEATS = 3  # the first one warms up, another may meet some noise
ENOUGH_S = 1.0  # longer windows are not read to their end, longer steps are measured on fewer clips
DRAWS = 3  # of a crop: some take longer than others


@dataclass(frozen=True)
class StepCost:
    """Seconds of a window on the device: its share of a training step, and of a test batch."""

    trained_s: float
    tested_s: float


@dataclass(frozen=True)
class ReadingCost:
    """Seconds of a process for a frame of `videos`: to decode and shrink it, and to crop it."""

    videos: tuple[str, ...]
    decoded_s: float
    cropped_s: float


def measure_step(
    config: Experiment,
    classes: tuple[str, ...],
    item: VideoItem,
    accelerator: Accelerator,
    cut: Cut | None,
) -> StepCost:
    """Return what a window costs in the loop's own update and in evaluation; all processes measure.

    Steps on more and more clips are timed until one takes long; with the one before, it shows what
    all clips of a window take: a step's fixed cost counts once.

    Args:
        item: a training video with an action; its file is not read.
        cut: where inputs are read from a cache; None for pixels.

    Raises:
        MemoryError: the device's memory is too small.
    """
    config = replace(config, backbone=replace(config.backbone, weights=None))
    with accelerator.device:  # random weights take as long as any others
        detector = Detector(config, classes)
    run = TrainingRun(DetectionTask(detector, [item], None, accelerator), accelerator, False)

    def cost(clips: int) -> NDArray[np.float64]:
        count = run.sampler.batch
        batch = _random_batch(config, detector, accelerator.device, count, clips, cut)
        run.wrapped.train()
        trained_s = _time_least(lambda: run.update(0, [batch]), accelerator.device)
        detector.eval()
        with gathered(detector), accelerator.autocast():
            arguments = detector.predict_batch, [batch], config.evaluation, accelerator.device
            tested_s = _time_least(lambda: predict_windows(*arguments), accelerator.device)
        return np.array([trained_s, tested_s])

    most, slope = config.sampling.samples // CLIP_FRAMES, np.zeros(2)
    clips = most if cut == "features" else 1  # their number is no matter to what stands behind them
    with translate_oom(SMALLER_BATCHES):
        seconds = cost(clips)
        while clips < most and (clips == 1 or not _is_long(float(seconds[0]))):
            more = min(2 * clips, most)
            before, seconds = seconds, cost(more)
            slope, clips = np.maximum(0.0, seconds - before) / (more - clips), more
    accelerator.free_memory()
    return StepCost(*map(float, (seconds + (most - clips) * slope) / run.sampler.batch))


def _random_batch(
    config: Experiment,
    detector: Detector,
    device: torch.device,
    count: int,
    clips: int,
    cut: Cut | None,
) -> Batch:
    """Return `count` windows with two actions each, of copies of a random clip, as a cut has it.

    Pixels come with augmentations to be made.

    The features of fewer clips than a window has are stretched over it.
    """
    rng = np.random.default_rng(config.training.seed)
    steps, size = config.sampling.window_size, config.pixels.size
    clip = torch.randint(256, (1, 3, CLIP_FRAMES, size, size), dtype=torch.uint8, device=device)
    if cut is not None:
        with torch.no_grad():
            clip = detector.streams[0].backbone.eval()(clip, None, cut)
    window_inputs = torch.cat([clip] * clips, 2 if cut in (None, "features") else 1)
    segments = torch.tensor([[0.1, 0.3], [0.5, 0.55]], device=device) * steps
    window = whole_video(config.sampling.samples, config.sampling)
    return Batch(
        videos=("random",) * count,
        windows=(window,) * count,
        inputs=(torch.cat([window_inputs] * count),) * len(detector.streams),
        mask=torch.ones(count, steps, dtype=torch.bool, device=device),
        reflection=torch.full((count,), window.reflection, device=device),
        segments=((segments,) * count,) * len(detector.streams),
        labels=(torch.zeros(2, dtype=torch.long, device=device),) * count,
        start=cut,
        augmentations=tuple(
            draw_augmentation(rng, config.pixels) if cut is None else () for _ in range(count)
        ),
    )


def _time_least(work: Callable[[], object], device: torch.device) -> float:
    """Return the least seconds of some repeats, or those of the first if that is long."""
    each = list[float]()
    while len(each) < REPEATS:
        began = time.perf_counter()
        work()
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        each.append(time.perf_counter() - began)
        if len(each) == 1 and _is_long(each[0]):
            return each[0]
    return min(each[1:])


def _is_long(seconds: float) -> bool:
    """Return what the first process finds: steps of all wait for each other."""
    long = broadcast_object(seconds > ENOUGH_S)
    return bool(long)


def measure_reading(config: Experiment, items: Sequence[VideoItem]) -> ReadingCost:
    """Return what frames of a few training videos with an action cost.

    Raises:
        VideoError: not one of the videos can be read.
    """
    step, transform = -(-len(items) // FILES), train_transform(config.pixels)
    names, costs = list[str](), list[tuple[float, float]]()
    problem = VideoError("there are no videos")
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if config.training.workers else threads)  # as a loader's worker has
    try:
        for item in items[step // 2 :: step]:
            rng = np.random.default_rng(config.training.seed)
            window = random_window(rng, item, item.segments, config.sampling)
            try:
                costs.append(_time_frame(item, wanted_frames([window]), transform))
                names.append(item.name)
            except VideoError as error:  # the run will say so
                problem = error
    finally:
        torch.set_num_threads(threads)
    if not names:
        raise problem
    return ReadingCost(tuple(names), *np.mean(costs, 0).tolist())


def _time_frame(
    item: VideoItem, numbers: NDArray[np.int64], transform: Transform
) -> tuple[float, float]:
    """Return a frame's seconds to be decoded and made small, and to be cropped and flipped."""
    # Reads the file's index, which a run does once, and warms up.
    next(resized_chunks(open_unchanged(item.path, item.frames), numbers, transform.shrink))
    began, frames = time.perf_counter(), 0
    reader = open_unchanged(item.path, item.frames)
    for small in resized_chunks(reader, numbers, transform.shrink):
        frames += len(small)
        decoding_s = time.perf_counter() - began
        if decoding_s > ENOUGH_S:
            break
    began = time.perf_counter()
    for seed in range(DRAWS):
        crop_frames(small, transform, seed)
    return decoding_s / frames, (time.perf_counter() - began) / (DRAWS * len(small))
