"""Which frames and pixels a recognition network sees, from the published formulas."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from extract.sampling.views import (
    Clip,
    Stretch,
    crop_corners,
    evaluation_clips,
    evaluation_views,
    order_view,
    training_clip,
    training_view,
)
from extract.settings.pixels import CropConfig, ViewConfig
from extract.video.reader import VideoReader
from tests.encodings import ENCODINGS, Encoding, read_numbers, write_numbered

K400 = ViewConfig("interval", frames=8, interval=8, fps=30.0, clips=10)
SSV2 = ViewConfig("segments", frames=8, clips=2)
STRETCHES = st.builds(
    Stretch, st.integers(0, 500), st.integers(1, 900), st.floats(5, 120, allow_nan=False)
)


@pytest.mark.parametrize("fps", [15.0, 25.0, 30.0, 59.94])
@pytest.mark.parametrize("length", [5, 64, 300])
def test_intervals_are_those_of_the_published_formula(length: int, fps: float) -> None:
    clips = evaluation_clips(Stretch(7, length, fps), K400)
    span = 8 * 8 * fps / 30
    assert len(clips) == 10
    for i, clip in enumerate(clips):
        start = max(length - span, 0) * i / 10
        for k, frame in enumerate(clip.frames):
            place = start + k * (span - 1) / 7
            assert frame - 7 == math.floor(min(max(place, 0), length - 1) + 1e-9)


def test_a_single_clip_lies_in_the_middle() -> None:
    (clip,) = evaluation_clips(Stretch(0, 164, 30.0), ViewConfig(clips=1))
    assert clip.frames.tolist() == [50, 59, 68, 77, 86, 95, 104, 113]
    one = ViewConfig("segments", frames=4, clips=1)
    assert evaluation_clips(Stretch(0, 40, 30.0), one)[0].frames.tolist() == [5, 15, 25, 35]


def test_segments_are_equal_parts_and_several_clips_go_through_them() -> None:
    first, second = evaluation_clips(Stretch(100, 80, 12.0), SSV2)
    assert first.frames.tolist() == [105, 115, 125, 135, 145, 155, 165, 175]
    assert second.frames.tolist() == [110, 120, 130, 140, 150, 160, 170, 179]


@given(STRETCHES, st.sampled_from(["interval", "segments"]), st.integers(1, 32), st.booleans())
def test_frames_lie_in_the_stretch_and_never_fall(
    stretch: Stretch, method: str, frames: int, jitter: bool
) -> None:
    config = ViewConfig(method, frames, 3, 30.0, jitter, clips=4)  # type: ignore[arg-type]
    rng = np.random.default_rng(frames)
    clips = [*evaluation_clips(stretch, config), training_clip(rng, stretch, config)]
    for clip in clips:
        assert clip.frames.shape == (frames,) and clip.frames.dtype == np.int64
        assert stretch.first <= clip.frames[0]
        assert clip.frames[-1] < stretch.first + stretch.length
        assert (np.diff(clip.frames) >= 0).all()
    starts = [(clip.frames[0], clip.frames[-1]) for clip in clips[:-1]]
    assert starts == sorted(starts)  # decoded in one pass


def test_training_goes_everywhere_and_without_jitter_stands_still() -> None:
    rng = np.random.default_rng(0)
    stretch = Stretch(0, 100, 30.0)
    starts = [training_clip(rng, stretch, K400).frames[0] for _ in range(400)]
    assert min(starts) == 0 and max(starts) == 35 and len(set(starts)) == 36
    drawn = np.array([training_clip(rng, stretch, SSV2).frames for _ in range(400)])
    for part, (low, high) in enumerate(zip(drawn.min(0), drawn.max(0), strict=True)):
        # Rounded, a frame may be the next part's first.
        assert 12.5 * part - 0.5 <= low < 12.5 * part + 1
        assert 12.5 * (part + 1) - 1.5 < high <= 12.5 * (part + 1) + 0.5
    for method in ("interval", "segments"):
        still = ViewConfig(method, jitter=False, clips=1)
        (middle,) = evaluation_clips(stretch, still)
        assert np.array_equal(training_clip(rng, stretch, still).frames, middle.frames)


@pytest.mark.parametrize(
    ("height", "width", "crops", "corners"),
    [
        (256, 341, 3, [(0, 0), (0, 42), (0, 85)]),
        (341, 256, 3, [(0, 0), (42, 0), (85, 0)]),
        (256, 340, 1, [(0, 42)]),
        (300, 256, 2, [(0, 0), (44, 0)]),
        (256, 256, 3, [(0, 0)] * 3),
    ],
)
def test_crops_lie_along_the_long_side(
    height: int, width: int, crops: int, corners: list[tuple[int, int]]
) -> None:
    assert crop_corners(height, width, CropConfig(crops=crops)) == corners


def test_a_smaller_crop_lies_in_the_middle_of_the_short_side() -> None:
    config = CropConfig(test_short_side=64, test_size=48)
    assert crop_corners(64, 100, config) == [(8, 0), (8, 26), (8, 52)]


@pytest.fixture(scope="module")
def numbered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("views") / "numbered.mp4"
    write_numbered(path, 60, Encoding("libx264", "indexed", size=(64, 128)))
    return path


def numbers(view: torch.Tensor) -> list[int]:
    """Read the bars of views that show the whole width."""
    return read_numbers(view.permute(1, 2, 3, 0).numpy())


def test_views_show_the_frames_that_were_asked_for(numbered: Path) -> None:
    reader = VideoReader(numbered)
    clips = evaluation_clips(Stretch(10, 40, 25.0), ViewConfig("segments", frames=6, clips=3))
    wide = CropConfig((64, 64), 64, 0.0, 64, 64, crops=2)
    views = list(evaluation_views(reader, clips, wide))
    assert len(views) == 6 and all(view.shape == (3, 6, 64, 64) for view in views)
    for clip, (left, right) in zip(clips, zip(views[::2], views[1::2], strict=True), strict=True):
        whole = torch.cat([left, right], 3)
        assert numbers(whole) == clip.frames.tolist()
        assert numbers(order_view(whole, "reversed")) == clip.frames[::-1].tolist()


@pytest.mark.parametrize("antialias", [True, False])
def test_views_are_resized_as_interpolate_does(numbered: Path, antialias: bool) -> None:
    """Without antialiasing, as the TAdaConv project trained and tests its networks."""
    reader = VideoReader(numbered)
    config = CropConfig((24, 24), 24, 0.0, 24, 24, crops=2, antialias=antialias)
    (frames,) = reader.chunks(np.array([7]))
    levels = torch.from_numpy(frames).permute(0, 3, 1, 2).float()
    height, width = (24 * side // min(levels.shape[-2:]) for side in levels.shape[-2:])
    both = [
        F.interpolate(levels, (height, width), mode="bilinear", antialias=way)
        for way in (True, False)
    ]
    assert (both[0] - both[1]).abs().max() > 20
    whole = both[not antialias][0]
    crops = list(evaluation_views(reader, [Clip(np.array([7]))], config))
    for crop, (top, left) in zip(crops, crop_corners(height, width, config), strict=True):
        expected = whole[:, top : top + 24, left : left + 24]
        assert (crop[:, 0] - expected).abs().max() <= 1
    view = training_view(reader, Clip(np.array([7])), config, False, 0)[:, 0]
    places = whole.unfold(1, 24, 1).unfold(2, 24, 1).flatten(1, 2).movedim(1, 0)
    assert (places - view).abs().amax((1, 2, 3)).min() <= 1


def test_a_training_view_is_one_draw_for_all_frames(numbered: Path) -> None:
    reader = VideoReader(numbered)
    still = Clip(np.full(20, 33))  # more than are decoded at once
    config = CropConfig(train_short_side=(40, 80), train_size=40)
    seen = set()
    for seed in range(12):
        view = training_view(reader, still, config, False, seed)
        assert view.shape == (3, 20, 40, 40) and view.dtype == torch.uint8
        assert (view == view[:, :1]).all()
        turned = training_view(reader, still, config, True, seed)
        assert torch.equal(turned, view.flip(-1))
        again = training_view(reader, still, config, False, seed)
        assert torch.equal(again, view)
        seen.add(view.numpy().tobytes())
    assert len(seen) > 6


@pytest.mark.parametrize("name", ["H.264", "open GOP", "variable frame rate"])
def test_views_are_frame_exact_whatever_the_file(tmp_path: Path, name: str) -> None:
    encoding = ENCODINGS[name]
    path = tmp_path / f"video{encoding.suffix}"
    write_numbered(path, 50, encoding)
    clips = evaluation_clips(Stretch(0, 50, 25.0), ViewConfig("interval", 5, 4, clips=4))
    views = evaluation_views(VideoReader(path), clips, CropConfig((64, 64), 64, 0, 64, 64, 2))
    for clip in clips:
        left, right = next(views), next(views)
        assert numbers(torch.cat([left, right], 3)) == clip.frames.tolist()


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (ViewConfig, {"frames": 0}, "views.frames"),
        (ViewConfig, {"clips": 0}, "views.clips"),
        (ViewConfig, {"fps": 0.0}, "views.fps"),
        (CropConfig, {"train_short_side": (200, 300)}, "crops.train_short_side"),
        (CropConfig, {"train_short_side": (300, 250)}, "crops.train_short_side"),
        (CropConfig, {"test_short_side": 200}, "crops.test_short_side"),
        (CropConfig, {"flip": 1.5}, "crops.flip"),
        (CropConfig, {"crops": 0}, "crops.crops"),
    ],
)
def test_impossible_settings_are_refused(
    kind: type, settings: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        kind(**settings)
