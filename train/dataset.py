"""Windows of videos as samples: random ones to train on, sliding ones to test on.

A training sample depends on the seed, the epoch and its index alone, never on which worker or
process makes it: runs are reproducible with any number of them.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from extract.clips import Window, random_window, sliding_windows, truth_inside
from extract.reversal import reverse_segments
from extract.transforms import apply, evaluation_transform, train_transform
from extract.video import VideoReader
from train.batch import Sample, collate
from train.config import Experiment
from train.items import Item


class TrainingWindows(Dataset[Sample]):
    """One random window per video and epoch; indexed by (epoch, position)."""

    def __init__(self, items: Sequence[Item], config: Experiment) -> None:
        self.items = [item for item in items if len(item.segments)]
        if not self.items:
            raise ValueError(f"no video of subset '{config.data.train_subset}' has an action")
        self.config = config
        self.transform = train_transform(config.pixels)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        epoch, position = key
        item = self.items[position]
        rng = np.random.default_rng((self.config.training.seed, epoch, position, 1))
        window = random_window(rng, item.frames, item.segments, self.config.sampling)
        return _sample(item, window, self.config, self.transform, int(rng.integers(2**31)))


class EvaluationWindows(Dataset[Sample]):
    """The sliding windows of all videos, in order."""

    def __init__(self, items: Sequence[Item], overlap: float, config: Experiment) -> None:
        self.config = config
        self.transform = evaluation_transform(config.pixels)
        self.windows = [
            (item, window)
            for item in items
            for window in sliding_windows(item.frames, overlap, config.sampling)
        ]

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, position: int) -> Sample:
        item, window = self.windows[position]
        return _sample(item, window, self.config, self.transform, 0)


def _sample(
    item: Item, window: Window, config: Experiment, transform: torch.nn.Module, seed: int
) -> Sample:
    frames = VideoReader(item.path).frames(window.indices(config.direction))
    completeness = config.sampling.min_completeness
    segments, kept = truth_inside(window, item.segments, completeness)
    if config.direction == "reversed":
        segments = reverse_segments(segments, window.reflection)
    return Sample(
        video=item.name,
        window=window,
        frames=apply(transform, frames, seed),
        mask=torch.from_numpy(window.mask()),
        segments=torch.from_numpy(np.ascontiguousarray(segments, np.float32)),
        labels=torch.from_numpy(item.labels[kept]),
    )


class EpochSampler(Sampler[tuple[int, int]]):
    """This process's share of every epoch's shuffled keys.

    Each step takes consecutive keys of one global order, so that the data of a step is the same
    for any number of processes with the same global batch. What does not fill a step is left for
    another epoch.
    """

    def __init__(
        self, length: int, batch: int, rank: int, processes: int, seed: int, accumulate: int = 1
    ) -> None:
        self.length, self.batch, self.rank, self.processes = length, batch, rank, processes
        self.seed, self.accumulate, self.epoch = seed, accumulate, 0

    @property
    def steps(self) -> int:
        """Batches per process and epoch: whole updates, so that no gradient crosses epochs."""
        updates = self.length // (self.batch * self.processes * self.accumulate)
        return max(1, updates) * self.accumulate

    def __len__(self) -> int:
        return self.steps * self.batch

    def __iter__(self) -> Iterator[tuple[int, int]]:
        # The last number keeps this stream apart from those of the samples.
        order = np.random.default_rng((self.seed, self.epoch, 0, 2)).permutation(self.length)
        # Fewer videos than a global batch holds: go round again.
        order = np.resize(order, self.steps * self.batch * self.processes)
        mine = order.reshape(self.steps, self.processes, self.batch)[:, self.rank].ravel()
        return iter([(self.epoch, int(position)) for position in mine])


def training_loader(
    dataset: TrainingWindows, sampler: EpochSampler, config: Experiment
) -> "DataLoader[Sample]":
    """Return a loader of training batches; `sampler.epoch` chooses the epoch of the next pass."""
    return DataLoader(
        dataset,
        batch_size=config.training.batch_size,
        sampler=sampler,
        **_worker_options(config.training.workers),
    )


def evaluation_loader(
    dataset: EvaluationWindows, config: Experiment, workers: int, rank: int = 0, processes: int = 1
) -> "DataLoader[Sample]":
    """Return a loader of this process's share of the test windows, each exactly once."""
    # Neighbouring windows stay in one process: they share a video.
    share = np.array_split(np.arange(len(dataset)), processes)[rank]
    return DataLoader(
        torch.utils.data.Subset(dataset, share.tolist()),
        batch_size=config.evaluation.batch_size,
        **_worker_options(workers),
    )


def _worker_options(workers: int) -> dict[str, Any]:
    options: dict[str, Any] = {
        "collate_fn": collate,
        "num_workers": workers,
        "pin_memory": torch.cuda.is_available(),
    }
    if workers:
        # Spawned, so that no decoder crosses a fork; kept, because starting one takes seconds.
        options |= {"multiprocessing_context": "spawn", "persistent_workers": True}
    return options
