"""The mapping of time between the two directions; all other modules use this one for it.

Reversed input is the same frames in opposite order, so time t of a window becomes R − t, where R is
the distance in feature steps from the first valid frame to the last one. Segments swap their ends.
"""

from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from extract.settings.sampling import Pairing

Array = TypeVar("Array", bound=NDArray[np.generic])


def reflection(first_frame: float, last_frame: float, frames_per_step: float) -> float:
    """Return R in feature steps, so that t' = R − t.

    Strided windows of S samples, f to a step, give (S − 1) / f; a whole video of N frames resized
    to L steps gives L·(N − 1) / N.
    """
    return (last_frame - first_frame) / frames_per_step


def reverse_segments(segments: Array, reflection: float) -> Array:
    """Map segments [G, 2] (start, end) to the other direction: [R − end, R − start].

    The mapping is its own inverse. Unit: whatever `reflection` is given in.
    """
    return reflection - segments[:, ::-1]  # type: ignore[operator]


def reverse_seconds(start_s: float, end_s: float, frames: int, fps: float) -> tuple[float, float]:
    """Map an annotation to the reversed video of `frames` frames, whose last is at time 0."""
    last = (frames - 1) / fps
    return last - end_s, last - start_s


def reverse_valid(samples: Array, valid: int) -> Array:
    """Reverse the first `valid` entries of [N, …]; the padding after them repeats the new last one.

    Reversing within the padded length instead would move every action by the padding.
    """
    reversed_samples = samples[:valid][::-1]
    padding = np.repeat(reversed_samples[-1:], len(samples) - valid, axis=0)
    return np.concatenate((reversed_samples, padding))  # type: ignore[return-value]


def pair_points(
    reflection: Tensor, stride: float, points: Tensor, pairing: Pairing
) -> tuple[Tensor, Tensor]:
    """Return which points of one level are paired: i of one direction, j of the other.

    Both are at multiples of the stride in their own time, so j is at R − j·stride in the time of i.
    The result is the same for either direction.

    Args:
        reflection: R of every window in feature steps, [B].
        stride: of the level, in feature steps.
        points: number of its valid points, [B].

    Returns:
        The sum i + j of every pair, int64 [B], and by how much j is later than i, in strides [B].
    """
    total = points - 1
    if pairing == "nearest":
        # Of two that are equally near, the one with which every point has a partner.
        total = torch.ceil(reflection / stride - 0.5).long()
    offset = reflection / stride - total
    return total, torch.zeros_like(offset) if pairing == "uncorrected" else offset


def find_partners(total: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Return each point's partner [B, N] and whether it has one [B, N]; the nearest if not.

    Args:
        total: i + j of every pair, [B]; `valid`: bool [B, N], the valid ones first.
    """
    points = torch.arange(valid.shape[-1], device=total.device)
    exact = total[:, None] - points
    partner = exact.clamp(min=0).minimum(valid.sum(-1, keepdim=True) - 1)
    return partner, valid & (exact == partner)


def take_partners(x: Tensor, partner: Tensor) -> Tensor:
    """Return the values of every point's partner: x [B, C, N] gathered by partner [B, N]."""
    return x.gather(-1, partner.unsqueeze(1).expand_as(x))


def reverse_distances(distances: Tensor, offset: Tensor) -> Tensor:
    """Map distances [B, 2, N] (to start, to end) of partners to the points that they belong to.

    They swap roles and are shifted by the points' offset; they may become negative.

    Args:
        offset: in the unit of the distances, [B].
    """
    start, end = distances.unbind(1)
    moved = offset[:, None]
    return torch.stack([end - moved, start + moved], 1)
