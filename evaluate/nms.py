"""Non-maximum suppression of one video's detections."""

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
        if not np.float32(self.sigma) > 0:
            raise ValueError(f"sigma must be above 0 in float32, not {self.sigma}")
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
    the peers decide. Equal scores: the lower class, where classes do not compete with each other,
    then the earlier row, goes first.
    Raises ValueError for shapes that do not match, numbers that are not finite, and segments
    that end before they start.
    """
    segments, scores, rows = suppress_rows(segments, scores, labels, config)
    return segments, scores, np.asarray(labels)[rows]


def suppress_rows(
    segments: Floats, scores: Floats, labels: Labels, config: NmsConfig
) -> tuple[Floats, Floats, NDArray[np.int64]]:
    """Return what `suppress` does, with each detection's row [M] in place of its label."""
    segments, scores = np.asarray(segments, np.float32), np.asarray(scores, np.float32)
    labels = np.asarray(labels)
    _check(segments, scores, labels)
    from evaluate.suppression import pick, vote  # numba: see there

    # Scores only fall, so what begins below the least never survives.
    rows = np.flatnonzero(scores >= np.float32(config.min_score))
    if config.multiclass:
        rows = rows[np.argsort(labels[rows], kind="stable")]
        first = np.flatnonzero(np.diff(labels[rows], prepend=labels[rows[:1]] - 1))
    else:
        first = np.zeros(1, np.int64)
    soft = config.method == "soft"
    survived, kept_scores = pick(
        segments[rows, 0],
        segments[rows, 1],
        scores[rows],
        first,
        soft,
        np.float32(config.sigma if soft else config.iou_threshold),
        np.float32(config.min_score),
        config.max_segments,
    )
    kept = rows[survived]
    survivors = segments[kept]
    if config.voting_threshold is not None:
        # A weight below 0 would carry a mean out of the segments that it is of.
        weights = np.maximum(scores, 0)
        survivors = vote(survivors, segments, weights, np.float32(config.voting_threshold))
    return survivors, kept_scores, kept


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
