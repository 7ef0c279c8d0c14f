"""Spans: stretches of one video in one direction that the backbone processes as one sequence."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import lcm
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from cache.address import VideoInfo
from extract.sampling.units import CLIP_FRAMES, TUBELET
from extract.sampling.windows import (
    Direction,
    SamplingConfig,
    Timed,
    Window,
    random_window,
    samples_of,
)

SpanKind = Literal["window", "video"]


@dataclass(frozen=True)
class Span:
    """What the backbone sees as one sequence.

    Args:
        video: the file's identity and length; `path`: where it is now, or was.
        window: the valid samples and the padding.
        kind: `window` is the detector's input, as end-to-end runs have it: its padding stands
            behind the valid samples in either direction. `video` is a whole video in the plan of
            `whole_video_window`; its reversed span is the mirror of the padded forward one, so that
            the clips of the two hold the same frames.
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
        """Tubelets, which the activation has one row each of."""
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
    """Draw a training window out of a video's spans, between the borders of its tubelets or clips.

    Args:
        span: of kind `video`, in either direction.
        segments: the video's truth on its timeline, [G, 2].
        grain: samples between two places where the span may be cut, a divisor of 16.

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
        # Backwards the window begins where it ends in forward time: on a border, too, if need be
        # with frames more, or with copies of the video's last one, valid samples like others.
        frames = padded[first:stop]
        mirror = (len(frames) - 1) / config.scale_factor
        window = replace(window, frames=frames, reflection=mirror)
    return window, [rows[direction] for direction in directions]
