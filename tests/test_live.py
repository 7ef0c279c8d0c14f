"""Frames that arrive one by one are seen as those of a file, and what is found is the same."""

import math
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from evaluate.annotations import Detection
from evaluate.nms import NmsConfig
from extract.sampling.windows import sliding_windows
from extract.settings.pixels import PixelConfig
from extract.settings.sampling import SamplingConfig
from extract.video.reader import CHUNK, VideoReader
from tests.encodings import write_numbered
from tests.test_detect import detector_of
from tests.test_detector import blank_batch, small_experiment
from train.config import Experiment
from train.data import live
from train.data.batch import Batch
from train.data.items import VideoItem
from train.data.live import arriving_windows, delay_s
from train.data.video_files import probe_item
from train.data.windows import EvaluationWindows, WindowInputs
from train.modeling.config import FusionConfig
from train.postprocessing.candidates import Candidates, merge_windows
from train.postprocessing.live import detect_live as live_detections

PIXELS = PixelConfig(size=16, train_short_side=18)


def numbered(count: int) -> Iterator[NDArray[np.uint8]]:
    """Yield frames whose colour is their number, in memory that is used again."""
    frame = np.zeros((18, 24, 3), np.uint8)
    for number in range(count):
        frame[:] = number % 256, number // 256, 7
        yield frame
    frame[:] = 255  # as by the beginning of a frame that does not come


@settings(max_examples=30)
@given(
    frames=st.integers(1, 400),
    fps=st.sampled_from([7.0, 12.5, 25.0, 29.97, 30.0]),
    rate=st.sampled_from([None, 4.0, 12.0, 30.0, 40.0]),
    size=st.sampled_from([16, 32]),
    overlap=st.sampled_from([0.0, 0.25, 0.5, 0.75]),
)
def test_windows_are_those_of_a_file(
    frames: int, fps: float, rate: float | None, size: int, overlap: float
) -> None:
    stride = {"snippet_stride": 2} if rate is None else {"fps": rate}
    sampling = SamplingConfig(window_size=size, **stride)
    none = np.zeros((0, 2)), np.zeros(0, np.int64)
    video = VideoItem("v", Path("v"), frames, frames / fps, fps, *none, (), sampling_fps=rate)
    expected = sliding_windows(video, overlap, sampling)
    inputs = WindowInputs(sampling, PIXELS, ("forward", "reversed"))
    arrived = [*arriving_windows(numbered(frames), fps, inputs, overlap)]
    assert len(arrived) == len(expected)
    for (batch, _), window in zip(arrived, expected, strict=True):
        (found,), inputs_of = batch.windows, batch.turned().inputs
        assert np.array_equal(found.frames, window.frames)
        assert (found.start, found.reflection) == (window.start, window.reflection)
        assert batch.mask[0].tolist() == window.mask().tolist()
        for direction, pixels in zip(inputs.directions, inputs_of, strict=True):
            seen = pixels[0, :2, :, 8, 8].numpy().astype(int)
            assert (seen[0] + 256 * seen[1]).tolist() == window.indices(direction).tolist()
    assert arrived[-1][1].frames == frames


def experiment(direction: Literal["forward", "reversed", "both"] = "forward") -> Experiment:
    small = small_experiment(Path("runs/none"))
    # As frames arrive: larger batches round otherwise on some machines, and of segments that are
    # nearly equal suppression then takes another one first.
    small = replace(small, evaluation=replace(small.evaluation, batch_size=1))
    if direction == "both":
        return replace(small, fusion=FusionConfig("average"))
    return replace(small, direction=direction)


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("live") / "clip.mp4"
    write_numbered(path, 420)
    return path


def frames_of(path: Path) -> Iterator[NDArray[np.uint8]]:
    reader = VideoReader(path)
    for number in range(len(reader)):
        yield reader.frames(np.array([number]))[0]


@pytest.mark.parametrize("direction", ["forward", "reversed", "both"])
def test_what_is_found_is_what_is_found_in_the_file(
    video: Path, direction: Literal["forward", "reversed", "both"]
) -> None:
    detector = detector_of(experiment(direction))
    sampling, overlap = detector.config.sampling, detector.config.sampling.test_overlap
    item = probe_item(video, sampling.fps)
    inputs = WindowInputs(sampling, detector.config.pixels, detector.config.directions)
    of_file = EvaluationWindows([item], inputs, overlap)
    arrived = [batch for batch, _ in arriving_windows(frames_of(video), item.fps, inputs, overlap)]
    assert len(arrived) > 3
    for sample, batch in zip(of_file, arrived, strict=True):
        assert all(torch.equal(a, b[0]) for a, b in zip(sample.inputs, batch.inputs, strict=True))

    expected = detector.detect(video)
    found = detector.detect(frames_of(video), fps=item.fps)
    assert len(found) == len(expected) > 10
    for one, other in zip(sorted(found), sorted(expected), strict=True):
        assert one.label == other.label
        assert one[1:] == pytest.approx(other[1:], abs=1e-5)


def test_live_actions_come_in_time_once_and_as_in_the_end(video: Path) -> None:
    detector = detector_of(experiment())
    item = probe_item(video, detector.config.sampling.fps)
    sampling = detector.config.sampling
    seen = 0

    def frames() -> Iterator[NDArray[np.uint8]]:
        nonlocal seen
        for frame in frames_of(video):
            seen += 1
            yield frame

    settled, until, lateness = [], -1.0, 0.0
    for update in detector.detect_live(frames(), item.fps):
        for found in update.settled:
            assert until - 1e-5 < found.end_s <= update.until_s + 1e-5
            if seen < item.frames:
                lateness = max(lateness, seen / item.fps - found.end_s)
        settled += update.settled
        until = update.until_s
    assert until == pytest.approx(item.duration_s)
    in_frames = replace(sampling, fps=None, snippet_stride=sampling.step)
    most = (sampling.window_size * 2) * in_frames.step / (sampling.fps or item.fps)
    assert 0 < lateness <= most + 17 / item.fps
    whole = sorted((d.label, d.start_s, d.end_s) for d in detector.detect(video) if d.score > 0.05)
    ours = sorted((d.label, d.start_s, d.end_s) for d in settled if d.score > 0.05)
    assert len(whole) > 10
    assert np.allclose([w[1:] for w in whole], [o[1:] for o in ours], atol=1e-5)
    assert [w[0] for w in whole] == [o[0] for o in ours]


def settled_of(
    segments: NDArray[np.floating], frames: int, fps: float, first: int = 0, **nms: Any
) -> tuple[list[Detection], list[Detection]]:
    """Return the actions that are settled one by one, and those of a file.

    Args:
        segments: candidates in frames from `first` on; a window has those that begin in it.
    """
    sampling = SamplingConfig(window_size=16, snippet_stride=1)
    none = np.zeros((0, 2)), np.zeros(0, np.int64)
    video = VideoItem("v", Path("v"), frames, frames / fps, fps, *none, ())
    evaluation = replace(experiment().evaluation, nms=NmsConfig(method="hard", **nms))

    def find(batch: Batch) -> Candidates:
        (window,) = batch.windows
        starts = segments[:, 0] - (place := float(batch.reflection))
        here = segments[(starts >= 0) & (starts < window.size)] - place
        scores = np.linspace(0.9, 0.5, len(here), dtype=np.float32)
        found = window.to_timeline(here).astype(np.float32)
        return Candidates(found, scores, np.zeros(len(here), np.int64))

    def windows() -> Iterator[tuple[Batch, VideoItem]]:
        for window in sliding_windows(frames, 0.5, sampling):
            seen = min(frames, int(window.start) + window.size + 1) + first
            place = torch.tensor([window.start])  # which the window is not asked for
            batch = replace(blank_batch("v", replace(window, start=window.start + first)))
            yield (
                replace(batch, reflection=place),
                replace(video, frames=seen, duration_s=seen / fps),
            )

    updates = live_detections(windows(), find, ("a",), evaluation)
    settled = [found for update in updates for found in update.settled]
    every = [
        find(replace(batch, windows=(replace(batch.windows[0], start=place),)))
        for batch, _ in windows()
        for place in [float(batch.reflection)]
    ]
    return settled, merge_windows(every, video, ("a",), evaluation)


@pytest.mark.parametrize("fps", [25.0, 29.97, 30.0])
@pytest.mark.parametrize(
    ("segments", "nms"),
    [
        ([(end - 1, end) for end in range(1, 480)], {}),  # windows begin where actions end
        ([(end - 1.5, end) for end in range(2, 480, 2)], {}),
        ([(3, 300), (40, 41), (100, 480)], {"iou_threshold": 0.5}),  # longer than windows
        (
            [(start + d, start + 10 + 2 * d) for start in range(0, 460, 7) for d in (0, 0.4, 0.8)],
            {"multiclass": False, "voting_threshold": 0.6, "iou_threshold": 0.5},
        ),
    ],
)
def test_every_action_is_settled_once(
    segments: list[tuple[float, float]], nms: dict[str, Any], fps: float
) -> None:
    settled, expected = settled_of(np.array(segments, np.float64), 480, fps, **nms)
    assert len(settled) == len(expected) > 2
    for one, other in zip(sorted(settled), sorted(expected), strict=True):
        assert one[1:] == pytest.approx(other[1:], abs=1e-4)


def test_times_are_exact_after_years() -> None:
    segments = np.array([(start, start + 2.5) for start in range(0, 200, 4)], np.float64)
    first = 2**31  # frames, 2.7 years
    settled, expected = settled_of(segments, 240, 25.0, first)
    assert len(settled) == len(expected) == 50
    for one, other in zip(sorted(settled), sorted(expected), strict=True):
        assert one.start_s - first / 25 == pytest.approx(other.start_s, abs=1e-4)
        assert one.end_s - one.start_s == pytest.approx(0.1, abs=1e-5)


def test_memory_is_that_of_a_window(monkeypatch: pytest.MonkeyPatch) -> None:
    sampling = SamplingConfig(window_size=16, snippet_stride=2)
    inputs = WindowInputs(sampling, PIXELS, ("forward",))
    sizes = []

    def batch(self: live._Kept, *parts: Any) -> Batch:
        sizes.append(len(self.numbers))
        return make_batch(self, *parts)

    make_batch = live._Kept.batch
    monkeypatch.setattr(live._Kept, "batch", batch)
    windows = sum(1 for _ in arriving_windows(numbered(3000), 25.0, inputs, 0.5))
    assert len(sizes) == windows > 100
    assert max(sizes) <= 16 + 8 + CHUNK


@pytest.mark.parametrize(
    ("size", "scale", "overlap", "rate", "fps"),
    [
        (32, 1, 0.5, 4.0, 25.0),
        # Windows that are complete between two chunks of frames that are resized together.
        (16, 1, 0.5, 4.0, 25.0),
        (32, 1, 0.25, 12.0, 29.97),
        (16, 2, 0.75, 8.0, 25.0),
        (32, 1, 0.25, 30.0, 25.0),
    ],
)
def test_the_delay_is_stated(
    size: int, scale: int, overlap: float, rate: float, fps: float
) -> None:
    sampling = SamplingConfig(window_size=size, scale_factor=scale, fps=rate)
    count, seen = round(4 * size * scale * fps / rate), 0

    def frames() -> Iterator[NDArray[np.uint8]]:
        nonlocal seen
        for frame in numbered(count):
            seen += 1
            yield frame

    until, lateness = 0.0, []
    inputs = WindowInputs(sampling, PIXELS, ("forward",))
    for batch, _ in arriving_windows(frames(), fps, inputs, overlap):
        if seen < count:
            lateness.append(seen / fps - until)  # of an action that ends right after it
        (window,) = batch.windows
        until = (window.start + window.step) / rate
    stated = delay_s(sampling, overlap)
    assert len(lateness) > 2
    assert stated - 2 * sampling.step / rate < max(lateness) <= stated + 1 / fps


def test_the_delay_is_told_in_seconds_alone() -> None:
    with pytest.raises(ValueError, match=r"sampling\.fps"):
        delay_s(SamplingConfig(window_size=32, snippet_stride=2), 0.5)


@pytest.mark.parametrize(
    ("frames", "fps", "message"),
    [
        ([], 25.0, "no frame has arrived"),
        ([np.zeros((8, 8, 3), np.uint8)], None, "rate"),
        ([np.zeros((8, 8, 3), np.float32)], 25.0, "frame 0: expected uint8"),
        ([np.zeros((8, 8), np.uint8)], 25.0, "frame 0: expected uint8"),
        ([np.zeros((n, 8, 3), np.uint8) for n in (8, 9, 9, 9)], 25.0, "another size"),
        # Every second one is looked at.
        ([np.zeros((n, 8, 3), np.uint8) for n in (8, 9, 8, 8)], 25.0, "frame 1 has another size"),
        ([np.zeros((8, 8, 3), np.uint8), None], 25.0, "frame 1: expected uint8"),
        # Frames are resized 16 at a time.
        ([np.zeros((n, 8, 3), np.uint8) for n in (8,) * 64 + (9,) * 64], 25.0, "another size"),
        ([np.zeros((8, 8, 3), np.uint8)], math.inf, "rate"),
        ([np.zeros((0, 8, 3), np.uint8)], 25.0, "frame 0: expected uint8"),
        ([(np.zeros((8, 8, 3), np.uint8), 0.04)], 25.0, "frame 0: expected .* not a tuple"),
    ],
)
def test_frames_that_are_none(
    frames: list[NDArray[np.uint8]], fps: float | None, message: str
) -> None:
    detector = detector_of(experiment())
    with pytest.raises(ValueError, match=message):
        detector.detect(frames, fps)


def test_a_rate_may_be_a_fraction() -> None:
    """As PyAV tells it."""
    sampling = SamplingConfig(window_size=16, fps=12.0)
    inputs = WindowInputs(sampling, PIXELS, ("forward",))
    by_rate = [
        [*arriving_windows(numbered(100), fps, inputs, 0.5)]
        for fps in (30000 / 1001, Fraction(30000, 1001))
    ]
    of_float, of_fraction = ([batch.inputs[0] for batch, _ in each] for each in by_rate)
    assert len(of_float) > 2 and all(map(torch.equal, of_float, of_fraction))


def test_a_detector_of_whole_videos_says_so() -> None:
    config = replace(experiment(), sampling=SamplingConfig("resize", window_size=32))
    with pytest.raises(ValueError, match="whole videos"):
        detector_of(config).detect(numbered(4), fps=25.0)
