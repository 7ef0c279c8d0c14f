"""Seconds that training takes here: reading a few windows of the videos, steps of the real loop."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray

from extract.parallel.processes import broadcast_object
from extract.sampling.transforms import crop_frames, draw_augmentation, train_transform
from extract.sampling.window_frames import open_unchanged, resized_chunks
from extract.sampling.windows import random_window
from extract.settings.backbone import Cut
from extract.settings.units import CLIP_FRAMES
from extract.video.reader import VideoError
from train.config import Experiment
from train.data.batch import Batch, collate
from train.data.items import VideoItem
from train.detector.model import Detector
from train.detector.training import DetectionTask
from train.engine.loop import TrainingRun
from train.engine.sharding import gathered
from train.errors import SMALLER_BATCHES, translate_oom
from train.postprocessing.candidates import predict_windows

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
    device = accelerator.device
    with device:  # random weights take as long as any others
        detector = Detector(config, classes)
    run = TrainingRun(DetectionTask(detector, [item], None, accelerator), accelerator, False)

    def cost(clips: int) -> NDArray[np.float64]:
        batch = _random_batch(run, clips, cut)
        run.wrapped.train()
        trained_s = _time_least(lambda: run.update(0, [batch]), device)
        detector.eval()
        with gathered(detector), accelerator.autocast():
            arguments = detector.predict_batch, [batch], config.evaluation, device
            tested_s = _time_least(lambda: predict_windows(*arguments), device)
        return np.array([trained_s, tested_s])

    most, slope = config.sampling.samples // CLIP_FRAMES, np.zeros(2)
    # Their number does not matter to what comes after them.
    clips = most if cut == "features" else 1
    with translate_oom(SMALLER_BATCHES):
        seconds = cost(clips)
        while clips < most and (clips == 1 or not _is_long(seconds[0])):
            more = min(2 * clips, most)
            before, seconds = seconds, cost(more)
            slope, clips = np.maximum(0.0, seconds - before) / (more - clips), more
    accelerator.free_memory()
    return StepCost(*map(float, (seconds + (most - clips) * slope) / run.sampler.batch))


def _random_batch(run: TrainingRun[DetectionTask], clips: int, cut: Cut | None) -> Batch:
    """Return a batch of a drawn window of the run's video, its pixels some copies of random ones.

    The features of fewer clips than a window has are stretched over it.
    """
    task, config = run.task, run.task.config
    rng, size = np.random.default_rng(config.training.seed), config.pixels.size
    (item,), streams = task.dataset.items, task.model.streams
    clip = torch.randint(256, (1, 3, CLIP_FRAMES, size, size), dtype=torch.uint8)
    clip = clip.to(run.accelerator.device)
    if cut is not None:
        with torch.no_grad():
            clip = streams[0].backbone.eval()(clip, None, cut)
    inputs = torch.cat([clip[0]] * clips, 1 if cut in (None, "features") else 0)
    window = random_window(rng, item, item.segments, config.sampling)
    sample = task.dataset.inputs.sample(item, window, (inputs,) * len(streams))
    sample, pixels = replace(sample, start=cut, turns=()), config.pixels
    samples = [sample] * run.sampler.batch
    if cut is None:
        samples = [replace(sample, augmentation=draw_augmentation(rng, pixels)) for _ in samples]
    return collate(samples)


def _time_least(work: Callable[[], object], device: torch.device) -> float:
    """Return the least seconds of some repeats, or those of the first if that is long."""
    each = list[float]()
    while len(each) < REPEATS and not (len(each) == 1 and _is_long(each[0])):
        began = time.perf_counter()
        work()
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        each.append(time.perf_counter() - began)
    return min(each[1:] or each)


def _is_long(seconds: float) -> bool:
    """Return what the first process finds: steps of all wait for each other."""
    return broadcast_object(seconds > ENOUGH_S)


def measure_reading(config: Experiment, items: Sequence[VideoItem]) -> ReadingCost:
    """Return what frames of a few training videos with an action cost.

    Raises:
        VideoError: not one of the videos can be read.
    """
    costs, problem = dict[str, tuple[float, float]](), VideoError("there are no videos")
    step, threads = -(-len(items) // FILES), torch.get_num_threads()
    torch.set_num_threads(1 if config.training.workers else threads)  # as a loader's worker has
    try:
        for item in items[step // 2 :: step]:
            try:
                costs[item.name] = _time_frame(item, config)
            except VideoError as error:  # the run will say so
                problem = error
    finally:
        torch.set_num_threads(threads)
    if not costs:
        raise problem
    return ReadingCost(tuple(costs), *np.mean(list(costs.values()), 0).tolist())


def _time_frame(item: VideoItem, config: Experiment) -> tuple[float, float]:
    """Return a frame's seconds to be decoded and made small, and to be cropped and flipped."""
    rng = np.random.default_rng(config.training.seed)
    window = random_window(rng, item, item.segments, config.sampling)
    wanted, transform = np.unique(window.frames), train_transform(config.pixels)

    def chunks() -> Iterator[NDArray[np.uint8]]:
        reader = open_unchanged(item.path, item.frames)
        return resized_chunks(reader, wanted, transform.shrink)

    next(chunks())  # reads the file's index, which a run does once, and warms up
    began, frames = time.perf_counter(), 0
    for small in chunks():
        frames += len(small)
        decoding_s = time.perf_counter() - began
        if decoding_s > ENOUGH_S:
            break
    began = time.perf_counter()
    for seed in range(DRAWS):
        crop_frames(small, transform, seed)
    return decoding_s / frames, (time.perf_counter() - began) / (DRAWS * len(small))
