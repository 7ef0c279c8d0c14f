"""Classification and boundary losses, and the number they are divided by.

Sums and counts stay on the device. An update counts its positives over all its windows, those of
other processes and of later micro-batches too, before the forward passes, and divides
all their losses by the running average of that count. Gradients are averaged over processes
afterwards, which the factor undoes:

    count = sum(positive_points(targets, valid).sum() for every micro-batch)
    normaliser.update(accelerator.reduce(count.float(), "sum"))
    weight = accelerator.num_processes / normaliser.value
    total = (losses.classification + losses.regression) * weight
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from train.modeling.actionformer import HeadOutput
from train.modeling.points import Targets

EPSILON = 1e-7  # keeps the DIoU of two empty segments finite


class Losses(NamedTuple):
    """Sums over the points of a batch, float32 scalars.

    Attributes:
        classification: focal loss over valid points and classes.
        regression: DIoU loss over positive points.
    """

    classification: Tensor
    regression: Tensor


def sigmoid_focal_loss(
    logits: Tensor, targets: Tensor, alpha: float = 0.25, gamma: float = 2.0
) -> Tensor:
    """Return the focal loss of every element (Lin et al., ICCV 2017, eq. 5), float32.

    Args:
        logits: scores before the sigmoid.
        targets: 1 or 0, same shape; or between, where labels are smoothed.
        alpha: weight of the ones; the zeros weigh 1 - alpha.
        gamma: how fast the weight of well classified elements falls.
    """
    logits, targets = logits.float(), targets.float()
    cross_entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    p = torch.sigmoid(logits)
    # 1 - p_t with p_t = p·t + (1 - p)(1 - t), in a form that keeps small p exact. Of a smoothed
    # target this is not |p - t|: the published loss is least at a probability below it.
    error = p * (1 - targets) + (1 - p) * targets
    weight = alpha * targets + (1 - alpha) * (1 - targets)
    return weight * error**gamma * cross_entropy


def diou_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """Return 1 - DIoU of pairs of segments (Zheng et al., AAAI 2020, eq. 7, in one dimension).

    Args:
        predicted: distances from a point back to the start and on to the end, [..., 2]; fused ones
            may be negative, when the segment does not contain the point.
        target: the same for the truth, seen from the same point, in the same unit, >= 0.

    Returns:
        Tensor: [...] float32, 0 where equal, below 2 where far apart; more where an end lies before
            its start.
    """
    predicted, target = predicted.float(), target.float()
    overlap = torch.minimum(predicted, target).sum(-1).clamp(min=0)
    union = predicted.sum(-1) + target.sum(-1) - overlap
    enclosing = torch.maximum(predicted, target).sum(-1)
    start_gap, end_gap = (predicted - target).unbind(-1)
    center_gap = (end_gap - start_gap) / 2
    iou = overlap / union.clamp(min=EPSILON)
    return 1 - iou + center_gap**2 / (enclosing**2).clamp(min=EPSILON)


def positive_points(targets: Targets, valid: Tensor) -> Tensor:
    """Return which of the `valid` points [B, P] have a segment to predict."""
    return valid & (targets.classes > 0).any(-1)


def detection_losses(
    output: HeadOutput, targets: Targets, smoothing: float = 0.0, boundary_weight: float = 1.0
) -> Losses:
    """Return the losses for `targets` [B, P, K] and [B, P, 2] (ActionFormer, section 3.4).

    Args:
        smoothing: share of the classes' targets that is spread over all K classes and "nothing".
    """
    logits, distances, valid = output.flat()
    positive = positive_points(targets, valid)
    # Values at padding must not reach a gradient either, and 0 · infinity would.
    logits = logits.where(valid.unsqueeze(-1), 0.0)
    classes = targets.classes * (1 - smoothing) + smoothing / (logits.shape[-1] + 1)
    focal = sigmoid_focal_loss(logits, classes).sum(-1)
    # Points without a segment get a perfect prediction before the loss and weight 0 behind it:
    # whatever they predict, even infinity, reaches neither the sum nor a gradient.
    predicted = distances.where(positive.unsqueeze(-1), targets.distances)
    diou = diou_loss(predicted, targets.distances)
    return Losses(
        classification=focal.where(valid, 0.0).sum(),
        regression=boundary_weight * diou.where(positive, 0.0).sum(),
    )


def distillation_losses(student: HeadOutput, teacher: HeadOutput) -> Losses:
    """Return the losses of one detector's predictions where another's stand for the truth.

    Scores are learned with the quality focal loss (Li et al., NeurIPS 2020, eq. 3), which takes any
    score as its target; segments as far as the teacher is sure that there is one.

    Args:
        student, teacher: predictions at the same points.
    """
    logits, distances, valid = student.flat()
    their_logits, their_distances, _ = teacher.flat()
    # As in `detection_losses`: what stands at padding reaches neither a sum nor a gradient.
    logits = logits.where(valid.unsqueeze(-1), 0.0).float()
    scores = torch.sigmoid(their_logits.where(valid.unsqueeze(-1), 0.0).float())
    entropy = F.binary_cross_entropy_with_logits(logits, scores, reduction="none")
    quality = ((scores - torch.sigmoid(logits)) ** 2 * entropy).sum(-1)
    segments = their_distances.float().clamp(min=0)
    diou = diou_loss(distances.where(valid.unsqueeze(-1), segments), segments)
    return Losses(
        classification=quality.where(valid, 0.0).sum(),
        regression=(scores.amax(-1) * diou).where(valid, 0.0).sum(),
    )


class PositivesAverage(nn.Module):
    """Exponential average of the number of positives, which divides the losses in training.

    A batch without positives counts as one, so the average cannot fall below 1. The average is a
    buffer and is saved with the model.

    Args:
        outputs: how many outputs are learned, each with a count of its own.
    """

    loss_normalizer: Tensor

    def __init__(self, outputs: int = 1, start: float = 100.0, momentum: float = 0.9) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("loss_normalizer", torch.full((outputs,), start))

    @torch.no_grad()
    def update(self, positives: Tensor) -> None:
        """Add the numbers of positives [outputs] of an update, the same on every process."""
        self.loss_normalizer.lerp_(positives.clamp(min=1), 1 - self.momentum)

    @property
    def value(self) -> Tensor:
        """The averages now [outputs]; later updates do not change the returned tensor."""
        return self.loss_normalizer.clone()
