"""How much a training run goes through, counted from its videos: windows, frames, clips, bytes."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from configs.system import count_cores
from extract.sampling.frame_cache import kept_bytes
from extract.sampling.transforms import evaluation_transform, train_transform
from extract.sampling.windows import evaluation_windows, sampled_frames
from extract.settings.units import CLIP_FRAMES
from train.config import Experiment
from train.cost.measure import StepCost
from train.data.items import VideoItem
from train.data.loading import EpochSampler
from train.engine.lengths import resolve_lengths


@dataclass(frozen=True)
class Workload:
    """What all processes of a run go through together.

    Args:
        workers: decoding workers of a process that can run at once; `cores` of the machine.
        windows: training windows in all epochs.
        samples: frames that are decoded for a training window, on average.
        clips: that the network sees of a window, padding included.
        validations: how many there are; `validation_windows`, `validation_samples`: of each.
        videos_bytes, frames: of all training and validation videos.
        cached_frames, cached_bytes: of a cache of decoded frames.
    """

    processes: int
    workers: int
    cores: int
    epochs: int
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

    def run_h(self, step: StepCost, read_s: float = 0.0, validation_s: float = 0.0) -> float:
        """Return the hours of all epochs with their validations.

        Args:
            read_s: for a training window's frames; `validation_s`: for those of a validation.
        """
        training_h = self.overlapped_h(self.windows * read_s, self.windows * step.trained_s)
        network_s = self.validation_windows * step.tested_s
        return training_h + self.validations * self.overlapped_h(validation_s, network_s)

    def overlapped_h(self, decode_s: float, network_s: float) -> float:
        """Return the hours of decoding and network, one beside the other if there are workers."""
        seconds = decode_s + network_s
        if self.workers:
            seconds = max(decode_s / self.workers, network_s)
        return seconds / self.processes / 3600


def count_workload(
    config: Experiment,
    training: Sequence[VideoItem],
    validation: Sequence[VideoItem],
    processes: int,
) -> Workload:
    """Return what a run of `processes` processes goes through, on videos whose files are there.

    Args:
        training: one of them has an action; `validation`: may be none.
    """
    settings, sampling = config.training, config.sampling
    active = [item for item in training if len(item.segments)]
    batch, seed, accumulate = settings.global_batch, settings.seed, settings.accumulate
    sampler = EpochSampler(len(active), batch, 0, processes, seed, accumulate)
    every = {item.path: item for item in (*training, *validation)}
    samples = {path: len(sampled_frames(item, sampling)) for path, item in every.items()}
    drawn, plain = train_transform(config.pixels).shrink, evaluation_transform(config.pixels).shrink
    kept = {(item.path, drawn) for item in active} | {(item.path, plain) for item in validation}
    overlap = sampling.validation_overlap
    cores = count_cores()
    share = cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # of a process, on its machine
    resolved, _ = resolve_lengths(settings, sampler.updates)
    epochs = range(1, resolved.last_epoch + 1)
    return Workload(
        processes=processes,
        workers=min(settings.workers, max(1, share)),
        cores=cores,
        epochs=len(epochs),
        windows=len(epochs) * len(sampler) * processes,
        samples=float(np.mean([min(samples[item.path], sampling.samples) for item in active])),
        clips=sampling.samples // CLIP_FRAMES,
        validations=sum(map(resolved.validates_after, epochs)) if validation else 0,
        validation_windows=sum(
            len(evaluation_windows(item, overlap, sampling)) for item in validation
        ),
        validation_samples=sum(samples[item.path] for item in validation),
        videos_bytes=sum(path.stat().st_size for path in every),
        frames=sum(item.frames for item in every.values()),
        cached_frames=sum(samples[path] for path, _ in kept),
        cached_bytes=sum(kept_bytes(path, samples[path], to) for path, to in kept),
    )


def cached_block(config: Experiment) -> int | None:
    """Return the first block that could learn on a stored one; None where none could.

    It stands after the deepest block that `cache.blocks` keeps, or where the config says, or at
    three quarters of the depth.
    """
    backbone, depth = config.backbone, config.backbone.depth
    kept = [block + 1 for block in config.cache.blocks if block + 1 < depth]
    if backbone.mode == "side":
        k = max(1, backbone.adapters_from_block)  # its whole ladder
    elif kept:
        k = max(kept)
    else:
        k = backbone.first_trainable_block % depth or depth * 3 // 4
    return k if 0 < k < depth and freeze_below(config, k).backbone.learns else None


def freeze_below(config: Experiment, k: int) -> Experiment:
    """Return the experiment with blocks and adapters below block k frozen."""
    return replace(config, backbone=replace(config.backbone, trainable_from_block=k))
