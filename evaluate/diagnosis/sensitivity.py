"""How well actions are found by what they are like: their length, coverage and number (DETAD)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from evaluate.mean_ap import (
    Booleans,
    Floats,
    Integers,
    Matches,
    interpolated_precision,
    precision_at_hits,
)

BINS = 5
LOWEST_PRECISION = 0.05  # normalised; below it a hit is one among masses, and counts as a miss


@dataclass(frozen=True)
class Bin:
    """The truths whose value lies in [low, high]; these are values that occur.

    truths: their number.
    missed: the share of them that is not found (false negative rate).
    mean_ap_n: normalised mAP as if these were all truths; see `normalised_mean_ap`.
    """

    low: float
    high: float
    truths: int
    missed: float
    mean_ap_n: float


def characteristics(
    matches: Matches, durations_s: Sequence[float | None]
) -> dict[str, tuple[str, Floats]]:
    """Return what truths are like, {name: (unit, a value for each truth [N])}.

    Args:
        durations_s: of the videos of the ground truth, in its order. Coverage, the share of its
            video that an action fills, is left out if any that matters is unknown.
    """
    truths = matches.truths
    length_s = truths.end - truths.start
    duration_s = np.array([d or np.nan for d in durations_s], np.float64)[truths.video]
    _, group, sizes = np.unique(truths.group, return_inverse=True, return_counts=True)
    found = {
        "length": ("seconds", length_s),
        "coverage": ("% of the video", 100 * length_s / duration_s),
        "instances": ("of the class in the video", sizes[group].astype(np.float64)),
    }
    if np.isnan(duration_s).any():
        del found["coverage"]
    return found


def assign_bins(values: Floats) -> Integers:
    """Return each value's bin: `BINS` with as many values as ties allow, the lowest first [N].

    Bins of equal weight suit every dataset, and their rates are equally sure. Of THUMOS-14's test
    actions, 99 % are in the first of DETAD's bins of length for ActivityNet, and 71 % in the first
    of those of coverage for THUMOS-14.
    """
    shares = np.arange(1, BINS) / BINS
    edges = np.unique(np.quantile(values, shares, method="inverted_cdf"))
    _, number = np.unique(np.searchsorted(edges, values), return_inverse=True)
    return number


def sensitivity_bins(matches: Matches, values: Floats) -> list[Bin]:
    """Return the bins of a characteristic with one value for each truth [N], the lowest first."""
    number = assign_bins(values)
    found = found_truths(matches)
    bins = []
    for each in range(number.max() + 1):
        mine = number == each
        bins.append(
            Bin(
                low=float(values[mine].min()),
                high=float(values[mine].max()),
                truths=int(mine.sum()),
                missed=float(1 - found[mine].mean()),
                mean_ap_n=normalised_mean_ap(matches, mine),
            )
        )
    return bins


def instances_per_class(matches: Matches) -> float:
    """Return the mean number of truths of a class, which normalised precision counts with."""
    return len(matches.truths.label) / len(matches.labels)


def found_truths(matches: Matches) -> Booleans:
    """Return which truths are found [N], by predictions that are not lost among false ones.

    Detectors fill a video with segments of low score, so that hardly a truth stays untouched. As in
    DETAD's code a hit counts only where the normalised precision down to it is above
    `LOWEST_PRECISION`.
    """
    found = np.zeros(len(matches.truths.label), np.bool_)
    for mine, count in zip(matches.rows(), matches.truth_counts().tolist(), strict=True):
        taken = matches.taken[0, mine]
        hits = np.flatnonzero(taken >= 0)
        precision = precision_at_hits(
            hits - np.arange(len(hits)), count, instances_per_class(matches)
        )
        found[taken[hits[precision > LOWEST_PRECISION]]] = True
    return found


def normalised_mean_ap(matches: Matches, wanted: Booleans) -> float:
    """Return normalised mAP (DETAD's mAP_N) as if the wanted truths [N] were all there are.

    Predictions that take another truth are left out, false positives all stay. Precision is that
    of classes which all have the same number of truths, or it would fall with a bin's size. The
    mean is over classes with a wanted truth.
    """
    counts = np.bincount(matches.truths.label[wanted], minlength=len(matches.labels))
    instances = instances_per_class(matches)
    precisions = []
    for mine, count in zip(matches.rows(), counts.tolist(), strict=True):
        if count:
            taken = matches.taken[0, mine]
            ahead = np.cumsum(taken < 0, dtype=np.intp)
            hits = (taken >= 0) & wanted[taken]
            precisions.append(float(interpolated_precision(ahead[hits], count, instances)))
    return float(np.mean(precisions))
