"""Parts shared by all loaders: workers, order of samples, substitutes for bad ones."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, Sampler

from extract.parallel.loader import make_loader
from extract.video.reader import VideoError

T = TypeVar("T")


def with_substitute(
    make_sample: Callable[[int, str | None], T], first: int, positions: int, skips: bool
) -> T:
    """Return the sample of a position or, where it cannot be read, of the next that can.

    Args:
        make_sample: makes the sample of a position, given why the first one is missing, if it is.
        skips: whether another may replace a bad one.

    Raises:
        VideoError: the first one cannot be read and may not be replaced, or none can be read.
    """
    problem: str | None = None
    for position in (*range(first, positions), *range(first)):
        try:
            return make_sample(position, problem)
        except VideoError as error:
            if not skips:
                raise
            problem = problem or str(error)
    raise VideoError(f"not one training video can be read; for example, {problem}")


def balanced_splits(counts: Sequence[int], parts: int) -> NDArray[np.int64]:
    """Return the cuts of the windows of all videos, numbered consecutively, into runs: [parts + 1].

    The runs are about equally long. A cut falls between two videos if one ends nearby, because the
    windows on both sides of a cut share frames that are then decoded twice.
    """
    ends = np.cumsum([0, *counts])
    even = np.linspace(0, ends[-1], parts + 1).round().astype(np.int64)
    nearest = ends[np.abs(ends[:, None] - even).argmin(0)]
    return np.where(np.abs(nearest - even) <= ends[-1] / parts / 4, nearest, even)


class EpochSampler(Sampler[tuple[int, int]]):
    """This process's share of every epoch's shuffled keys.

    Each update takes consecutive keys of one global order, so that its data are the same for any
    number of processes. Keys that do not fill an update wait for another epoch.

    Args:
        length: how many keys there are.
        global_batch: keys of an update, over all processes.
        rank, processes: which share, of how many.
        accumulate: micro-batches of a process's share.

    Attributes:
        batch: keys of a micro-batch.

    Raises:
        ValueError: the global batch cannot be divided so.
    """

    def __init__(
        self,
        length: int,
        global_batch: int,
        rank: int,
        processes: int,
        seed: int,
        accumulate: int = 1,
    ) -> None:
        self.length, self.rank, self.processes = length, rank, processes
        self.batch = micro_batch(global_batch, processes, accumulate)
        self.seed, self.accumulate, self.epoch = seed, accumulate, 0

    @property
    def updates(self) -> int:
        """Updates in an epoch."""
        return max(1, self.length // (self.batch * self.processes * self.accumulate))

    @property
    def steps(self) -> int:
        """Batches per process and epoch: whole updates, so that no gradient crosses epochs."""
        return self.updates * self.accumulate

    def __len__(self) -> int:
        return self.steps * self.batch

    def __iter__(self) -> Iterator[tuple[int, int]]:
        # The last number keeps this stream apart from those of the samples.
        order = np.random.default_rng((self.seed, self.epoch, 0, 2)).permutation(self.length)
        # Fewer videos than a global batch holds: start over.
        order = np.resize(order, self.steps * self.batch * self.processes)
        mine = order.reshape(self.steps, self.processes, self.batch)[:, self.rank].ravel()
        return iter([(self.epoch, int(position)) for position in mine])


def micro_batch(global_batch: int, processes: int, accumulate: int) -> int:
    """Return how many windows a process takes at a time.

    Raises:
        ValueError: processes × accumulate do not divide the global batch; the message names sizes
            that do.
    """
    parts = processes * accumulate
    if global_batch % parts:
        below, above = global_batch // parts * parts, (global_batch // parts + 1) * parts
        sizes = f"{below} or {above}" if below else str(above)
        share = [n for n in range(1, global_batch + 1) if not global_batch % (n * accumulate)]
        fewer = f", or start {' or '.join(map(str, share))} processes" if share else ""
        raise ValueError(
            f"training.global_batch {global_batch} cannot be divided by {processes} processes × "
            f"training.accumulate {accumulate}; set it to {sizes}{fewer} (another global batch "
            "is another recipe: the learning rates are for this one)"
        )
    return global_batch // parts


def batch_loader(
    dataset: "Dataset[Any]",
    batch_size: int,
    workers: int,
    collate: Callable[[Any], Any],
    sampler: EpochSampler | None = None,
) -> "DataLoader[Any]":
    """Return a loader of batches for the network, whose workers live as long as it does.

    Args:
        sampler: chooses keys and their order; None for those of the dataset.
    """
    return make_loader(
        dataset,
        batch_size,
        workers,
        sampler=sampler,
        collate_fn=collate,
        persistent_workers=workers > 0,  # starting one takes seconds
    )
