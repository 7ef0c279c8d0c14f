"""The evaluator against reference numbers, and against the definition spelled out."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluate.annotations import (
    Detection,
    Segment,
    read_annotations,
    select_videos,
)
from evaluate.files.predictions import read_predictions
from evaluate.mean_ap import RECALL_KS, mean_average_precision
from tests.conftest import GOLDEN

Truth = dict[str, list[Segment]]
Predictions = dict[str, list[Detection]]

TIOUS = {
    "thumos": [0.3, 0.4, 0.5, 0.6, 0.7],
    "activitynet": [0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95],
}


@pytest.mark.parametrize("protocol", TIOUS)
def test_equals_the_reference(protocol: str) -> None:
    videos = select_videos(read_annotations(GOLDEN / "ground_truth.json"), "test")
    truth = {video.name: video.segments for video in videos}
    predictions = read_predictions(GOLDEN / "predictions.json")
    golden = json.loads((GOLDEN / "mean_average_precision.json").read_text())[protocol]
    result = mean_average_precision(truth, predictions, TIOUS[protocol]).to_dict()
    assert list(result) == list(golden)
    assert result == pytest.approx(golden, abs=1e-9)


def test_real_truth_as_its_own_prediction_is_perfect() -> None:
    annotations = read_annotations(GOLDEN / "ground_truth.json")
    truth = {video.name: video.segments for video in select_videos(annotations, "test")}
    predictions = {
        name: [Detection(*segment, score=1.0) for segment in segments]
        for name, segments in truth.items()
    }
    result = mean_average_precision(truth, predictions, [0.5, 1.0])
    assert set(result.to_dict().values()) == {1.0}
    assert len(result.per_class) == 18


# ------------------------------------------------------------------ the definition


def overlap(a: Segment | Detection, b: Segment | Detection) -> float:
    inter = max(0.0, min(a.end_s, b.end_s) - max(a.start_s, b.start_s))
    union = (b.end_s - b.start_s) + (a.end_s - a.start_s) - inter
    return inter / max(union, 1e-8)


def slow_precision(truth: Truth, predictions: Predictions, label: str, tiou: float) -> float:
    total = sum(segment.label == label for segments in truth.values() for segment in segments)
    flat = [(name, d) for name, each in predictions.items() for d in each if d.label == label]
    flat.sort(key=lambda pair: -pair[1].score)
    free = {name: [s for s in segments if s.label == label] for name, segments in truth.items()}
    points, right = [], 0
    for rank, (name, detection) in enumerate(flat, start=1):
        near = [s for s in free.get(name, []) if overlap(detection, s) >= tiou]
        if near:
            # Of equal overlaps the later truth.
            best = max(near[::-1], key=lambda s: overlap(detection, s))
            last = len(free[name]) - 1 - free[name][::-1].index(best)
            del free[name][last]
            right += 1
        points.append((right / total, right / rank))
    area, reached = 0.0, 0.0
    for index, (recall, _) in enumerate(points):
        area += (recall - reached) * max(precision for _, precision in points[index:])
        reached = recall
    return area


def slow_recall(truth: Truth, predictions: Predictions, label: str, tiou: float, k: int) -> float:
    hits = total = 0
    for name, segments in truth.items():
        wanted = [s for s in segments if s.label == label]
        found = [d for d in predictions.get(name, []) if d.label == label]
        top = sorted(found, key=lambda d: -d.score)[: k * len(wanted)]
        total += len(wanted)
        hits += sum(any(overlap(d, s) >= tiou for d in top) for s in wanted)
    return hits / total


# Coarse times and scores make ties of both kinds common, and thresholds are hit exactly.
starts, lengths = st.integers(0, 10), st.integers(0, 5)
segments = st.builds(
    lambda x, s, n: Segment(x, s / 2, (s + n) / 2), st.sampled_from("ab"), starts, lengths
)
detections = st.builds(
    lambda x, s, n, score: Detection(x, s / 2, (s + n) / 2, score / 4),
    st.sampled_from("abc"),
    starts,
    lengths,
    st.integers(0, 4),
)
truths = st.dictionaries(st.sampled_from("uvw"), st.lists(segments, max_size=6), max_size=3)
predicted = st.dictionaries(st.sampled_from("uvwx"), st.lists(detections, max_size=10))


@settings(max_examples=400)
@given(truths.filter(lambda truth: any(truth.values())), predicted)
def test_equals_the_definition(truth: Truth, predictions: Predictions) -> None:
    tious = [0.25, 0.5, 2 / 3, 1.0]
    result = mean_average_precision(truth, predictions, tious)
    labels = sorted({s.label for each in truth.values() for s in each})
    assert list(result.per_class) == labels
    for tiou in tious:
        expected = [slow_precision(truth, predictions, label, tiou) for label in labels]
        found = [result.per_class[label][tiou] for label in labels]
        assert found == pytest.approx(expected, abs=1e-12)
        assert result.per_tiou[tiou] == pytest.approx(np.mean(expected), abs=1e-12)
        for k in RECALL_KS:
            recalls = [slow_recall(truth, predictions, label, tiou, k) for label in labels]
            assert result.recall[tiou, k] == pytest.approx(np.mean(recalls), abs=1e-12)
    assert result.average == pytest.approx(np.mean(list(result.per_tiou.values())), abs=1e-12)


# ------------------------------------------------------------------ single cases

ONE = {"v": [Segment("run", 0.0, 10.0)]}
HIT, MISS = Detection("run", 0.0, 10.0, 0.5), Detection("run", 20.0, 30.0, 0.9)


@pytest.mark.parametrize("predictions", [{}, {"v": []}, {"v": [MISS]}, {"w": [HIT]}])
def test_finding_nothing_gives_zero(predictions: Predictions) -> None:
    result = mean_average_precision(ONE, predictions, [0.5])
    assert set(result.to_dict().values()) == {0.0}


def test_precision_is_lost_to_a_better_scored_miss_anywhere() -> None:
    assert mean_average_precision(ONE, {"v": [HIT]}, [0.5]).average == 1.0
    assert mean_average_precision(ONE, {"v": [HIT, MISS]}, [0.5]).average == 0.5
    assert mean_average_precision(ONE, {"v": [HIT], "unlisted": [MISS]}, [0.5]).average == 0.5
    assert mean_average_precision({**ONE, "w": []}, {"v": [HIT], "w": [MISS]}, [0.5]).average == 0.5


def test_an_unknown_label_counts_for_no_class() -> None:
    predictions = {"v": [HIT, MISS._replace(label="swim")]}
    result = mean_average_precision(ONE, predictions, [0.5])
    assert result.per_class == {"run": {0.5: 1.0}}


def test_a_truth_is_found_once() -> None:
    truth = {"v": [Segment("run", 0.0, 10.0), Segment("run", 50.0, 60.0)]}
    twice = [HIT, HIT._replace(score=0.4), Detection("run", 50.0, 60.0, 0.3)]
    result = mean_average_precision(truth, {"v": twice}, [0.5])
    assert result.average == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    assert result.recall == {(0.5, 1): 0.5, (0.5, 5): 1.0}


def test_a_taken_truth_leaves_the_next_best() -> None:
    truth = {"v": [Segment("run", 0.0, 10.0), Segment("run", 2.0, 12.0)]}
    both = [Detection("run", 0.0, 10.0, 0.9), Detection("run", 0.0, 10.5, 0.8)]
    assert mean_average_precision(truth, {"v": both}, [0.5]).average == 1.0
    assert mean_average_precision(truth, {"v": both}, [0.8]).average == 0.5


def test_of_two_truths_overlapped_equally_the_later_is_taken() -> None:
    truth = {"v": [Segment("run", 0.0, 1.0), Segment("run", 1.0, 2.0)]}
    between = Detection("run", 0.5, 1.5, 0.9)
    first = {"v": [between, Detection("run", 0.0, 1.0, 0.8)]}
    second = {"v": [between, Detection("run", 1.0, 2.0, 0.8)]}
    assert mean_average_precision(truth, first, [0.3]).average == 1.0
    assert mean_average_precision(truth, second, [0.3]).average == 0.5


def test_a_threshold_is_reached_when_it_is_met_exactly() -> None:
    exact = {"v": [Detection("run", 0.0, 7.0, 0.5)]}
    assert mean_average_precision(ONE, exact, [0.7]).average == 1.0
    below = {"v": [Detection("run", 0.0, np.nextafter(5.0, 0.0), 0.5)]}
    assert mean_average_precision(ONE, below, [0.5]).average == 0.0


def test_names_of_the_flat_form() -> None:
    result = mean_average_precision(ONE, {"v": [HIT]}, np.linspace(0.5, 0.95, 10).tolist())
    names = list(result.to_dict())
    assert names[:3] == ["average_mAP", "mAP@0.5", "mAP@0.55"]
    assert names[-2:] == ["recall@0.95@1", "recall@0.95@5"]
    assert len(names) == 1 + 10 + 20
    assert json.loads(json.dumps(result.to_dict())) == result.to_dict()


@pytest.mark.parametrize("tious", [[], [0.0], [0.5, 1.5], [float("nan")]])
def test_bad_thresholds_are_refused(tious: list[float]) -> None:
    with pytest.raises(ValueError, match="tious must be"):
        mean_average_precision(ONE, {}, tious)


@pytest.mark.parametrize("truth", [{}, {"v": []}])
def test_an_empty_truth_is_refused(truth: Truth) -> None:
    with pytest.raises(ValueError, match="ground truth has no segment"):
        mean_average_precision(truth, {"v": [HIT]}, [0.5])


@pytest.mark.parametrize("field", ["start_s", "end_s", "score"])
def test_a_nan_is_refused(field: str) -> None:
    bad = Detection(**{**HIT._asdict(), field: float("nan")})
    with pytest.raises(ValueError, match=r"predictions hold .* not finite"):
        mean_average_precision(ONE, {"v": [HIT, bad]}, [0.5])
