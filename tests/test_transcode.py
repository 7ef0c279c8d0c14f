"""Reversed video files, pixel for pixel, and their annotations."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import psutil  # type: ignore[import-untyped]
import pytest

from configs import cli
from configs.loader import load
from extract.sampling.reversal import reverse_segments
from extract.transcode import main, mirror_segment, reverse_annotations
from extract.transcoding import reverse
from extract.transcoding.encode import make_timeline
from extract.transcoding.reverse import is_current_reversal, write_reversed
from extract.video.index import VideoError, VideoIndex
from extract.video.reader import VideoReader
from tests.conftest import REPOSITORY
from tests.encodings import ENCODINGS, QUICK_ENCODINGS, read_numbers, turn, write_numbered
from tests.marks import quick_only, slow
from tests.test_e2e import DEMO, ENVIRONMENT
from train.config import DataConfig, Experiment
from train.data.items import VideoItem
from train.data.truth import load_annotations
from train.data.video_files import probe_item
from train.data.videos import load_items
from train.data.windows import TrainingWindows, WindowInputs

COUNT = 50
EXACT_PLANES = {
    *("H.264", "B-frames, long GOP", "intra only", "matroska"),
    *("variable frame rate", "odd size", "10 bit"),
}


@pytest.fixture(autouse=True)
def short_stretches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reverse, "STRETCH", (8, 16))  # several in a short file


def check_reversed(source: Path, target: Path, within_s: float = 1e-9) -> None:
    old, new = VideoReader(source), VideoReader(target)
    everything = np.arange(len(old))
    assert len(new) == len(old)
    assert np.array_equal(new.frames(everything), old.frames(everything)[::-1])
    times = np.sort(old.times(everything))
    assert new.times(everything) == pytest.approx(times[-1] - times[::-1], abs=within_s)
    assert new.fps == pytest.approx(old.fps, rel=within_s)


@pytest.mark.parametrize("name", quick_only(ENCODINGS, *QUICK_ENCODINGS))
def test_frames_and_times_are_mirrored_exactly(tmp_path: Path, name: str) -> None:
    source = tmp_path / f"clip{ENCODINGS[name].suffix}"
    write_numbered(source, COUNT, ENCODINGS[name])
    as_rgb = write_reversed(source, tmp_path / "once.mp4")
    assert as_rgb == (name not in EXACT_PLANES)
    check_reversed(source, tmp_path / "once.mp4")
    frames = VideoReader(tmp_path / "once.mp4").frames(np.arange(COUNT))
    assert read_numbers(frames) == [*range(COUNT)][::-1]
    # Any decoder that begins anywhere sees the same.
    access = np.random.default_rng(0).permutation(COUNT)
    assert np.array_equal(VideoReader(tmp_path / "once.mp4").frames(access), frames[access])


@pytest.mark.parametrize("clip", ["part_0.mp4", "h265_video.mp4", "test.avi"])
def test_real_clips_are_mirrored_exactly(shared: Path, tmp_path: Path, clip: str) -> None:
    write_reversed(shared / "clips" / clip, tmp_path / "once.mp4")
    # The AVI file gives some frames the same time, which mp4 does not know.
    within_s = 1e-3 if clip == "test.avi" else 1e-9
    check_reversed(shared / "clips" / clip, tmp_path / "once.mp4", within_s)


@pytest.mark.parametrize("name", ["B-frames, long GOP", "variable frame rate", "VP9"])
def test_twice_reversed_is_the_original(tmp_path: Path, name: str) -> None:
    source = tmp_path / f"clip{ENCODINGS[name].suffix}"
    write_numbered(source, COUNT, ENCODINGS[name])
    write_reversed(source, tmp_path / "once.mp4")
    write_reversed(tmp_path / "once.mp4", tmp_path / "twice.mp4")
    old, new = VideoReader(source), VideoReader(tmp_path / "twice.mp4")
    everything = np.arange(COUNT)
    assert np.array_equal(new.frames(everything), old.frames(everything))
    assert new.times(everything) == pytest.approx(old.times(everything), abs=1e-9)


def test_rotated_videos_are_turned_once(tmp_path: Path) -> None:
    source = tmp_path / "phone.mp4"
    write_numbered(source, 20)
    turn(source)
    assert write_reversed(source, tmp_path / "once.mp4")
    check_reversed(source, tmp_path / "once.mp4")
    assert VideoReader(tmp_path / "once.mp4").frames(np.array([0])).shape == (1, 128, 64, 3)
    write_reversed(source, tmp_path / "small.mp4", crf=30)
    assert VideoReader(tmp_path / "small.mp4").frames(np.array([0])).shape == (1, 128, 64, 3)


@pytest.mark.parametrize("pixels", ["yuvj420p", "yuv422p", "gray"])
@pytest.mark.parametrize("matrix", [1, 5])
def test_colours_are_read_in_the_same_way(tmp_path: Path, pixels: str, matrix: int) -> None:
    source, noise = tmp_path / "clip.mp4", np.random.default_rng(0)
    with av.open(str(source), "w") as container:
        stream: Any = container.add_stream("libx264", rate=Fraction(30000, 1001))
        stream.height, stream.width, stream.pix_fmt = 64, 128, pixels
        stream.codec_context.colorspace = matrix
        for picture in noise.integers(0, 256, (20, 64, 128, 3), np.uint8):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    assert not write_reversed(source, tmp_path / "once.mp4")
    check_reversed(source, tmp_path / "once.mp4")


@pytest.mark.parametrize("name", ["H.264", "VP9", "10 bit"])
def test_smaller_files_are_nearly_the_same(tmp_path: Path, name: str) -> None:
    source = tmp_path / f"clip{ENCODINGS[name].suffix}"
    write_numbered(source, COUNT, replace(ENCODINGS[name], noisy=True))
    write_reversed(source, tmp_path / "exact.mp4")
    write_reversed(source, tmp_path / "small.mp4", crf=30)
    assert (tmp_path / "small.mp4").stat().st_size < (tmp_path / "exact.mp4").stat().st_size / 2
    frames = VideoReader(tmp_path / "small.mp4").frames(np.arange(COUNT))
    assert read_numbers(frames) == [*range(COUNT)][::-1]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_damaged_frames_are_the_readers_own_or_an_error(tmp_path: Path, suffix: str) -> None:
    source = tmp_path / f"clip{suffix}"
    write_numbered(source, COUNT, replace(ENCODINGS["H.264"], noisy=True))
    content, middle = bytearray(source.read_bytes()), source.stat().st_size // 2
    content[middle : middle + 400] = np.random.default_rng(1).bytes(400)
    source.write_bytes(content)
    if suffix == ".mkv":  # other packets stay whole; what stands in for this one is decord's choice
        write_reversed(source, tmp_path / "once.mp4")  # as RGB or planes: FFmpeg's version decides
        check_reversed(source, tmp_path / "once.mp4")
        return
    with pytest.raises(VideoError, match=r"clip\.mp4: cannot be .*: its data are damaged"):
        write_reversed(source, tmp_path / "once.mp4")
    assert [path.name for path in tmp_path.iterdir()] == ["clip.mp4"]


def test_times_that_do_not_rise_are_spread() -> None:
    def index(*pts: int) -> VideoIndex:
        return VideoIndex("sequence", np.array(pts), np.array(pts[:1]), Fraction(1, 25), 0)

    line = make_timeline(index(3, 4, 4, 6), backwards=True)
    assert (line.times * float(line.unit) * 25).tolist() == pytest.approx([0, 2, 2.001, 3])
    line = make_timeline(index(3, 4, 4, 6), backwards=False)
    assert (line.times * float(line.unit) * 25).tolist() == pytest.approx([0, 1, 1.001, 3])
    assert make_timeline(index(5, 5, 5), backwards=True).times.tolist() == [0, 1, 2]


def end_of_main(arguments: list[str]) -> str:
    """Run the script in this process (others take seconds to start); return its last words."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as caught:
        patch.setattr(sys, "argv", ["extract/transcode.py", *arguments])
        cli.run(main)
        sys.exit("")
    return str(caught.value)


@pytest.mark.slow
def test_bad_files_are_told_at_the_end_and_finished_ones_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    videos, out = tmp_path / "videos", tmp_path / "out"
    videos.mkdir()
    for name in ("one.mp4", "two.mp4"):
        write_numbered(videos / name, COUNT)
    content = (videos / "one.mp4").read_bytes()
    (videos / "cut.mp4").write_bytes(content[: len(content) // 2])
    (videos / "empty.mkv").touch()
    out.mkdir()
    (out / "two.mp4").write_bytes(b"something of the user's")
    entry = {"subset": "all", "annotations": [{"segment": [0.2, 0.6], "label": "wave"}]}
    names = ("one", "two", "cut", "absent")
    (tmp_path / "truth.json").write_text(
        json.dumps({"version": 3, "database": dict.fromkeys(names, entry)})
    )
    command = ["--reverse", "--videos", str(videos), "--out", str(out)]
    said = end_of_main([*command, "--annotations", str(tmp_path / "truth.json")])
    assert said.startswith("error: 3 videos could not be reversed:\n")
    assert f"{videos}/cut.mp4: cannot be read as video: its data are damaged" in said
    assert f"{videos}/empty.mkv: cannot be read as video: the file is empty" in said
    assert f"{out}/two.mp4: is not {videos}/two.mp4 reversed with these settings" in said
    printed = capsys.readouterr().out
    assert "warning: 3 videos of the annotations have no reversed file" in printed
    assert (out / "two.mp4").read_bytes() == b"something of the user's"
    check_reversed(videos / "one.mp4", out / "one.mp4")
    truth = json.loads((out / "truth.json").read_text())
    assert truth["version"] == 3 and list(truth["database"]) == ["one"]
    assert sorted(path.name for path in out.iterdir()) == ["one.mp4", "truth.json", "two.mp4"]

    made = (out / "one.mp4").stat()
    assert is_current_reversal(videos / "one.mp4", out / "one.mp4", None)
    with pytest.raises(ValueError, match="these settings"):
        is_current_reversal(videos / "one.mp4", out / "one.mp4", 23)
    end_of_main(command)
    assert (out / "one.mp4").stat() == made


@pytest.mark.slow
def test_a_killed_run_goes_on(tmp_path: Path) -> None:
    videos, out = tmp_path / "videos", tmp_path / "out"
    videos.mkdir()
    write_numbered(videos / "short.mp4", 20)
    write_numbered(videos / "long.mp4", 1500)
    command = ["extract/transcode.py", "--reverse", "--videos", str(videos), "--out", str(out)]
    process = subprocess.Popen(
        [sys.executable, *command, "--processes=1"],
        cwd=REPOSITORY,
        env=ENVIRONMENT,
        stderr=subprocess.DEVNULL,
    )
    while not (out / "long.mp4.part").exists():
        assert process.poll() is None
        time.sleep(0.005)
    children = psutil.Process(process.pid).children(recursive=True)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    _, alive = psutil.wait_procs(children, 5)
    assert not alive  # nobody goes on writing what the next run writes
    assert [path.name for path in out.iterdir()] == ["long.mp4.part"]
    assert end_of_main(command[1:]) == ""
    assert sorted(path.name for path in out.iterdir()) == ["long.mp4", "short.mp4"]
    assert len(VideoReader(out / "long.mp4")) == 1500
    check_reversed(videos / "short.mp4", out / "short.mp4")


def grown(folder: Path) -> int:
    """Return how many bytes more a process has while it turns a long video round."""
    reverse.STRETCH_BYTES = 8 * 1024**2
    size = replace(ENCODINGS["B-frames, long GOP"], size=(360, 640))
    write_numbered(folder / "warm.mp4", 60, size)
    write_numbered(folder / "long.mp4", 450, size)  # 155 MB of planes
    write_reversed(folder / "warm.mp4", folder / "warm_once.mp4")
    process = psutil.Process()

    def private() -> int:
        # Pages of libraries come and go as the system likes.
        found = process.memory_info()
        return int(found.rss - found.shared)

    before, most = private(), 0

    def measure(frames: int) -> None:
        nonlocal most
        if frames:  # while it is written; decoders that compare it afterwards have their own ways
            most = max(most, private())

    write_reversed(folder / "long.mp4", folder / "once.mp4", progress=measure)
    return most - before


@pytest.mark.slow
def test_memory_does_not_grow_with_the_video(tmp_path: Path) -> None:
    # In a process of its own: what other tests left behind would count.
    with multiprocessing.get_context("spawn").Pool(1) as process:
        assert process.apply(grown, (tmp_path,)) < 60e6


def a_video(folder: Path, frames: int, encoding: str = "H.264") -> VideoItem:
    folder.mkdir(parents=True, exist_ok=True)
    write_numbered(folder / "clip.mp4", frames, ENCODINGS[encoding])
    return probe_item(folder / "clip.mp4")


RECORDS: dict[str, dict[str, Any]] = {
    "only segments": {},
    "duration": {"duration": 4.0},  # the file lasts 3.88 s: times are stretched to it
    "own frames and rate": {"duration": 3.7, "frame": 111, "fps": 30.0},
}


@pytest.mark.slow
@pytest.mark.parametrize("encoding", [slow("H.264"), "variable frame rate"])
@pytest.mark.parametrize("record", quick_only(RECORDS, "duration"))
def test_forward_on_reversed_files_sees_what_reversed_sees(
    tmp_path: Path, encoding: str, record: str
) -> None:
    a_video(tmp_path / "videos", 97, encoding)
    rng = np.random.default_rng(0)
    times = np.sort(rng.uniform(0, 3.6, (40, 2)), 1).tolist()
    times += [[0.0, 1.0], [0.04, 0.08], [0.12, 3.48], [1.0, 2.0]]  # exactly on frames
    segments = [{"segment": pair, "label": "wave", "id": n} for n, pair in enumerate(times)]
    entry = {"subset": "all", "annotations": segments} | RECORDS[record]
    original = tmp_path / "truth.json"
    original.write_text(json.dumps({"database": {"clip": entry}}))
    turned = tmp_path / "turned"
    turned.mkdir()
    write_reversed(tmp_path / "videos/clip.mp4", turned / "clip.mp4")
    content, warnings = reverse_annotations(
        original, {"clip": probe_item(tmp_path / "videos/clip.mp4")}
    )
    assert not warnings
    (turned / "truth.json").write_text(json.dumps(content))
    assert content["database"]["clip"]["annotations"][7]["id"] == 7

    samples, found = [], []
    for file, videos, direction in (
        (original, tmp_path / "videos", "reversed"),
        (turned / "truth.json", turned, "forward"),
    ):
        data = DataConfig(str(file), str(videos), "all", None, "all")
        (item,) = load_items(data, load_annotations(data), "all")
        found.append(item)
        # All frames in one window: others would begin elsewhere in time.
        config = load(Experiment, str(DEMO), [
            f"--direction={direction}", "--sampling.window_size=112", "--sampling.scale_factor=1",
            "--sampling.snippet_stride=1", "--sampling.fps=null", "--sampling.crop=[1, 1]",
            "--pixels.size=32",
            "--pixels.random_crop=null", "--pixels.flip=0", "--pixels.rand_augment=0",
            "--pixels.colour_jitter=null",
        ])  # fmt: skip
        samples.append(TrainingWindows([item], WindowInputs.of(config))[0, 0])
    before, after = found
    assert after.segments == pytest.approx(reverse_segments(before.segments, 96.0), abs=2e-3)
    if encoding == "H.264":
        assert np.array_equal(after.segments, reverse_segments(before.segments, 96.0))
    assert samples[1].segments[0].numpy() == pytest.approx(
        samples[0].segments[0].numpy(), abs=2e-3 if encoding != "H.264" else 0
    )
    assert samples[1].labels.tolist() == samples[0].labels.tolist()
    assert all(
        np.array_equal(ours, theirs)
        for ours, theirs in zip(samples[0].inputs, samples[1].inputs, strict=True)
    )


def test_times_at_the_ends_of_a_video(tmp_path: Path) -> None:
    item, warnings = a_video(tmp_path, 50), Counter[str]()
    assert mirror_segment(["0.5", "1.5"], item, 2.0, warnings) == pytest.approx(
        [0.5, 1.5], abs=1e-6
    )
    assert mirror_segment([0, 2.0], item, 2.0, warnings) == pytest.approx([0, 2], abs=1e-6)
    assert mirror_segment([1, 2.5], item, 2.0, warnings) == pytest.approx([0, 1], abs=1e-6)
    assert not warnings
    assert mirror_segment([2.0, 3.0], item, 2.0, warnings) == [2.0, 3.0]
    assert sum(warnings.values()) == 1


def test_wrong_settings_end_with_one_line(tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    write_numbered(tmp_path / "videos/clip.mp4", 20)
    (tmp_path / "truth.json").write_text("{}")
    command = ["--reverse", "--videos", str(tmp_path / "videos"), "--out"]
    said = end_of_main([*command, str(tmp_path / "videos")])
    assert said.startswith("error: --out: choose a folder other than --videos")
    truth = str(tmp_path / "truth.json")
    said = end_of_main([*command, str(tmp_path), "--annotations", truth])
    assert said.startswith(f"error: --out: {truth} lies there and would be replaced")
    assert end_of_main([*command, str(tmp_path / "out"), "--crf=0"]).startswith("error: --crf: 0")
    said = end_of_main([*command, str(tmp_path / "out"), "--annotations", truth])
    assert said == f"error: {truth}: 'database' is missing; it must be an object."
    (tmp_path / "truth.csv").write_text("video,start,end,label\nclip,0,1,wave\n")
    said = end_of_main(
        [*command, str(tmp_path / "out"), "--annotations", str(tmp_path / "truth.csv")]
    )
    assert said.startswith("error: --annotations: only JSON with a 'database' can be reversed")
