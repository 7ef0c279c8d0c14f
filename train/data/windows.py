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
from extract.sampling.transforms import (
    PixelConfig,
    Transform,
    evaluation_transform,
    train_transform,
)
from extract.sampling.window_frames import arrange, known_reader, window_frames
from extract.sampling.windows import (
    Direction,
    SamplingConfig,
    Window,
    evaluation_windows,
    random_window,
    truth_inside,
)
from extract.video.reader import VideoError
from train.data.batch import Sample, collate
from train.data.cached import CachedStreams, draw_inputs, read_windows
from train.data.loading import EpochSampler, balanced_splits, batch_loader, with_substitute
from train.data.videos import VideoItem


class TrainingWindows(Dataset[Sample]):
    """One random window per video with an action and epoch; indexed by (epoch, position).

    Args:
        directions: of every stream.
        skip_bad: let the next position's window of the same epoch stand in for one that cannot be
            read.
        cached: where each stream's stored activations are to be read in place of augmented frames.
        kept: where small frames are kept, not to be decoded again.
    """

    def __init__(
        self,
        items: Sequence[VideoItem],
        sampling: SamplingConfig,
        pixels: PixelConfig,
        directions: Sequence[Direction],
        seed: int = 0,
        skip_bad: bool = False,
        cached: CachedStreams | None = None,
        kept: FrameCache | None = None,
    ) -> None:
        self.items = [item for item in items if len(item.segments)]
        self.sampling, self.directions, self.seed = sampling, directions, seed
        self.skip_bad, self.cached, self.kept = skip_bad, cached, kept
        self.transform = train_transform(pixels)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        epoch, first = key
        return with_substitute(lambda *at: self._draw(epoch, *at), first, len(self), self.skip_bad)

    def _draw(self, epoch: int, position: int, problem: str | None) -> Sample:
        item, of = self.items[position], (self.sampling, self.directions)
        rng = np.random.default_rng((self.seed, epoch, position, 1))
        if self.cached is not None:
            window, inputs = draw_inputs(rng, item, *of, self.cached)
            return _sample(item, window, inputs, *of, start=self.cached.cut)
        window = random_window(rng, item, item.segments, self.sampling)
        seed = int(rng.integers(2**31))
        (frames,) = _frames(item, [window], self.transform, self.kept, seed)
        inputs = tuple(arrange(frames, window, d) for d in self.directions)
        return _sample(item, window, inputs, *of, problem)


class EvaluationWindows(IterableDataset[Sample]):
    """A process's share of the sliding windows of all videos, in order, each exactly once.

    Each worker takes a run of neighbouring windows, because they share frames.

    Args:
        overlap: share of a window that the next one repeats.
        directions: of every stream.
        skip_bad: let one sample with a `problem` stand for the windows of a video that do not come.
        rank, processes: which share, of how many.
        cached: where each stream's stored activations are to be read in place of frames.
        kept: where small frames are kept, not to be decoded again.
    """

    def __init__(
        self,
        items: Sequence[VideoItem],
        overlap: float,
        sampling: SamplingConfig,
        pixels: PixelConfig,
        directions: Sequence[Direction],
        skip_bad: bool = False,
        rank: int = 0,
        processes: int = 1,
        cached: CachedStreams | None = None,
        kept: FrameCache | None = None,
    ) -> None:
        self.items, self.overlap, self.sampling = items, overlap, sampling
        self.size, self.directions, self.skip_bad = pixels.size, directions, skip_bad
        self.rank, self.processes, self.cached, self.kept = rank, processes, cached, kept
        self.transform = evaluation_transform(pixels)
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
        return evaluation_windows(item, self.overlap, self.sampling)

    def _samples(self, item: VideoItem, windows: list[Window]) -> Iterator[Sample]:
        of = self.sampling, self.directions
        if self.cached is not None:
            read = read_windows(item, windows, *of, self.cached)
            for window, inputs in zip(windows, read, strict=True):
                yield _sample(item, window, inputs, *of, start=self.cached.cut)
            return
        try:
            decoded = _frames(item, windows, self.transform, self.kept)
            for window, frames in zip(windows, decoded, strict=True):
                inputs = tuple(arrange(frames, window, d) for d in self.directions)
                yield _sample(item, window, inputs, *of)
        except VideoError as error:
            if not self.skip_bad:
                raise
            shape = 3, windows[0].samples, self.size, self.size
            inputs = (torch.zeros(shape, dtype=torch.uint8),) * len(self.directions)
            yield _sample(item, windows[0], inputs, *of, str(error))


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
    sampling: SamplingConfig,
    directions: Sequence[Direction],
    problem: str | None = None,
    start: Cut | None = None,
) -> Sample:
    segments, kept = truth_inside(window, item.segments, sampling.min_completeness)
    truth = {"forward": segments, "reversed": reverse_segments(segments, window.reflection)}
    return Sample(
        video=item.name,
        window=window,
        inputs=inputs,
        mask=torch.from_numpy(window.mask()),
        segments=tuple(
            torch.from_numpy(np.ascontiguousarray(truth[direction], np.float32))
            for direction in directions
        ),
        labels=torch.from_numpy(item.labels[kept]),
        problem=problem,
        start=start,
    )


def training_loader(
    dataset: TrainingWindows, sampler: EpochSampler, workers: int
) -> "DataLoader[Sample]":
    """Return a loader of training batches; `sampler.epoch` chooses the epoch of the next pass."""
    return batch_loader(dataset, sampler.batch, workers, collate, sampler)


def evaluation_loader(
    dataset: EvaluationWindows, batch_size: int, workers: int
) -> "DataLoader[Sample]":
    """Return a loader of batches of this process's test windows, each exactly once."""
    return batch_loader(dataset, batch_size, workers, collate)
