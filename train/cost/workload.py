"""How much a training run goes through, counted from its videos: windows, frames, clips, bytes."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from extract.activations.plan import Plan, full_clips, needed_bytes
from extract.sampling.transforms import PixelConfig
from extract.sampling.units import CLIP_FRAMES
from extract.sampling.windows import sliding_windows, whole_video
from extract.transcoding.encode import upright_size
from extract.transcoding.proxy import SHORT_SIDES
from extract.video.index import open_video, video_index
from train.config import Experiment
from train.data.loading import EpochSampler
from train.data.videos import VideoItem

NPY_HEADER = 128  # bytes in front of a .npy file's numbers


@dataclass(frozen=True)
class Filling:
    """What a cache still lacks to train on it.

    Args:
        bytes: to be stored, before compression; `needed`: that must be free meanwhile.
        frames: to be decoded; `clips`: to be encoded by all blocks, or as many parts of one.
    """

    bytes: int
    needed: int
    frames: int
    clips: float


@dataclass(frozen=True)
class Workload:
    """What all processes of a run go through together.

    Args:
        workers: decoding workers of a process that can run at once; `cores` of the machine.
        windows: training windows in all epochs, `batch` of them in a step.
        samples: frames that are decoded for a training window, on average.
        clips: that the network sees of a window, padding included, by each of `streams`.
        validations: how often the validation videos are looked at, if there are any;
            `validation_windows`, `validation_samples`: what is decoded each time.
        videos_bytes, frames: of all training and validation videos.
        cached_frames, cached_bytes: of a cache of decoded frames.
    """

    processes: int
    workers: int
    cores: int
    streams: int
    epochs: int
    batch: int
    windows: int
    samples: float
    clips: int
    validations: int
    validation_windows: int
    validation_samples: int
    videos_bytes: int
    frames: int
    cached_frames: int
    cached_bytes: int


def count(
    config: Experiment,
    training: Sequence[VideoItem],
    validation: Sequence[VideoItem],
    processes: int,
) -> Workload:
    """Count a run of `processes` processes on videos whose files are there.

    Args:
        training: one of them has an action; `validation`: may be none.

    Raises:
        VideoError: a file cannot be read.
    """
    settings, sampling = config.training, config.sampling
    active = [item for item in training if len(item.segments)]
    batch, seed, accumulate = settings.batch_size, settings.seed, settings.accumulate
    sampler = EpochSampler(len(active), batch, 0, processes, seed, accumulate)
    every = {item.path: item for item in (*training, *validation)}
    cores = len(os.sched_getaffinity(0))
    share = cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # of a process, on its machine
    windows = [
        window
        for item in validation
        for window in sliding_windows(item.frames, sampling.validation_overlap, sampling)
    ]
    crops = config.pixels.random_crop is not None
    kept = {(item.path, crops) for item in active} | {(item.path, False) for item in validation}
    samples = {path: len(sampled_frames(item, config)) for path, item in every.items()}
    return Workload(
        processes=processes,
        workers=min(settings.workers, max(1, share)),
        cores=cores,
        streams=len(config.directions),
        epochs=settings.stop_epoch,
        batch=batch,
        windows=settings.stop_epoch * len(sampler) * processes,
        samples=float(np.mean([min(samples[item.path], sampling.samples) for item in active])),
        clips=sampling.samples // CLIP_FRAMES,
        validations=validations(config) if validation else 0,
        validation_windows=len(windows),
        validation_samples=sum(samples[item.path] for item in validation),
        videos_bytes=sum(path.stat().st_size for path in every),
        frames=sum(item.frames for item in every.values()),
        cached_frames=sum(samples[path] for path, _ in kept),
        cached_bytes=sum(
            NPY_HEADER + samples[path] * 3 * math.prod(stored_size(path, config.pixels, cropped))
            for path, cropped in kept
        ),
    )


def validations(config: Experiment) -> int:
    """Return after how many epochs a run looks at its validation videos."""
    settings = config.training
    due = range(1, settings.stop_epoch + 1)
    return sum(
        epoch == settings.stop_epoch
        or (epoch >= settings.validate_from and epoch % settings.validate_every == 0)
        for epoch in due
    )


def sampled_frames(item: VideoItem, config: Experiment) -> NDArray[np.int64]:
    """Return the numbers of the frames that any window of a video can ask for."""
    if config.sampling.method == "resize":
        return np.unique(whole_video(item.frames, config.sampling).frames)
    return np.arange(0, item.frames, config.sampling.frame_stride)


def stored_size(path: Path, pixels: PixelConfig, cropped: bool) -> tuple[int, int]:
    """Return height and width of a video's frames as a cache of decoded frames holds them.

    Args:
        cropped: at random, later, so that they keep their whole width.

    Raises:
        VideoError: the file cannot be read.
    """
    if not cropped:
        return pixels.size, pixels.size
    with open_video(path) as container:
        width, height = upright_size(video_index(path), container.streams.video[0].codec_context)
    short, size = min(width, height), pixels.train_short_side
    # As torchvision rounds.
    return int(size * height / short), int(size * width / short)


def proxy_side(pixels: PixelConfig) -> int | None:
    """Return the short side of proxies that serve these inputs; None if no proxy is large enough.

    Random crops of more than a proxy holds are stretched.
    """
    least, most = SHORT_SIDES
    if pixels.size > most:
        return None
    wanted = pixels.train_short_side if pixels.random_crop else pixels.size
    return min(max(wanted + wanted % 2, least), most)


def filling(made: Plan) -> Filling:
    """Return what a plan's passes cost."""
    clips = sum(full_clips(made, number) for number in range(len(made.wanted)))
    return Filling(made.bytes, needed_bytes(made), made.frames, clips)


def trained_from(config: Experiment) -> int | None:
    """Return the block from which on adapters could learn on a stored block; None for nowhere.

    Behind the deepest block that `cache.blocks` keeps, or as the config says, or for the last
    quarter of the blocks.
    """
    backbone, depth = config.backbone, config.backbone.depth
    kept = [block + 1 for block in config.cache.blocks if block + 1 < depth]
    if backbone.mode == "side":
        k = max(1, backbone.adapters_from_block)  # its whole ladder
    elif kept:
        k = max(kept)
    else:
        k = backbone.first_trainable_block % depth or depth * 3 // 4
    return k if 0 < k < depth and with_block(config, k).backbone.learns else None


def with_block(config: Experiment, k: int) -> Experiment:
    """Return the experiment with blocks and adapters below block k frozen."""
    return replace(config, backbone=replace(config.backbone, trainable_from_block=k))
