"""Which frames: sliding windows, random windows, whole videos resized; and the truth in them.

Three units of time meet here. A *frame* is one of the file. A *sample* is a frame that is taken. A
*feature step* is `scale_factor` samples and the unit of the detector's input and of its segments.
"""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from extract.sampling.reversal import reflection, reverse_valid
from extract.sampling.units import CLIP_FRAMES

Direction = Literal["forward", "reversed"]
TRIES = 200  # random windows drawn until one holds an action, as the peers do


@dataclass(frozen=True)
class SamplingConfig:
    """How a video becomes windows.

    Args:
        method: `window` cuts strided windows; `resize` squeezes the whole video into one.
        window_size: feature steps of a window.
        scale_factor: samples per feature step.
        snippet_stride: frames per feature step (`window` only); a multiple of `scale_factor`.
        test_overlap, validation_overlap: share of a window that the next one repeats, below 1.
        test_whole: test on whole videos, padded, whatever their length, as the published runs on
            features do; for imported features only.
        min_completeness: share of an action's length that must lie inside a training window.
        crop: a training video shorter than the window is cut to this range of its length.
    """

    method: Literal["window", "resize"] = "window"
    window_size: int = 768
    scale_factor: int = 1
    snippet_stride: int = 4
    test_overlap: float = 0.5
    validation_overlap: float = 0.5  # while training, too, windows are as when testing
    test_whole: bool = False
    min_completeness: float = 0.75
    crop: tuple[float, float] = (0.9, 1.0)

    def __post_init__(self) -> None:
        for name in ("window_size", "scale_factor", "snippet_stride"):
            if getattr(self, name) < 1:
                raise ValueError(f"sampling.{name} must be at least 1, not {getattr(self, name)}")
        if not 0 < self.min_completeness <= 1:
            raise ValueError("sampling.min_completeness must be a share above 0, at most 1")
        if self.samples % CLIP_FRAMES:
            raise ValueError(
                f"sampling.window_size × sampling.scale_factor is {self.samples}; "
                f"it must be a multiple of {CLIP_FRAMES}, the frames of a clip"
            )
        if self.snippet_stride % self.scale_factor:
            raise ValueError(
                f"sampling.snippet_stride {self.snippet_stride} must be a multiple of "
                f"sampling.scale_factor {self.scale_factor}: samples sit on whole frames"
            )
        for name in ("test_overlap", "validation_overlap"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"sampling.{name} must be at least 0 and below 1")
        if not 0 < self.crop[0] <= self.crop[1] <= 1:
            raise ValueError(f"sampling.crop must be two rising shares in (0, 1], not {self.crop}")

    @property
    def samples(self) -> int:
        """Frames that the backbone sees per window."""
        return self.window_size * self.scale_factor

    @property
    def frame_stride(self) -> int:
        """Frames from one sample to the next."""
        return self.snippet_stride // self.scale_factor


@dataclass(frozen=True)
class Window:
    """A stretch of one video as the detector sees it; step t lies at `start + t · step` frames.

    Args:
        frames: the valid samples' frame numbers, int [S], rising.
        start: frame number of feature step 0.
        step: frames per feature step.
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

    def to_frames(self, segments: NDArray[np.floating]) -> NDArray[np.floating]:
        """Map segments from feature steps to frames."""
        return segments * self.step + self.start

    def to_steps(self, segments: NDArray[np.floating]) -> NDArray[np.floating]:
        """Map segments from frames to feature steps."""
        return (segments - self.start) / self.step


def sliding_windows(frame_count: int, overlap: float, config: SamplingConfig) -> list[Window]:
    """Cover every sampled frame of a video; the last window is shifted back to end with it."""
    if config.method == "resize":
        return [whole_video(frame_count, config)]
    steps = _steps(frame_count, config)
    if config.test_whole:
        # As divisible by two as training windows are: every level of a pyramid comes out even.
        grain = config.window_size & -config.window_size
        size = -(-steps // grain) * grain
        return [strided_window(frame_count, 0, size, replace(config, window_size=size))]
    hop = max(1, int(config.window_size * (1 - overlap)))
    last = max(0, steps - config.window_size)
    starts = [*range(0, last, hop), last]
    return [strided_window(frame_count, start, config.window_size, config) for start in starts]


def sampled_frames(frame_count: int, config: SamplingConfig) -> NDArray[np.int64]:
    """Return the numbers of all frames that any window of a video can ask for, rising."""
    if config.method == "resize":
        return np.unique(whole_video(frame_count, config).frames)
    return np.arange(0, frame_count, config.frame_stride)


def strided_window(frame_count: int, start: int, length: int, config: SamplingConfig) -> Window:
    """Take `length` feature steps from step `start`, or what the video has of them."""
    first = start * config.snippet_stride
    stop = min(frame_count, first + length * config.snippet_stride)
    frames = np.arange(first, stop, config.frame_stride)
    step = float(config.snippet_stride)
    mirror = reflection(float(frames[0]), float(frames[-1]), step)
    return Window(frames, float(first), step, config.window_size, config.samples, mirror)


def whole_video(frame_count: int, config: SamplingConfig) -> Window:
    """Squeeze all frames into one window: sample k lies at (k + ½)·N/M − ½ frames."""
    step = frame_count / config.samples
    centres = (np.arange(config.samples) + 0.5) * step - 0.5
    frames = np.clip(centres, 0, frame_count - 1).round().astype(np.int64)
    step *= config.scale_factor
    mirror = reflection(0, frame_count - 1, step)
    return Window(frames, 0.0, step, config.window_size, config.samples, mirror)


def random_window(
    rng: np.random.Generator,
    frame_count: int,
    segments: NDArray[np.floating],
    config: SamplingConfig,
    grid: int = 1,
) -> Window:
    """Draw a training window that holds a sufficiently complete action, if one can be found.

    Args:
        segments: the video's truth in frames, [G, 2].
        grid: windows begin at multiples of so many feature steps.
    """
    if config.method == "resize":
        return whole_video(frame_count, config)
    steps = _steps(frame_count, config)
    length = config.window_size
    if steps <= length:
        low, high = (round(share * steps) for share in config.crop)
        length = int(rng.integers(max(low, 1), max(high, 1) + 1))
    places = (steps - length) // grid
    if steps > length == config.window_size:
        places = -(-(steps - length) // grid)  # the last one must let the video's end be seen
    for _ in range(TRIES):
        start = grid * int(rng.integers(0, places + 1))
        window = strided_window(frame_count, start, length, config)
        if len(truth_inside(window, segments, config.min_completeness)[0]):
            break
    return window


def truth_inside(
    window: Window, segments: NDArray[np.floating], min_completeness: float
) -> tuple[NDArray[np.floating], NDArray[np.intp]]:
    """Return the truth that a window holds, clipped to it.

    Args:
        segments: in frames, [G, 2].
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
    """Map times to frame numbers as the published models were trained: rounded down."""
    return np.floor(seconds / duration * frames)


def _steps(frame_count: int, config: SamplingConfig) -> int:
    samples = -(-frame_count // config.frame_stride)
    return -(-samples // config.scale_factor)
