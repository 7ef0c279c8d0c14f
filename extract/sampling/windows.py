"""Sampling of frames: sliding windows, random windows, whole videos resized; truth in a window.

There are three units of time. A *frame* is one of the file. A *sample* is a frame that is taken:
every n-th one, or, with `sampling.fps`, the nearest to every 1/fps seconds, so that a feature step
is equally long in every video. A *feature step* is `scale_factor` samples and the unit of the
detector's input and of its segments. Windows and truth are on a video's *timeline*, whose unit is a
frame or, with `sampling.fps`, 1/fps seconds.
"""

import math
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from extract.sampling.reversal import reflection, reverse_valid
from extract.settings.sampling import Direction, SamplingConfig

TRIES = 200  # random windows drawn until one holds an action, as in the published code


class Timed(Protocol):
    """A video with the times of its frames, as `VideoInfo` and `VideoItem`.

    Attributes:
        frames: number of frames; `fps`: of them per second, on average.
        times_s: start of each, if they are unevenly spaced [frames or more].
    """

    @property
    def frames(self) -> int: ...

    @property
    def fps(self) -> float: ...

    @property
    def times_s(self) -> NDArray[np.float64] | None: ...


@dataclass(frozen=True)
class Window:
    """A stretch of one video for the detector; step t is at `start + t · step`.

    Args:
        frames: the valid samples' frame numbers, int [S], not falling.
        start: where feature step 0 is on the video's timeline.
        step: units of the timeline per feature step.
        size: feature steps, padding included.
        samples: samples, padding included.
        reflection: R of the reversed direction, in feature steps (extract.sampling.reversal).
    """

    frames: NDArray[np.int64]
    start: float
    step: float
    size: int
    samples: int
    reflection: float

    @property
    def valid(self) -> int:
        """Feature steps that hold at least one real sample."""
        return -(-len(self.frames) * self.size // self.samples)

    def mask(self) -> NDArray[np.bool_]:
        """Return bool [T], true where a step is real."""
        return np.arange(self.size) < self.valid

    def indices(self, direction: Direction) -> NDArray[np.int64]:
        """Return the frame number of every sample [F] in the order of `direction`, padded."""
        padding = np.repeat(self.frames[-1:], self.samples - len(self.frames))
        padded = np.concatenate((self.frames, padding))
        return padded if direction == "forward" else reverse_valid(padded, len(self.frames))

    def to_timeline(self, segments: NDArray[np.floating]) -> NDArray[np.floating]:
        """Map segments from feature steps to the video's timeline."""
        return segments * self.step + self.start

    def to_steps(self, segments: NDArray[np.floating]) -> NDArray[np.floating]:
        """Map segments from the video's timeline to feature steps."""
        return (segments - self.start) / self.step


def samples_of(video: Timed | int, config: SamplingConfig) -> NDArray[np.int64]:
    """Return the frame number of every sample of a video, from its start to its end, not falling.

    Args:
        video: its number of frames is enough if samples are counted in frames.
    """
    if config.fps is None:
        return np.arange(0, _frames(video), config.sample_step)
    assert not isinstance(video, int), "samples by time need the times of frames"
    numbers = np.arange(count_samples(video.frames, video.fps, config))
    if video.times_s is None:
        nearest = evenly_spaced_samples(numbers, video.fps, config)
    else:
        begins, times = video.times_s[: video.frames], numbers / config.fps
        nearest = np.searchsorted((begins[1:] + begins[:-1]) / 2 + 1e-6, times)
    return np.clip(nearest, 0, video.frames - 1).astype(np.int64)


def count_samples(frames: int, fps: float, config: SamplingConfig) -> int:
    """Return how many samples a video has; `fps` is the video's."""
    if config.fps is None:
        return -(-frames // config.sample_step)
    return max(1, math.ceil(frames / fps * config.fps - 1e-6))


def evenly_spaced_samples(
    numbers: NDArray[np.integer[Any]], fps: float, config: SamplingConfig
) -> NDArray[np.int64]:
    """Return the frame numbers of samples by their numbers, in a video that does not end.

    Args:
        fps: of the video, whose frames come at even times.
    """
    if config.fps is None:
        return np.asarray(numbers * config.sample_step, np.int64)
    # Halfway between two frames the earlier one is taken.
    return np.maximum(np.ceil(numbers / config.fps * fps - 0.5 - 1e-6), 0).astype(np.int64)


def _frames(video: Timed | int) -> int:
    return video if isinstance(video, int) else video.frames


def evaluation_windows(video: Timed | int, overlap: float, config: SamplingConfig) -> list[Window]:
    """Return the windows that a video is tested on: sliding ones, or one with `test_whole`.

    Args:
        overlap: share of a window that the next one repeats.
    """
    if not config.test_whole or config.method == "resize":
        return sliding_windows(video, overlap, config)
    samples = samples_of(video, config)
    steps = -(-len(samples) // config.scale_factor)
    # As divisible by two as training windows are: every level of a pyramid comes out even.
    grain = config.window_size & -config.window_size
    size = -(-steps // grain) * grain
    return [_window(samples, 0, size, replace(config, window_size=size))]


def sliding_windows(video: Timed | int, overlap: float, config: SamplingConfig) -> list[Window]:
    """Cover every sampled frame of a video; the last window is shifted back to end with it."""
    if config.method == "resize":
        return [whole_video(_frames(video), config)]
    samples = samples_of(video, config)
    steps = -(-len(samples) // config.scale_factor)
    hop = window_hop(overlap, config)
    last = max(0, steps - config.window_size)
    starts = [*range(0, last, hop), last]
    return [_window(samples, start, config.window_size, config) for start in starts]


def window_hop(overlap: float, config: SamplingConfig) -> int:
    """Return how many feature steps a sliding window begins after the one before."""
    return max(1, int(config.window_size * (1 - overlap)))


def sampled_frames(video: Timed | int, config: SamplingConfig) -> NDArray[np.int64]:
    """Return the numbers of all frames that a window of a video can have, rising."""
    if config.method == "resize":
        return np.unique(whole_video(_frames(video), config).frames)
    return np.unique(samples_of(video, config))


def strided_window(video: Timed | int, start: int, length: int, config: SamplingConfig) -> Window:
    """Return a window of `length` feature steps from step `start`, or of those the video has."""
    return _window(samples_of(video, config), start, length, config)


def _window(samples: NDArray[np.int64], start: int, length: int, config: SamplingConfig) -> Window:
    scale = config.scale_factor
    return window_at(start, samples[start * scale : (start + length) * scale], config)


def window_at(start: int, frames: NDArray[np.int64], config: SamplingConfig) -> Window:
    """Return the window from feature step `start` whose samples are these frames."""
    step = float(config.step)
    mirror = reflection(0.0, float((len(frames) - 1) * config.sample_step), step)
    return Window(frames, start * step, step, config.window_size, config.samples, mirror)


def whole_video(frame_count: int, config: SamplingConfig) -> Window:
    """Return one window over all frames: sample k is at (k + ½)·N/M − ½ frames."""
    step = frame_count / config.samples
    centres = (np.arange(config.samples) + 0.5) * step - 0.5
    frames = np.clip(centres, 0, frame_count - 1).round().astype(np.int64)
    step *= config.scale_factor
    mirror = reflection(0, frame_count - 1, step)
    return Window(frames, 0.0, step, config.window_size, config.samples, mirror)


def random_window(
    rng: np.random.Generator,
    video: Timed | int,
    segments: NDArray[np.floating],
    config: SamplingConfig,
    grid: int = 1,
) -> Window:
    """Draw a training window that holds a sufficiently complete action, if one can be found.

    Args:
        segments: the video's truth on its timeline, [G, 2].
        grid: windows begin at multiples of so many feature steps.
    """
    if config.method == "resize":
        return whole_video(_frames(video), config)
    samples = samples_of(video, config)
    steps = -(-len(samples) // config.scale_factor)
    length = config.window_size
    if steps <= length:
        low, high = (round(share * steps) for share in config.crop)
        length = int(rng.integers(max(low, 1), max(high, 1) + 1))
    places = (steps - length) // grid
    if steps > length == config.window_size:
        places = -(-(steps - length) // grid)  # the last one must let the video's end be seen
    for _ in range(TRIES):
        start = grid * int(rng.integers(0, places + 1))
        window = _window(samples, start, length, config)
        if len(truth_inside(window, segments, config.min_completeness)[0]):
            break
    return window


def truth_inside(
    window: Window, segments: NDArray[np.floating], min_completeness: float
) -> tuple[NDArray[np.floating], NDArray[np.intp]]:
    """Return the truth inside a window, clipped to it.

    Args:
        segments: on the video's timeline, [G, 2].
        min_completeness: segments with a smaller share of their length inside are dropped.

    Returns:
        Segments in feature steps [K, 2] and their positions [K] in `segments`.
    """
    steps = window.to_steps(segments).reshape(-1, 2)
    clipped = np.clip(steps, 0.0, float(window.valid))
    share = (clipped[:, 1] - clipped[:, 0]) / np.maximum(steps[:, 1] - steps[:, 0], 1e-6)
    kept = np.flatnonzero(share >= min_completeness)
    return clipped[kept], kept


def seconds_to_frames(
    seconds: NDArray[np.floating], duration: float, frames: int
) -> NDArray[np.floating]:
    """Map times to frame numbers as for the published models: rounded down."""
    return np.floor(seconds / duration * frames)
