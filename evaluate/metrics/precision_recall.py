"""Precision over recall of temporal detections, from the matching that average precision uses."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from evaluate.annotations import Detection, Segment
from evaluate.mean_ap import Booleans, Floats, match_predictions

RECALLS: Floats = np.linspace(0, 1, 101)


class Curves(NamedTuple):
    """Interpolated precision at `RECALLS`: the best that is reached at that recall or a higher one.

    labels: the classes, sorted [C]; `truths`: how many actions each has [C].
    tious: thresholds, as asked for [T].
    precision: [T, C, 101]; 0 where a recall is not reached.
    """

    labels: list[str]
    truths: list[int]
    tious: list[float]
    precision: Floats


def precision_recall(
    ground_truth: Mapping[str, Sequence[Segment]],
    predictions: Mapping[str, Sequence[Detection]],
    tious: Sequence[float],
) -> Curves:
    """Return every class's curve at every threshold; see `mean_average_precision` for the rules.

    Raises:
        ValueError: for the same reasons.
    """
    matches = match_predictions(ground_truth, predictions, tious)
    counts = np.bincount(matches.truths.label, minlength=len(matches.labels))
    bounds = np.searchsorted(matches.ranked.label, np.arange(len(matches.labels) + 1))
    precision = np.array(
        [
            [
                _curve(row[low:high], int(count))
                for low, high, count in zip(bounds[:-1], bounds[1:], counts, strict=True)
            ]
            for row in matches.found
        ]
    )
    return Curves(matches.labels, counts.tolist(), [float(tiou) for tiou in tious], precision)


def _curve(found: Booleans, truths: int) -> Floats:
    """Return the precision of one class [101]; found [P], best score first."""
    hits = np.cumsum(found)
    precision = hits / np.arange(1, len(hits) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    # In hits, so that 3 of 10 is a recall of 0.3 whatever 0.3 is in binary.
    needed = np.ceil(RECALLS * truths - 1e-9)
    first = np.searchsorted(hits, np.maximum(needed, 1))
    curve: Floats = np.append(envelope, 0.0)[first]
    return curve
