"""Points of the pyramid, the truth each of them learns, and the segments they predict.

Source: ActionFormer (Zhang et al., ECCV 2022), section 3.3. Times are in feature steps, distances
in strides of the point they belong to. Nothing here waits for the device.
"""

from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

CENTER_RADIUS = 1.5  # strides around a segment's centre within which points learn it
SAME_LENGTH = 1e-3  # feature steps by which segments may differ and still share a point
OPEN_END = 10_000.0  # feature steps; "no limit" in the last regression range


class Points(NamedTuple):
    """All points of a pyramid, level by level, each field [P].

    Attributes:
        time: of the point, in feature steps.
        stride: distance between the points of its level, in feature steps.
        low: shortest distance to the farther boundary that it learns, in feature steps.
        high: longest such distance.
    """

    time: Tensor
    stride: Tensor
    low: Tensor
    high: Tensor


class Targets(NamedTuple):
    """The predictions that every point should make.

    Attributes:
        classes: 1 for the classes of its segment, else 0: [..., P, K]; all 0 without a segment.
        distances: to the start and to the end, in strides, [..., P, 2]; 0 without a segment.
    """

    classes: Tensor
    distances: Tensor


def regression_ranges(levels: int, overlapping: bool = False) -> tuple[tuple[float, float], ...]:
    """Return per level the distances to the farther boundary it learns, in feature steps.

    [0, 4], [4, 8], [8, 16], … doubling, both ends included; the last level is open. Raises
    ValueError without a level.

    Args:
        overlapping: [0, 4], [2, 8], [4, 16], … so that two levels learn most actions.
    """
    if levels < 1:
        raise ValueError(f"a pyramid needs at least 1 level, not {levels}")
    edges = (0.0, *(2.0 ** (level + 2) for level in range(levels - 1)), OPEN_END)
    share = 0.5 if overlapping else 1.0
    return tuple((low * share, high) for low, high in pairwise(edges))


@lru_cache(maxsize=32)
def pyramid_points(
    length: int, levels: int, device: torch.device, overlapping: bool = False
) -> Points:
    """Return the points of windows of `length` feature steps: level l has one every 2^l steps.

    The result is shared between callers: read it only. See `regression_ranges` for `overlapping`.
    """
    # A tensor born under inference mode could never take part in training later.
    with torch.inference_mode(False):
        per_level = []
        for level, (low, high) in enumerate(regression_ranges(levels, overlapping)):
            time = torch.arange(0, length, 2**level, dtype=torch.float32)
            rest = torch.tensor([2.0**level, low, high]).expand(len(time), 3)
            per_level.append(torch.cat([time[:, None], rest], 1))
        return Points(*torch.cat(per_level).to(device).T.contiguous().unbind())


def pyramid_mask(mask: Tensor, levels: int) -> Tensor:
    """Return which points of windows with mask [B, T] lie inside their video: [B, P].

    Level l has a point every 2^l feature steps, which is valid where its step is.
    """
    return torch.cat([mask[:, :: 2**level] for level in range(levels)], -1)


def decode_segments(points: Points, distances: Tensor) -> Tensor:
    """Turn distances [..., P, 2] in strides into segments [..., P, 2] in feature steps, float32."""
    reach = distances.float() * points.stride[:, None]
    return torch.stack([points.time - reach[..., 0], points.time + reach[..., 1]], -1)


@torch.no_grad()
def assign(
    points: Points, segments: Tensor, labels: Tensor, classes: int, every_class: bool = False
) -> Targets:
    """Assign every point of a window the segment that it should predict, if any.

    A point learns a segment when it lies strictly inside, within 1.5 strides of the centre, and
    its distance to the farther boundary lies in the range of its level. Of several the shortest
    wins; lengths within 1e-3 of it add their classes.

    Args:
        points: [P] each.
        segments: start and end in feature steps, [..., G, 2]; NaN rows are ignored, G may be 0.
        labels: class indices in [0, classes), [..., G].
        classes: number of classes K.
        every_class: all segments that a point may learn give it their classes, not only the
            shortest, whose boundaries it learns.

    Returns:
        Targets: float32, classes [..., P, K] and distances [..., P, 2].
    """
    # One segment that matches nothing, so that there is always a minimum to take.
    segments = F.pad(segments.float(), (0, 0, 0, 1), value=torch.nan)
    labels = F.pad(labels, (0, 1))
    start, end = segments.unsqueeze(-3).unbind(-1)  # [..., 1, G]
    time, stride, low, high = (field[:, None] for field in points)  # [P, 1]

    center, radius = (start + end) / 2, CENTER_RADIUS * stride
    inside = (time > torch.maximum(start, center - radius)) & (
        time < torch.minimum(end, center + radius)
    )
    left, right = time - start, end - time  # [..., P, G]
    farther = torch.maximum(left, right)
    eligible = inside & (farther >= low) & (farther <= high)

    length = (end - start).where(eligible, torch.inf)
    shortest, chosen = length.min(-1, keepdim=True)
    shared = eligible if every_class else eligible & (length <= shortest + SAME_LENGTH)
    one_hot = labels.unsqueeze(-1) == torch.arange(classes, device=labels.device)
    multi_hot = (shared.float() @ one_hot.float()).clamp(max=1).float()

    distances = torch.cat([left.gather(-1, chosen), right.gather(-1, chosen)], -1) / stride
    return Targets(multi_hot, distances.where(shortest < torch.inf, 0.0))


def assign_batch(
    points: Points,
    segments: Sequence[Tensor],
    labels: Sequence[Tensor],
    classes: int,
    every_class: bool = False,
) -> Targets:
    """Assign the truth of B windows at once: segments [G_b, 2] and labels [G_b] of each.

    See `assign`; the results are [B, P, K] and [B, P, 2].
    """
    return assign(points, *pad_truth(segments, labels), classes, every_class)


def pad_truth(segments: Sequence[Tensor], labels: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return the truth of B windows in two tensors: segments [B, G, 2] and labels [B, G].

    Args:
        segments: [G_b, 2] of each; G is the largest G_b, and rows that are missing become NaN.
        labels: [G_b] of each.
    """
    return (
        pad_sequence([s.float() for s in segments], batch_first=True, padding_value=torch.nan),
        pad_sequence(list(labels), batch_first=True),
    )
