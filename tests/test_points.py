"""Pyramid points and targets against reference numbers and a slow loop."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from tests.conftest import GOLDEN
from train.modeling.points import (
    Targets,
    assign,
    assign_batch,
    decode_segments,
    pyramid_points,
    regression_ranges,
)

CPU = torch.device("cpu")
CLASSES = 4

# Quarter steps: exact in float32, and boundaries, centres and ranges are met exactly quite often.
quarters = st.integers(-20, 160).map(lambda n: n / 4)
actions = st.tuples(quarters, st.integers(0, 120).map(lambda n: n / 4), st.integers(0, CLASSES - 1))
truths = st.lists(actions, max_size=5)


def tensors(truth: list[tuple[float, float, int]]) -> tuple[Tensor, Tensor]:
    segments = torch.tensor([[start, start + length] for start, length, _ in truth])
    return segments.reshape(-1, 2), torch.tensor([label for *_, label in truth], dtype=torch.long)


def slow_assignment(
    length: int,
    levels: int,
    truth: list[tuple[float, float, int]],
    overlapping: bool = False,
    every_class: bool = False,
) -> tuple[list[set[int]], list[tuple[float, float]]]:
    """Classes and distances of every point, written down as the paper says it.

    With `overlapping`, a level's range begins at half of where the one below it ends; with
    `every_class`, all actions that a point may learn give it their classes.
    """
    classes: list[set[int]] = []
    distances: list[tuple[float, float]] = []
    for level, (low, high) in enumerate(regression_ranges(levels)):
        stride = 2**level
        low = low / 2 if overlapping else low
        for time in range(0, length, stride):
            best: list[tuple[float, float, float, int]] = []
            for start, size, label in truth:
                end, center = start + size, start + size / 2
                farther = max(time - start, end - time)
                if (
                    start < time < end
                    and abs(time - center) < 1.5 * stride
                    and low <= farther <= high
                ):
                    best.append((size, time - start, end - time, label))
            shortest = min((size for size, *_ in best), default=0.0)
            limit = 1e9 if every_class else shortest + 1e-3
            classes.append({label for size, *_, label in best if size <= limit})
            first = next((item for item in best if item[0] == shortest), None)
            distances.append((first[1] / stride, first[2] / stride) if first else (0.0, 0.0))
    return classes, distances


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    return load_file(GOLDEN / "activations.safetensors")


def test_targets_match_reference(golden: dict[str, Tensor]) -> None:
    targets = assign_batch(
        pyramid_points(64, 4, CPU),
        [golden["gt_segments_0"], golden["gt_segments_1"]],
        [golden["gt_labels_0"], golden["gt_labels_1"]],
        classes=5,
    )
    for window in range(2):
        classes, distances = golden[f"target_cls_{window}"], golden[f"target_reg_{window}"]
        positive = classes.any(-1)
        assert torch.equal(targets.classes[window], classes)
        assert torch.equal(targets.distances[window, positive], distances[positive])
        assert not targets.distances[window, ~positive].any()


def test_published_regression_ranges() -> None:
    published = ((0, 4), (4, 8), (8, 16), (16, 32), (32, 64), (64, 10000))
    assert regression_ranges(6) == published
    assert regression_ranges(1) == ((0, 10000),)
    # Of Ego4D and EPIC-Kitchens.
    overlapping = ((0, 4), (2, 8), (4, 16), (8, 32), (16, 64), (32, 10000))
    assert regression_ranges(6, overlapping=True) == overlapping
    assert regression_ranges(1, overlapping=True) == ((0, 10000),)
    with pytest.raises(ValueError, match="at least 1 level"):
        regression_ranges(0)


@pytest.mark.parametrize("length", [768, 96, 50])
def test_points_stand_on_their_strides(length: int) -> None:
    points = pyramid_points(length, 6, CPU)
    begin = 0
    for level, (low, high) in enumerate(regression_ranges(6)):
        stride = 2**level
        times = torch.arange(0.0, length, stride)
        own = slice(begin, begin + len(times))
        assert torch.equal(points.time[own], times)
        assert (points.stride[own] == stride).all()
        assert (points.low[own] == low).all() and (points.high[own] == high).all()
        begin += len(times)
    assert begin == len(points.time)


def test_points_are_built_once_and_fit_for_training() -> None:
    with torch.inference_mode():
        points = pyramid_points(24, 3, CPU)
    assert pyramid_points(24, 3, CPU) is points
    distances = torch.ones(len(points.time), 2, requires_grad=True)
    decode_segments(points, distances).diff().sum().backward()
    assert distances.grad is not None
    assert torch.equal(distances.grad, points.stride[:, None].expand(-1, 2))


@settings(deadline=None, max_examples=300)
@given(truth=truths, overlapping=st.booleans(), every_class=st.booleans())
def test_assignment_equals_the_slow_loop(
    truth: list[tuple[float, float, int]], overlapping: bool, every_class: bool
) -> None:
    points = pyramid_points(40, 4, CPU, overlapping)
    targets = assign(points, *tensors(truth), CLASSES, every_class)
    classes, distances = slow_assignment(40, 4, truth, overlapping, every_class)
    found = [set(row.nonzero().flatten().tolist()) for row in targets.classes]
    assert found == classes
    assert torch.equal(targets.distances, torch.tensor(distances))


@settings(deadline=None, max_examples=50)
@given(batch=st.lists(truths, min_size=1, max_size=4))
def test_batch_equals_its_windows(batch: list[list[tuple[float, float, int]]]) -> None:
    points = pyramid_points(40, 4, CPU)
    segments, labels = zip(*(tensors(truth) for truth in batch), strict=True)
    together = assign_batch(points, segments, labels, CLASSES)
    assert together.classes.shape == (len(batch), len(points.time), CLASSES)
    for window in range(len(batch)):
        alone = assign(points, segments[window], labels[window], CLASSES)
        assert torch.equal(together.classes[window], alone.classes)
        assert torch.equal(together.distances[window], alone.distances)


@settings(deadline=None, max_examples=50)
@given(truth=truths)
def test_positive_targets_decode_to_their_segment(truth: list[tuple[float, float, int]]) -> None:
    points = pyramid_points(40, 4, CPU)
    segments, labels = tensors(truth)
    targets = assign(points, segments, labels, CLASSES)
    decoded = decode_segments(points, targets.distances)[targets.classes.any(-1)]
    known = {tuple(segment) for segment in segments.tolist()}
    assert {tuple(segment) for segment in decoded.tolist()} <= known


def one(segments: list[list[float]], labels: list[int]) -> Targets:
    return assign(pyramid_points(32, 3, CPU), torch.tensor(segments), torch.tensor(labels), CLASSES)


def test_windows_without_actions_have_empty_targets() -> None:
    for targets in (
        assign(
            pyramid_points(32, 3, CPU), torch.zeros(0, 2), torch.zeros(0, dtype=torch.long), CLASSES
        ),
        one([[5.0, 5.0]], [1]),  # an action without length
    ):
        assert targets.classes.shape == (56, CLASSES) and targets.distances.shape == (56, 2)
        assert not targets.classes.any() and not targets.distances.any()


def test_shortest_segment_wins_and_near_ties_share() -> None:
    far = one([[8.0, 13.0], [9.0, 12.0]], [0, 1])
    assert far.classes[10].tolist() == [0, 1, 0, 0]
    assert far.distances[10].tolist() == [1.0, 2.0]
    near = one([[8.0, 12.0], [8.0, 12.0005], [8.0, 12.002]], [3, 1, 2])
    assert near.classes[10].tolist() == [0, 1, 0, 1]
    twice = one([[8.0, 12.0], [8.0, 12.0]], [2, 2])
    assert twice.classes[10].tolist() == [0, 0, 1, 0]


def test_every_action_that_covers_a_point_may_give_its_class() -> None:
    points = pyramid_points(32, 3, CPU)
    segments = torch.tensor([[8.0, 13.0], [9.0, 12.0], [9.5, 11.5]])
    targets = assign_batch(points, [segments], [torch.tensor([0, 1, 3])], CLASSES, every_class=True)
    assert targets.classes[0, 10].tolist() == [1, 1, 0, 1]
    assert targets.distances[0, 10].tolist() == [0.5, 1.5]  # the shortest's


def test_only_the_centre_learns_and_ranges_include_their_ends() -> None:
    targets = one([[6.0, 14.0]], [0])  # centre 10; the farther boundary is exactly 4 away there
    positive = targets.classes[:, 0]
    assert positive[:32].nonzero().flatten().tolist() == [10]
    assert positive[32:48].nonzero().flatten().tolist() == [4, 5, 6]  # times 8, 10 and 12


def test_targets_stay_float32_under_autocast() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        targets = one([[3.0, 9.3]], [0])
    assert targets.classes.dtype == targets.distances.dtype == torch.float32
    assert torch.equal(targets.distances, one([[3.0, 9.3]], [0]).distances)


def test_decode_reads_distances_in_strides() -> None:
    points = pyramid_points(8, 2, CPU)
    distances = torch.tensor([1.0, 2.0]).expand(3, 12, 2)
    segments = decode_segments(points, distances)
    assert segments.shape == (3, 12, 2)
    assert segments[0, 5].tolist() == [4.0, 7.0]  # level 0, time 5
    assert segments[2, 9].tolist() == [0.0, 6.0]  # level 1, time 2, stride 2
    assert decode_segments(points, distances.half()).dtype == torch.float32
