"""Windows, truth and both directions, as properties over all lengths and overlaps."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from extract.sampling.reversal import reverse_seconds, reverse_segments
from extract.sampling.windows import (
    random_window,
    seconds_to_frames,
    sliding_windows,
    truth_inside,
    whole_video,
)
from extract.settings.sampling import SamplingConfig

factors = st.sampled_from([(1, 1), (1, 4), (2, 4), (4, 4), (2, 2)])


def sampling(size: int, factor: tuple[int, int]) -> SamplingConfig:
    return SamplingConfig(window_size=size, scale_factor=factor[0], snippet_stride=factor[1])


@given(
    frames=st.integers(1, 2000),
    size=st.sampled_from([16, 48, 128]),
    factor=factors,
    overlap=st.floats(0, 0.95),
)
def test_sliding_windows_cover_every_sample(
    frames: int, size: int, factor: tuple[int, int], overlap: float
) -> None:
    config = sampling(size, factor)
    windows = sliding_windows(frames, overlap, config)
    covered = np.unique(np.concatenate([window.frames for window in windows]))
    assert np.array_equal(covered, np.arange(0, frames, config.sample_step))
    for window in windows:
        assert len(window.indices("forward")) == config.samples
        assert window.indices("forward").max() < frames
        assert window.mask().sum() == window.valid >= 1
    assert all(a.start < b.start for a, b in itertools.pairwise(windows))
    if frames >= size * config.snippet_stride:
        assert all(window.mask().all() for window in windows)


@given(frames=st.integers(1, 3000), factor=factors)
def test_reversed_window_shows_the_same_frames_in_opposite_order(
    frames: int, factor: tuple[int, int]
) -> None:
    for window in sliding_windows(frames, 0.5, sampling(48, factor)):
        valid = len(window.frames)
        forward, backward = window.indices("forward"), window.indices("reversed")
        assert np.array_equal(backward[:valid], forward[:valid][::-1])
        assert (backward[valid:] == backward[valid - 1]).all()
        # Sample k of the reversed input lies at reversed time R − t: the frame says the same.
        step = np.arange(valid) / factor[0]
        there = window.to_timeline(window.reflection - step)
        assert np.allclose(there, backward[:valid])


@given(frames=st.integers(2, 5000), steps=st.sampled_from([16, 96]), factor=st.sampled_from([1, 4]))
def test_resized_video(frames: int, steps: int, factor: int) -> None:
    config = SamplingConfig("resize", window_size=steps, scale_factor=factor, snippet_stride=factor)
    window = whole_video(frames, config)
    assert len(window.frames) == steps * factor and window.mask().all()
    assert window.reflection == pytest.approx(steps * (frames - 1) / frames)
    assert window.to_timeline(np.array([[0.0, steps]])) == pytest.approx(np.array([[0, frames]]))
    # Sampling is symmetric: what reversal shows is what the reversed file would show.
    assert np.abs(frames - 1 - window.frames[::-1] - window.frames).max() <= 1


def test_resize_samples_the_middle_of_equal_shares() -> None:
    config = SamplingConfig("resize", window_size=16, snippet_stride=1)
    assert np.array_equal(whole_video(48, config).frames, 3 * np.arange(16) + 1)


def test_truth_moves_with_the_frames() -> None:
    segments = np.array([[3.0, 9.0], [1.0, 2.5]])
    assert reverse_segments(segments, 15.0).tolist() == [[6, 12], [12.5, 14]]
    assert np.array_equal(reverse_segments(reverse_segments(segments, 15.0), 15.0), segments)
    start, end = reverse_seconds(1.0, 2.0, frames=101, fps=10.0)
    assert (start, end) == pytest.approx((8.0, 9.0))


def test_seconds_become_frames_rounded_down() -> None:
    seconds = np.array([[1.0, 2.05]])
    assert seconds_to_frames(seconds, duration=10.0, frames=253).tolist() == [[25, 51]]


def test_truth_is_clipped_and_the_incomplete_dropped() -> None:
    config = SamplingConfig(window_size=16, snippet_stride=4)
    window = sliding_windows(1000, 0.5, config)[1]
    assert window.start == 32
    truth = np.array([[36.0, 60.0], [80.0, 100.0], [90.0, 200.0], [20.0, 60.0]])
    inside, kept = truth_inside(window, truth, 0.7)
    assert kept.tolist() == [0, 1, 3]
    assert np.allclose(inside, [[1, 7], [12, 16], [0, 7]])


@settings(max_examples=50)
@given(frames=st.integers(40, 4000), seed=st.integers(0, 10), factor=factors)
def test_random_windows_hold_an_action(frames: int, seed: int, factor: tuple[int, int]) -> None:
    config = sampling(48, factor)
    start = frames * seed / 12
    truth = np.array([[start, start + frames / 20]])
    window = random_window(np.random.default_rng(seed), frames, truth, config)
    steps = -(-frames // config.snippet_stride)
    if steps <= 48:
        assert round(0.9 * steps) <= window.valid <= steps
    else:
        assert window.mask().all() and window.frames[-1] < frames
    again = random_window(np.random.default_rng(seed), frames, truth, config)
    assert np.array_equal(window.frames, again.frames)
    # One action of a twentieth of the video: 200 tries find it wherever it can fit.
    if frames / 20 / config.snippet_stride < 24 and steps > 60:
        assert len(truth_inside(window, truth, config.min_completeness)[0]) == 1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"window_size": 100}, "multiple of 16"),
        ({"scale_factor": 3}, "multiple of sampling.scale_factor"),
        ({"test_overlap": 1.0}, "test_overlap"),
        ({"crop": (1.0, 0.9)}, "rising shares"),
    ],
)
def test_impossible_sampling_is_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SamplingConfig(**fields)  # type: ignore[arg-type]
