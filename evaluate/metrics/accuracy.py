"""Top-1 and top-5 accuracy of recognised clips, and accuracy within pairs of reversed classes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

JOINT = "action"  # the label sets together


class LabelSet(NamedTuple):
    """Classes of which every example has one; `name` is empty where there is one set only."""

    name: str
    classes: tuple[str, ...]


def flat_names(sets: Sequence[LabelSet]) -> tuple[str, ...]:
    """Return all classes, set after set; those of several sets as `set:class`."""
    prefixes = [f"{each.name}:" if each.name else "" for each in sets]
    return tuple(p + name for p, each in zip(prefixes, sets, strict=True) for name in each.classes)


def label_sets(names: Sequence[str], several: bool) -> tuple[LabelSet, ...]:
    """Return the sets that `flat_names` made the names of."""
    if not several:
        return (LabelSet("", tuple(names)),)
    pairs = [name.split(":", 1) for name in names]
    found = dict.fromkeys(which for which, _ in pairs)
    return tuple(
        LabelSet(name, tuple(label for which, label in pairs if which == name)) for name in found
    )


@dataclass(frozen=True)
class Accuracy:
    """Shares of examples that are recognised.

    Attributes:
        top1, top5: of all that an example is labelled with: two labels must both be right.
        of_sets: top-1 and top-5 of every label set, where there are several.
        per_class: top-1 of every class that has examples, by set and class.
        confusion: by set, examples by true class (rows) and found class [K, K].
    """

    top1: float
    top5: float
    of_sets: dict[str, tuple[float, float]]
    per_class: dict[str, dict[str, float]]
    confusion: dict[str, NDArray[np.int64]]

    @property
    def average(self) -> float:
        """The number to choose a model by."""
        return self.top1

    def to_dict(self) -> dict[str, float]:
        """Return the plain numbers by name."""
        numbers = {"top1": self.top1, "top5": self.top5}
        for name, (top1, top5) in self.of_sets.items():
            numbers |= {f"{name}_top1": top1, f"{name}_top5": top5}
        return numbers


def compute_accuracy(
    sets: Sequence[LabelSet], labels: NDArray[np.integer], scores: NDArray[np.floating]
) -> Accuracy:
    """Score examples.

    Args:
        labels: class of every example in every set [N, sets].
        scores: of all classes, set after set [N, K]; those of a set sum to 1.

    Raises:
        ValueError: there are no examples.
    """
    if not len(labels):
        raise ValueError("there is no labelled example to score")
    parts = split_scores(sets, scores)
    of_sets, per_class, confusion = {}, {}, {}
    for number, (each, part) in enumerate(zip(sets, parts, strict=True)):
        truth, found = labels[:, number], part.argmax(1)
        ranks = np.array([rank_of(row, right) for row, right in zip(part, truth, strict=True)])
        of_sets[each.name] = float((ranks < 1).mean()), float((ranks < 5).mean())
        counts = np.zeros((len(each.classes),) * 2, np.int64)
        np.add.at(counts, (truth, found), 1)
        confusion[each.name] = counts
        totals = counts.sum(1)
        per_class[each.name] = {
            name: float(counts[k, k] / totals[k])
            for k, name in enumerate(each.classes)
            if totals[k]
        }
    if len(sets) == 1:
        top1, top5 = of_sets.pop(sets[0].name)
    else:
        ranks = np.array(
            [_joint_rank(rows, right) for *rows, right in zip(*parts, labels, strict=True)]
        )
        top1, top5 = float((ranks < 1).mean()), float((ranks < 5).mean())
    return Accuracy(top1, top5, of_sets, per_class, confusion)


def split_scores(
    sets: Sequence[LabelSet], scores: NDArray[np.floating]
) -> list[NDArray[np.floating]]:
    """Return the scores [N, K] of every set [N, K of the set]."""
    ends = np.cumsum([len(each.classes) for each in sets])
    return np.split(scores, ends[:-1], axis=1)


def rank_of(scores: NDArray[np.floating], right: int) -> int:
    """Return how many classes rank before the right one; of equal scores the first ranks first."""
    better = int((scores > scores[right]).sum())
    return better + int((scores[:right] == scores[right]).sum())


def within_pairs(
    labels: NDArray[np.integer], scores: NDArray[np.floating], pairs: Sequence[tuple[int, int]]
) -> float | None:
    """Return how often the right class of a pair has the higher score; None without examples.

    Only examples of the pairs' classes count, and of their scores only the pair's two: chance is
    one half, whatever else is confused. A tie is half right.
    """
    other = {a: b for pair in pairs for a, b in (pair, pair[::-1]) if a != b}
    right = [
        0.5 * (1 + np.sign(row[label] - row[other[label]]))
        for row, label in zip(scores, labels.tolist(), strict=True)
        if label in other
    ]
    return float(np.mean(right)) if right else None


def _joint_rank(rows: Sequence[NDArray[np.floating]], right: NDArray[np.integer]) -> int:
    """Return the rank of labels that are right together; their score is the product of theirs."""
    joint = rows[0]
    for row in rows[1:]:
        joint = np.multiply.outer(joint, row)
    place = np.ravel_multi_index(tuple(right), joint.shape)
    return rank_of(joint.ravel(), int(place))
