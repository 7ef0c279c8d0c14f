"""Frame-exactness by every access path."""

import os
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from extract.video.decoders.by_pyav import find_by_time
from extract.video.index import VideoIndex
from extract.video.reader import VideoError, VideoReader
from tests.encodings import (
    ENCODINGS,
    QUICK_ENCODINGS,
    access_paths,
    irregular_time,
    read_numbers,
    sequential,
    turn,
    write_numbered,
)
from tests.marks import quick_only
from train.data.video_files import probe_item


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


@pytest.mark.skipif(not hasattr(os, "sched_getscheduler"), reason="needs scheduling policies")
def test_an_encoder_leaves_the_priority_of_the_tests_as_it_was(tmp_path: Path) -> None:
    before = os.sched_getscheduler(0), os.sched_getparam(0).sched_priority
    write_numbered(tmp_path / "clip.mp4", 20, ENCODINGS["AV1"])
    assert (os.sched_getscheduler(0), os.sched_getparam(0).sched_priority) == before


@pytest.mark.slow
@pytest.mark.parametrize(
    "clip", ["demo.mp4", "part_0.mp4", "flipping_a_pancake.mkv", "h265_video.mp4", "test.avi"]
)
def test_real_clips_are_frame_exact(shared: Path, clip: str) -> None:
    check_exact(shared / "clips" / clip)


@pytest.mark.parametrize("name", quick_only(ENCODINGS, *QUICK_ENCODINGS))
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


def test_decoding_begins_where_pictures_are_whole(tmp_path: Path) -> None:
    for name in ("open GOP", "intra refresh", "intra refresh, matroska", "intra refresh, stream"):
        path = tmp_path / f"{name}{ENCODINGS[name].suffix}"
        write_numbered(path, 130, ENCODINGS[name])
        assert (len(VideoReader(path).index.keyframes) > 1) == (name == "open GOP")
        reader = VideoReader(path)
        one_by_one = [reader.frames(np.array([n]))[0] for n in range(0, 130, 3)]
        assert np.array_equal(one_by_one, sequential(path)[::3]), name


TITLE = "Cafe!"


def remux(source: Path, target: Path, **settings: Any) -> None:
    """Copy a video's packets to another file."""
    with av.open(str(source)) as old, av.open(str(target), "w", **settings) as new:
        stream = new.add_stream_from_template(old.streams.video[0], opaque=True)
        new.metadata["title"] = stream.metadata["title"] = TITLE
        for packet in old.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                new.mux(packet)


@pytest.mark.parametrize("suffix", [".mkv", ".mp4"])
def test_titles_need_not_be_utf_8(tmp_path: Path, suffix: str) -> None:
    write_numbered(tmp_path / "clip.mp4", 20)
    path = tmp_path / f"old{suffix}"
    remux(tmp_path / "clip.mp4", path)
    # By hand: PyAV's way to write other encodings differs by version.
    latin = path.read_bytes().replace(TITLE.encode(), "Café!".encode("latin-1"))
    assert b"Caf\xe9!" in latin
    path.write_bytes(latin)
    assert read_numbers(VideoReader(path).frames(np.arange(20))) == [*range(20)]


def test_files_that_decord_refuses_are_read(tmp_path: Path) -> None:
    write_numbered(tmp_path / "clip.mp4", 130, ENCODINGS["intra only"])
    remux(tmp_path / "clip.mp4", tmp_path / "live.mkv", options={"live": "1"})
    check_exact(tmp_path / "live.mkv")


def test_frames_without_a_picture_are_not_replaced_by_others(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    write_numbered(path, 20)
    found = VideoReader(path).index
    pts = np.sort(np.append(found.pts, found.pts[10] + 1))  # 11 is a packet without a picture
    holey = VideoIndex("seek", pts, found.keyframes, found.time_base, 0)
    assert read_numbers(np.stack(list(find_by_time(path, holey, np.array([10, 12]))))) == [10, 11]
    with pytest.raises(VideoError, match="frame 11 is not found"):
        list(find_by_time(path, holey, np.array([11])))


def test_equal_times_have_a_frame_rate() -> None:
    same = np.zeros(3, np.int64)
    assert VideoIndex("sequence", same, same[:1], Fraction(1, 25), 0).fps == 25


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
        probe_item(shared / "clips/corrupted.mp4")


def test_frames_outside_the_video_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    write_numbered(path, 20)
    for indices in ([20], [-1, 3], []):
        with pytest.raises(IndexError, match=r"clip\.mp4"):
            VideoReader(path).frames(np.array(indices, np.int64))
