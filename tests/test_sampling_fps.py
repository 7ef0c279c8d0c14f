"""Samples by time: the nearest frames, whatever the video's rate, and truth that stays in place."""

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from extract.sampling.spans import whole_video_window
from extract.sampling.transforms import evaluation_transform
from extract.sampling.window_frames import window_frames
from extract.sampling.windows import (
    random_window,
    sampled_frames,
    samples_of,
    sliding_windows,
    truth_inside,
)
from extract.settings.pixels import PixelConfig
from extract.settings.sampling import SamplingConfig
from extract.video.index import VideoIndex
from extract.video.reader import VideoReader
from tests.encodings import ENCODINGS, read_numbers, write_numbered
from train.data.items import VideoItem
from train.data.video_files import make_item, probe_item

RATES = [9.8, 12.5, 23.976, 24.0, 25.0, 29.97, 30.0, 50.0, 59.94, 60.0, 120.0, 240.0]


@dataclass(frozen=True)
class Clip:
    """A video of which only the times are known."""

    frames: int
    fps: float
    times_s: NDArray[np.float64] | None = None


def nearest(begins: list[Fraction], length_s: Fraction, fps: Fraction) -> list[int]:
    """Return by search the frame nearest to each sample; of two as near, the earlier one."""
    numbers, k = [], 0
    while k == 0 or k / fps < length_s:
        numbers.append(min(range(len(begins)), key=lambda i: (abs(begins[i] - k / fps), i)))
        k += 1
    return numbers


def config(fps: float, window: int = 32, scale: int = 1) -> SamplingConfig:
    return SamplingConfig(window_size=window, scale_factor=scale, fps=fps)


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("fps", [2.0, 7.5, 12.0, 24.0, 30.0])
def test_samples_are_the_nearest_frames(rate: float, fps: float) -> None:
    exact = Fraction(rate).limit_denominator(1001)
    begins = [i / exact for i in range(150)]
    expected = nearest(begins, 150 / exact, Fraction(fps))
    assert samples_of(Clip(150, float(exact)), config(fps)).tolist() == expected


@given(
    st.lists(st.integers(1, 400), min_size=2, max_size=60), st.sampled_from([2.0, 7.5, 12.0, 30.0])
)
def test_samples_of_uneven_frames_are_the_nearest(steps: list[int], fps: float) -> None:
    times = np.cumsum([0, *steps]) / 1000  # milliseconds, as cameras write them
    count = len(steps)
    found = samples_of(Clip(count, count / times[-1], times), config(fps))
    begins = [Fraction(round(t * 1000), 1000) for t in times[:-1]]
    expected = nearest(begins, Fraction(round(times[-1] * 1000), 1000), Fraction(fps))
    assert found.tolist() == expected


@given(
    st.lists(st.integers(-450, 450), min_size=2, max_size=60),
    st.sampled_from([5, 12, 30]),
    st.sampled_from([2.0, 7.5, 12.0, 30.0]),
)
def test_samples_of_a_camera_whose_clock_shakes_are_the_nearest(
    shakes: list[int], rate: int, fps: float
) -> None:
    """Frames that are up to .45 of a frame too early or too late."""
    pts = np.array([(1000 * i + shake) * 90 // rate for i, shake in enumerate(shakes)])
    index = VideoIndex("indexed", pts, pts[:1], Fraction(1, 90_000), 0)
    found = samples_of(make_item(Path("a.mp4"), index, fps), config(fps))
    begins = [Fraction(int(each - pts[0]), 90_000) for each in pts]
    expected = nearest(begins, len(pts) * begins[-1] / (len(pts) - 1), Fraction(fps))
    distances = [
        [abs(begins[frame] - k / Fraction(fps)) for k, frame in enumerate(frames)]
        for frames in (found.tolist(), expected)
    ]
    assert len(found) == len(expected)
    # Two ticks of the clock are taken for rounding, twice: of a frame and of its neighbour.
    late = [float(a - b) for a, b in zip(*distances, strict=True)]
    assert max(late) <= 4 / 90_000 + 1e-5


@pytest.mark.parametrize("rate", RATES)
def test_times_that_are_only_rounded_are_even(rate: float) -> None:
    """A copy in Matroska, which counts milliseconds, has the samples of the original."""
    pts = np.round(np.arange(400) / rate * 1000).astype(np.int64)
    index = VideoIndex("indexed", pts, pts[:1], Fraction(1, 1000), 0)
    assert make_item(Path("a.mkv"), index, 7.5).times_s is None


@pytest.mark.parametrize("repeats", [2, 3, 5])
@pytest.mark.parametrize("overlap", [0.0, 0.5])
def test_a_video_whose_frames_are_repeated_is_the_same(repeats: int, overlap: float) -> None:
    sampling = config(12.0)
    slow, fast = Clip(500, 24.0), Clip(500 * repeats, 24.0 * repeats)
    segments = np.array([[10.0, 40.0], [100.5, 130.25]])  # on the timeline, the same for both
    for one, two in zip(
        sliding_windows(slow, overlap, sampling),
        sliding_windows(fast, overlap, sampling),
        strict=True,
    ):
        assert np.array_equal(two.frames // repeats, one.frames)
        assert (one.start, one.step, one.reflection) == (two.start, two.step, two.reflection)
        (inside, kept), (again, same) = (truth_inside(w, segments, 0.5) for w in (one, two))
        assert np.array_equal(inside, again) and np.array_equal(kept, same)
    drawn = [random_window(np.random.default_rng(3), v, segments, sampling) for v in (slow, fast)]
    assert np.array_equal(drawn[1].frames // repeats, drawn[0].frames)
    whole = [whole_video_window(v, sampling) for v in (slow, fast)]
    assert whole[0].size == whole[1].size and whole[0].reflection == whole[1].reflection


def test_a_stride_that_is_a_rate_takes_the_same_frames() -> None:
    by_frames = SamplingConfig(window_size=32, scale_factor=2, snippet_stride=4)
    by_time = config(12.0, scale=2)  # of 24 frames a second every second one
    for one, two in zip(
        sliding_windows(301, 0.5, by_frames),
        sliding_windows(Clip(301, 24.0), 0.5, by_time),
        strict=True,
    ):
        assert np.array_equal(one.frames, two.frames)
        assert one.reflection == two.reflection and one.valid == two.valid
        assert one.start / 24 == two.start / 12 and one.step / 24 == two.step / 12


def test_a_rate_above_the_videos_repeats_frames() -> None:
    window = sliding_windows(Clip(20, 10.0), 0.5, config(30.0, 64))[0]
    assert window.frames.tolist()[:7] == [0, 0, 1, 1, 1, 2, 2]
    assert window.valid == 60 and sampled_frames(Clip(20, 10.0), config(30.0)).size == 20


@pytest.mark.parametrize("times", [None, np.linspace(0, 2, 41) ** 2 / 2])
def test_truth_and_timeline_are_in_seconds(times: NDArray[np.float64] | None) -> None:
    nothing = np.zeros((0, 2)), np.zeros(0, np.int64), ()
    item = VideoItem("a", Path("a.mp4"), 40, 2.0, 20.0, *nothing, times, sampling_fps=7.5)
    assert item.length == 15.0
    seconds = np.array([[0.0, 1.0], [0.4, 2.0]])
    assert item.to_timeline(seconds) == pytest.approx(seconds * 7.5)
    assert item.to_seconds(item.to_timeline(seconds)) == pytest.approx(seconds)


@pytest.mark.parametrize("fps", [4.0, 10.0, 40.0])
def test_what_is_decoded_is_what_was_chosen(tmp_path: Path, fps: float) -> None:
    write_numbered(tmp_path / "clip.mp4", 40, ENCODINGS["H.264"])
    item, reader = probe_item(tmp_path / "clip.mp4", fps), VideoReader(tmp_path / "clip.mp4")
    windows = sliding_windows(item, 0.5, config(fps, 16))
    decoded = window_frames(reader, windows, evaluation_transform(PixelConfig(size=64)))
    whole = read_numbers(reader.frames(np.arange(40)))
    assert whole == list(range(40))
    rate = Fraction(reader.index.fps).limit_denominator(1001)
    expected = nearest([i / rate for i in range(40)], 40 / rate, Fraction(fps))
    for window, frames in zip(windows, decoded, strict=True):
        first = round(window.start)
        assert window.frames.tolist() == expected[first : first + 16] and len(frames) == len(
            window.frames
        )
