"""Losses against reference numbers and formulas written out by hand."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from tests.conftest import GOLDEN
from train.modeling.actionformer import HeadOutput
from train.modeling.losses import (
    PositivesAverage,
    detection_losses,
    diou_loss,
    distillation_losses,
    positive_points,
    sigmoid_focal_loss,
)
from train.modeling.points import Targets, assign_batch, pyramid_points

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    return load_file(GOLDEN / "activations.safetensors")


def golden_case(golden: dict[str, Tensor]) -> tuple[HeadOutput, Targets]:
    output = HeadOutput(
        logits=tuple(golden[f"cls_logits_{level}"] for level in range(4)),
        distances=tuple(golden[f"reg_{level}"] for level in range(4)),
        masks=tuple(golden[f"pyramid_mask_{level}"] for level in range(4)),
    )
    targets = assign_batch(
        pyramid_points(64, 4, CPU),
        [golden["gt_segments_0"], golden["gt_segments_1"]],
        [golden["gt_labels_0"], golden["gt_labels_1"]],
        classes=5,
    )
    return output, targets


def case(
    distances: Tensor, truth: Tensor, labelled: list[bool], valid: list[bool]
) -> tuple[HeadOutput, Targets]:
    """One window, one level, one class; distances and truth [P, 2]."""
    logits = torch.zeros(1, 1, len(truth), requires_grad=True)
    output = HeadOutput((logits,), (distances.T[None],), (torch.tensor([valid]),))
    classes = torch.tensor(labelled, dtype=torch.float32)
    return output, Targets(classes[None, :, None], truth[None])


def test_losses_match_reference(golden: dict[str, Tensor]) -> None:
    output, targets = golden_case(golden)
    losses = detection_losses(output, targets)
    normaliser = positive_points(targets, torch.cat(output.masks, -1)).sum().clamp(min=1)
    truth = torch.stack([golden["target_cls_0"], golden["target_cls_1"]])
    assert normaliser == (truth.any(-1) & torch.cat(output.masks, -1)).sum()
    torch.testing.assert_close(
        losses.classification / normaliser, golden["cls_loss"].squeeze(), rtol=1e-5, atol=0
    )
    torch.testing.assert_close(
        losses.regression / normaliser, golden["reg_loss"].squeeze(), rtol=1e-5, atol=0
    )


@given(logit=st.floats(-20, 20), target=st.booleans())
def test_focal_loss_equals_its_formula(logit: float, target: bool) -> None:
    p = 1 / (1 + math.exp(-logit))
    expected = -0.25 * (1 - p) ** 2 * math.log(p)
    if not target:
        expected = -0.75 * p**2 * math.log1p(-p) if p < 1 else 0.75 * logit
    actual = sigmoid_focal_loss(torch.tensor(logit), torch.tensor(float(target)))
    assert float(actual) == pytest.approx(expected, rel=1e-4, abs=1e-12)


@given(logit=st.floats(-12, 12), target=st.floats(0, 1))
def test_focal_loss_of_soft_targets_equals_its_formula(logit: float, target: float) -> None:
    """(1 - p_t)² with p_t = p·t + (1 - p)(1 - t), as the published code has it; not |p - t|²."""
    p = 1 / (1 + math.exp(-logit))
    p_t = p * target + (1 - p) * (1 - target)
    entropy = -target * math.log(p) - (1 - target) * math.log(1 - p)
    expected = (0.25 * target + 0.75 * (1 - target)) * (1 - p_t) ** 2 * entropy
    actual = sigmoid_focal_loss(torch.tensor(logit), torch.tensor(target))
    assert float(actual) == pytest.approx(expected, rel=1e-3, abs=1e-12)


def test_a_smoothed_background_is_learned_to_be_less_than_its_target() -> None:
    """Where a target is 0.05 (one class, smoothing 0.1), the loss is least at p = 0.0051."""
    logits = torch.linspace(-9, 0, 9001)
    loss = sigmoid_focal_loss(logits, torch.full_like(logits, 0.05))
    assert float(logits[loss.argmin()].sigmoid()) == pytest.approx(0.0051, abs=5e-5)


@pytest.mark.parametrize(("classes", "low"), [(1, 0.05), (7, 0.0125)])
def test_smoothing_shares_out_over_all_classes_and_nothing(classes: int, low: float) -> None:
    """Two points of a window, the second one background; in float64 by the formula."""
    logits = torch.linspace(-3, 2, 2 * classes).reshape(1, classes, 2)
    truth = torch.zeros(1, 2, classes)
    truth[0, 0, 0] = 1
    output = HeadOutput((logits,), (torch.ones(1, 2, 2),), (torch.ones(1, 2, dtype=torch.bool),))
    losses = detection_losses(output, Targets(truth, torch.ones(1, 2, 2)), smoothing=0.1)
    p = logits.double().sigmoid().mT
    t = torch.where(truth > 0, 0.9 + low, low).double()
    p_t = p * t + (1 - p) * (1 - t)
    entropy = -t * p.log() - (1 - t) * (1 - p).log()
    expected = ((0.25 * t + 0.75 * (1 - t)) * (1 - p_t) ** 2 * entropy).sum()
    torch.testing.assert_close(losses.classification.double(), expected, rtol=1e-6, atol=0)


def test_focal_loss_without_focus_is_weighted_cross_entropy() -> None:
    logits, targets = torch.tensor([0.0, 3.0, 200.0]), torch.tensor([1.0, 0.0, 0.0])
    loss = sigmoid_focal_loss(logits, targets, alpha=0.5, gamma=0.0)
    torch.testing.assert_close(2 * loss, torch.tensor([math.log(2), 3.0485873, 200.0]))


@pytest.mark.parametrize(
    ("predicted", "target", "expected"),
    [
        ((2.0, 3.0), (2.0, 3.0), 0.0),
        ((1.0, 1.0), (2.0, 2.0), 0.5),  # same centre: IoU alone
        ((1.0, 3.0), (1.0, 1.0), 0.5 + (1 / 4) ** 2),
        ((0.0, 2.0), (2.0, 0.0), 1.25),  # they only touch: [0, 2] and [-2, 0]
        ((0.0, 0.0), (1.0, 3.0), 1 + (1 / 4) ** 2),  # ReLU gave an empty segment
    ],
)
def test_diou_of_hand_cases(
    predicted: tuple[float, float], target: tuple[float, float], expected: float
) -> None:
    a, b = torch.tensor(predicted), torch.tensor(target)
    assert float(diou_loss(a, b)) == pytest.approx(expected)
    assert float(diou_loss(b, a)) == pytest.approx(expected)


sides = st.floats(0.0625, 100, width=32)


@given(sides, sides, sides, sides)
def test_diou_equals_its_formula_on_segments(a: float, b: float, c: float, d: float) -> None:
    (s1, e1), (s2, e2) = (-a, b), (-c, d)
    overlap = max(0.0, min(e1, e2) - max(s1, s2))
    iou = overlap / ((e1 - s1) + (e2 - s2) - overlap)
    gap = (s1 + e1 - s2 - e2) / 2
    expected = 1 - iou + (gap / (max(e1, e2) - min(s1, s2))) ** 2
    loss = float(diou_loss(torch.tensor([a, b]), torch.tensor([c, d])))
    assert loss == pytest.approx(expected, abs=1e-5)
    assert -1e-6 <= loss <= 1.25 + 1e-6


def test_gradient_moves_the_prediction_to_the_truth() -> None:
    predicted = torch.tensor([[1.0, 6.0]], requires_grad=True)
    diou_loss(predicted, torch.tensor([[3.0, 4.0]])).sum().backward()
    assert predicted.grad is not None
    assert predicted.grad[0, 0] < 0 < predicted.grad[0, 1]


def test_only_valid_points_with_a_segment_count() -> None:
    truth = torch.tensor([[1.0, 1.0], [1.0, 1.0], [0.0, 0.0]])
    predicted = torch.tensor([[2.0, 2.0], [9.0, 9.0], [9.0, 9.0]])
    output, targets = case(predicted, truth, [True, True, False], [True, False, True])
    losses = detection_losses(output, targets)
    assert positive_points(targets, output.masks[0]).tolist() == [[True, False, False]]
    assert float(losses.regression.detach()) == pytest.approx(0.5)
    # At logit 0 a one costs .25/4·log 2 and a zero .75/4·log 2; the padding costs nothing.
    assert float(losses.classification.detach()) == pytest.approx(math.log(2) / 4)


def test_wild_boundaries_of_other_points_reach_neither_loss_nor_gradient() -> None:
    predicted = torch.tensor([[2.0, 2.0], [math.inf, 1.0], [math.nan, 1.0]], requires_grad=True)
    truth = torch.tensor([[1.0, 1.0], [0.0, 0.0], [1.0, 1.0]])
    output, targets = case(predicted, truth, [True, False, True], [True, True, False])
    losses = detection_losses(output, targets)
    losses.regression.backward()
    assert float(losses.regression.detach()) == pytest.approx(0.5)
    assert predicted.grad is not None
    assert predicted.grad[0].all() and not predicted.grad[1:].any()


def test_a_batch_without_positives_still_reaches_every_prediction() -> None:
    predicted = torch.ones(2, 2, requires_grad=True)
    output, targets = case(predicted, torch.zeros(2, 2), [False, False], [True, True])
    losses = detection_losses(output, targets)
    (losses.classification + losses.regression).backward()
    assert losses.regression == 0
    assert predicted.grad is not None and not predicted.grad.any()
    assert output.logits[0].grad is not None and output.logits[0].grad.all()


def test_half_precision_predictions_give_float32_sums(golden: dict[str, Tensor]) -> None:
    output, targets = golden_case(golden)
    halved = HeadOutput(
        tuple(x.half() for x in output.logits),
        tuple(x.half() for x in output.distances),
        output.masks,
    )
    exact, rough = detection_losses(output, targets), detection_losses(halved, targets)
    assert rough.classification.dtype == rough.regression.dtype == torch.float32
    torch.testing.assert_close(rough.regression, exact.regression, rtol=1e-2, atol=0)


@settings(max_examples=30)
@given(counts=st.lists(st.integers(0, 2000), max_size=8))
def test_average_follows_the_counts(counts: list[int]) -> None:
    average, expected = PositivesAverage(), 100.0
    for count in counts:
        average.update(torch.tensor(float(count)))
        expected = 0.9 * expected + 0.1 * max(count, 1)
    assert float(average.value) == pytest.approx(expected, rel=1e-5)


def test_average_is_saved_and_restored() -> None:
    average, other = PositivesAverage(), PositivesAverage()
    average.update(torch.tensor(30.0))
    assert list(average.state_dict()) == ["loss_normalizer"]
    assert list(average.parameters()) == []
    other.load_state_dict(average.state_dict())
    assert torch.equal(other.value, average.value)
    assert float(other.value) == pytest.approx(93.0)


def test_updates_leave_earlier_graphs_alone() -> None:
    average, x = PositivesAverage(), torch.tensor(50.0, requires_grad=True)
    loss = x / average.value
    average.update(torch.tensor(0.0))
    loss.backward()
    assert x.grad == pytest.approx(0.01)


def answers(seed: int, valid: list[list[bool]]) -> HeadOutput:
    """Predictions of two windows at two levels of 4 and 2 points, for 3 classes."""
    drawn = torch.Generator().manual_seed(seed)
    masks = [torch.tensor([row[:n] for row in valid]) for n in (4, 2)]
    logits = tuple(2 * torch.randn(2, 3, n, generator=drawn) for n in (4, 2))
    distances = tuple(3 * torch.rand(2, 2, n, generator=drawn) for n in (4, 2))
    return HeadOutput(logits, distances, tuple(masks))


def test_a_students_losses_are_the_quality_focal_loss_and_weighted_diou() -> None:
    """Li et al., NeurIPS 2020, eq. 3 with β = 2; in float64, point by point."""
    valid = [[True, True, False, False], [True, True, True, True]]
    student, teacher = answers(0, valid), answers(1, valid)
    classes = boundaries = 0.0
    for level, mask in enumerate(student.masks):
        for window, point in mask.nonzero().tolist():
            x = student.logits[level][window, :, point].double()
            y = torch.sigmoid(teacher.logits[level][window, :, point].double())
            p = torch.sigmoid(x)
            entropy = -(y * torch.log(p) + (1 - y) * torch.log(1 - p))
            classes += float(((y - p) ** 2 * entropy).sum())
            ours, theirs = (o.distances[level][window, :, point] for o in (student, teacher))
            boundaries += float(y.max() * diou_loss(ours, theirs))
    losses = distillation_losses(student, teacher)
    assert float(losses.classification) == pytest.approx(classes, rel=1e-5)
    assert float(losses.regression) == pytest.approx(boundaries, rel=1e-5)


def test_a_student_that_answers_as_its_teacher_has_nothing_to_learn() -> None:
    valid = [[True] * 4, [True] * 4]
    teacher = answers(1, valid)
    logits = tuple(x.clone().requires_grad_() for x in teacher.logits)
    losses = distillation_losses(teacher._replace(logits=logits), teacher)
    assert losses.classification.item() == pytest.approx(0, abs=1e-6)
    assert losses.regression.item() == pytest.approx(0, abs=1e-5)
    losses.classification.backward()
    assert all(x.grad is not None and x.grad.abs().max() < 1e-6 for x in logits)


def test_neither_padding_nor_a_teachers_impossible_segments_reach_a_student() -> None:
    valid = [[True, False, False, False], [True, True, False, False]]
    student, teacher = answers(0, valid), answers(1, valid)
    expected = distillation_losses(student, teacher)
    logits = [x.clone() for x in student.logits]
    logits[0][0, :, 2], logits[0][0, 1, 3] = math.inf, math.nan
    found = distillation_losses(student._replace(logits=tuple(logits)), teacher)
    assert torch.equal(torch.stack(found), torch.stack(expected))
    # Fused distances may be negative, where the segment does not contain the point.
    distances = [x.clone() for x in teacher.distances]
    distances[0][0, :, 0] = torch.tensor([-1.0, 2.5])
    bent = distillation_losses(student, teacher._replace(distances=tuple(distances)))
    distances[0][0, :, 0] = torch.tensor([0.0, 2.5])
    clamped = distillation_losses(student, teacher._replace(distances=tuple(distances)))
    assert torch.equal(torch.stack(bent), torch.stack(clamped))
