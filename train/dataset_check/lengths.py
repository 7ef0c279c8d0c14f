"""What is unwise about windows and feature steps, given the videos and their actions."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from evaluate.annotations import Segment
from extract.sampling.windows import Window, sliding_windows, strided_window, truth_inside
from extract.settings.units import CLIP_FRAMES
from train.data.frame_rates import format_rates, frame_rate_range, is_like
from train.data.items import VideoItem
from train.dataset_check.findings import Finding, FindingKind
from train.dataset_check.survey import Survey, subsets
from train.modeling.points import assign, pyramid_points

UNUSUAL_RATIO = 1.75  # times the usual frame rate: a fixed stride then means quite another motion
MAX_PADDING = 0.5  # share of windows that may be padding
COVERED_PERCENT = 95  # of the actions: a window should be able to hold them
# With THUMOS-14's actions and 30 frames a second this gives the published stride of 4.
STEPS_OF_SHORT = 6  # feature steps that a short action (the 10th percentile) should span
ROOM = 3  # windows hold so many times an action of ordinary length (the 95th percentile)

INCOMPLETE = FindingKind(
    "action that no training window holds",
    "warning",
    "it is never learned: raise sampling.window_size, take fewer samples a second (sampling.fps "
    "or snippet_stride), or lower min_completeness",
)
UNLEARNED = FindingKind(
    "action that no point learns",
    "warning",
    "it lies between two feature steps: raise sampling.fps, or lower snippet_stride",
)
SHORT = FindingKind(
    "action shorter than a feature step",
    "warning",
    "its boundaries cannot be told apart: raise sampling.fps, or lower snippet_stride",
)
NARROW = FindingKind(
    "window shorter than ordinary actions",
    "warning",
    "raise sampling.window_size, or take fewer samples a second (sampling.fps, or snippet_stride)",
)
PADDED = FindingKind(
    "windows are mostly padding",
    "warning",
    "time and memory are spent on nothing: lower sampling.window_size",
)
RATES = FindingKind(
    "unusual frame rate",
    "warning",
    "a feature step lasts much longer or shorter here: take samples by time, with sampling.fps",
)


def check_actions(survey: Survey) -> Iterator[Finding]:
    """Yield the actions that are too long or too short to be learned, or to have boundaries."""
    for subset in subsets(survey.config.data):
        for item in survey.items(subset):
            steps = measure_actions(item, survey)
            kinds: list[FindingKind | None] = [SHORT if length < 1 else None for length in steps]
            if subset == survey.config.data.train_subset:
                for place in np.flatnonzero(find_unlearned(item, survey)):
                    kinds[place] = UNLEARNED
                for place in np.flatnonzero(~find_complete(item, survey)):
                    kinds[place] = INCOMPLETE
            entries = survey.entry_indices(item.name, len(item.truth))
            for kind, truth, entry, length in zip(kinds, item.truth, entries, steps, strict=True):
                if kind is not None:
                    yield _of_action(kind, item.name, truth, entry, float(length))


def _of_action(kind: FindingKind, video: str, truth: Segment, entry: int, steps: float) -> Finding:
    label, start_s, end_s = truth
    text = f"{video}: {label} [{start_s:g}, {end_s:g}] s, {steps:.2f} feature steps"
    numbers = {"start_s": start_s, "end_s": end_s, "steps": steps}
    return Finding(kind, text, video, entry, numbers)


def measure_actions(item: VideoItem, survey: Survey) -> NDArray[np.floating]:
    """Return the lengths of a video's actions in feature steps, [G]."""
    steps = _windows(item, survey)[0].to_steps(item.segments)
    return steps[:, 1] - steps[:, 0]


def find_complete(item: VideoItem, survey: Survey) -> NDArray[np.bool_]:
    """Return which of a video's actions some training window holds completely enough, [G]."""
    sampling = survey.config.sampling
    held = measure_actions(item, survey) <= sampling.window_size
    last = _windows(item, survey)[-1]
    for place in np.flatnonzero(~held):
        # No window holds more of a long action than the one that begins with it.
        begin = min(math.ceil(item.segments[place, 0] / last.step), int(last.start / last.step))
        window = strided_window(item, begin, sampling.window_size, sampling)
        held[place] = place in truth_inside(window, item.segments, sampling.min_completeness)[1]
    return held


def find_unlearned(item: VideoItem, survey: Survey) -> NDArray[np.bool_]:
    """Return which of a video's actions lie within a window, but no point learns, [G]."""
    missed = np.zeros(len(item.segments), np.bool_)
    windows = _windows(item, survey)
    middles = np.array([w.to_timeline(np.array(w.valid / 2)) for w in windows])
    nearest = np.abs(item.segments.mean(1)[:, None] - middles).argmin(1)
    size, levels = survey.config.sampling.window_size, survey.config.head.levels
    overlapping = survey.config.training.overlapping_ranges
    points = pyramid_points(size, levels, torch.device("cpu"), overlapping)
    for number in np.unique(nearest):
        mine = np.flatnonzero(nearest == number)
        steps = windows[number].to_steps(item.segments[mine])
        inside = (steps[:, 0] >= 0) & (steps[:, 1] <= windows[number].valid)
        # Each alone: a shorter action may take its points, but then they learn that one.
        alone = torch.from_numpy(steps[inside]).unsqueeze(1)
        targets = assign(points, alone, torch.zeros(len(alone), 1, dtype=torch.long), 1)
        missed[mine[inside]] = ~targets.classes.bool().any(-1).any(-1).numpy()
    return missed


def check_windows(survey: Survey) -> Iterator[Finding]:
    """Yield what is wrong with windows: too short for the actions, too long for the videos."""
    sampling, items = survey.config.sampling, survey.items(survey.config.data.train_subset)
    steps = np.concatenate([np.zeros(0), *(measure_actions(item, survey) for item in items)])
    size = sampling.window_size
    if len(steps) and np.percentile(steps, COVERED_PERCENT) > size:
        share = float((steps > size).mean())
        text = f"sampling.window_size {size}: {share:.0%} of the training actions are longer"
        yield Finding(NARROW, text, numbers={"window_size": size, "share": share})
    valid = [_windows(item, survey)[0].valid for item in items]
    if valid and (padding := 1 - float(np.mean(valid)) / size) > MAX_PADDING:
        text = f"sampling.window_size {size}: {padding:.0%} of the training windows is padding"
        yield Finding(PADDED, text, numbers={"window_size": size, "padding": padding})


def check_frame_rates(survey: Survey) -> Iterator[Finding]:
    """Yield the videos in which a fixed stride lasts much longer or shorter than in most, and those
    that are tested but have another rate than the training videos.
    """
    sampling = survey.config.sampling
    if sampling.method == "resize" or sampling.fps is not None or not survey.files:
        return
    usual = median(file.index.fps for file in survey.files.values())
    learned = [item for item in survey.items(survey.config.data.train_subset) if item.truth]
    trained = frame_rate_range(learned) if learned else (0.0, math.inf)
    stride = sampling.snippet_stride
    for name, file in survey.files.items():
        fps = file.index.fps
        text = f"{name}: {fps:.2f} frames/s, a feature step is {stride / fps:.3f} s; "
        numbers = {"fps": fps, "usual_fps": usual, "step_s": stride / fps}
        if not 1 / UNUSUAL_RATIO < fps / usual < UNUSUAL_RATIO:
            text += f"usually {usual:.2f} frames/s and {stride / usual:.3f} s"
            yield Finding(RATES, text, name, numbers=numbers)
        elif not is_like(fps, trained):  # of no training video
            text += f"the training videos have {format_rates(trained)} frames/s"
            yield Finding(RATES, text, name, numbers=numbers)


def _windows(item: VideoItem, survey: Survey) -> list[Window]:
    return sliding_windows(item, 0.5, survey.config.sampling)


@dataclass(frozen=True)
class Suggestion:
    """Values for `sampling.window_size` and `sampling.fps` or `snippet_stride`, and why.

    Args:
        pace: samples per second where the config has `sampling.fps`, else the stride in frames.
    """

    window_size: int
    setting: Literal["fps", "snippet_stride"]
    pace: float
    reason: str

    def to_dict(self) -> dict[str, Any]:
        return {"window_size": self.window_size, self.setting: self.pace, "reason": self.reason}


def suggest_windows(survey: Survey) -> Suggestion | None:
    """Return windows that suit the training actions; None where there is nothing to go by."""
    config, sampling = survey.config, survey.config.sampling
    items = survey.items(config.data.train_subset)
    seconds = [end_s - start_s for item in items for _, start_s, end_s in item.truth]
    if not seconds or sampling.method == "resize":
        return None
    fps = median(survey.files[item.name].index.fps for item in items)
    short_s, ordinary_s, long_s = np.percentile(seconds, [10, 95, 99]).tolist()
    scale = sampling.scale_factor
    setting: Literal["fps", "snippet_stride"]
    pace: float
    if sampling.fps is not None:
        fps = min(float(f"{STEPS_OF_SHORT * scale / short_s:.2g}"), float(f"{fps:.4g}"))
        stride, setting, pace, at = scale, "fps", fps, "samples/s"
    else:
        stride = scale * max(1, round(short_s * fps / STEPS_OF_SHORT / scale))
        setting, pace, at = "snippet_stride", stride, "frames/s"
    # Whole clips, and whole strides of the coarsest level.
    unit = math.lcm(
        CLIP_FRAMES // math.gcd(CLIP_FRAMES, sampling.scale_factor), 2 ** (config.head.levels - 1)
    )
    window = unit * math.ceil(max(ROOM * ordinary_s, long_s) * fps / stride / unit)
    reason = (
        f"at {fps:.4g} {at} an action of {short_s:.2f} s (only a tenth are shorter) spans "
        f"{short_s * fps / stride:.1f} feature steps, and a window of {window * stride / fps:.1f} "
        f"s is {window * stride / fps / ordinary_s:.1f} times the length of {ordinary_s:.2f} s "
        "that 95 % of the actions do not exceed"
    )
    return Suggestion(window, setting, pace, reason)
