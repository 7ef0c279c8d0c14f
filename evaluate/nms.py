"""Non-maximum suppression of one video's detections, in plain numpy."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Labels = NDArray[np.integer[Any]]


@dataclass(frozen=True)
class NmsConfig:
    """Settings of suppression: how overlapping detections give way to the best one.

    Args:
        method: `soft` lowers an overlapping detection's score by exp(-tIoU² / sigma) (Soft-NMS,
            Bodla et al. 2017, section 3, Gaussian), `hard` removes it.
        multiclass: detections compete within their class only; otherwise all with all.
        sigma: of `soft`; a larger one lowers scores less.
        iou_threshold: of `hard`; the tIoU from which on a detection is removed.
        min_score: detections whose score is, or falls, below it are dropped.
        max_segments: at most so many are left of a video, the best.
        voting_threshold: replace each survivor's segment by the score-weighted mean of all
            candidates with at least this tIoU to it, whatever their class. For class-agnostic
            suppression only: a single class leaves too few candidates to vote.
    """

    method: Literal["soft", "hard"] = "soft"
    multiclass: bool = True
    sigma: float = 0.5  # as published for Soft-NMS
    iou_threshold: float = 0.1
    min_score: float = 0.001
    max_segments: int = 2000
    voting_threshold: float | None = None

    def __post_init__(self) -> None:
        if self.method not in ("soft", "hard"):
            raise ValueError(f"method must be 'soft' or 'hard', not {self.method!r}")
        if not self.sigma > 0:
            raise ValueError(f"sigma must be above 0, not {self.sigma}")
        if not 0 < self.iou_threshold <= 1:
            raise ValueError(f"iou_threshold must be in (0, 1], not {self.iou_threshold}")
        if not self.min_score >= 0:
            raise ValueError(f"min_score must be 0 or more, not {self.min_score}")
        if self.max_segments < 1:
            raise ValueError(f"max_segments must be 1 or more, not {self.max_segments}")
        if self.voting_threshold is not None:
            if not 0 < self.voting_threshold <= 1:
                raise ValueError(f"voting_threshold must be in (0, 1], not {self.voting_threshold}")
            if self.multiclass:
                raise ValueError(
                    "voting needs class-agnostic suppression: "
                    "set multiclass to False or voting_threshold to None"
                )


def suppress(
    segments: Floats, scores: Floats, labels: Labels, config: NmsConfig
) -> tuple[Floats, Floats, Labels]:
    """Return the surviving detections of one video, best first, at most `config.max_segments`.

    segments [N, 2] (start, end in any one unit), scores [N], labels [N] (integer classes) ->
    the same three with M <= N rows; segments and scores in float32, the precision in which
    the peers decide. Equal scores: the lower class, then the earlier row, goes first.
    Raises ValueError for shapes that do not match, numbers that are not finite, and segments
    that end before they start.
    """
    segments, scores = np.asarray(segments, np.float32), np.asarray(scores, np.float32)
    labels = np.asarray(labels)
    _check(segments, scores, labels)
    if config.multiclass:
        groups = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    else:
        groups = [np.arange(len(scores))]
    kept, kept_scores = _pick(segments, scores, groups, config)
    survivors = segments[kept]
    if config.voting_threshold is not None:
        survivors = _vote(survivors, segments, scores, config.voting_threshold)
    return survivors, kept_scores, labels[kept]


def _pick(
    segments: Floats, scores: Floats, groups: list[NDArray[np.intp]], config: NmsConfig
) -> tuple[NDArray[np.intp], Floats]:
    """Return the rows [M] and final scores [M] of the survivors, best first.

    A pick only lowers scores of its own group, so picking the best of all groups each time gives
    every group the order it would have alone, and may stop as soon as enough are picked.
    """
    groups = [group for group in groups if len(group)]
    group_segments = [segments[group] for group in groups]
    group_scores = [scores[group] for group in groups]
    best = np.array([each.max() for each in group_scores], np.float32)
    kept: list[int] = []
    kept_scores: list[np.float32] = []
    while len(kept) < config.max_segments and len(best):
        group = int(best.argmax())
        if best[group] < config.min_score:
            break
        candidates = group_scores[group]
        top = int(candidates.argmax())
        kept.append(int(groups[group][top]))
        kept_scores.append(candidates[top])
        # The public implementations lengthen every segment by this hair, and a tIoU that lies
        # exactly on a threshold is decided by it.
        tiou = _tiou(group_segments[group][top], group_segments[group], extra_length=1e-6)
        if config.method == "soft":
            candidates *= np.exp(-(tiou * tiou) / np.float32(config.sigma))
        else:
            candidates[tiou >= np.float32(config.iou_threshold)] = -np.inf
        candidates[top] = -np.inf
        best[group] = candidates.max()
    return np.array(kept, np.intp), np.array(kept_scores, np.float32)


def _vote(survivors: Floats, segments: Floats, scores: Floats, threshold: float) -> Floats:
    """Return score-weighted means [M, 2] of the candidates near each survivor [M, 2]."""
    voted = survivors.copy()
    for row, survivor in enumerate(survivors):
        voters = _tiou(survivor, segments) >= np.float32(threshold)
        weights = scores[voters].astype(np.float64)
        # Nobody votes on an empty segment (its tIoU is 0 even with itself): it stays.
        if weights.sum() > 0:
            voted[row] = weights @ segments[voters] / weights.sum()
    return voted


def _tiou(segment: Floats, segments: Floats, extra_length: float = 0.0) -> Floats:
    """Return the temporal intersection over union [N] of one segment [2] with many [N, 2]."""
    start, end = segments[:, 0], segments[:, 1]
    extra = np.float32(extra_length)
    inter = np.maximum(np.minimum(end, segment[1]) - np.maximum(start, segment[0]), np.float32(0))
    union = (segment[1] - segment[0] + extra) + (end - start + extra) - inter
    tiou: Floats = np.divide(inter, union, out=np.zeros_like(inter), where=union > 0)
    return tiou


def _check(segments: Floats, scores: Floats, labels: Labels) -> None:
    count = len(scores)
    if segments.shape != (count, 2) or scores.shape != (count,) or labels.shape != (count,):
        raise ValueError(
            f"expected segments [N, 2], scores [N] and labels [N], "
            f"not {segments.shape}, {scores.shape} and {labels.shape}"
        )
    bad = ~np.isfinite(scores) | ~np.isfinite(segments).all(axis=1)
    if bad.any():
        row = int(bad.argmax())
        raise ValueError(
            f"row {row} has segment {segments[row].tolist()} and score {scores[row]}: not finite; "
            f"a network that gives such numbers has diverged"
        )
    backwards = segments[:, 1] < segments[:, 0]
    if backwards.any():
        row = int(backwards.argmax())
        raise ValueError(f"row {row}: segment {segments[row].tolist()} ends before it starts")
