"""Windows of videos as samples: random ones to train on, sliding ones to test on.

A training sample depends on the seed, the epoch and its index alone, never on which worker or
process makes it: runs are reproducible with any number of them.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from extract.backbone.backbone import Cut
from extract.sampling.frame_cache import FrameCache
from extract.sampling.reversal import reverse_segments
from extract.sampling.transforms import Transform, evaluation_transform, train_transform
from extract.sampling.window_frames import arrange, known_reader, window_frames
from extract.sampling.windows import Window, random_window, sliding_windows, truth_inside
from extract.video.reader import VideoError
from train.config import Experiment
from train.data.batch import Sample, collate
from train.data.cached import CachedStreams, draw_inputs, read_windows
from train.data.loading import EpochSampler, balanced_splits, batch_loader, with_substitute
from train.data.videos import VideoItem


class TrainingWindows(Dataset[Sample]):
    """One random window per video and epoch; indexed by (epoch, position).

    With `cached`, inputs are activations that were stored, and not augmented frames; `cached` says
    for every stream where. With `kept`, small frames are kept there and not decoded again.

    Where bad videos are skipped, the next position's window of the same epoch stands in for one
    that cannot be read.
    """

    def __init__(
        self,
        items: Sequence[VideoItem],
        config: Experiment,
        cached: CachedStreams | None = None,
        kept: FrameCache | None = None,
    ) -> None:
        self.items = [item for item in items if len(item.segments)]
        if not self.items:
            raise ValueError(f"no video of subset '{config.data.train_subset}' has an action")
        self.config, self.cached, self.kept = config, cached, kept
        self.transform = train_transform(config.pixels)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        epoch, first = key
        skips = self.config.data.bad_videos == "skip"
        return with_substitute(lambda *at: self._draw(epoch, *at), first, len(self), skips)

    def _draw(self, epoch: int, position: int, problem: str | None) -> Sample:
        item = self.items[position]
        rng = np.random.default_rng((self.config.training.seed, epoch, position, 1))
        if self.cached is not None:
            window, inputs = draw_inputs(rng, item, self.config, self.cached)
            return _sample(item, window, inputs, self.config, start=self.cached[0].cut)
        window = random_window(rng, item.frames, item.segments, self.config.sampling)
        seed = int(rng.integers(2**31))
        (frames,) = _frames(item, [window], self.transform, self.kept, seed)
        inputs = tuple(arrange(frames, window, d) for d in self.config.directions)
        return _sample(item, window, inputs, self.config, problem)


class EvaluationWindows(IterableDataset[Sample]):
    """A process's share of the sliding windows of all videos, in order, each exactly once.

    Each worker takes a run of neighbouring windows, because they share frames. Where bad videos are
    skipped, one sample with a `problem` stands for the windows of a video that do not come.

    Args:
        overlap: share of a window that the next one repeats.
        rank, processes: which share, of how many.
        cached: where each stream's stored activations are to be read in place of frames.
        kept: where small frames are kept, not to be decoded again.
    """

    def __init__(
        self,
        items: Sequence[VideoItem],
        overlap: float,
        config: Experiment,
        rank: int = 0,
        processes: int = 1,
        cached: CachedStreams | None = None,
        kept: FrameCache | None = None,
    ) -> None:
        self.items, self.overlap, self.config = items, overlap, config
        self.rank, self.processes, self.cached, self.kept = rank, processes, cached, kept
        self.transform = evaluation_transform(config.pixels)
        self.counts = [len(self._windows(item)) for item in items]

    def length(self, workers: int = 0) -> int:
        """Return how many windows the share has that `workers` workers decode."""
        workers = max(workers, 1)
        cuts = balanced_splits(self.counts, self.processes * workers)
        return int(cuts[(self.rank + 1) * workers] - cuts[self.rank * workers])

    def __iter__(self) -> Iterator[Sample]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        cuts = balanced_splits(self.counts, self.processes * workers)
        start, stop = cuts[self.rank * workers + worker :][:2]
        first = 0  # window of the video in the count of all
        for item, count in zip(self.items, self.counts, strict=True):
            mine = slice(max(start - first, 0), max(stop - first, 0))
            first += count
            if windows := self._windows(item)[mine]:
                yield from self._samples(item, windows)

    def _windows(self, item: VideoItem) -> list[Window]:
        return sliding_windows(item.frames, self.overlap, self.config.sampling)

    def _samples(self, item: VideoItem, windows: list[Window]) -> Iterator[Sample]:
        directions, size = self.config.directions, self.config.pixels.size
        if self.cached is not None:
            read = read_windows(item, windows, self.config, self.cached)
            for window, inputs in zip(windows, read, strict=True):
                yield _sample(item, window, inputs, self.config, start=self.cached[0].cut)
            return
        try:
            decoded = _frames(item, windows, self.transform, self.kept)
            for window, frames in zip(windows, decoded, strict=True):
                inputs = tuple(arrange(frames, window, d) for d in directions)
                yield _sample(item, window, inputs, self.config)
        except VideoError as error:
            if self.config.data.bad_videos == "stop":
                raise
            nothing = torch.zeros(3, windows[0].samples, size, size, dtype=torch.uint8)
            inputs = (nothing,) * len(directions)
            yield _sample(item, windows[0], inputs, self.config, str(error))


def _frames(
    item: VideoItem,
    windows: Sequence[Window],
    transform: Transform,
    kept: FrameCache | None,
    seed: int = 0,
) -> Iterator[list[Tensor]]:
    if kept is not None:
        return kept.frames_of(item.path, item.info, windows, transform, seed)
    reader = known_reader(item.path, item.frames, item.known.digest if item.known else None)
    return window_frames(reader, windows, transform, seed)


def _sample(
    item: VideoItem,
    window: Window,
    inputs: tuple[Tensor, ...],
    config: Experiment,
    problem: str | None = None,
    start: Cut | None = None,
) -> Sample:
    completeness = config.sampling.min_completeness
    segments, kept = truth_inside(window, item.segments, completeness)
    truth = {"forward": segments, "reversed": reverse_segments(segments, window.reflection)}
    return Sample(
        video=item.name,
        window=window,
        inputs=inputs,
        mask=torch.from_numpy(window.mask()),
        segments=tuple(
            torch.from_numpy(np.ascontiguousarray(truth[direction], np.float32))
            for direction in config.directions
        ),
        labels=torch.from_numpy(item.labels[kept]),
        problem=problem,
        start=start,
    )


def training_loader(
    dataset: TrainingWindows, sampler: EpochSampler, config: Experiment
) -> "DataLoader[Sample]":
    """Return a loader of training batches; `sampler.epoch` chooses the epoch of the next pass."""
    training = config.training
    return batch_loader(dataset, training.batch_size, training.workers, collate, sampler)


def evaluation_loader(
    dataset: EvaluationWindows, config: Experiment, workers: int
) -> "DataLoader[Sample]":
    """Return a loader of batches of this process's test windows, each exactly once."""
    return batch_loader(dataset, config.evaluation.batch_size, workers, collate)
