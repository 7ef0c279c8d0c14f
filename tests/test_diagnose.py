"""The diagnosis against planted errors, and against DETAD's definitions spelled out."""

import json
import os
import struct
from collections import Counter
from dataclasses import asdict
from itertools import combinations, pairwise, permutations
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.loader import load
from evaluate.annotations import Detection, Segment, read_annotations, select_videos
from evaluate.diagnosis.calibration import compute_reliability
from evaluate.diagnosis.diagnosis import diagnose
from evaluate.diagnosis.false_positives import KINDS, classify_predictions
from evaluate.diagnosis.mistakes import RIGHT, UNKNOWN, find_mistakes
from evaluate.diagnosis.sensitivity import assign_bins
from evaluate.files.predictions import write_predictions
from evaluate.mean_ap import match_predictions, mean_average_precision
from evaluate.reports.diagnosis import MOST_DETECTORS, draw_diagnosis
from tests.forks import good, script
from tests.test_e2e import DEMO
from tests.test_mean_ap import Predictions, Truth, detections, overlap, predicted, truths
from tests.test_report import read
from train.config import Experiment
from train.engine.checkpoint import Checkpoint, save_checkpoint

TIOU = 0.5
PICTURES = {"costs", "profiles", "sensitivity", "classes", "reliability"}


def found_kinds(truth: Truth, predictions: Predictions, tiou: float = TIOU) -> Counter[str]:
    """How many predictions are of each kind, by class, video and times."""
    matches = match_predictions(truth, predictions, [tiou])
    ranked, videos = matches.ranked, [*dict.fromkeys([*truth, *predictions])]
    return Counter(
        f"{videos[video]} {matches.labels[label]} {start} {end}: {('true', *KINDS)[kind + 1]}"
        for video, label, start, end, kind in zip(
            ranked.video,
            ranked.label,
            ranked.start,
            ranked.end,
            classify_predictions(matches, tiou),
            strict=True,
        )
    )


def named_kinds(kinds: list[tuple[str, Detection, str]]) -> Counter[str]:
    return Counter(
        f"{video} {d.label} {float(d.start_s)} {float(d.end_s)}: {kind}" for video, d, kind in kinds
    )


# ------------------------------------------------------------------ planted errors


class Plan(NamedTuple):
    """What is planted around the action in one slot: shifts in seconds, own label or not, scores.

    The action takes 10 s, and a shift by d leaves a tIoU of (10 - d) / (10 + d).
    """

    label: str
    errors: list[tuple[float, bool, float]]


NEAR, OFF, FAR = st.floats(0, 3.3), st.floats(3.4, 8.1), st.floats(8.3, 40)
plans = st.lists(
    st.builds(
        Plan,
        st.sampled_from("ab"),
        st.lists(
            st.tuples(st.one_of(NEAR, OFF, FAR), st.booleans(), st.floats(0, 1)),
            max_size=8,
            unique_by=(lambda error: error[0], lambda error: error[2]),
        ),
    ),
    min_size=2,
    max_size=5,
).filter(lambda slots: {plan.label for plan in slots} == {"a", "b"})


def plant(slots: list[Plan]) -> tuple[Truth, Predictions, list[tuple[str, Detection, str]]]:
    """Videos of one action each, their predictions, and of what kind those are."""
    truth: Truth = {"empty": []}
    found: Predictions = {"empty": [Detection("a", 0, 1, 0.3)], "elsewhere": []}
    found["elsewhere"].append(Detection("b", 0, 10, 0.9))  # in no annotated video
    planted = [("empty", found["empty"][0], "background")]
    planted.append(("elsewhere", found["elsewhere"][0], "background"))
    for number, (label, errors) in enumerate(slots):
        name = f"slot {number}"
        truth[name] = [Segment(label, 100.0, 110.0)]
        found[name] = []
        hits = [score for shift, own, score in errors if own and shift < 3.35]
        for shift, own, score in errors:
            of = label if own else "ba"["ab".index(label)]
            one = Detection(of, 100 + shift, 110 + shift, score)
            if shift < 3.35:
                kind = "wrong label" if not own else "true" if score == max(hits) else "duplicate"
            elif shift < 8.2:
                kind = "localisation" if own else "confusion"
            else:
                kind = "background"
            found[name].append(one)
            planted.append((name, one, kind))
    return truth, found, planted


@settings(max_examples=300, deadline=None)
@given(plans)
def test_every_planted_error_is_found(slots: list[Plan]) -> None:
    truth, found, planted = plant(slots)
    assert found_kinds(truth, found) == named_kinds(planted)
    result = diagnose(truth, found, [200.0] * len(truth), TIOU)
    kinds = Counter(kind for _, _, kind in planted)
    assert result.false == {kind: kinds[kind] for kind in KINDS}
    assert result.predictions == len(planted) and result.unknown_labels == 0
    for label, one in result.classes.items():
        own = Counter(kind for _, d, kind in planted if d.label == label)
        assert one.false == {kind: own[kind] for kind in KINDS}
        assert one.found == own["true"] / one.truths
    # There are at most 10 slices of G predictions; what is planted is fewer.
    if all(one.predictions <= 10 * one.truths for one in result.classes.values()):
        assert {kind: sum(counts) for kind, counts in result.top.items()} == {
            kind: kinds[kind] for kind in ("true", *KINDS)
        }


def test_mistakes_of_videos_are_those_of_the_tables() -> None:
    """Video by video the same counts as in all, and the threshold's misses are those of fewer."""
    rng = np.random.default_rng(3)
    labels = ("a", "b", "c")

    def segments(count: int) -> list[tuple[str, float, float]]:
        starts, lengths = rng.uniform(0, 60, count), rng.uniform(1, 12, count)
        return [
            (labels[rng.integers(3)], float(s), float(s + x))
            for s, x in zip(starts, lengths, strict=True)
        ]

    truth = {f"v{n}": tuple(Segment(*s) for s in segments(n)) for n in range(6)}
    found = {
        f"v{n}": [Detection(*s, float(rng.uniform())) for s in segments(5 * n)]
        for n in (7, 5, 3, 1)
    }
    found["v5"] += [Detection(*s, float(rng.uniform(0.5, 1))) for s in truth["v5"]]
    found["v3"].append(Detection("strange", 1.0, 2.0, 0.5))
    whole = diagnose(truth, found, [60.0] * 6, TIOU)
    mistakes = find_mistakes(truth, found, TIOU)
    assert mistakes.keys() == truth.keys() | found.keys()
    for name, each in mistakes.items():
        assert len(each.verdicts) == len(found.get(name, ()))
        assert len(each.found_with) == len(truth.get(name, ()))
    counts = Counter(verdict for each in mistakes.values() for verdict in each.verdicts)
    assert {kind: counts[kind] for kind in KINDS} == whole.false
    assert counts[UNKNOWN] == whole.unknown_labels == 1
    assert mistakes["v3"].verdicts[-1] == UNKNOWN and counts[RIGHT] >= 5
    scores = [score for each in mistakes.values() for score in each.found_with]
    assert scores.count(None) / len(scores) == pytest.approx(whole.missed)
    for level in (0.3, 0.6, 0.9):
        some = {name: [d for d in each if d.score >= level] for name, each in found.items()}
        fewer = diagnose(truth, some, [60.0] * 6, TIOU)
        missed = sum(score is None or score < level for score in scores)
        assert missed / len(scores) == pytest.approx(fewer.missed)
        # Verdicts stay what they are without the detections of lower scores.
        for name, each in find_mistakes(truth, some, TIOU).items():
            pairs = zip(found.get(name, ()), mistakes[name].verdicts, strict=True)
            assert list(each.verdicts) == [verdict for d, verdict in pairs if d.score >= level]


def test_the_best_predictions_are_counted_in_slices() -> None:
    truth = {"v": [Segment("a", 100.0 * k, 100.0 * k + 10) for k in range(3)]}
    scores = iter(np.linspace(1, 0, 34))
    found = {"v": [Detection("a", 0, 10, next(scores))]}
    found["v"] += [Detection("a", 0, 10, next(scores)) for _ in range(4)]
    found["v"] += [Detection("a", 50, 60, next(scores)) for _ in range(29)]
    top = diagnose(truth, found, [400.0], TIOU).top
    assert top["true"] == [1] + [0] * 9
    assert top["duplicate"] == [2, 2] + [0] * 8
    assert top["background"] == [0, 1] + [3] * 8  # of 29 only those among the best 30
    assert sum(map(sum, top.values())) == 30


def test_of_actions_overlapped_equally_the_own_class_decides() -> None:
    """THUMOS-14 annotates each CliffDiving as a Diving, too."""
    truth = {"v": [Segment("CliffDiving", 0, 10), Segment("Diving", 0, 10)]}
    found = {"v": [Detection("Diving", 0, 10, 0.9), Detection("Diving", 1, 10, 0.8)]}
    assert diagnose(truth, found, [20.0], TIOU).false["duplicate"] == 1
    found["v"][1] = Detection("Diving", 6, 10, 0.8)
    assert diagnose(truth, found, [20.0], TIOU).false["localisation"] == 1


def test_bounds_are_reached_not_passed() -> None:
    truth = {"v": [Segment("a", 0, 10)], "w": [Segment("b", 0, 10)]}
    for end, kind in ((5.0, "wrong label"), (4.999, "confusion"), (1.0, "confusion")):
        assert diagnose(truth, {"v": [Detection("b", 0, end, 1)]}, [9, 9], TIOU).false[kind] == 1
    found = {"v": [Detection("b", 0, 0.999, 1), Detection("c", 0, 10, 1)]}
    result = diagnose(truth, found, [20.0, 20.0], TIOU)
    assert result.false["background"] == result.predictions == result.unknown_labels == 1


# ------------------------------------------------------------------ the definitions


def slow_kinds(
    truth: Truth, predictions: Predictions, tiou: float
) -> list[tuple[str, Detection, str]]:
    """The kinds of all predictions of known classes, one after the other."""
    labels = {s.label for each in truth.values() for s in each}
    flat = [(name, d) for name, each in predictions.items() for d in each if d.label in labels]
    flat.sort(key=lambda pair: -pair[1].score)
    free = {name: list(enumerate(segments)) for name, segments in truth.items()}
    kinds = []
    for name, d in flat:
        near = [p for p in free.get(name, []) if p[1].label == d.label]
        near = [p for p in near if overlap(d, p[1]) >= tiou]
        if near:
            free[name].remove(max(near, key=lambda p: (overlap(d, p[1]), p[0])))
            kinds.append((name, d, "true"))
            continue
        every = truth.get(name, [])
        best = max(every, key=lambda s: (overlap(d, s), s.label == d.label), default=None)
        reached = overlap(d, best) if best else 0.0
        own = best is not None and best.label == d.label
        if reached >= tiou:
            kinds.append((name, d, "duplicate" if own else "wrong label"))
        elif reached >= 0.1:
            kinds.append((name, d, "localisation" if own else "confusion"))
        else:
            kinds.append((name, d, "background"))
    return kinds


def without(
    predictions: Predictions, kinds: list[tuple[str, Detection, str]], gone: set[str]
) -> Predictions:
    """The others in the order given, which decides between equal scores."""
    out = {id(d) for _, d, kind in kinds if kind in gone}
    return {name: [d for d in each if id(d) not in out] for name, each in predictions.items()}


some_truth = truths.filter(lambda truth: any(truth.values()))


@settings(max_examples=300, deadline=None)
@given(some_truth, predicted, st.sampled_from([0.25, 0.5, 2 / 3, 1.0]))
def test_kinds_are_as_defined(truth: Truth, predictions: Predictions, tiou: float) -> None:
    expected = named_kinds(slow_kinds(truth, predictions, tiou))
    assert found_kinds(truth, predictions, tiou) == expected


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(some_truth, st.dictionaries(st.sampled_from("uvwx"), st.lists(detections, max_size=20)))
def test_costs_are_what_files_without_the_errors_score(
    truth: Truth, predictions: Predictions
) -> None:
    kinds = slow_kinds(truth, predictions, TIOU)

    def scored(*gone: str) -> float:
        return mean_average_precision(truth, without(predictions, kinds, set(gone)), [TIOU]).average

    result = diagnose(truth, predictions, [9.0] * len(truth), TIOU)
    costs = result.cost
    exactly = pytest.approx
    assert result.mean_ap == exactly(scored(), abs=1e-12)
    for kind in KINDS:
        assert costs.alone[kind] == exactly(scored(kind) - scored(), abs=1e-12)
    assert costs.every == exactly(scored(*KINDS) - scored(), abs=1e-12)
    # Without false positives mAP is the mean recall, and only missed actions are lacking.
    recall = [one.found for one in result.classes.values()]
    assert result.mean_ap + costs.every == exactly(np.mean(recall), abs=1e-12)
    assert costs.missed == exactly(1 - np.mean(recall), abs=1e-12)
    # Mended one after the other, in any order, they bring what all bring; shares are the mean.
    steps: dict[str, list[float]] = {kind: [] for kind in KINDS}
    known = {gone: scored(*gone) for n in range(6) for gone in combinations(sorted(KINDS), n)}
    for order in permutations(KINDS):
        for place, kind in enumerate(order):
            before, after = (tuple(sorted(order[:n])) for n in (place, place + 1))
            steps[kind].append(known[after] - known[before])
    assert costs.share == exactly({k: np.mean(s) for k, s in steps.items()}, abs=1e-12)
    # Nothing gets worse, no kind brings more than all, and everything adds up.
    assert min(*costs.alone.values(), *costs.share.values(), costs.missed) >= 0
    assert max(costs.alone.values()) <= costs.every + 1e-12
    assert sum(costs.share.values()) == exactly(costs.every, abs=1e-12)
    assert result.mean_ap + sum(costs.share.values()) + costs.missed == exactly(1, abs=1e-12)


def test_gains_alone_need_not_add_up() -> None:
    """By hand: two errors of different kinds ahead of the only hit."""
    truth = {"v": [Segment("a", 0, 10)], "w": [Segment("b", 0, 10)]}
    hits = {"v": [Detection("a", 0, 10, 0.1)], "w": [Detection("b", 0, 10, 1.0)]}
    found = hits | {"v": [*hits["v"], Detection("a", 50, 60, 0.9), Detection("a", 0, 4, 0.8)]}
    result = diagnose(truth, found, [100.0, 100.0], TIOU)
    one = result.classes["a"]
    assert one.average_precision == pytest.approx(1 / 3) and result.classes["b"].cost.every == 0
    expected = dict.fromkeys(KINDS, 0.0) | {"background": 1 / 6, "localisation": 1 / 6}
    assert one.cost.alone == pytest.approx(expected)
    assert one.cost.share == pytest.approx({kind: 2 * gain for kind, gain in expected.items()})
    assert one.cost.every == pytest.approx(2 / 3) and one.cost.missed == 0
    assert result.cost.every == pytest.approx(1 / 3)


def slow_normalised(
    truth: Truth, predictions: Predictions, tiou: float, wanted: set[tuple[str, int]]
) -> tuple[float, set[tuple[str, int]]]:
    """DETAD's mAP_N of the wanted truths (video, number), and all truths that are found."""
    labels = sorted({s.label for each in truth.values() for s in each})
    number = sum(map(len, truth.values())) / len(labels)
    precisions, found = [], set()
    for label in labels:
        own = {(v, k) for v, each in truth.items() for k, s in enumerate(each) if s.label == label}
        flat = [(v, d) for v, each in predictions.items() for d in each if d.label == label]
        flat.sort(key=lambda pair: -pair[1].score)
        free, points = set(own), []
        hits = false = every = 0
        for video, d in flat:
            near = [p for p in free if p[0] == video and overlap(d, truth[video][p[1]]) >= tiou]
            if not near:
                false += 1
                continue
            taken = max(near, key=lambda p: (overlap(d, truth[video][p[1]]), p[1]))
            free.remove(taken)
            every += 1
            recall = every / len(own)
            if recall * number / (recall * number + false) > 0.05:
                found.add(taken)
            if taken in wanted:
                hits += 1
                recall = hits / len(own & wanted)
                points.append(recall * number / (recall * number + false))
        if own & wanted:
            area = sum(max(points[k:]) for k in range(len(points)))
            precisions.append(area / len(own & wanted))
    return float(np.mean(precisions)), found


@settings(max_examples=150, deadline=None)
@given(some_truth, predicted)
def test_sensitivity_is_as_defined(truth: Truth, predictions: Predictions) -> None:
    durations = [5.0 + k for k in range(len(truth))]
    result = diagnose(truth, predictions, durations, TIOU)
    every = {(video, k) for video, each in truth.items() for k in range(len(each))}
    total, found = slow_normalised(truth, predictions, TIOU, every)
    assert result.mean_ap_n == pytest.approx(total, abs=1e-12)
    assert result.missed == pytest.approx(1 - len(found) / len(every), abs=1e-12)
    lasting = dict(zip(truth, durations, strict=True))
    values = {
        "length": lambda v, s: s.end_s - s.start_s,
        "coverage": lambda v, s: 100 * (s.end_s - s.start_s) / lasting[v],
        "instances": lambda v, s: sum(other.label == s.label for other in truth[v]),
    }
    assert list(result.characteristics) == list(values)
    for name, value in values.items():
        of = {(v, k): value(v, truth[v][k]) for v, k in every}
        bins = result.characteristics[name].bins
        assert sum(one.truths for one in bins) == len(every)
        assert all(one.high < two.low for one, two in pairwise(bins))
        for one in bins:
            mine = {p for p in every if one.low - 1e-9 <= of[p] <= one.high + 1e-9}
            assert one.truths == len(mine)
            expected, _ = slow_normalised(truth, predictions, TIOU, mine)
            assert one.mean_ap_n == pytest.approx(expected, abs=1e-12)
            assert one.missed == pytest.approx(1 - len(found & mine) / len(mine), abs=1e-12)


# ------------------------------------------------------------------ single cases


def test_what_is_missed_shows_in_its_bin() -> None:
    """A detector that finds no action shorter than 3 s, and one class less often than another."""
    lengths = np.arange(1, 11)
    truth = {f"v{n}": [Segment("a", 0.0, float(n))] for n in lengths}
    truth |= {f"w{n}": [Segment("b", 0.0, float(n))] * 2 for n in lengths}
    found = {
        name: [Detection(*each, score=1.0) for each in segments if each.end_s >= 3]
        for name, segments in truth.items()
    }
    result = diagnose(truth, found, [10.0] * len(truth), TIOU)
    length = result.characteristics["length"].bins
    assert [(one.low, one.high) for one in length] == [(1, 2), (3, 4), (5, 6), (7, 8), (9, 10)]
    assert [one.missed for one in length] == [1, 0, 0, 0, 0]
    assert [one.mean_ap_n for one in length] == pytest.approx([0, 1, 1, 1, 1])
    coverage = result.characteristics["coverage"].bins
    assert [one.low for one in coverage] == pytest.approx([10, 30, 50, 70, 90])
    instances = result.characteristics["instances"].bins
    assert [(one.low, one.truths) for one in instances] == [(1, 10), (2, 20)]
    assert result.missed == pytest.approx(0.2)


def test_a_hit_among_masses_is_a_miss() -> None:
    """One truth: the normalised precision of a hit after n false positives is 1 / (1 + n)."""
    truth = {"v": [Segment("a", 0, 10)]}
    for masses, missed in ((18, 0.0), (19, 1.0)):
        found = {"v": [Detection("a", 50, 60, 0.9)] * masses + [Detection("a", 0, 10, 0.1)]}
        result = diagnose(truth, found, [100.0], TIOU)
        assert result.missed == missed and result.classes["a"].found == 1
        assert result.characteristics["length"].bins[0].missed == missed


def test_normalised_precision_forgives_a_rare_class() -> None:
    """Two classes of 1 and 3 actions count as 2 each, by hand."""
    truth = {"v": [Segment("a", 0, 10), *[Segment("b", s, s + 9.0) for s in (20, 40, 60)]]}
    rare = [Detection("a", 80, 90, 0.9), Detection("a", 0, 10, 0.8)]
    found = {"v": [*rare, *[Detection(*s, score=1.0) for s in truth["v"][1:]]]}
    result = diagnose(truth, found, [100.0], TIOU)
    assert result.mean_ap == pytest.approx((1 / 2 + 1) / 2)
    assert result.mean_ap_n == pytest.approx((2 / 3 + 1) / 2)


def test_bins_hold_a_fifth_each_as_far_as_ties_allow() -> None:
    rng = np.random.default_rng(0)
    assert np.bincount(assign_bins(rng.permutation(500) / 7)).tolist() == [100] * 5
    assert assign_bins(np.full(9, 4.0)).tolist() == [0] * 9
    assert assign_bins(np.array([1.0, 1, 1, 1, 1, 1, 1, 1, 2, 3])).tolist() == [0] * 8 + [1, 1]


def test_unknown_durations_leave_coverage_out() -> None:
    truth = {"v": [Segment("a", 0, 10)], "w": []}
    named = [*diagnose(truth, {}, [None, 9.0], TIOU).characteristics]
    assert named == ["length", "instances"]
    assert "coverage" in diagnose(truth, {}, [9.0, None], TIOU).characteristics  # w holds nothing


def test_finding_nothing_is_all_missed() -> None:
    truth = {"v": [Segment("a", 0, 10)]}
    result = diagnose(truth, {}, [100.0], TIOU)
    assert result.mean_ap == result.cost.every == 0 and result.cost.missed == result.missed == 1
    assert result.reliability is None


@pytest.mark.parametrize("tiou", [0.1, 0.0, 1.5, float("nan")])
def test_thresholds_below_background_are_refused(tiou: float) -> None:
    with pytest.raises(ValueError, match=r"must be above 0\.1"):
        diagnose({"v": [Segment("a", 0, 10)]}, {}, [9.0], tiou)


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=60))
def test_calibration_is_as_defined(pairs: list[tuple[float, bool]]) -> None:
    scores, hits = (np.array(each) for each in zip(*pairs, strict=True))
    result = compute_reliability(scores.astype(np.float64), hits.astype(np.bool_))
    assert result is not None and sum(result.count) == len(pairs)
    error = sum(
        abs(score - true) * count / len(pairs)
        for score, true, count in zip(result.score, result.true, result.count, strict=True)
    )
    assert result.error == pytest.approx(error)
    edges = np.linspace(0, 1, 11)
    inside = [(scores > low) & (scores <= high) for low, high in pairwise(edges)]
    inside[0] |= scores == 0
    filled = [each for each in inside if each.any()]
    assert result.score == pytest.approx([scores[each].mean() for each in filled])
    assert result.true == pytest.approx([hits[each].mean() for each in filled])


def test_calibration_of_scores_that_are_what_they_say() -> None:
    scores = np.repeat([0.25, 0.75], 400)
    hits = np.arange(800) % 4 < np.repeat([1, 3], 400)
    result = compute_reliability(scores, hits)
    assert result is not None and result.error == pytest.approx(0)
    doubled = compute_reliability(scores / 2, hits)
    assert doubled is not None and doubled.error == pytest.approx(0.25)
    assert (
        compute_reliability(scores * 2, hits) is None and compute_reliability(-scores, hits) is None
    )


# ------------------------------------------------------------------ THUMOS-14


@pytest.fixture(scope="module")
def thumos(shared: Path) -> tuple[Truth, list[float | None]]:
    annotations = read_annotations(
        shared / "thumos14/thumos_gt.json", info_csv=[shared / "thumos14/test_video_info.csv"]
    )
    videos = select_videos(annotations, "test")
    return {v.name: list(v.segments) for v in videos}, [v.duration_s for v in videos]


def test_errors_planted_into_thumos(thumos: tuple[Truth, list[float | None]]) -> None:
    truth, durations = thumos
    found: Predictions = {}
    for name, segments in truth.items():
        absent = "Billiards" if all(s.label != "Billiards" for s in segments) else "Shotput"
        end = max((s.end_s for s in segments), default=0.0)
        found[name] = [
            one
            for s in segments
            for one in (
                Detection(*s, score=0.9),
                Detection(*s, score=0.5),
                Detection(absent, s.start_s, s.end_s, 0.4),
                Detection(absent, s.start_s, s.start_s + 0.3 * (s.end_s - s.start_s), 0.3),
                Detection(s.label, end + 10, end + 12, 0.2),
            )
        ]
    actions = sum(map(len, truth.values()))
    result = diagnose(truth, found, durations, TIOU)
    expected = Counter(kind for _, _, kind in slow_kinds(truth, found, TIOU))
    assert result.false == {kind: expected[kind] for kind in KINDS}
    planted = {k: result.false[k] for k in ("duplicate", "wrong label", "background")}
    assert planted == dict.fromkeys(planted, actions) and result.truths == actions == 3311
    assert expected["true"] == actions and result.missed == result.cost.missed == 0
    # Their actions hardly overlap: nearly all of the short ones stand in no other.
    assert 0.95 * actions < result.false["confusion"] <= actions
    assert result.mean_ap + sum(result.cost.share.values()) == pytest.approx(1)


def test_predictions_as_many_as_a_detectors(thumos: tuple[Truth, list[float | None]]) -> None:
    truth, durations = thumos
    rng = np.random.default_rng(0)
    labels = sorted({s.label for each in truth.values() for s in each})
    found: Predictions = {}
    for name, segments in truth.items():
        base = [segments[k] for k in rng.integers(len(segments), size=200)] if segments else []
        moved = rng.normal(0, 0.4, (200, 2))
        found[name] = [
            Detection(
                labels[rng.integers(20)] if rng.random() < 0.2 else s.label,
                s.start_s + a * (s.end_s - s.start_s),
                s.end_s + max(a - 0.9, b) * (s.end_s - s.start_s),
                float(np.clip(1 - abs(a) - abs(b) + rng.normal(0, 0.2), 0, 1)),
            )
            for s, (a, b) in zip(base, moved, strict=bool(base))
        ]
    result = diagnose(truth, found, durations, TIOU)
    score = mean_average_precision(truth, found, [TIOU])
    assert result.mean_ap == pytest.approx(score.average)
    for label, per_tiou in score.per_class.items():
        assert result.classes[label].average_precision == pytest.approx(per_tiou[TIOU])
    assert result.mean_ap + sum(result.cost.share.values()) + result.cost.missed == pytest.approx(1)
    for name in ("length", "coverage", "instances"):
        bins = result.characteristics[name].bins
        assert len(bins) == 5 and min(one.truths for one in bins) > 0.1 * result.truths
        missed = sum(one.missed * one.truths for one in bins) / result.truths
        assert missed == pytest.approx(result.missed)


# ------------------------------------------------------------------ the script


def png_size(path: Path) -> tuple[int, int]:
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG")
    width, height = struct.unpack(">II", content[16:24])
    return width, height


SLOTS = [
    Plan("a", [(0.0, True, 0.9), (1.0, True, 0.8), (4.0, True, 0.6), (9.0, True, 0.2)]),
    Plan("b", [(0.0, True, 0.7), (2.0, False, 0.95), (5.0, False, 0.4)]),
]


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A folder with annotations and three predictions files as evaluate/run.py leaves them."""
    truth, found, _ = plant(SLOTS)
    database = {
        name: {
            "subset": "test",
            "duration": 200.0,
            "annotations": [{"label": s.label, "segment": [s.start_s, s.end_s]} for s in segments],
        }
        for name, segments in truth.items()
    }
    del found["elsewhere"]
    (tmp_path / "annotations.json").write_text(json.dumps({"database": database}))
    folder = tmp_path / "run/evaluation/last-test"
    write_predictions(folder / "predictions.json", found)
    write_predictions(
        folder / "predictions-forward.json", {n: each[:2] for n, each in found.items()}
    )
    write_predictions(folder / "predictions-reversed.json", {n: [] for n in found})
    return tmp_path


@pytest.mark.slow
def test_detectors_side_by_side(files: Path) -> None:
    folder, out = files / "run/evaluation/last-test", files / "out"
    told = good(
        *("evaluate/diagnose.py", "--predictions"),
        *(folder / f"predictions{name}.json" for name in ("-forward", "-reversed", "")),
        *("--annotations", files / "annotations.json", "--subset", "test", "--out", out),
    )
    content = json.loads((out / "diagnosis.json").read_text())
    assert list(content["detectors"]) == ["forward", "reversed", "predictions"]
    truth, found, _ = plant(SLOTS)
    del found["elsewhere"]
    expected = diagnose(truth, found, [200.0] * len(truth), TIOU)
    assert content["detectors"]["predictions"] == json.loads(json.dumps(asdict(expected)))
    assert content["detectors"]["reversed"]["missed"] == 1
    assert {path.stem for path in out.glob("*.png")} == PICTURES
    assert {png_size(path)[0] for path in out.glob("*.png")} == {800}
    page, report = read(out)
    assert f"report: {out / 'report.html'}" in told and report["kind"] == "Diagnosis"
    for name, each in content["detectors"].items():
        assert report["facts"][f"mAP, {name}"] == each["mean_ap"]
    costs = {row[0]: row[7:] for row in report["tables"]["costs"]["rows"]}
    own = content["detectors"]["predictions"]
    for kind in KINDS:
        shares = own["cost"]["share"][kind], own["cost"]["alone"][kind], own["false"][kind]
        assert costs[kind] == [*shares]
    assert "diagnosis.json" in page.attributes("href")
    lines = told.splitlines()
    assert lines[0].split() == ["at", "tIoU", "0.5", "forward", "reversed", "predictions"]
    (row,) = (line.split() for line in lines if line.startswith("mAP"))
    assert row[1:] == [f"{each['mean_ap']:.4f}" for each in content["detectors"].values()]


@pytest.mark.slow
def test_a_checkpoints_answer_and_streams(files: Path) -> None:
    settings_ = [
        f"--data.annotations={files / 'annotations.json'}",
        *("--data.classes=null", "--fusion.method=average"),
    ]
    config = load(Experiment, DEMO, settings_)
    last = files / "run/last.pt"
    save_checkpoint(last, Checkpoint(config, ("a", "b"), {}, {}, {}))
    folder = files / "run/evaluation/last-test"
    # What could not be read is not among the predictions, and is not missed.
    path = folder / "predictions.json"
    kept = json.loads(path.read_text())
    del kept["results"]["slot 1"]
    path.write_text(json.dumps(kept))
    told = good("evaluate/diagnose.py", "--checkpoint", last)
    content = json.loads((folder / "diagnosis/diagnosis.json").read_text())
    assert list(content["detectors"]) == ["fused", "forward", "reversed"]
    assert content["subset"] == "test" and content["detectors"]["fused"]["truths"] == 1
    assert "is older" not in told
    read(folder / "diagnosis")
    os.utime(path, (1, 1))
    assert "is older than" in good("evaluate/diagnose.py", "--checkpoint", last)
    path.unlink()
    done = script("evaluate/diagnose.py", "--checkpoint", last)
    assert done.returncode == 1 and "score it first (python evaluate/run.py" in done.stderr


def test_bad_arguments_are_one_line(files: Path) -> None:
    one = files / "run/evaluation/last-test/predictions.json"
    base = ["evaluate/diagnose.py", "--annotations", files / "annotations.json", "--subset", "test"]
    (files / "file").write_text("")
    cases: list[tuple[list[object], str]] = [
        (["--predictions", one, one], "names must differ"),
        (["--predictions", one, "--names", "x", "y"], "1 predictions files need as many, not 2"),
        (["--predictions", one, "--tiou", 0.1], "must be above 0.1"),
        (["--predictions", one, "--out", files / "file"], "is a file"),
        (["--predictions", files / "absent.json"], "absent.json"),
        (["--predictions", *[one] * (MOST_DETECTORS + 1)], f"at most {MOST_DETECTORS}"),
    ]
    for arguments, expected in cases:
        done = script(*base, *arguments)
        assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
        assert expected in done.stderr and "error: " in done.stderr
    assert script("evaluate/diagnose.py").returncode == 2


@pytest.mark.slow
def test_pictures_of_one_and_of_most_detectors(tmp_path: Path) -> None:
    truth, found, _ = plant(SLOTS)
    many = {f"detector {k}": diagnose(truth, found, [None] * 3, TIOU) for k in range(6)}
    assert len(many) == MOST_DETECTORS
    for number in (1, MOST_DETECTORS):
        draw_diagnosis(dict(list(many.items())[:number]), tmp_path)
        assert {png_size(path)[0] for path in tmp_path.glob("*.png")} == {800}
    unsure = {"v": [Detection("a", 0, 1, 3.0)]}
    draw_diagnosis({"scores above 1": diagnose(truth, unsure, [None] * 3, TIOU)}, tmp_path)
    assert {path.stem for path in tmp_path.glob("*.png")} == PICTURES - {"reliability"}
