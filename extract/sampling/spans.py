"""Spans: stretches of one video in one direction that the backbone processes as one sequence."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import lcm
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cache.address import VideoInfo
from extract.sampling.windows import Timed, Window, random_window, samples_of
from extract.settings.sampling import Direction, SamplingConfig, SpanKind
from extract.settings.units import CLIP_FRAMES, TUBELET


@dataclass(frozen=True)
class Span:
    """A sequence of frames for the backbone.

    Args:
        video: the file's identity and length; `path`: where the file is, or was.
        window: the valid samples and the padding.
        kind: `window` is the detector's input, as in end-to-end runs: its padding comes after the
            valid samples in either direction. `video` is a whole video, as `whole_video_window`
            lays it out; its reversed span is the mirror of the padded forward one, so that the
            clips of the two hold the same frames.
    """

    video: VideoInfo
    path: Path
    window: Window
    direction: Direction
    kind: SpanKind

    @cached_property
    def frames(self) -> NDArray[np.int64]:
        """The frame number of every sample [F] in the order of the direction, padded."""
        if self.kind == "window":
            return self.window.indices(self.direction)
        forward = self.window.indices("forward")
        return forward if self.direction == "forward" else forward[::-1]

    @property
    def rows(self) -> int:
        """Tubelets; the activation has one row for each."""
        return self.window.samples // TUBELET


def whole_video_window(video: Timed | int, config: SamplingConfig) -> Window:
    """Return all strided samples of a video as one window, padded to whole clips and steps.

    Raises:
        ValueError: the sampling squeezes videos instead; their only span is the window.
    """
    if config.method == "resize":
        raise ValueError("cache.span video needs sampling.method window; set cache.span window")
    frames = samples_of(video, config)
    unit = lcm(CLIP_FRAMES, config.scale_factor)
    samples = -(-len(frames) // unit) * unit
    size, step = samples // config.scale_factor, float(config.step)
    return Window(frames, 0.0, step, size, samples, (len(frames) - 1) / config.scale_factor)


def random_window_of_span(
    rng: np.random.Generator,
    span: Span,
    segments: NDArray[np.floating],
    config: SamplingConfig,
    grain: int,
    directions: Sequence[Direction],
) -> tuple[Window, list[slice]]:
    """Draw a training window from a video's spans that begins and ends between tubelets or clips.

    Args:
        span: of kind `video`, in either direction.
        segments: the video's truth on its timeline, [G, 2].
        grain: samples from one place where the span may be cut to the next, a divisor of 16.

    Returns:
        The window, and for every direction the rows of that span's activation that are its valid
        part.
    """
    steps = lcm(grain, config.scale_factor) // config.scale_factor
    window = random_window(rng, span.video, segments, config, steps)
    padded, first = span.window.indices("forward"), round(window.start / config.sample_step)
    stop = -(-(first + len(window.frames)) // grain) * grain
    rows = {
        "forward": slice(first // TUBELET, stop // TUBELET),
        "reversed": slice((len(padded) - stop) // TUBELET, (len(padded) - first) // TUBELET),
    }
    if "reversed" in directions:
        # The reversed window begins where the forward one ends, which must be a border, too: it
        # gets more frames if need be, or copies of the video's last one, as valid samples.
        frames = padded[first:stop]
        mirror = (len(frames) - 1) / config.scale_factor
        window = replace(window, frames=frames, reflection=mirror)
    return window, [rows[direction] for direction in directions]
