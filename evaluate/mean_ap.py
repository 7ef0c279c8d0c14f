"""Mean average precision and recall of temporal detections, as ActivityNet defines them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from evaluate.annotations import Detection, Segment

Floats = NDArray[np.float64]
Integers = NDArray[np.intp]
Booleans = NDArray[np.bool_]

RECALL_KS = (1, 5)


@dataclass(frozen=True)
class MeanAP:
    """All numbers are fractions in [0, 1]; a `tiou` is one of the thresholds asked for.

    average: mean of `per_tiou` over the thresholds.
    per_tiou: mean of `per_class` over the classes, {tiou: mAP}.
    per_class: {label: {tiou: average precision}}, labels sorted.
    recall: {(tiou, k): recall@kx}.
    """

    average: float
    per_tiou: dict[float, float]
    per_class: dict[str, dict[float, float]]
    recall: dict[tuple[float, int], float]

    def to_dict(self) -> dict[str, float]:
        """Return the averages under flat names: average_mAP, mAP@0.5, recall@0.5@1."""
        maps = {f"mAP@{tiou:g}": value for tiou, value in self.per_tiou.items()}
        recalls = {f"recall@{tiou:g}@{k}": value for (tiou, k), value in self.recall.items()}
        return {"average_mAP": self.average, **maps, **recalls}


def mean_average_precision(
    ground_truth: Mapping[str, Sequence[Segment]],
    predictions: Mapping[str, Sequence[Detection]],
    tious: Sequence[float],
) -> MeanAP:
    """Score the predictions of a whole subset, {video: detections}, at every tIoU threshold.

    Average precision is interpolated (Pascal VOC 2011, every point), the matching greedy
    (ActivityNet): per class, over all videos and best score first, a prediction takes the free
    truth of its video that it overlaps most if their tIoU reaches the threshold, else it is false.
    recall@kx (Ego4D): the share of truths that any of the k·n best predictions of the same video
    and class reaches, n being the number of truths there; no truth is used up. Both are averaged
    over the classes that occur in the ground truth.

    A prediction with a label that the ground truth does not have counts for no class. A prediction
    in a video without truths of its class is false, even if the ground truth does not have that
    video at all: to leave a video out, leave it out of both. Equal scores rank in the order given;
    of two truths overlapped equally the later one is taken, as in the public evaluation code.

    Raises ValueError for an empty ground truth, thresholds outside (0, 1], and numbers that are
    not finite.
    """
    matches = match_predictions(ground_truth, predictions, tious)
    found, counts = matches.found, matches.truth_counts()
    precision = np.array(
        [
            [_average_precision(row, count) for row in found[:, mine]]
            for mine, count in zip(matches.rows(), counts.tolist(), strict=True)
        ]
    )
    keys = [float(tiou) for tiou in tious]
    return MeanAP(
        average=float(precision.mean(axis=0).mean()),
        per_tiou=dict(zip(keys, precision.mean(axis=0).tolist(), strict=True)),
        per_class={
            label: dict(zip(keys, row.tolist(), strict=True))
            for label, row in zip(matches.labels, precision, strict=True)
        },
        recall=_recall(matches.pairs, matches.ranked, matches.truths, counts, keys),
    )


class MatchTable(NamedTuple):
    """Segments as columns [N]: class, video and group, which is one class in one video."""

    label: Integers
    video: Integers
    group: Integers
    start: Floats
    end: Floats


class Pairs(NamedTuple):
    """Predictions and truths of the same group that overlap, in the order of their claims [M].

    Both are rows of their tables; a better prediction comes first, then a larger overlap.
    """

    prediction: Integers
    truth: Integers
    tiou: Floats


class Matches(NamedTuple):
    """Which predictions are true, before anything is averaged.

    labels: the classes, sorted; columns `label` hold places in it.
    truths, ranked: truth, and predictions of these classes by class, the best score first [P];
        columns `video` number the videos of the ground truth, then those it does not have.
    scores: of the predictions, [P].
    pairs: of both, as far as they overlap.
    taken: the row of the truth that a prediction takes, -1 for none, [T, P].
    truth_order, ranked_order: the place of each row among all truths and all predictions, as
        they were given, video by video.
    """

    labels: list[str]
    truths: MatchTable
    ranked: MatchTable
    scores: Floats
    pairs: Pairs
    taken: Integers
    truth_order: Integers
    ranked_order: Integers

    @property
    def found(self) -> Booleans:
        """Return whether a prediction takes a truth, [T, P]."""
        return self.taken >= 0

    def rows(self) -> Iterator[slice]:
        """Return the places of each class's predictions."""
        bounds = np.searchsorted(self.ranked.label, np.arange(len(self.labels) + 1)).tolist()
        return map(slice, bounds, bounds[1:])

    def truth_counts(self) -> Integers:
        """Return the number of truths of each class, at least one."""
        return np.bincount(self.truths.label, minlength=len(self.labels))


def match_predictions(
    ground_truth: Mapping[str, Sequence[Segment]],
    predictions: Mapping[str, Sequence[Detection]],
    tious: Sequence[float],
) -> Matches:
    """Match predictions with truths at every tIoU threshold; see `mean_average_precision`."""
    if not len(tious) or not all(0 < tiou <= 1 for tiou in tious):
        raise ValueError(f"tious must be one or more thresholds in (0, 1], not {list(tious)}")
    labels = sorted({segment.label for segments in ground_truth.values() for segment in segments})
    if not labels:
        raise ValueError("the ground truth has no segment: is it the right subset, with labels?")
    names = dict.fromkeys([*ground_truth, *predictions])
    videos = {name: index for index, name in enumerate(names)}
    classes = {label: index for index, label in enumerate(labels)}
    truths, truth_order = _truths(ground_truth, videos, classes)
    ranked, scores, ranked_order = _ranked(predictions, videos, classes)
    pairs = find_overlaps(ranked, truths, min(tious))
    taken = np.stack([_assign_truths(pairs, tiou, len(ranked.start)) for tiou in tious])
    return Matches(labels, truths, ranked, scores, pairs, taken, truth_order, ranked_order)


def _video_column(
    records: Mapping[str, Sequence[Segment | Detection]], videos: dict[str, int]
) -> Integers:
    """Return the number of the video that each record belongs to, in the order of the records."""
    return np.repeat([videos[name] for name in records], [len(each) for each in records.values()])


def _truths(
    ground_truth: Mapping[str, Sequence[Segment]],
    videos: dict[str, int],
    classes: dict[str, int],
) -> tuple[MatchTable, Integers]:
    """Return the truths, sorted by group, within a group the later one first, and their order."""
    flat = [segment for segments in ground_truth.values() for segment in segments]
    video = _video_column(ground_truth, videos)
    names, *columns = zip(*flat, strict=True)
    start, end = _finite(columns, "the ground truth")
    label = np.array([classes[name] for name in names], np.intp)
    group = video * len(classes) + label
    order = np.lexsort((-np.arange(len(flat)), group))
    table = MatchTable(label[order], video[order], group[order], start[order], end[order])
    return table, order


def _ranked(
    predictions: Mapping[str, Sequence[Detection]],
    videos: dict[str, int],
    classes: dict[str, int],
) -> tuple[MatchTable, Floats, Integers]:
    """Return predictions of classes in the truth, by class, best score first.

    Their scores and their order follow.
    """
    flat = [detection for detections in predictions.values() for detection in detections]
    if not flat:
        empty = np.zeros(0, np.intp)
        return MatchTable(empty, empty, empty, np.zeros(0), np.zeros(0)), np.zeros(0), empty
    video = _video_column(predictions, videos)
    names, *columns = zip(*flat, strict=True)
    start, end, score = _finite(columns, "the predictions")
    label = np.array([classes.get(name, -1) for name in names], np.intp)
    order = np.lexsort((-score, label))
    order = order[np.searchsorted(label[order], 0) :]
    group = video * len(classes) + label
    ranked = MatchTable(label[order], video[order], group[order], start[order], end[order])
    return ranked, score[order], order


def _finite(columns: Sequence[Sequence[float]], what: str) -> list[Floats]:
    arrays = [np.array(column, np.float64) for column in columns]
    if not all(np.isfinite(array).all() for array in arrays):
        raise ValueError(f"{what} hold a time or a score that is not finite: check for NaNs.")
    return arrays


def find_overlaps(ranked: MatchTable, truths: MatchTable, lowest: float) -> Pairs:
    """Return all pairs of one group whose tIoU is at least `lowest`; truths are sorted by group."""
    first = np.searchsorted(truths.group, ranked.group, side="left")
    counts = np.searchsorted(truths.group, ranked.group, side="right") - first
    prediction = np.repeat(np.arange(len(counts)), counts)
    offset = np.arange(len(prediction)) - np.repeat(np.cumsum(counts) - counts, counts)
    truth = first[prediction] + offset

    start, end = ranked.start[prediction], ranked.end[prediction]
    truth_start, truth_end = truths.start[truth], truths.end[truth]
    inter = np.maximum(np.minimum(end, truth_end) - np.maximum(start, truth_start), 0)
    # Summed in this order a tIoU on a threshold falls to the same side as in the public code.
    union = (truth_end - truth_start) + (end - start) - inter
    tiou = inter / np.maximum(union, 1e-8)

    near = np.flatnonzero(tiou >= lowest)
    near = near[np.lexsort((-tiou[near], prediction[near]))]
    return Pairs(prediction[near], truth[near], tiou[near])


def _assign_truths(pairs: Pairs, tiou: float, predictions: int) -> Integers:
    """Return the truth that each prediction takes [P], one that no better one has taken, or -1.

    The greedy choice, in rounds instead of one by one: a pair that comes first among the remaining
    pairs of its prediction and of its truth is chosen whatever happens elsewhere, so each round
    chooses all such pairs at once and strikes out their predictions and truths.
    """
    reaching = pairs.tiou >= tiou
    prediction, truth = pairs.prediction[reaching], pairs.truth[reaching]
    takes = np.full(predictions, -1)
    taken = np.zeros(truth.max(initial=-1) + 1, np.bool_)
    first = np.empty(len(taken), np.intp)
    while len(prediction):
        place = np.arange(len(prediction))
        first[truth[::-1]] = place[::-1]  # where an index repeats, the last assignment stays
        chosen = (first[truth] == place) & np.diff(prediction, prepend=-1).astype(np.bool_)
        takes[prediction[chosen]] = truth[chosen]
        taken[truth[chosen]] = True
        rest = (takes[prediction] < 0) & ~taken[truth]
        prediction, truth = prediction[rest], truth[rest]
    return takes


def _average_precision(found: Booleans, truths: int) -> float:
    """Return the interpolated average precision of one class; found [P], best score first."""
    true = np.flatnonzero(found)
    return float(interpolated_precision(true - np.arange(len(true)), truths))


def interpolated_precision(false: Integers, truths: int, instances: float | None = None) -> Floats:
    """Return the interpolated average precision [...] of one class.

    Recall grows by 1 / truths at every true positive and nowhere else, and precision only rises
    there, so the number of false positives ahead of each is enough.

    Args:
        false: the number of false positives ahead of each true one, best score first [..., N].
        truths: of the class.
        instances: count every class as if it had so many truths: normalised precision (Hoiem et
            al. 2012; DETAD), which makes classes of different frequency comparable.
    """
    precision = precision_at_hits(false, truths, instances)
    envelope = np.maximum.accumulate(precision[..., ::-1], axis=-1)[..., ::-1]
    area: Floats = envelope.sum(axis=-1) / truths
    return area


def precision_at_hits(false: Integers, truths: int, instances: float | None = None) -> Floats:
    """Return the precision at each true positive [..., N]; see `interpolated_precision`."""
    true = np.arange(1, false.shape[-1] + 1)
    if instances is not None:
        true = true / truths * instances
    precision: Floats = true / (true + false)
    return precision


def _recall(
    pairs: Pairs,
    ranked: MatchTable,
    truths: MatchTable,
    truth_counts: Integers,
    tious: Sequence[float],
) -> dict[tuple[float, int], float]:
    """Return recall@kx, {(tiou, k): mean over classes}."""
    # The rank of a prediction within its group: its place in the grouped order, counted from the
    # group's first.
    by_group = np.argsort(ranked.group, kind="stable")
    grouped = ranked.group[by_group]
    rank = np.empty(len(grouped), np.intp)
    rank[by_group] = np.arange(len(grouped)) - np.searchsorted(grouped, grouped)

    _, group, sizes = np.unique(truths.group, return_inverse=True, return_counts=True)
    group_size = sizes[group[pairs.truth]]
    recall = {}
    for k in RECALL_KS:
        top = rank[pairs.prediction] < k * group_size
        best = np.zeros(len(truths.label))
        np.maximum.at(best, pairs.truth[top], pairs.tiou[top])
        for tiou in tious:
            hits = np.bincount(truths.label[best >= tiou], minlength=len(truth_counts))
            recall[tiou, k] = float((hits / truth_counts).mean())
    return {key: recall[key] for key in sorted(recall)}
