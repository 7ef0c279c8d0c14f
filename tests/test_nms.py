"""Suppression against reference numbers, and against the obvious loop."""

import time
from typing import Any

import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from benchmarks.cases import candidates as candidates_of_a_video
from evaluate import suppression
from evaluate.nms import Floats, Labels, NmsConfig, suppress
from tests.conftest import GOLDEN

Rows = list[tuple[float, float, float, int]]  # start, end, score, label


def arrays(rows: Rows) -> tuple[Floats, Floats, Labels]:
    table = np.array(rows, np.float64).reshape(-1, 4)
    return (
        table[:, :2].astype(np.float32),
        table[:, 2].astype(np.float32),
        table[:, 3].astype(np.int64),
    )


def run(rows: Rows, **options: Any) -> Rows:
    segments, scores, labels = suppress(*arrays(rows), NmsConfig(**options))
    return [
        (*segment, score, label)
        for segment, score, label in zip(
            segments.tolist(), scores.tolist(), labels.tolist(), strict=True
        )
    ]


# ------------------------------------------------------------------ reference numbers

CASES = {
    "soft_multiclass": NmsConfig(sigma=0.7, min_score=0.001, max_segments=300),
    "soft_agnostic_voting": NmsConfig(
        multiclass=False, sigma=0.5, voting_threshold=0.7, max_segments=200
    ),
    "hard_multiclass": NmsConfig(
        method="hard", iou_threshold=0.5, min_score=0.01, max_segments=300
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_equals_the_reference(case: str) -> None:
    golden = load_file(GOLDEN / "nms.safetensors")
    table = golden["segments"], golden["scores"], golden["labels"]
    segments, scores, labels = suppress(*table, CASES[case])
    np.testing.assert_array_equal(labels, golden[f"{case}.labels"])
    np.testing.assert_allclose(scores, golden[f"{case}.scores"], rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(segments, golden[f"{case}.segments"], rtol=1e-6)


# ------------------------------------------------------------------ the obvious loop


def tiou(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    inter = max(0.0, min(a[1], b[1]) - max(a[0], b[0]))
    union = (a[1] - a[0]) + (b[1] - b[0]) - inter
    return inter / union if union > 0 else 0.0


def slow(rows: Rows, config: NmsConfig) -> Rows:
    """Bodla et al. 2017, figure 2, one candidate at a time in double precision."""
    groups = sorted({row[3] for row in rows}) if config.multiclass else [None]
    kept: Rows = []
    for group in groups:
        left = [row for row in rows if group is None or row[3] == group]
        while left:
            best = max(left, key=lambda row: row[2])
            left.remove(best)
            if best[2] < config.min_score:
                break
            kept.append(best)
            if config.method == "hard":
                left = [row for row in left if tiou(best, row) < config.iou_threshold]
            else:
                decay = [np.exp(-(tiou(best, row) ** 2) / config.sigma) for row in left]
                left = [
                    (row[0], row[1], row[2] * d, row[3]) for row, d in zip(left, decay, strict=True)
                ]
    kept.sort(key=lambda row: -row[2])
    return [vote(row, rows, config.voting_threshold) for row in kept[: config.max_segments]]


def vote(row: tuple[float, float, float, int], rows: Rows, threshold: float | None) -> Any:
    voters = [other for other in rows if threshold is not None and tiou(row, other) >= threshold]
    if not voters:
        return row
    weight = sum(other[2] for other in voters)
    start, end = (sum(other[2] * other[i] for other in voters) / weight for i in (0, 1))
    return start, end, row[2], row[3]


@st.composite
def candidates(draw: st.DrawFn) -> Rows:
    """Candidates whose order and decisions do not hang on the last bit.

    Times on a grid make equal and zero-length segments common; the prime denominators of the
    thresholds below keep every tIoU of the grid away from them. Scores are spread apart.
    """
    count = draw(st.integers(0, 12))
    classes = draw(st.integers(1, 3))
    scores = draw(st.permutations(range(count)))
    rows = []
    for score in scores:
        start, length = draw(st.integers(0, 12)), draw(st.integers(0, 6))
        label = draw(st.integers(0, classes - 1))
        rows.append((start / 2, (start + length) / 2, 0.9 * 0.83**score, label))
    return rows


configs = st.one_of(
    st.builds(NmsConfig, sigma=st.sampled_from([0.3, 0.7]), max_segments=st.sampled_from([3, 99])),
    st.builds(
        NmsConfig,
        method=st.just("hard"),
        multiclass=st.booleans(),
        iou_threshold=st.sampled_from([10 / 101, 50 / 101]),
        min_score=st.sampled_from([0.0, 0.25]),
    ),
    st.builds(
        NmsConfig,
        multiclass=st.just(False),
        min_score=st.sampled_from([0.0, 0.1003]),
        voting_threshold=st.sampled_from([None, 40 / 101, 70 / 101]),
    ),
)


@settings(max_examples=300)
@given(candidates(), configs)
def test_equals_the_obvious_loop(rows: Rows, config: NmsConfig) -> None:
    if not config.multiclass:  # then labels are free to name the candidates
        rows = [(*row[:3], index) for index, row in enumerate(rows)]
    segments, scores, labels = suppress(*arrays(rows), config)
    expected = slow(rows, config)
    assert (np.diff(scores) <= 0).all()
    # Compared in an order that rounding cannot change: by label, then by time on the grid.
    found = np.column_stack([labels, segments, scores])
    wanted = np.array([(row[3], row[0], row[1], row[2]) for row in expected]).reshape(-1, 4)
    assert len(found) == len(wanted)
    found, wanted = (table[np.lexsort(table.T[::-1])] for table in (found, wanted))
    np.testing.assert_allclose(found, wanted, rtol=1e-4)


@pytest.mark.parametrize(
    "config",
    [
        NmsConfig(max_segments=300),
        NmsConfig(multiclass=False, max_segments=200, voting_threshold=0.7),
        NmsConfig(method="hard", iou_threshold=0.4, max_segments=300),
    ],
)
@pytest.mark.parametrize("seed", range(2))
def test_a_detectors_candidates_equal_the_obvious_loop(config: NmsConfig, seed: int) -> None:
    segments, scores, labels = candidates_of_a_video(700, 3, seed)
    rows: Rows = [
        (start, end, score, label)
        for (start, end), score, label in zip(
            segments.tolist(), scores.tolist(), labels.tolist(), strict=True
        )
    ]
    expected = np.array(slow(rows, config))
    found = np.column_stack(suppress(segments, scores, labels, config))
    np.testing.assert_allclose(found[:, 2], expected[:, 2], atol=1e-6)
    np.testing.assert_allclose(found[:, :2], expected[:, :2], rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(found[:, 3], expected[:, 3])


def test_loops_run_where_compiled_code_cannot_be_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    compile_for: Any = numba.njit

    def keep_nothing(**options: bool) -> Any:
        if options.get("cache"):
            raise RuntimeError("cannot cache function")
        return compile_for(**options)

    monkeypatch.setattr(numba, "njit", keep_nothing)
    assert suppression.compiled(lambda number: number + 1)(2) == 3


def test_many_classes_at_once_equal_each_class_alone() -> None:
    generator = np.random.default_rng(0)
    start = generator.uniform(0, 200, 2000)
    end = start + generator.exponential(5, 2000)
    segments = np.stack([start, end], axis=1).astype(np.float32)
    scores = generator.random(2000).astype(np.float32)
    labels = generator.integers(0, 20, 2000)
    config = NmsConfig(max_segments=500)
    together = suppress(segments, scores, labels, config)
    alone = [
        suppress(segments[labels == k], scores[labels == k], labels[labels == k], config)
        for k in range(20)
    ]
    joined = [np.concatenate(parts) for parts in zip(*alone, strict=True)]
    best = np.argsort(-joined[1], kind="stable")[:500]
    for found, expected in zip(together, joined, strict=True):
        np.testing.assert_array_equal(found, expected[best])


# ------------------------------------------------------------------ single cases


@pytest.mark.parametrize("method", ["soft", "hard"])
@pytest.mark.parametrize("multiclass", [True, False])
def test_nothing_in_nothing_out(method: Any, multiclass: bool) -> None:
    empty = arrays([])
    segments, scores, labels = suppress(*empty, NmsConfig(method=method, multiclass=multiclass))
    assert (segments.shape, scores.shape, labels.shape) == ((0, 2), (0,), (0,))
    assert [x.dtype.name for x in (segments, scores, labels)] == ["float32", "float32", "int64"]


def test_one_segment_stays_as_it_is() -> None:
    assert run([(1.0, 2.0, 0.5, 3)]) == [(1.0, 2.0, 0.5, 3)]
    assert run([(1.0, 2.0, 0.5, 3)], min_score=0.6) == []


def test_soft_decay_is_the_formula() -> None:
    kept = run([(0.0, 10.0, 0.5, 0), (0.0, 5.0, 0.25, 0)], sigma=0.5)
    assert kept[0] == (0.0, 10.0, 0.5, 0)
    assert kept[1][2] == pytest.approx(0.25 * np.exp(-(0.5**2) / 0.5), rel=1e-5)


def test_equal_scores_keep_their_order() -> None:
    rows: Rows = [(9.0, 10.0, 0.5, 1), (1.0, 2.0, 0.5, 1), (5.0, 6.0, 0.5, 0), (3.0, 4.0, 0.5, 1)]
    assert run(rows) == [rows[2], rows[0], rows[1], rows[3]]
    assert run(rows, multiclass=False) == rows


def test_hard_keeps_the_first_of_two_equal_candidates() -> None:
    rows: Rows = [(0.0, 1.0, 0.5, 0), (0.0, 1.0, 0.5, 0), (0.0, 1.0, 0.5, 1)]
    assert run(rows, method="hard") == [rows[0], rows[2]]
    assert run(rows, method="hard", multiclass=False) == [rows[0]]


def test_empty_segments_neither_suppress_nor_vote() -> None:
    rows: Rows = [(1.0, 1.0, 0.5, 0), (1.0, 1.0, 0.25, 0), (0.0, 2.0, 0.125, 0)]
    assert run(rows, multiclass=False, voting_threshold=0.5) == rows


def test_voting_crosses_classes_and_counts_the_suppressed() -> None:
    rows: Rows = [(0.0, 10.0, 0.75, 0), (0.0, 8.0, 0.25, 1), (50.0, 60.0, 0.5, 1)]
    kept = run(rows, method="hard", multiclass=False, iou_threshold=0.5, voting_threshold=0.7)
    assert kept == [(0.0, 9.5, 0.75, 0), (50.0, 60.0, 0.5, 1)]


def test_votes_below_zero_do_not_count() -> None:
    """Their weights would carry the mean out of the segments that it is of."""
    rows: Rows = [(0.0, 10.0, 0.5, 0), (0.0, 9.0, -0.45, 0)]
    assert run(rows, multiclass=False, voting_threshold=0.5) == rows[:1]


def test_thresholds_are_reached_when_they_are_met_exactly() -> None:
    # So long that the hair added to every length is lost in the rounding.
    long: Rows = [(0.0, 64.0, 0.75, 0), (0.0, 32.0, 0.5, 0)]
    assert run(long, method="hard", iou_threshold=0.5) == long[:1]
    apart: Rows = [(0.0, 1.0, 0.5, 0), (5.0, 6.0, 0.25, 0)]
    assert run(apart, min_score=0.25) == apart
    voters: Rows = [(0.0, 10.0, 0.75, 0), (0.0, 7.0, 0.25, 0)]
    kept = run(voters, multiclass=False, voting_threshold=0.7, max_segments=1)
    assert kept == [(0.0, 9.25, 0.75, 0)]


@pytest.mark.parametrize("options", [{}, {"multiclass": False, "voting_threshold": 0.5}])
def test_a_video_is_suppressed_on_one_core(options: dict[str, Any]) -> None:
    """Several videos are suppressed side by side: more threads would only fight for the cores."""
    given = candidates_of_a_video(20_000, 20)
    suppress(*given, NmsConfig(**options))  # compiled
    everywhere, here = time.process_time(), time.thread_time()
    for _ in range(3):
        suppress(*given, NmsConfig(**options))
    here, everywhere = time.thread_time() - here, time.process_time() - everywhere
    assert everywhere < 1.2 * here


def test_the_input_is_left_alone() -> None:
    segments, scores, labels = arrays([(0.0, 2.0, 0.5, 0), (0.0, 1.0, 0.25, 0)])
    suppress(segments, scores, labels, NmsConfig())
    assert scores.tolist() == [0.5, 0.25]
    assert segments.tolist() == [[0.0, 2.0], [0.0, 1.0]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "linear"}, "method"),
        ({"sigma": 0.0}, "sigma"),
        ({"sigma": 1e-50}, "sigma"),  # 0 in the precision of the scores
        ({"iou_threshold": 0.0}, "iou_threshold"),
        ({"min_score": -0.1}, "min_score"),
        ({"min_score": float("nan")}, "min_score"),
        ({"max_segments": 0}, "max_segments"),
        ({"voting_threshold": 1.5, "multiclass": False}, "voting_threshold"),
        ({"voting_threshold": 0.7}, "class-agnostic"),
    ],
)
def test_impossible_settings_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NmsConfig(**options)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ((0.0, 1.0, float("nan"), 0), "row 1 .* not finite"),
        ((0.0, float("inf"), 0.5, 0), "row 1 .* not finite"),
        ((2.0, 1.0, 0.5, 0), "row 1: .* ends before it starts"),
    ],
)
def test_bad_rows_are_named(row: tuple[float, float, float, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run([(0.0, 1.0, 0.5, 0), row])


def test_shapes_must_match() -> None:
    segments, scores, labels = arrays([(0.0, 1.0, 0.5, 0), (0.0, 1.0, 0.5, 0)])
    with pytest.raises(ValueError, match=r"expected segments \[N, 2\]"):
        suppress(segments, scores[:1], labels, NmsConfig())
    with pytest.raises(ValueError, match=r"expected segments \[N, 2\]"):
        suppress(segments.T[:1], scores, labels, NmsConfig())
