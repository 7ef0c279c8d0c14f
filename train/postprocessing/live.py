"""Detections in frames that arrive, given as soon as no window to come begins before their end."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from evaluate.annotations import Detection
from extract.sampling.windows import Window
from train.config import EvaluationConfig
from train.data.batch import Batch
from train.data.items import VideoItem
from train.postprocessing.candidates import Candidates, concatenate, suppress_candidates


@dataclass(frozen=True)
class LiveUpdate:
    """What is known when one more window has been seen.

    Args:
        until_s: no window to come begins before this time; when the frames have ended, their end.
        settled: detections that end before it and were not given before, best first, in seconds
            from the first frame.
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
    recent: list[Candidates] = []
    ended = -math.inf
    video = None
    for batch, video in windows:
        (window,) = batch.windows
        # As if the video began with it: after days float32 does not tell two steps apart.
        found = find(replace(batch, windows=(replace(window, start=0.0),)))
        recent.append(found._replace(segments=found.segments.astype(np.float64) + window.start))
        known, until = concatenate(recent), window.start + window.step
        yield _settle(known, video, ended, until, classes, evaluation)
        recent, ended = [_forget(known, window, until)], until
    if video is not None:
        yield _settle(concatenate(recent), video, ended, math.inf, classes, evaluation)


def _forget(known: Candidates, window: Window, until: float) -> Candidates:
    """Return the candidates that end past `until`, or that may overlap with those and new ones."""
    starts, ends = known.segments.T
    horizon = window.start - 2 * window.size * window.step
    return known.take(ends >= starts[ends > until].min(initial=horizon))


def _settle(
    known: Candidates,
    video: VideoItem,
    after: float,
    until: float,
    classes: Sequence[str],
    evaluation: EvaluationConfig,
) -> LiveUpdate:
    """Return the detections that end past `after` and not past `until`, on the timeline.

    A candidate's own end decides, which never changes. In seconds it is rounded otherwise each
    time, so that one that ends at `until` would come twice or not at all.
    """
    per_second = video.length / video.duration_s
    inside = known.segments.clip(0, video.length if until == math.inf else None)
    first = inside.min(initial=video.length)
    seconds = ((inside - first) / per_second).astype(np.float32)
    found = suppress_candidates(known._replace(segments=seconds), video.name, classes, evaluation)
    first_s, ends = float(first / per_second), known.segments[:, 1]
    settled = [
        each._replace(start_s=first_s + each.start_s, end_s=first_s + each.end_s)
        for each, row in found
        if after < ends[row] <= until
    ]
    return LiveUpdate(float(min(until, video.length) / per_second), settled)
