"""Three decoders behind one reader: which one is taken, and the same frames whichever."""

import json
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from extract.video import indexing
from extract.video.decoders import by_decord, by_torchcodec
from extract.video.decoders.by_decord import DecordDecoder
from extract.video.decoders.by_pyav import PyavDecoder
from extract.video.decoders.by_torchcodec import TorchcodecDecoder
from extract.video.decoders.choice import check_torchcodec, open_decoder
from extract.video.index import VideoIndex
from extract.video.reader import VideoReader
from tests.encodings import ENCODINGS, access_paths, sequential, write_numbered

COUNT = 130
NO_TORCHCODEC = pytest.mark.skipif(
    by_torchcodec.torchcodec is None, reason="torchcodec, or FFmpeg for it, is not installed"
)
NO_DECORD = pytest.mark.skipif(by_decord.decord is None, reason="decord is not installed")
# All in mp4 and Matroska: in other containers its frames are wrong, or it does not find them.
READ_BY_TORCHCODEC = [
    *("H.264", "B-frames, long GOP", "intra only", "matroska", "open GOP", "intra refresh"),
    *("intra refresh, matroska", "variable frame rate", "odd size", "10 bit", "H.265", "VP9"),
    "AV1",
]


def written(folder: Path, name: str = "H.264") -> Path:
    path = folder / f"clip{ENCODINGS[name].suffix}"
    write_numbered(path, COUNT, ENCODINGS[name])
    return path


def exact_by_every_path(path: Path, decoder: type) -> bool:
    expected = sequential(path)
    for indices in access_paths(len(expected)).values():
        reader = VideoReader(path)
        assert isinstance(reader._decoder, decoder)
        if not np.array_equal(reader.frames(indices), expected[indices]):
            return False
        assert isinstance(reader._decoder, decoder)
    return True


@NO_TORCHCODEC
@pytest.mark.parametrize("name", ENCODINGS)
def test_torchcodec_reads_frame_exactly_or_not_at_all(tmp_path: Path, name: str) -> None:
    path = written(tmp_path, name)
    taken = name in READ_BY_TORCHCODEC
    assert VideoReader(path).index.torchcodec == taken
    assert not taken or exact_by_every_path(path, TorchcodecDecoder)


@NO_TORCHCODEC
@pytest.mark.parametrize("clip", ["demo.mp4", "part_0.mp4", "h265_video.mp4"])
def test_torchcodec_reads_real_clips_frame_exactly(shared: Path, clip: str) -> None:
    assert exact_by_every_path(shared / "clips" / clip, TorchcodecDecoder)


@NO_DECORD
def test_decord_reads_indexed_files_frame_exactly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(by_torchcodec, "torchcodec", None)
    assert exact_by_every_path(written(tmp_path), DecordDecoder)


def test_pyav_alone_reads_them_frame_exactly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(by_torchcodec, "torchcodec", None)
    monkeypatch.setattr(by_decord, "decord", None)
    assert exact_by_every_path(written(tmp_path), PyavDecoder)


class FakeTorchcodec:
    """A decoder with torchcodec's interface that holds all frames of a file."""

    def __init__(self, path: Path, change: Callable[[NDArray[np.uint8]], None]) -> None:
        self.frames = sequential(path).copy()
        change(self.frames)
        index = indexing.video_index(path)
        self.seconds = index.pts * float(index.time_base)
        self.asked: list[int] = []
        self.late = self.raises_at = COUNT

    def get_frames_at(self, indices: list[int]) -> Any:
        self.asked += indices
        if self.raises_at in indices:
            raise RuntimeError("Could not push packet to decoder")
        seconds = self.seconds[indices] + 0.04 * (np.array(indices) >= self.late)
        return SimpleNamespace(
            data=torch.from_numpy(self.frames[indices]), pts_seconds=torch.from_numpy(seconds)
        )


def replace_torchcodec(monkeypatch: pytest.MonkeyPatch, decoder: FakeTorchcodec) -> None:
    decoders = SimpleNamespace(VideoDecoder=lambda *_, **__: decoder)
    module = SimpleNamespace(decoders=decoders, __version__="0.17.0+cpu")
    monkeypatch.setattr(by_torchcodec, "torchcodec", module)


def no_change(frames: NDArray[np.uint8]) -> None: ...


def checked(path: Path) -> bool:
    return check_torchcodec(path, indexing.video_index(path), lambda done: None)


def test_torchcodec_is_taken_where_its_frames_are_pyavs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path)
    fake = FakeTorchcodec(path, no_change)
    replace_torchcodec(monkeypatch, fake)
    assert checked(path)
    # Its ends, and those around a keyframe in the middle, where decoding begins.
    index = indexing.video_index(path)
    key = int(np.searchsorted(index.pts, index.keyframes[len(index.keyframes) // 2]))
    assert {0, 1, key, key + 1, COUNT - 2, COUNT - 1} <= set(fake.asked)


@pytest.mark.parametrize("frame", [0, COUNT - 1])
def test_one_wrong_pixel_and_torchcodec_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, frame: int
) -> None:
    def change(frames: NDArray[np.uint8]) -> None:
        frames[frame, 3, 5, 1] ^= 1

    path = written(tmp_path)
    replace_torchcodec(monkeypatch, FakeTorchcodec(path, change))
    assert not checked(path)


def test_torchcodec_that_fails_or_is_not_there_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path)
    fake = FakeTorchcodec(path, no_change)
    fake.raises_at = COUNT - 1
    replace_torchcodec(monkeypatch, fake)
    assert not checked(path)
    monkeypatch.setattr(by_torchcodec, "torchcodec", None)
    assert not checked(path)


@pytest.mark.parametrize(("ffmpeg", "version"), [(None, ""), (8, "-torchcodec0.17.0-ffmpeg8")])
def test_torchcodec_without_ffmpeg_counts_as_absent(
    monkeypatch: pytest.MonkeyPatch, ffmpeg: int | None, version: str
) -> None:
    module = SimpleNamespace(ffmpeg_major_version=ffmpeg, __version__="0.17.0+cpu")
    monkeypatch.setitem(sys.modules, "torchcodec", module)
    names = runpy.run_path(by_torchcodec.__file__)
    assert (names["torchcodec"] is None) == (ffmpeg is None)
    assert names["torchcodec_version"]() == version


def test_the_choice_falls_back_to_what_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path)
    monkeypatch.setattr(by_torchcodec, "torchcodec", None)
    index = indexing.video_index(path)
    remembered = VideoIndex.from_bytes(index.to_bytes())
    object.__setattr__(remembered, "torchcodec", True)  # FFmpeg's libraries were there once
    if by_decord.decord is not None:
        assert isinstance(open_decoder(path, remembered), DecordDecoder)
    monkeypatch.setattr(by_decord, "decord", None)
    assert isinstance(open_decoder(path, remembered), PyavDecoder)


@pytest.mark.parametrize("failure", ["raises_at", "late"])
def test_pyav_goes_on_where_torchcodec_fails_in_the_middle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: str
) -> None:
    """With an error, or with frames of other times than those that were asked for."""
    path = written(tmp_path)
    fake = FakeTorchcodec(path, no_change)
    reader = VideoReader(path)
    replace_torchcodec(monkeypatch, fake)
    reader._decoder = TorchcodecDecoder(path, reader.index)
    setattr(fake, failure, 40)
    assert np.array_equal(reader.frames(np.arange(COUNT)), sequential(path))
    assert isinstance(reader._decoder, PyavDecoder) and max(fake.asked) < 48
    # Once is enough: it is not tried again.
    reader.frames(np.arange(20))
    assert max(fake.asked) < 48 and fake.asked.count(0) == 1


def test_what_torchcodec_is_told_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Begin where decoding can begin only: intra refresh has packets that are just called so."""
    path = written(tmp_path, "intra refresh")
    index = indexing.video_index(path)
    given: dict[str, Any] = {}
    decoders = SimpleNamespace(VideoDecoder=lambda *_, **settings: given.update(settings))
    monkeypatch.setattr(by_torchcodec, "torchcodec", SimpleNamespace(decoders=decoders))
    TorchcodecDecoder(path, index)
    frames = json.loads(given["custom_frame_mappings"])["frames"]
    assert [frame["pts"] for frame in frames] == index.pts.tolist()
    assert [frame["key_frame"] for frame in frames] == [1] + [0] * (COUNT - 1)
    assert {frame["duration"] for frame in frames} == {int(np.diff(index.pts)[0])}
    assert given["num_ffmpeg_threads"] == 1 and given["device"] == "cpu"


def test_indexes_of_another_torchcodec_are_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(by_torchcodec, "torchcodec", None)
    assert by_torchcodec.torchcodec_version() == ""
    module = SimpleNamespace(__version__="0.17.0+cu130", ffmpeg_major_version=8)
    monkeypatch.setattr(by_torchcodec, "torchcodec", module)
    assert by_torchcodec.torchcodec_version() == "-torchcodec0.17.0-ffmpeg8"
