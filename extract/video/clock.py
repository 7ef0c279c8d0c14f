"""Repair of clocks that jump, as in recordings that were joined, or that are missing in part."""

from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

RATE_TOLERANCE = 0.05  # a header's rate is that of the frames if it is as near as that
USUAL_RATE = Fraction(25)  # where nothing tells another
OUTLIER = 10  # a single time that is so many frames off is wrong; the ones around it are right
SYSTEMATIC = 0.1  # if more frames than this share their time with another, the ticks are too coarse
FINER = 1000
LARGEST_DENOMINATOR = 2**31 - 1  # that FFmpeg can hold


def repair_clock(
    times: Sequence[int | None],
    time_base: Fraction,
    rate: Fraction | None,
    longest_s: float = np.inf,
) -> tuple[NDArray[np.int64], Fraction, int]:
    """Return times that rise from frame to frame, their unit, and how many had to be replaced.

    A frame whose time is missing, not later than the one before, or more than `longest_s` later
    begins one frame's length after the frame before, and all later ones move with it.

    Args:
        times: of the frames in the order they are shown, in units of `time_base` seconds.
        rate: frames per second according to the file's header.
    """
    known = np.array([np.nan if time is None else time for time in times], np.float64)
    length = _frame_length(known, time_base, rate)
    wrong = np.isnan(known)
    missing = wrong | _outliers(known, length)
    still = np.append(False, np.diff(known) == 0)
    if still.mean() > SYSTEMATIC:  # such as two fields a tick
        missing |= still
    numbers = np.flatnonzero(~missing)
    steps = np.full(len(known), length)
    wrong |= missing
    for before, after in pairwise(numbers):
        step = (known[after] - known[before]) / (after - before)
        least = 0 if after == before + 1 else length / 2
        if least < step and step * (after - before) * float(time_base) <= longest_s:
            steps[before + 1 : after + 1] = step
        else:
            wrong[after] = True
    steps[0] = known[0] if len(numbers) and numbers[0] == 0 else 0
    repaired = np.cumsum(steps)
    if np.any(np.diff(np.round(repaired)) <= 0):
        finer = max(1, min(FINER, LARGEST_DENOMINATOR // time_base.denominator))
        repaired, time_base = repaired * finer, time_base / finer
    return np.round(repaired).astype(np.int64), time_base, int(wrong.sum())


def _frame_length(known: NDArray[np.float64], time_base: Fraction, rate: Fraction | None) -> float:
    """Return the length of an ordinary frame in units of `time_base`."""
    steps = np.diff(known)
    steps = steps[steps > 0]
    from_rate = float(1 / (rate or USUAL_RATE) / time_base)
    if not len(steps):
        return from_rate
    usual = float(np.median(steps))
    return from_rate if rate and abs(from_rate / usual - 1) < RATE_TOLERANCE else usual


def _outliers(known: NDArray[np.float64], length: float) -> NDArray[np.bool_]:
    """Return which single times lie far outside those of the frames before and after."""
    found = np.zeros(len(known), bool)
    before, here, after = known[:-2], known[1:-1], known[2:]
    outside = np.maximum(before - here, here - after)
    found[1:-1] = (before < after) & (outside > OUTLIER * length)
    return found
