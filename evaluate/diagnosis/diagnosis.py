"""One detector's mistakes: all tables together."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from evaluate.annotations import Detection, Segment
from evaluate.diagnosis.calibration import Reliability, compute_reliability
from evaluate.diagnosis.false_positives import (
    BACKGROUND_TIOU,
    KINDS,
    Cost,
    classify_predictions,
    compute_cost,
    count_top_kinds,
    precision_without,
)
from evaluate.diagnosis.sensitivity import (
    Bin,
    characteristics,
    found_truths,
    normalised_mean_ap,
    sensitivity_bins,
)
from evaluate.mean_ap import Floats, Integers, Matches, match_predictions


@dataclass(frozen=True)
class ClassDiagnosis:
    """One class: `found` is the share of its truths that any prediction takes (recall).

    false: its false positives by kind, however low their scores; cost: in average precision.
    """

    average_precision: float
    truths: int
    predictions: int
    found: float
    false: dict[str, int]
    cost: Cost


@dataclass(frozen=True)
class Characteristic:
    """Bins of truths by one property, whose values are in `unit`."""

    unit: str
    bins: list[Bin]


@dataclass(frozen=True)
class Diagnosis:
    """All tables at the threshold `tiou`; mAP and rates are in [0, 1].

    false: false positives by kind, however low their scores.
    top: kinds of the best predictions in slices of G, the number of truths of a class:
        {"true" or kind: a number for each slice}.
    missed: share of truths that is not found; see `sensitivity.found_truths`.
    mean_ap_n: normalised mAP, which bins of a characteristic compare with.
    unknown_labels: predictions with labels that no truth has; they are not among `predictions`.
    reliability: None if scores are not in [0, 1].
    """

    tiou: float
    mean_ap: float
    truths: int
    predictions: int
    unknown_labels: int
    false: dict[str, int]
    top: dict[str, list[int]]
    cost: Cost
    missed: float
    mean_ap_n: float
    characteristics: dict[str, Characteristic]
    classes: dict[str, ClassDiagnosis]
    reliability: Reliability | None


def diagnose(
    truth: Mapping[str, Sequence[Segment]],
    found: Mapping[str, Sequence[Detection]],
    durations_s: Sequence[float | None],
    tiou: float,
) -> Diagnosis:
    """Return what lies behind `mean_average_precision` at one threshold.

    Args:
        durations_s: of the videos in `truth`, in its order.

    Raises:
        ValueError: the threshold is not above `BACKGROUND_TIOU`, or what
            `mean_average_precision` refuses.
    """
    if not BACKGROUND_TIOU < tiou <= 1:
        raise ValueError(
            f"the tIoU must be above {BACKGROUND_TIOU}, where background ends, and at most 1; "
            f"it is {tiou}"
        )
    matches = match_predictions(truth, found, [tiou])
    kinds = classify_predictions(matches, tiou)
    precision = precision_without(matches, kinds)
    top = count_top_kinds(matches, kinds)
    truths = len(matches.truths.label)
    return Diagnosis(
        tiou=tiou,
        mean_ap=float(precision[:, 0].mean()),
        truths=truths,
        predictions=len(kinds),
        unknown_labels=sum(len(each) for each in found.values()) - len(kinds),
        false=_counts(kinds),
        top=dict(zip(("true", *KINDS), top.T.tolist(), strict=True)),
        cost=compute_cost(precision.mean(axis=0)),
        missed=float(1 - found_truths(matches).mean()),
        mean_ap_n=normalised_mean_ap(matches, np.ones(truths, np.bool_)),
        characteristics={
            name: Characteristic(unit, sensitivity_bins(matches, values))
            for name, (unit, values) in characteristics(matches, durations_s).items()
        },
        classes=_classes(matches, kinds, precision),
        reliability=compute_reliability(matches.scores, matches.found[0]),
    )


def _classes(matches: Matches, kinds: Integers, precision: Floats) -> dict[str, ClassDiagnosis]:
    rows = zip(
        matches.labels, matches.rows(), matches.truth_counts().tolist(), precision, strict=True
    )
    return {
        label: ClassDiagnosis(
            average_precision=float(row[0]),
            truths=count,
            predictions=mine.stop - mine.start,
            found=float((kinds[mine] < 0).sum() / count),
            false=_counts(kinds[mine]),
            cost=compute_cost(row),
        )
        for label, mine, count, row in rows
    }


def _counts(kinds: Integers) -> dict[str, int]:
    return {kind: int((kinds == place).sum()) for place, kind in enumerate(KINDS)}
