"""Kinds of false positives, and the mAP that each of them costs (DETAD)."""

from dataclasses import dataclass
from math import comb

import numpy as np

from evaluate.mean_ap import (
    Booleans,
    Floats,
    Integers,
    Matches,
    find_overlaps,
    interpolated_precision,
)

KINDS = ("duplicate", "wrong label", "localisation", "confusion", "background")
BACKGROUND_TIOU = 0.1  # what overlaps no action by so much has nothing to do with any
SLICES = 10  # slices of the ranking, each as long as there are truths


@dataclass(frozen=True)
class Cost:
    """The mAP lost to false positives; all numbers are in [0, 1].

    alone: {kind: mAP gained if this kind alone were gone}.
    share: {kind: its part of `every`}: gained on average over all orders in which the kinds could
        be mended one after the other (the Shapley value). Gains alone do not add up, for a kind
        brings more once others are gone, or nothing where another one hides it; shares do:
        mAP + the shares + `missed` = 1.
    every: gained if there were no false positives at all; mAP is the mean recall then.
    missed: what is lacking even then, because truths are never found.
    """

    alone: dict[str, float]
    share: dict[str, float]
    every: float
    missed: float


def classify_predictions(matches: Matches, tiou: float) -> Integers:
    """Return the kind of each prediction: an index into `KINDS`, or -1 for true positives [P].

    The truth of its video that a false positive overlaps most, of whatever class (of equals one of
    its own class), decides: with at least `tiou` and its own class it is a `duplicate` of a better
    scored prediction, with another class a `wrong label`; below `tiou`, but with at least
    `BACKGROUND_TIOU`, its `localisation` is off, or it is a `confusion` if the class is wrong, too;
    `background` is the rest, all in videos without truth included.

    Args:
        matches: at this one threshold, which must be above `BACKGROUND_TIOU`.
    """
    ranked, truths = matches.ranked, matches.truths
    # One class in one video is a group in a match; here all of a video are one.
    near = find_overlaps(
        ranked._replace(group=ranked.video), truths._replace(group=truths.video), BACKGROUND_TIOU
    )
    own = ranked.label[near.prediction] == truths.label[near.truth]
    order = np.lexsort((~own, -near.tiou, near.prediction))
    prediction, first = np.unique(near.prediction[order], return_index=True)
    nearest = order[first]
    kinds = np.full(len(ranked.label), KINDS.index("background"))
    kinds[prediction] = np.where(
        near.tiou[nearest] >= tiou,
        np.where(own[nearest], KINDS.index("duplicate"), KINDS.index("wrong label")),
        np.where(own[nearest], KINDS.index("localisation"), KINDS.index("confusion")),
    )
    kinds[matches.found[0]] = -1
    return kinds


def precision_without(matches: Matches, kinds: Integers) -> Floats:
    """Return average precision [classes, 2 ** len(KINDS)] without some of the false positives.

    In column c the kinds k are gone for which bit k of c is set. A false positive takes no truth,
    so the others stay what they are when it goes.
    """
    present = ~_removed_kinds()
    rows = []
    for mine, count in zip(matches.rows(), matches.truth_counts().tolist(), strict=True):
        ahead = np.cumsum(kinds[mine, None] == np.arange(len(KINDS)), axis=0)
        rows.append(interpolated_precision(present @ ahead[kinds[mine] < 0].T, count))
    return np.array(rows)


def compute_cost(precision: Floats) -> Cost:
    """Return what each kind costs.

    Args:
        precision: average precision without each subset of kinds, as `precision_without` gives.
    """
    gone = _removed_kinds()
    number = len(KINDS)
    alone, share = {}, {}
    for place, kind in enumerate(KINDS):
        before = np.flatnonzero(~gone[:, place])
        gains = precision[before | 1 << place] - precision[before]
        orders = [number * comb(number - 1, int(size)) for size in gone[before].sum(axis=1)]
        alone[kind] = float(gains[0])
        share[kind] = float((gains / orders).sum())
    return Cost(alone, share, float(precision[-1] - precision[0]), float(1 - precision[-1]))


def count_top_kinds(matches: Matches, kinds: Integers) -> Integers:
    """Return how many of the best predictions are of each kind [SLICES, 1 + len(KINDS)].

    With G truths of a class, slice n holds its predictions from the n·G-th to the (n + 1)·G-th in
    order of score, over all classes; column 0 counts true positives, column 1 + k kind k.
    """
    counts = np.zeros((SLICES, 1 + len(KINDS)), np.intp)
    for mine, truths in zip(matches.rows(), matches.truth_counts().tolist(), strict=True):
        top = kinds[mine][: SLICES * truths]
        np.add.at(counts, (np.arange(len(top)) // truths, top + 1), 1)
    return counts


def _removed_kinds() -> Booleans:
    """Return which kinds each subset removes [2 ** len(KINDS), len(KINDS)]: its number's bits."""
    subsets, places = np.arange(2 ** len(KINDS)), np.arange(len(KINDS))
    return (subsets[:, None] >> places & 1).astype(np.bool_)
