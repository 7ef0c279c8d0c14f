"""The time mapping between the two directions; every other place asks this module.

Reversed input is the same frames in opposite order, so time t of a window becomes R − t, where R is
the distance in feature steps from the first valid frame to the last one. Segments swap their ends.
"""

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

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
    """Map one annotation to the reversed video of `frames` frames: times of frames, not of gaps."""
    last = (frames - 1) / fps
    return last - end_s, last - start_s


def reverse_valid(samples: Array, valid: int) -> Array:
    """Reverse the first `valid` entries of [N, …]; the padding behind them repeats the new last.

    Reversing within the padded length instead would move every action by the padding.
    """
    turned = samples[:valid][::-1]
    padding = np.repeat(turned[-1:], len(samples) - valid, axis=0)
    return np.concatenate((turned, padding))  # type: ignore[return-value]
