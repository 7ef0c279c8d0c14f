"""The bootstrap over videos against mAP on datasets that are really resampled."""

import time

import numpy as np
import pytest

import evaluate.metrics.bootstrap
from evaluate.annotations import Detection, Segment
from evaluate.mean_ap import mean_average_precision
from evaluate.metrics.bootstrap import Estimate, difference, estimate, resample
from tests.test_mean_ap import HIT, MISS, ONE

Truth = dict[str, list[Segment]]
Predictions = dict[str, list[Detection]]

TIOUS = [0.3, 0.5, 0.75]


def dataset(seed: int, videos: int, truths: int, detections: int) -> tuple[Truth, Predictions]:
    """Random videos of three classes; scores tie across videos, but not within one."""
    rng = np.random.default_rng(seed)
    truth: Truth = {}
    found: Predictions = {}
    for number in range(videos):
        name = f"video {number}"
        starts, lengths = rng.uniform(0, 50, (2, truths)) * [[1], [0.1]]
        truth[name] = [
            Segment("abc"[rng.integers(3)], start, start + length + 0.5)
            for start, length in zip(starts, lengths, strict=True)
        ][: int(rng.integers(truths + 1))]
        near = truth[name] or [Segment("a", 1.0, 2.0)]
        scores = rng.permutation(2 * detections)[:detections] / (2 * detections)
        found[name] = [
            Detection(near[k].label, near[k].start_s + shift, near[k].end_s + shift, float(score))
            for k, shift, score in zip(
                rng.integers(len(near), size=detections),
                rng.normal(0, 0.7, detections),
                scores,
                strict=True,
            )
        ]
    return truth, found


def copied(truth: Truth, found: Predictions, times: list[int]) -> tuple[Truth, Predictions]:
    """The dataset with each video under as many names as it was drawn."""
    copies = [(name, k) for name, count in zip(truth, times, strict=True) for k in range(count)]
    return (
        {f"{name} ({k})": truth[name] for name, k in copies},
        {f"{name} ({k})": found[name] for name, k in copies if name in found},
    )


@pytest.mark.parametrize("seed", [0, 1, 2, 4])
@pytest.mark.parametrize("block", [1, 2**26])
def test_equals_the_score_of_the_copied_dataset(
    seed: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate.metrics.bootstrap, "BLOCK_BYTES", block)
    # Few truths: some draws lack a class, and some would lack all truth.
    truth, found = dataset(seed, videos=5, truths=3 if seed else 1, detections=12)
    if seed == 1:
        del found["video 2"]  # nothing was found there
    rows = resample(truth, found, TIOUS, 60, seed)
    counts = [len(segments) for segments in truth.values()]
    times = evaluate.metrics.bootstrap._draws(np.array(counts, np.intp), 60, seed).T.tolist()
    assert times[0] == [1] * 5 and {sum(each) for each in times} == {5}
    classes = set()
    for row, each in zip(rows, times, strict=True):
        result = mean_average_precision(*copied(truth, found, each), TIOUS)
        assert row.tolist() == pytest.approx(list(result.per_tiou.values()), abs=1e-12)
        classes.add(len(result.per_class))
    assert len(classes) > 1
    assert rows[0].tolist() == pytest.approx(
        list(mean_average_precision(truth, found, TIOUS).per_tiou.values()), abs=1e-12
    )


def test_copies_of_equal_scores_stay_together() -> None:
    """What is documented of ties within a video, where a copied dataset would take turns."""
    truth = {"v": [Segment("run", 0.0, 10.0)], "w": [Segment("run", 0.0, 10.0)]}
    tied = {"v": [HIT, MISS._replace(score=HIT.score)]}
    rows = resample(truth, tied, [0.5], 50, 0)
    # v once, never, twice: two hits, then two misses.
    assert {float(value) for (value,) in rows} == {0.5, 0.0, 1.0}


def test_runs_share_their_draws() -> None:
    truth, found = dataset(0, videos=20, truths=4, detections=30)
    _, other = dataset(1, videos=20, truths=4, detections=30)
    one = resample(truth, found, TIOUS, 200, 7)
    assert np.array_equal(one, resample(truth, found, TIOUS, 200, 7))
    assert difference([one[:, 0]], [one[:, 0]]) == Estimate(0.0, 0.0, 0.0)
    two = resample(truth, {name: other[name][:3] for name in found}, TIOUS, 200, 7)
    a, b = one.mean(axis=1), two.mean(axis=1)
    result = difference([a, b], [b])
    assert result.mean == pytest.approx((a[0] - b[0]) / 2)
    drawn = (a[1:] - b[1:]) / 2
    assert result[1:] == pytest.approx(np.percentile(drawn, [2.5, 97.5]))
    assert result.low < result.mean < result.high
    # Paired: the interval of the difference is not that of two independent runs.
    assert estimate([a]) == difference([a], [np.zeros_like(a)])


def test_videos_without_truth_cannot_be_drawn() -> None:
    with pytest.raises(ValueError, match="does not have video 'w'"):
        resample(ONE, {"v": [HIT], "w": [HIT]}, [0.5], 10, 0)
    with pytest.raises(ValueError, match="ground truth has no segment"):
        resample({"v": []}, {"v": [HIT]}, [0.5], 10, 0)


@pytest.mark.slow
def test_a_thousand_resamples_take_seconds() -> None:
    truth, found = dataset(0, videos=160, truths=20, detections=300)
    began = time.monotonic()
    rows = resample(truth, found, [0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9], 1000, 0)
    assert time.monotonic() - began < 10 and rows.shape == (1001, 7)
