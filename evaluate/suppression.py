"""The loops of suppression, compiled at their first call.

They are apart from `evaluate.nms` because numba takes most of a second to import, which a program
that suppresses nothing need not wait for. Compiled code is kept beside this file or, where nothing
can be written there, in the user's cache folder. The loops hold no lock of Python's: threads run
them side by side.
"""

import math
from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Indices = NDArray[np.int64]
F = TypeVar("F", bound=Callable[..., Any])

NOTHING, REMOVED = np.float32(0), np.float32(-np.inf)
# The public implementations lengthen every segment by this hair, and a tIoU that lies exactly on a
# threshold is decided by it.
HAIR = np.float32(1e-6)


def compiled(function: F) -> F:
    """Return a function as machine code, of the same arithmetic: nothing is fused or reordered."""
    try:
        return cast(F, numba.njit(cache=True, nogil=True)(function))
    except RuntimeError:  # nowhere can be written
        return cast(F, numba.njit(nogil=True)(function))


@compiled
def tiou(start: Any, end: Any, other_start: Any, other_end: Any, extra: Any) -> Any:
    """Return the temporal intersection over union of two segments, `extra` added to lengths."""
    inter = max(min(end, other_end) - max(start, other_start), NOTHING)
    union = (end - start + extra) + (other_end - other_start + extra) - inter
    return inter / union if union > NOTHING else NOTHING


@compiled
def goes_first(scores: Floats, row: int, other: int) -> bool:
    """Return whether a candidate goes before another; equal scores: the earlier row."""
    return scores[row] > scores[other] or (scores[row] == scores[other] and row < other)


@compiled
def sink(heap: Indices, size: int, scores: Floats, hole: int) -> None:
    """Let the candidate at a place of the heap sink until none below it goes before it."""
    row = heap[hole]
    while 2 * hole + 1 < size:
        child = 2 * hole + 1
        if child + 1 < size and goes_first(scores, heap[child + 1], heap[child]):
            child += 1
        if not goes_first(scores, heap[child], row):
            break
        heap[hole] = heap[child]
        hole = child
    heap[hole] = row


@compiled
def pick(
    starts: Floats,
    ends: Floats,
    scores: Floats,
    first: Indices,
    soft: bool,
    number: Any,
    min_score: Any,
    most: int,
) -> tuple[Indices, Floats]:
    """Return the rows [M] and final scores [M] of the survivors, best first.

    Candidates stand in a heap by what their score was when they were last looked at. Scores only
    fall, so whoever is on top has the best score of all as soon as the picks of its group since
    then are taken into account; most candidates never come to the top and cost nothing.

    Args:
        starts, ends, scores: of all candidates [N], group by group; scores are overwritten.
        first: where each group begins [groups].
        soft: whether an overlap lowers scores; else it removes.
        number: sigma, or the tIoU from which a candidate is removed; float32.
        min_score: candidates whose score is, or falls, below it are dropped; float32.
        most: how many may survive.
    """
    count = len(scores)
    group = np.zeros(count, np.int64)
    group[first[1:]] = 1
    group = np.cumsum(group)
    picks = np.zeros(len(first), np.int64)  # of each group
    # Their segments; each group's from where it begins.
    picked_starts, picked_ends = np.empty_like(starts), np.empty_like(ends)
    looked = np.zeros(count, np.int64)  # the picks of its group that a score takes into account
    heap = np.arange(count)
    for place in range(count // 2 - 1, -1, -1):
        sink(heap, count, scores, place)
    size = count
    kept = np.empty(min(most, count), np.int64)
    found = 0
    while size and found < len(kept):
        row = heap[0]
        of, score, start, end = group[row], scores[row], starts[row], ends[row]
        for place in range(first[of] + looked[row], first[of] + picks[of]):
            best_start, best_end = picked_starts[place], picked_ends[place]
            if best_start < end and best_end > start:  # others do not overlap
                overlap = tiou(best_start, best_end, start, end, HAIR)
                if soft:
                    score *= math.exp(-(overlap * overlap) / number)
                elif overlap >= number:
                    score = REMOVED
                if score < min_score:
                    break
        if score >= min_score and looked[row] < picks[of]:
            scores[row], looked[row] = score, picks[of]
        else:
            if score >= min_score:
                kept[found] = row
                picked_starts[first[of] + picks[of]] = start
                picked_ends[first[of] + picks[of]] = end
                picks[of] += 1
                found += 1
            size -= 1
            heap[0] = heap[size]
        sink(heap, size, scores, 0)
    return kept[:found], scores[kept[:found]]


@compiled
def vote(survivors: Floats, segments: Floats, scores: Floats, threshold: Any) -> Floats:
    """Return score-weighted means [M, 2] of the candidates near each survivor [M, 2].

    Args:
        threshold: candidates with at least this tIoU are near; float32.
    """
    voted = survivors.copy()
    for row in range(len(survivors)):
        weight, start, end = 0.0, 0.0, 0.0
        for other in range(len(segments)):
            near = tiou(
                survivors[row, 0],
                survivors[row, 1],
                segments[other, 0],
                segments[other, 1],
                NOTHING,
            )
            if near >= threshold:
                score = np.float64(scores[other])
                weight += score
                start += score * segments[other, 0]
                end += score * segments[other, 1]
        # Nobody votes on an empty segment (its tIoU is 0 even with itself): it stays.
        if weight > 0:
            voted[row, 0], voted[row, 1] = start / weight, end / weight
    return voted
