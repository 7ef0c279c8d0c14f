"""Accuracies, against counting by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluate.metrics.accuracy import (
    LabelSet,
    compute_accuracy,
    flat_names,
    label_sets,
    rank_of,
    within_pairs,
)

ONE = (LabelSet("", tuple("abcdefg")),)
TWO = (LabelSet("verb", ("take", "roll")), LabelSet("noun", ("cup", "roll", "x", "y", "z")))


@given(st.integers(0, 2**32 - 1), st.integers(1, 12))
def test_top1_and_top5_are_counted(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 4, (count, 7)) / 10  # many are equal
    labels = rng.integers(0, 7, (count, 1))
    found = compute_accuracy(ONE, labels, scores)
    best = [sorted(range(7), key=lambda k: (-row[k], k)) for row in scores]
    assert found.top1 == np.mean([b[0] == y for b, (y,) in zip(best, labels, strict=True)])
    assert found.top5 == np.mean([y in b[:5] for b, (y,) in zip(best, labels, strict=True)])
    assert found.average == found.top1 and found.to_dict().keys() == {"top1", "top5"}
    counts = found.confusion[""]
    assert counts.sum() == count
    for y in range(7):
        rows = [b[0] for b, (x,) in zip(best, labels, strict=True) if x == y]
        assert counts[y].sum() == len(rows)
        assert ("abcdefg"[y] in found.per_class[""]) == bool(rows)
        if rows:
            assert found.per_class[""]["abcdefg"[y]] == np.mean([row == y for row in rows])


@given(st.integers(0, 2**32 - 1))
def test_two_labels_must_be_right_together(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.random((9, 7))
    labels = np.stack([rng.integers(0, 2, 9), rng.integers(0, 5, 9)], 1)
    found = compute_accuracy(TWO, labels, scores)
    first, five = 0, 0
    for row, (verb, noun) in zip(scores, labels.tolist(), strict=True):
        joint = {(v, n): row[v] * row[2 + n] for v in range(2) for n in range(5)}
        best = sorted(joint, key=lambda pair: -joint[pair])
        first += best[0] == (verb, noun)
        five += (verb, noun) in best[:5]
    assert (found.top1, found.top5) == (first / 9, five / 9)
    verbs = compute_accuracy([LabelSet("", TWO[0].classes)], labels[:, :1], scores[:, :2])
    assert found.of_sets["verb"] == (verbs.top1, verbs.top5)
    assert found.to_dict()["noun_top1"] == np.mean(scores[:, 2:].argmax(1) == labels[:, 1])


def test_of_equal_scores_the_first_counts() -> None:
    assert [rank_of(np.array([1.0, 2.0, 2.0, 1.0]), k) for k in range(4)] == [2, 0, 1, 3]


def test_pairs_are_compared_alone() -> None:
    pairs = [(0, 1), (2, 3)]
    scores = np.array(
        [[0.1, 0.0, 0.9, 0.0, 0], [0.1, 0.0, 0.9, 0.0, 0], [0, 0, 0.3, 0.3, 0.4], [0, 0, 0, 0, 1]]
    )
    labels = np.array([0, 1, 3, 4])
    assert within_pairs(labels, scores, pairs) == (1 + 0 + 0.5) / 3
    assert within_pairs(labels[3:], scores[3:], pairs) is None


def test_what_does_not_see_time_is_right_in_half() -> None:
    rng = np.random.default_rng(0)
    scores, labels = rng.random((50, 4)), rng.integers(0, 4, 50)
    turned = np.array([1, 0, 3, 2])[labels]
    pairs = [(0, 1), (2, 3)]
    forward, back = within_pairs(labels, scores, pairs), within_pairs(turned, scores, pairs)
    assert forward is not None and back is not None and forward + back == pytest.approx(1)


def test_names_of_several_sets_are_kept_apart() -> None:
    names = flat_names(TWO)
    assert names[:3] == ("verb:take", "verb:roll", "noun:cup") and len(set(names)) == 7
    assert label_sets(names, several=True) == TWO
    colons = (LabelSet("", ("a:b", "c")),)
    assert label_sets(flat_names(colons), several=False) == colons


def test_nothing_to_score_is_an_error() -> None:
    with pytest.raises(ValueError, match="no labelled example"):
        compute_accuracy(ONE, np.zeros((0, 1), np.int64), np.zeros((0, 7)))
