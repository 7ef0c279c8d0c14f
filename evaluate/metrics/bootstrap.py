"""Which of two configurations is better, and how sure that is: a paired bootstrap over videos."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from evaluate.annotations import Detection, Segment
from evaluate.mean_ap import Booleans, Floats, Integers, match_predictions

Weights = NDArray[np.int32]

BLOCK_BYTES = 2**26  # of ranks, the largest array; small enough to stay out of the way
INTERVAL = (2.5, 97.5)  # percentiles: 95 %


class Estimate(NamedTuple):
    """A number as measured, and the interval that holds 95 % of its resamples."""

    mean: float
    low: float
    high: float


def resample(
    truth: Mapping[str, Sequence[Segment]],
    detections: Mapping[str, Sequence[Detection]],
    tious: Sequence[float],
    resamples: int,
    seed: int,
) -> Floats:
    """Return mAP [1 + resamples, tious]: of the videos as they are (row 0), then resampled.

    A resample draws as many videos as there are, with replacement, and scores as
    `mean_average_precision` scores a dataset that holds a video once for each time it was drawn,
    its copies next to each other and each with its own truth and detections. A row is the same
    draw for all runs on the same truth and seed, so differences of rows are paired.

    - Classes that do not occur in a resample are left out of its mean, as they would be.
    - Equal scores rank in the order given. Of one video's detections with equal scores all copies
      of the first come before those of the second; in a copied dataset they would take turns.
    - A draw without any truth, which has no mAP, is drawn again.

    Raises:
        ValueError: what `mean_average_precision` refuses, or detections in videos that the truth
            does not have: they could not be drawn.
    """
    strangers = detections.keys() - truth.keys()
    if strangers:
        raise ValueError(
            f"the ground truth does not have video {min(strangers)!r} and {len(strangers) - 1} "
            "more of the detections' videos: leave them out, or take the subset they are of"
        )
    matches = match_predictions(truth, detections, tious)
    classes = range(len(matches.labels))
    ranked, found = matches.ranked, matches.found
    bounds = np.searchsorted(ranked.label, np.arange(len(classes) + 1))
    counts = np.zeros((len(classes), len(truth)), np.int64)
    np.add.at(counts, (matches.truths.label, matches.truths.video), 1)

    weights = _draws(counts.sum(axis=0), resamples, seed)
    width = max(1, BLOCK_BYTES // (weights.itemsize * max(1, np.diff(bounds).max())))
    blocks = []
    for begin in range(0, weights.shape[1], width):
        block = weights[:, begin : begin + width]
        truths = counts @ block
        total = np.zeros((len(tious), block.shape[1]))
        for label in classes:
            mine = slice(bounds[label], bounds[label + 1])
            total += _precision(block, ranked.video[mine], found[:, mine], truths[label])
        blocks.append(total / (truths > 0).sum(axis=0))
    return np.concatenate(blocks, axis=1).T


def estimate(runs: Sequence[Floats]) -> Estimate:
    """Return the mean of runs (seeds) of one configuration, each [1 + resamples] of `resample`."""
    means = np.mean(runs, axis=0)
    low, high = np.percentile(means[1:], INTERVAL)
    return Estimate(float(means[0]), float(low), float(high))


def difference(a: Sequence[Floats], b: Sequence[Floats]) -> Estimate:
    """Return how much higher the mean of runs `a` is than that of runs `b`, over the same draws.

    Args:
        a, b: runs (seeds) of two configurations, each [1 + resamples] of `resample`.
    """
    return estimate([np.mean(a, axis=0) - np.mean(b, axis=0)])


def _draws(truths: Integers, resamples: int, seed: int) -> Weights:
    """Return how often each video is drawn [V, 1 + resamples]; once each in the first column.

    Args:
        truths: number of truths per video [V].
    """
    rng = np.random.default_rng(seed)
    videos = len(truths)
    shares = np.full(videos, 1 / videos)
    weights = rng.multinomial(videos, shares, size=1 + resamples)
    weights[0] = 1
    while (empty := weights @ truths == 0).any():
        weights[empty] = rng.multinomial(videos, shares, size=int(empty.sum()))
    # Draws last: sums over detections then run along memory.
    return np.ascontiguousarray(weights.T, np.int32)


def _precision(weights: Weights, video: Integers, found: Booleans, truths: Integers) -> Floats:
    """Return interpolated average precision [T, R] of one class, 0 where a draw has no truth of it.

    A detection counts as often as its video was drawn. Precision only rises at true positives, and
    through the copies of one, so its values there give the whole envelope.

    Args:
        weights: how often each video is drawn [V, R].
        video, found: of the class's detections, [P] and [T, P], best score first.
        truths: of the class in each draw [R].
    """
    ranks = weights[video]
    np.cumsum(ranks, axis=0, out=ranks)
    areas = np.zeros((len(found), weights.shape[1]))
    for area, true in zip(areas, found, strict=True):
        copies = weights[video[true]]
        # A rank of zero: nothing is drawn so far, not even this one.
        precision = np.cumsum(copies, axis=0) / np.maximum(ranks[true], 1)
        envelope = np.maximum.accumulate(precision[::-1], axis=0)[::-1]
        area[:] = (envelope * copies).sum(axis=0) / np.maximum(truths, 1)
    return areas
