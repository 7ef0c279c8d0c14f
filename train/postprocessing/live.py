"""Detections in frames that arrive, given as soon as no later window changes them."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from evaluate.annotations import Detection
from train.config import EvaluationConfig
from train.data.batch import Batch
from train.data.items import VideoItem
from train.postprocessing.candidates import Candidates, merge_windows


@dataclass(frozen=True)
class LiveUpdate:
    """What is known when one more window has been seen.

    Args:
        until_s: no window to come begins before this time; when the frames have ended, their end.
        settled: detections that end before it and were not given before, best first, in seconds
            from the first frame. Later windows do not change them.
    """

    until_s: float
    settled: list[Detection]


def detect_live(
    windows: Iterable[tuple[Batch, VideoItem]],
    find: Callable[[Batch], Candidates],
    classes: Sequence[str],
    evaluation: EvaluationConfig,
) -> Iterator[LiveUpdate]:
    """Yield the detections in windows of `arriving_windows` as they become settled.

    Only candidates that can overlap with what is not settled yet are kept.

    Args:
        find: gives the candidates of a batch of one window on the video's timeline.
    """
    recent: list[tuple[float, Candidates]] = []
    ended = -math.inf
    video = None
    for batch, video in windows:
        (window,) = batch.windows
        length = window.size * window.step
        recent = [(start, found) for start, found in recent if start + 2 * length >= window.start]
        recent.append((window.start, find(batch)))
        until = window.start + window.step
        yield _settle(recent, video, ended, until, classes, evaluation)
        ended = until
    if video is not None:
        yield _settle(recent, video, ended, math.inf, classes, evaluation)


def _settle(
    recent: Sequence[tuple[float, Candidates]],
    video: VideoItem,
    after: float,
    until: float,
    classes: Sequence[str],
    evaluation: EvaluationConfig,
) -> LiveUpdate:
    """Return the detections that end past `after` and not past `until`, on the timeline."""
    after_s, until_s = video.to_seconds(np.array([after, until]).clip(-1, video.length))
    found = merge_windows([each for _, each in recent], video, classes, evaluation)
    first = -1.0 if after < 0 else after_s
    settled = [each for each in found if first < each.end_s <= until_s]
    return LiveUpdate(float(until_s), settled)
