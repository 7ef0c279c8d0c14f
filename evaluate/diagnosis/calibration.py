"""Calibration of scores: the share of predictions of a score that are true."""

from dataclasses import dataclass

import numpy as np
from sklearn.calibration import calibration_curve

from evaluate.mean_ap import Booleans, Floats

BINS = 10


@dataclass(frozen=True)
class Reliability:
    """The reliability curve, over bins of equal width in [0, 1] that hold predictions.

    score: mean score of each bin; true: its share of true positives; count: its predictions.
    error: expected calibration error, the mean of |score - true| over predictions.
    """

    score: list[float]
    true: list[float]
    count: list[int]
    error: float


def compute_reliability(scores: Floats, found: Booleans) -> Reliability | None:
    """Return the reliability curve of scores [P]; None without scores or if they exceed [0, 1].

    Args:
        found: which predictions are true positives [P].
    """
    if not len(scores) or scores.min() < 0 or scores.max() > 1:
        return None
    true, score = calibration_curve(found.astype(np.intp), scores, pos_label=1, n_bins=BINS)
    # The same bins, to count what is in them: scikit-learn does not return the counts.
    inner = np.linspace(0, 1, BINS + 1)[1:-1]
    count = np.bincount(np.searchsorted(inner, scores), minlength=BINS)
    count = count[count > 0]
    error = float((np.abs(score - true) * count).sum() / len(scores))
    return Reliability(score.tolist(), true.tolist(), count.tolist(), error)
