"""Frame-exactness by every access path."""

import os
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from extract.video import VideoReader
from tests.encodings import (
    ENCODINGS,
    access_paths,
    irregular_time,
    read_numbers,
    sequential,
    turn,
    write_numbered,
)
from train.items import item_of


def difference(left: NDArray[np.uint8], right: NDArray[np.uint8]) -> float:
    return float(np.abs(left.astype(int) - right.astype(int)).mean((1, 2, 3)).max())


def check_exact(path: Path) -> None:
    expected = sequential(path)
    assert len(VideoReader(path)) == len(expected)
    whole = VideoReader(path).frames(np.arange(len(expected)))
    # Two decoders convert colours a little differently; neighbouring frames differ far more.
    assert difference(whole, expected) < 3
    for name, indices in access_paths(len(expected)).items():
        assert np.array_equal(VideoReader(path).frames(indices), whole[indices]), name
    reader = VideoReader(path)
    for name, indices in access_paths(len(expected)).items():
        assert np.array_equal(reader.frames(indices), whole[indices]), f"{name}, reader reused"


@pytest.mark.parametrize(
    "clip", ["demo.mp4", "part_0.mp4", "flipping_a_pancake.mkv", "h265_video.mp4", "test.avi"]
)
def test_real_clips_are_frame_exact(shared: Path, clip: str) -> None:
    check_exact(shared / "clips" / clip)


@pytest.mark.parametrize("name", ENCODINGS)
def test_generated_clips_are_frame_exact(tmp_path: Path, name: str) -> None:
    encoding = ENCODINGS[name]
    path = tmp_path / f"numbered{encoding.suffix}"
    write_numbered(path, 130, encoding)
    check_exact(path)
    assert VideoReader(path).index.access == encoding.access
    # Every frame carries its number: the right one comes, not only the same one always.
    frames = VideoReader(path).frames(np.arange(130)[::-1])
    assert frames.shape == (130, *encoding.size, 3)
    assert read_numbers(frames) == list(range(130))[::-1]


def test_variable_frame_rates_keep_their_times(tmp_path: Path) -> None:
    path = tmp_path / "irregular.mp4"
    write_numbered(path, 40, ENCODINGS["variable frame rate"])
    times = VideoReader(path).times(np.arange(40))
    assert times == pytest.approx([irregular_time(n) / 1000 for n in range(40)], abs=2e-3)


def test_rotated_videos_come_upright(tmp_path: Path) -> None:
    path = tmp_path / "phone.mp4"
    write_numbered(path, 20)
    straight = VideoReader(path).frames(np.array([5]))
    turn(path)
    os.utime(path, ns=(1, 1))
    turned = VideoReader(path).frames(np.array([5]))
    assert turned.shape == (1, 128, 64, 3)
    assert difference(turned, np.rot90(straight, -1, axes=(1, 2))) < 3


def test_times_follow_the_frame_rate(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    write_numbered(path, 30)
    reader = VideoReader(path)
    assert reader.fps == pytest.approx(25)
    assert reader.times(np.array([0, 5, 29])) == pytest.approx([0, 0.2, 1.16])


def test_a_damaged_clip_is_refused(shared: Path) -> None:
    with pytest.raises(
        ValueError, match=r"corrupted\.mp4: cannot be read as video: its data are damaged"
    ):
        item_of(shared / "clips/corrupted.mp4")


def test_frames_outside_the_video_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    write_numbered(path, 20)
    for indices in ([20], [-1, 3], []):
        with pytest.raises(IndexError, match=r"clip\.mp4"):
            VideoReader(path).frames(np.array(indices, np.int64))
