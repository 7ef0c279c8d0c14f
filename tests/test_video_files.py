"""Which files of a folder are videos, whatever their suffix, and which video a name means."""

from collections.abc import Callable
from pathlib import Path

import pytest

from evaluate.detect import probe_files, video_paths
from extract.video.files import describe_no_videos, files_by_name, has_video_content
from tests.odd_videos import joined, write_clip
from train.config import DataConfig
from train.data.truth import load_annotations
from train.data.video_files import REPAIRED
from train.data.videos import load_items

CODECS = {
    ".mp4": "libx264", ".mkv": "libx264", ".ts": "libx264", ".m2ts": "libx264", ".avi": "mpeg4",
    ".webm": "libvpx", ".flv": "libx264", ".gif": "gif", ".wmv": "wmv2", ".mpg": "mpeg2video",
    ".3gp": "mpeg4", ".mov": "mpeg4", ".h264": "libx264", ".ivf": "libvpx", ".nut": "mpeg4",
    ".mxf": "mpeg2video",
}  # fmt: skip


def renamed(path: Path, name: str) -> Path:
    return path.rename(path.with_name(name))


@pytest.mark.parametrize("suffix", CODECS)
def test_content_tells_a_video(tmp_path: Path, suffix: str) -> None:
    path = write_clip(tmp_path / f"clip{suffix}", 12, codec=CODECS[suffix])
    for name in ("base", "base.dat", f"base{suffix.upper()}"):
        path = renamed(path, name)
        assert has_video_content(path)
        assert files_by_name(tmp_path) == {"base": [path]}
        assert video_paths([str(tmp_path)]) == [path]


def test_other_files_are_no_videos(tmp_path: Path) -> None:
    video = write_clip(tmp_path / "clip.mts", 12, format="mpegts")
    contents: dict[str, bytes] = {
        "clip.srt": b"1\n00:00:01,000 --> 00:00:02,000\nhello\n",
        "notes.txt": b"Good morning\n" * 100,
        "GGGG.txt": b"G" * 2000,
        "data.json": b'{"database": {}}',
        "empty": b"",
        "features.npy": b"\x93NUMPY" + bytes(200),
        "sound.m4a": b"\0\0\0\x1cftypM4A " + bytes(100),
        "still.heic": b"\0\0\0\x1cftypheic" + bytes(100),
        "wave.wav": b"RIFF\0\0\0\0WAVEfmt " + bytes(100),
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "folder").mkdir()
    assert files_by_name(tmp_path) == {"clip": [video]}
    assert describe_no_videos("sound", tmp_path).startswith("; there is sound.m4a, but ")
    assert not describe_no_videos("other", tmp_path)


def test_a_preview_stands_behind_its_video(tmp_path: Path) -> None:
    video = write_clip(tmp_path / "clip.mp4", 12)
    write_clip(tmp_path / "clip.gif", 12, codec="gif")
    assert files_by_name(tmp_path) == {"clip": [video]}


def annotated(folder: Path, *names: str) -> DataConfig:
    lines = ["video,subset,label,start,end", *(f"{name},training,wave,0.1,0.4" for name in names)]
    (folder / "annotations.csv").write_text("\n".join(lines) + "\n")
    return DataConfig(
        str(folder / "annotations.csv"), str(folder / "videos"), bad_videos="skip",
        validation_subset=None, test_subset="training",
    )  # fmt: skip


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    (tmp_path / "videos").mkdir()
    return tmp_path / "videos"


Spoiler = Callable[[Path], object]
CAUSES: dict[str, Spoiler] = {
    "share a name; remove one": lambda folder: write_clip(folder / "bad.mts", format="mpegts"),
    "there is bad.bin, but its content is not that of any known video": lambda folder: renamed(
        folder / "bad.mp4", "bad.bin"
    ).write_bytes(b"nothing"),
    "encrypted": lambda folder: write_clip(
        folder / "bad.mp4", 60, codec="libx265",
        options={"encryption_scheme": "cenc-aes-ctr", "encryption_key": "1" * 32,
                 "encryption_kid": "2" * 32},
    ),
}  # fmt: skip


@pytest.mark.slow
def test_annotated_names_find_any_suffix_and_bad_ones_cost_themselves(
    videos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_clip(videos / "one.MTS", format="mpegts")
    write_clip(videos / "10:15.mp4")
    renamed(write_clip(videos / "two.mkv"), "two")
    data = annotated(videos.parent, "one", "two", "10:15", "bad")
    for cause, spoil in CAUSES.items():
        write_clip(videos / "bad.mp4", 50)
        spoil(videos)
        items = load_items(data, load_annotations(data), "training")
        assert sorted(item.name for item in items) == ["10:15", "one", "two"]
        assert items.skipped.keys() == {"bad"} and cause in items.skipped["bad"]
        for path in videos.glob("bad.*"):
            path.unlink()


def test_clocks_that_jump_are_told(videos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = joined(videos / "one.ts", [40, 40], [20, 0])
    data = annotated(videos.parent, "one")
    annotations = load_annotations(data)
    (item,) = load_items(data, annotations, "training")
    assert item.duration_s == pytest.approx(3.2) and annotations.warnings[REPAIRED] == 1
    (item,), bad = probe_files([path], None)
    assert not bad and f"note: {path}: 1 of its 80 frames" in capsys.readouterr().out
