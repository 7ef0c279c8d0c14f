"""Segments cut out of videos: the frames that are shown in them, and what other files keep."""

from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from evaluate.annotations import Detection
from evaluate.files.clip_names import clip_names
from extract.transcoding import cut
from extract.transcoding.cut import cut_segment, find_frames
from extract.video.indexing import video_index
from extract.video.reader import VideoReader
from tests.encodings import (
    ENCODINGS,
    read_numbers,
    sequential,
    turn,
    write_numbered,
)
from tests.marks import quick_only

COUNT = 100
# A keyframe every ten frames, so that segments can begin at one.
EVERY_TEN = {
    "H.264": (("g", "10"), ("bf", "0"), ("sc_threshold", "0")),
    "B-frames, long GOP": (("g", "10"), ("bf", "2"), ("sc_threshold", "0")),
    "matroska": (("g", "10"), ("bf", "0"), ("sc_threshold", "0")),
    "MPEG transport stream": (("g", "10"), ("bf", "0"), ("sc_threshold", "0")),
    "H.265": (("x265-params", "log-level=0:keyint=10:min-keyint=10:scenecut=0:open-gop=0"),),
}
COPIED = {
    *("H.264", "intra only", "matroska", "MPEG transport stream", "H.265", "10 bit", "odd size"),
    *("variable frame rate", "B-frames, long GOP"),
}


@pytest.mark.parametrize("name", quick_only(ENCODINGS, "H.264", "open GOP"))
def test_a_clip_has_the_frames_of_its_segment(tmp_path: Path, name: str) -> None:
    encoding = ENCODINGS[name]
    source = tmp_path / f"source{encoding.suffix}"
    options = EVERY_TEN.get(name, encoding.options)
    write_numbered(source, COUNT, replace(encoding, options=options))
    whole, reader = sequential(source), VideoReader(source)
    times = reader.times(np.arange(COUNT))
    copies = 0
    for first, last in ((0, 99), (0, 49), (10, 39), (20, 20), (33, 61), (97, 99)):
        begin = times[first]
        end = times[last + 1] if last + 1 < COUNT else times[last] + 0.04
        target = tmp_path / f"{first}-{last}.mp4"
        copied = cut_segment(reader, begin, end, target)
        copies += copied
        shown = sequential(target)
        wanted = whole[first : last + 1]
        assert len(shown) == len(wanted)
        if copied:
            assert np.array_equal(shown, wanted)
        elif not encoding.noisy:
            assert read_numbers(shown) == read_numbers(wanted) == list(range(first, last + 1))
        got = VideoReader(target).times(np.arange(len(shown)))
        assert got == pytest.approx(times[first : last + 1] - times[first], abs=1e-4)
    if name in COPIED:
        assert copies > 0


def test_frames_are_those_on_the_screen(tmp_path: Path) -> None:
    write_numbered(tmp_path / "a.mp4", COUNT)
    index = video_index(tmp_path / "a.mp4")
    assert find_frames(index, 1.0, 2.0) == (25, 49)
    assert find_frames(index, 1.0 - 1e-7, 2.0 + 1e-7) == (25, 49)  # rounding
    assert find_frames(index, 1.02, 2.01) == (25, 50)
    assert find_frames(index, 1.01, 1.02) == (25, 25)
    assert find_frames(index, 0, 1e9) == (0, COUNT - 1)
    assert find_frames(index, 1e6, 1e9) == (COUNT - 1, COUNT - 1)


def test_a_turned_video_is_upright(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    write_numbered(path, 30)
    turn(path)
    reader = VideoReader(path)
    assert not cut_segment(reader, 0, 0.4, tmp_path / "clip.mp4")
    clip = VideoReader(tmp_path / "clip.mp4")
    wanted, shown = reader.frames(np.arange(10)), clip.frames(np.arange(10))
    assert shown.shape == wanted.shape
    assert np.abs(shown.astype(int) - wanted).mean() < 6


def test_a_copy_that_shows_something_else_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.mp4"
    write_numbered(path, 30, ENCODINGS["intra only"])
    monkeypatch.setattr(cut, "_look_alike", lambda one, other: False)
    assert not cut_segment(VideoReader(path), 0.4, 0.8, tmp_path / "clip.mp4")
    assert read_numbers(sequential(tmp_path / "clip.mp4")) == list(range(10, 20))


def test_one_frame_lasts_as_long_as_in_its_video(tmp_path: Path) -> None:
    write_numbered(tmp_path / "a.mp4", 30)
    cut_segment(VideoReader(tmp_path / "a.mp4"), 0.5, 0.51, tmp_path / "clip.mp4")
    with av.open(str(tmp_path / "clip.mp4")) as container:
        stream: Any = container.streams.video[0]
        assert stream.duration * stream.time_base == pytest.approx(Fraction(1, 25))


def test_other_files_stay(tmp_path: Path) -> None:
    for name in ("a.mp4", "b.mp4"):
        write_numbered(tmp_path / name, 30 if name == "a.mp4" else 31)
    one, other = (VideoReader(tmp_path / name) for name in ("a.mp4", "b.mp4"))
    target = tmp_path / "clip.mp4"
    copied = cut_segment(one, 0, 0.8, target)
    content, changed = target.read_bytes(), target.stat().st_mtime_ns
    # The same segment is there already.
    assert cut_segment(one, 0, 0.8, target) == copied
    assert target.stat().st_mtime_ns == changed
    for reader, end_s in ((one, 0.9), (other, 0.8)):
        with pytest.raises(ValueError, match=r"clip.mp4: is not this segment"):
            cut_segment(reader, 0, end_s, target)
    assert target.read_bytes() == content
    target.write_text("a letter")
    with pytest.raises(ValueError, match="is not this segment"):
        cut_segment(one, 0, 0.8, target)
    assert target.read_text() == "a letter"


def test_names_tell_video_class_and_times() -> None:
    segments = [
        Detection("High Jump", 3.1, 4.9, 0.9),
        Detection("High/Jump", 3.1, 4.9, 0.8),
        Detection("../<evil>\0", 12.3456, 4321.5, 0.7),
        Detection("跳" * 200, 0, 1, 0.6),
        Detection("…", 0, 1, 0.6),
    ]
    names = clip_names("a b:c", segments)
    assert names[:3] == [
        "a_b_c-7803f70b_High_Jump_0003.10-0004.90s.mp4",
        "a_b_c-7803f70b_High_Jump_0003.10-0004.90s_2.mp4",
        "a_b_c-7803f70b_evil_0012.35-4321.50s.mp4",
    ]
    assert names[4] == "a_b_c-7803f70b___0000.00-0001.00s.mp4"
    assert max(len(name.encode()) for name in clip_names("跳" * 200, segments)) < 255
    assert len({*names}) == 5
    videos = "a_b", "a b", "a:b", "a\nb", "_", "~", "x" * 240, "x" * 250, "caf\udce9"
    names = [name for video in videos for name in clip_names(video, segments)]
    assert len({*names}) == 5 * len(videos)
    assert clip_names("a_b", segments)[0].startswith("a_b_High")
