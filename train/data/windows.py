"""Windows of videos as samples: random ones to train on, sliding ones to test on.

A training sample depends on the seed, the epoch and its index alone, never on which worker or
process makes it: runs are reproducible with any number of them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from extract.parallel.guarded_frames import DecodingProcess
from extract.sampling.frame_cache import FrameCache
from extract.sampling.reversal import reverse_segments, reverse_valid
from extract.sampling.transforms import (
    Augmentation,
    Transform,
    draw_augmentation,
    evaluation_transform,
    train_transform,
)
from extract.sampling.window_frames import (
    arrange,
    assign_to_windows,
    check_unchanged,
    open_unchanged,
    wanted_frames,
    window_frames,
)
from extract.sampling.windows import Window, evaluation_windows, random_window, truth_inside
from extract.settings.pixels import PixelConfig
from extract.settings.sampling import Direction, SamplingConfig
from extract.video.reader import VideoError
from train.config import Experiment
from train.data.batch import Sample, collate
from train.data.cached import CachedStreams, read_windows, sample_inputs
from train.data.items import VideoItem
from train.data.loading import EpochSampler, balanced_splits, batch_loader, with_substitute


@dataclass(frozen=True)
class WindowInputs:
    """How the inputs of windows are made: from frames, or read from stored activations.

    Args:
        directions: of every stream.
        skip_bad: let something stand in for a video that cannot be read.
        cached: each stream's stored activations, which are read in place of frames.
        frame_cache: holds small frames, so that they are not decoded again.
        process: decodes in place of this one.
    """

    sampling: SamplingConfig
    pixels: PixelConfig
    directions: Sequence[Direction]
    skip_bad: bool = False
    cached: CachedStreams | None = None
    frame_cache: FrameCache | None = None
    process: DecodingProcess | None = None

    @classmethod
    def of(
        cls,
        config: Experiment,
        cached: CachedStreams | None = None,
        frame_cache: FrameCache | None = None,
    ) -> "WindowInputs":
        """Return the inputs of an experiment's windows."""
        skip_bad = config.data.bad_videos == "skip"
        parts = config.sampling, config.pixels, config.directions
        return cls(*parts, skip_bad, cached, frame_cache)

    def decode(
        self, item: VideoItem, windows: Sequence[Window], transform: Transform, seed: int = 0
    ) -> Iterator[tuple[Tensor, ...]]:
        """Yield the frames of each window as the first stream sees them, in a tuple.

        Raises:
            VideoError: the file cannot be read.
        """
        digest = None
        if self.frame_cache is not None:
            decoded = self.frame_cache.frames_of(item.path, item.info, windows, transform, seed)
        else:
            digest = item.identity.digest if item.identity else None
            version = item.path, item.frames, digest
            if self.process is not None:
                wanted = wanted_frames(windows)
                chunks = self.process.chunks(*version, wanted, transform.shrink)
                decoded = assign_to_windows(windows, chunks, transform, seed)
            else:
                decoded = window_frames(open_unchanged(*version), windows, transform, seed)
        for window, frames in zip(windows, decoded, strict=True):
            check_unchanged(item.path, digest)  # features of it may be stored for good
            yield (arrange(frames, window, self.directions[0]),)

    def sample(
        self,
        item: VideoItem,
        window: Window,
        inputs: tuple[Tensor, ...],
        problem: str | None = None,
        augmentation: Augmentation = (),
    ) -> Sample:
        """Return a window's inputs with the truth that every stream learns from."""
        completeness = self.sampling.min_completeness
        segments, inside = truth_inside(window, item.segments, completeness)
        truth = {"forward": segments, "reversed": reverse_segments(segments, window.reflection)}
        return Sample(
            video=item.name,
            window=window,
            inputs=inputs,
            mask=torch.from_numpy(window.mask()),
            segments=tuple(
                torch.from_numpy(np.ascontiguousarray(truth[direction], np.float32))
                for direction in self.directions
            ),
            labels=torch.from_numpy(item.labels[inside]),
            problem=problem,
            start=self.cached.cut if self.cached else None,
            augmentation=augmentation,
            turns=() if self.cached else self._turns(window),
        )

    def _turns(self, window: Window) -> tuple[Tensor, ...]:
        """Return where each further stream's frames stand among the first one's [F]."""
        places = np.arange(window.samples)
        turned = reverse_valid(places, len(window.frames))
        first, *further = self.directions
        return tuple(torch.from_numpy(places if d == first else turned) for d in further)


class TrainingWindows(Dataset[Sample]):
    """One random window per video with an action and epoch; indexed by (epoch, position).

    Where a video cannot be read, `inputs.skip_bad` lets the next position's window of the same
    epoch stand in.
    """

    def __init__(self, items: Sequence[VideoItem], inputs: WindowInputs, seed: int = 0) -> None:
        self.items = [item for item in items if len(item.segments)]
        self.inputs, self.seed = inputs, seed
        self.transform = train_transform(inputs.pixels)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        epoch, first = key
        skip_bad = self.inputs.skip_bad
        return with_substitute(lambda *at: self._sample(epoch, *at), first, len(self), skip_bad)

    def _sample(self, epoch: int, position: int, problem: str | None) -> Sample:
        item, source = self.items[position], self.inputs
        rng = np.random.default_rng((self.seed, epoch, position, 1))
        if source.cached is not None:
            of = source.sampling, source.directions, source.cached
            window, inputs = sample_inputs(rng, item, *of)
            return source.sample(item, window, inputs)
        window = random_window(rng, item, item.segments, source.sampling)
        seed = int(rng.integers(2**31))
        augmentation = draw_augmentation(rng, source.pixels)
        (inputs,) = source.decode(item, [window], self.transform, seed)
        return source.sample(item, window, inputs, problem, augmentation)


class EvaluationWindows(IterableDataset[Sample]):
    """A process's share of the sliding windows of all videos, in order, each exactly once.

    Each worker takes a run of neighbouring windows, because they share frames. Where a video cannot
    be read, `inputs.skip_bad` lets one sample with a `problem` stand for its remaining windows.

    Args:
        overlap: share of a window that the next one repeats.
        rank, processes: which share, of how many.
    """

    def __init__(
        self,
        items: Sequence[VideoItem],
        inputs: WindowInputs,
        overlap: float,
        rank: int = 0,
        processes: int = 1,
    ) -> None:
        self.items, self.inputs, self.overlap = items, inputs, overlap
        self.rank, self.processes = rank, processes
        self.transform = evaluation_transform(inputs.pixels)
        self.counts = [len(self._windows(item)) for item in items]

    def length(self, workers: int = 0) -> int:
        """Return how many windows the share has that `workers` workers decode."""
        workers = max(workers, 1)
        cuts = balanced_splits(self.counts, self.processes * workers)
        return int(cuts[(self.rank + 1) * workers] - cuts[self.rank * workers])

    def whole_videos(self, workers: int = 0) -> dict[str, int]:
        """Return how many windows those videos have that are no other process's, too."""
        workers = max(workers, 1)
        cuts = balanced_splits(self.counts, self.processes * workers)
        start, stop = cuts[self.rank * workers], cuts[(self.rank + 1) * workers]
        ends = np.cumsum(self.counts)
        return {
            item.name: count
            for item, count, end in zip(self.items, self.counts, ends, strict=True)
            if start <= end - count and end <= stop
        }

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
        return evaluation_windows(item, self.overlap, self.inputs.sampling)

    def _samples(self, item: VideoItem, windows: list[Window]) -> Iterator[Sample]:
        source = self.inputs
        if source.cached is not None:
            of = source.sampling, source.directions, source.cached
            for window, inputs in zip(windows, read_windows(item, windows, *of), strict=True):
                yield source.sample(item, window, inputs)
            return
        try:
            decoded = source.decode(item, windows, self.transform)
            for window, inputs in zip(windows, decoded, strict=True):
                yield source.sample(item, window, inputs)
        except VideoError as error:
            if not source.skip_bad:
                raise
            size = source.pixels.size
            black = torch.zeros((3, windows[0].samples, size, size), dtype=torch.uint8)
            yield source.sample(item, windows[0], (black,), str(error))


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
