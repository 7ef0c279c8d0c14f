"""Windows of frames as they arrive, from a camera, a pipe, or any other source but a file."""

from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from extract.sampling.transforms import crop_frames, evaluation_transform, shrink_frames
from extract.sampling.window_frames import arrange
from extract.sampling.windows import (
    Window,
    count_samples,
    evenly_spaced_samples,
    samples_of,
    strided_window,
    window_at,
    window_hop,
)
from extract.settings.sampling import SamplingConfig
from extract.video.reader import CHUNK
from train.data.batch import Batch, collate
from train.data.items import VideoItem
from train.data.windows import WindowInputs

Frames = Iterable[NDArray[np.uint8]]
NAME = "live"
PICTURE = "uint8 [height, width, 3] (RGB)"


def delay_s(sampling: SamplingConfig, overlap: float) -> float:
    """Return how long after its end an action is settled at the latest, computing time aside.

    A window is complete once the first step after it is there, and an action is settled when the
    first window that begins after its end is.

    Raises:
        ValueError: samples are counted in frames, whose rate only the source knows.
    """
    if sampling.fps is None:
        raise ValueError("with sampling.fps null the delay is in frames: divide it by the rate")
    steps = sampling.window_size + window_hop(overlap, sampling) + 1
    return steps * sampling.step / sampling.fps


def arriving_windows(
    frames: Frames, fps: float | Fraction, inputs: WindowInputs, overlap: float
) -> Iterator[tuple[Batch, VideoItem]]:
    """Yield sliding windows, a batch each, as soon as their frames are there.

    They are those of `sliding_windows` for a file with these frames, to the bit. Memory is that of
    the frames, resized, of a window and what it moves on by.

    Args:
        frames: uint8 [h, w, 3] each, all of one size, RGB, evenly spaced in time.
        fps: frames per second.

    Yields:
        The window, and the video as far as it has been seen.

    Raises:
        ValueError: a window is a whole video (sampling.method resize), there is no frame, or one is
            no picture.
    """
    sampling = inputs.sampling
    if sampling.method == "resize":
        raise ValueError(
            "frames that arrive one by one are seen in sliding windows, and this detector sees "
            "whole videos at once (sampling.method resize)"
        )
    kept = _Kept(inputs)
    fps = float(fps)  # readers tell it as a fraction, too
    start, seen, sample = 0, 0, 0
    newest = None
    for given in frames:
        frame = kept.check(seen, given)
        seen += 1
        if _sampled(sample, fps, sampling) == seen - 1:
            kept.add(seen - 1, frame)
            while _sampled(sample, fps, sampling) == seen - 1:
                sample += 1
        if count_samples(seen, fps, sampling) > sample:
            newest = frame.copy()  # should it be the last one, a sample is of it
        # There is a step after the window, which is therefore not the one shifted back to the end.
        while _steps(seen, fps, sampling) > start + sampling.window_size:
            window = _window(start, fps, sampling)
            if window.frames[-1] > kept.newest:
                kept.transform_pending()  # a window that is complete waits for no frames after it
            if window.frames[-1] > kept.newest:
                break
            video = _video(seen, fps, sampling)
            yield kept.batch(window, video), video
            kept.forget_before(window.frames[min(sampling.scale_factor, len(window.frames) - 1)])
            start += window_hop(overlap, sampling)
    if not seen:
        raise ValueError("no frame has arrived")
    video = _video(seen, fps, sampling)
    samples = samples_of(video, sampling)
    if samples[-1] not in kept.numbers:  # the last sample's time is nearer to a frame that is not
        assert newest is not None
        kept.add(seen - 1, newest)
    kept.transform_pending()
    last = max(0, _steps(seen, fps, sampling) - sampling.window_size)
    for place in [*range(start, last, window_hop(overlap, sampling)), last]:
        window = strided_window(video, place, sampling.window_size, sampling)
        yield kept.batch(window, video), video


class _Kept:
    """The frames that windows to come may have, resized as those of files are: up to 16 at once."""

    def __init__(self, inputs: WindowInputs) -> None:
        self.inputs, self.transform = inputs, evaluation_transform(inputs.pixels)
        self.newest = -1  # of those that are ready
        self.numbers: dict[int, Tensor | None] = {}
        self._shape: tuple[int, ...] = ()  # of all frames
        self._pending: list[NDArray[np.uint8]] = []

    def add(self, number: int, frame: NDArray[np.uint8]) -> None:
        """Take up a copy of the next frame, for the source may use its memory again."""
        self._pending.append(frame.copy())
        self.numbers[number] = None
        if len(self._pending) == CHUNK:
            self.transform_pending()

    def check(self, number: int, frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return a frame; raise ValueError unless it is a picture of the size of those before."""
        try:
            frame = np.asarray(frame)
        except ValueError:  # of parts that do not make one picture
            raise ValueError(
                f"frame {number}: expected {PICTURE}, not a {type(frame).__name__}"
            ) from None
        if frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype != np.uint8 or not frame.size:
            raise ValueError(
                f"frame {number}: expected {PICTURE}, not {frame.dtype} {[*frame.shape]}"
            )
        self._shape = self._shape or frame.shape
        if frame.shape != self._shape:
            raise ValueError(
                f"frame {number} has another size: {[*frame.shape]}, where those before have "
                f"{[*self._shape]}"
            )
        return frame

    def transform_pending(self) -> None:
        """Make ready what has come since the last time."""
        if not self._pending:
            return
        small = shrink_frames(np.stack(self._pending), self.transform.shrink)
        ready = crop_frames(small, self.transform).unbind(1)
        self.numbers |= dict(zip([*self.numbers][-len(ready) :], ready, strict=True))
        self.newest = max(self.numbers)
        self._pending = []

    def forget_before(self, number: int) -> None:
        """Drop frames that no window to come has."""
        self.numbers = {n: frame for n, frame in self.numbers.items() if n >= number}

    def batch(self, window: Window, video: VideoItem) -> Batch:
        """Return a window as a batch of one."""
        frames = [self.numbers[number] for number in window.frames.tolist()]
        ready = [frame for frame in frames if frame is not None]
        inputs = (arrange(ready, window, self.inputs.directions[0]),)
        return collate([self.inputs.sample(video, window, inputs)])


def _sampled(sample: int, fps: float, sampling: SamplingConfig) -> int:
    return int(evenly_spaced_samples(np.array([sample]), fps, sampling)[0])


def _window(start: int, fps: float, sampling: SamplingConfig) -> Window:
    """Return a window in the middle of a video, whose end is not known yet."""
    scale = sampling.scale_factor
    numbers = np.arange(start * scale, (start + sampling.window_size) * scale)
    return window_at(start, evenly_spaced_samples(numbers, fps, sampling), sampling)


def _steps(frames: int, fps: float, sampling: SamplingConfig) -> int:
    """Return how many feature steps a video of so many frames has."""
    return -(-count_samples(frames, fps, sampling) // sampling.scale_factor)


def _video(frames: int, fps: float, sampling: SamplingConfig) -> VideoItem:
    """Return a video of evenly spaced frames, without truth."""
    none = np.zeros((0, 2)), np.zeros(0, np.int64)
    return VideoItem(
        NAME, Path(NAME), frames, frames / fps, fps, *none, (), sampling_fps=sampling.fps
    )
