"""Proxies: the frames of their source, each at its time, small; made once, and again if need be."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
import psutil  # type: ignore[import-untyped]
import pytest
import torch
from av.video.reformatter import Interpolation
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from cache.store import Store
from configs.loader import load
from extract.identity.digest import video_digest
from extract.transcoding import making
from extract.transcoding.encode import Timeline, make_timeline
from extract.transcoding.making import FileToMake, make_files
from extract.transcoding.proxy import ProxyConfig, is_current_proxy, proxy_size, write_proxy
from extract.video.decoders import by_decord
from extract.video.decoders.by_pyav import PyavDecoder
from extract.video.index import VideoError, VideoIndex
from extract.video.reader import VideoReader
from tests import guarded_calls
from tests.conftest import REPOSITORY
from tests.encodings import (
    ENCODINGS,
    QUICK_ENCODINGS,
    access_paths,
    read_numbers,
    turn,
    write_numbered,
)
from tests.marks import quick_only
from tests.test_activations import fresh, info_of, new_backbone, seam, spans_of
from tests.test_e2e import DEMO, ENVIRONMENT
from tests.test_transcode import end_of_main
from train.config import DataConfig, Experiment
from train.data.truth import load_annotations
from train.data.videos import load_items
from train.data.windows import TrainingWindows, WindowInputs

COUNT = 50  # no multiple of the groups of frames
SMALL = ProxyConfig(112)
SOURCES = (
    *("H.264", "B-frames, long GOP", "open GOP", "matroska", "MPEG transport stream"),
    *("variable frame rate", "odd size", "10 bit", "H.265", "VP9", "MPEG-4 in AVI"),
)
CLIPS = ("demo.mp4", "part_0.mp4", "flipping_a_pancake.mkv", "h265_video.mp4", "test.avi")


def numbered(folder: Path, name: str = "H.264", count: int = COUNT, file: str = "clip") -> Path:
    """Write a video of numbered frames, larger than its proxy."""
    folder.mkdir(exist_ok=True)
    encoding = ENCODINGS[name]
    height, width = (225, 303) if name == "odd size" else (224, 304)
    source = folder / f"{file}{encoding.suffix}"
    write_numbered(source, count, replace(encoding, size=(height, width)))
    return source


def seen(path: Path) -> tuple[list[Fraction], list[av.VideoFrame]]:
    """Return the times of all frames from the first one on and the frames, by PyAV in sequence."""
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
    times = [(frame.pts or 0) * Fraction(frame.time_base or 0) for frame in frames]
    return [moment - times[0] for moment in times], frames


def resized(frames: list[av.VideoFrame], height: int, width: int) -> NDArray[np.int16]:
    """Return upright pictures of a size, by FFmpeg's own averaging: int16 [N, height, width, 3]."""
    turns = frames[0].rotation // 90
    sides = (height, width) if turns % 2 else (width, height)
    small = (
        frame.reformat(*sides, format="rgb24", interpolation=Interpolation.AREA).to_ndarray()
        for frame in frames
    )
    return np.stack([np.rot90(picture, turns) for picture in small]).astype(np.int16)


def check(source: Path, target: Path, config: ProxyConfig = SMALL, error: float = 4.0) -> None:
    """See that every frame is its source's, small, and nobody else's; and at the same time."""
    old_times, old = seen(source)
    new_times, new = seen(target)
    if config.reverse:
        old_times, old = [old_times[-1] - moment for moment in old_times[::-1]], old[::-1]
    assert new_times == old_times
    ours = resized(new, new[0].height, new[0].width)
    theirs = resized(old, new[0].height, new[0].width)
    assert np.abs(ours - theirs).mean() < error
    for number, picture in enumerate(ours):
        near = range(max(0, number - 4), min(len(ours), number + 5))
        mine = np.abs(theirs[number] - picture).mean()
        others = [
            np.abs(theirs[other] - picture).mean()
            for other in near
            if np.abs(theirs[other] - theirs[number]).mean() > 1  # nothing moves in some
        ]
        assert mine < min(others, default=np.inf)

    reader = VideoReader(target)
    assert reader.index.access == "indexed"
    assert by_decord.decord is None or not isinstance(reader._decoder, PyavDecoder)
    assert reader.times(np.arange(len(reader))).tolist() == pytest.approx(
        [float(moment) for moment in old_times], abs=1e-9
    )
    frames = reader.frames(np.arange(len(reader)))
    assert frames.shape[:3] == (len(old), new[0].height, new[0].width)
    assert np.abs(frames - ours).mean() < 2  # another decoder, other rounding
    for indices in access_paths(len(reader)).values():
        assert np.array_equal(VideoReader(target).frames(indices), frames[indices])


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("name", quick_only(SOURCES, *QUICK_ENCODINGS))
def test_frames_and_times_are_the_sources(tmp_path: Path, name: str, reverse: bool) -> None:
    source, target = numbered(tmp_path, name), tmp_path / "proxy.mp4"
    config = replace(SMALL, reverse=reverse)
    write_proxy(source, target, config)
    check(source, target, config)
    frames = VideoReader(target).frames(np.arange(COUNT))
    numbers = [*range(COUNT)]
    assert read_numbers(frames) == (numbers[::-1] if reverse else numbers)
    assert frames.shape == (COUNT, 112, 150 if name == "odd size" else 152, 3)


@pytest.mark.parametrize("reverse", [False, True])
def test_rotated_videos_are_upright(tmp_path: Path, reverse: bool) -> None:
    source, config = numbered(tmp_path), replace(SMALL, reverse=reverse)
    turn(source)
    write_proxy(source, tmp_path / "proxy.mp4", config)
    check(source, tmp_path / "proxy.mp4", config)
    reader = VideoReader(tmp_path / "proxy.mp4")
    assert reader.frames(np.array([0])).shape == (1, 152, 112, 3)
    assert reader.index.rotation == 0


@pytest.mark.slow
@pytest.mark.parametrize("clip", CLIPS)
def test_real_clips(shared: Path, tmp_path: Path, clip: str) -> None:
    source, target = shared / "clips" / clip, tmp_path / "proxy.mp4"
    write_proxy(source, target, ProxyConfig(160, crf=10))
    if clip != "test.avi":
        check(source, target)
        return
    # Its frames' times do not rise, as an mp4 file's do.
    old, new = VideoReader(source), VideoReader(target)
    assert len(new) == len(old) and new.index.access == "indexed"
    everything = np.arange(len(old))
    assert new.times(everything) == pytest.approx(np.sort(old.times(everything)), abs=1e-3)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("gop", [1, 8, 13])
def test_groups_are_closed_and_of_one_length(tmp_path: Path, gop: int, reverse: bool) -> None:
    write_proxy(numbered(tmp_path), tmp_path / "proxy.mp4", ProxyConfig(112, gop, reverse=reverse))
    with av.open(str(tmp_path / "proxy.mp4")) as container:
        assert [stream.type for stream in container.streams] == ["video"]
        assert container.streams.video[0].codec_context.pix_fmt == "yuv420p"
        packets = [packet for packet in container.demux() if packet.size]
    assert [packet.pts for packet in packets] == [packet.dts for packet in packets]  # no B-frames
    kinds = []
    for packet in packets:  # ISO 14496-15: 4 bytes of length before each unit; H.264, table 7-1
        content, at, units = bytes(packet), 0, []
        while at < len(content):
            units.append(content[at + 4] & 31)
            at += 4 + int.from_bytes(content[at : at + 4], "big")
        kinds.append([unit for unit in units if unit in (1, 5)])
    assert kinds == [[5] if number % gop == 0 else [1] for number in range(COUNT)]
    assert [packet.is_keyframe for packet in packets] == [kind == [5] for kind in kinds]


@pytest.mark.parametrize("matrix", [1, 5])
@pytest.mark.parametrize("span", [1, 2])
def test_colours_are_those_that_are_seen_in_the_source(
    tmp_path: Path, matrix: int, span: int
) -> None:
    source, target = tmp_path / "clip.mp4", tmp_path / "proxy.mp4"
    colours = np.random.default_rng(0).integers(0, 256, (3, 4, 3), np.uint8)
    with av.open(str(source), "w") as container:
        stream: Any = container.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = 240, 320, "yuv420p"
        stream.codec_context.colorspace, stream.codec_context.color_range = matrix, span
        picture = np.kron(colours, np.ones((80, 80, 1), np.uint8))
        for _ in range(4):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    write_proxy(source, target, ProxyConfig(120, crf=1))
    old = VideoReader(source).frames(np.array([2])).astype(int)
    new = VideoReader(target).frames(np.array([2])).astype(int)
    centres = np.s_[0, 20::40, 20::40]  # of the new patches
    assert np.abs(new[centres] - old[0, 40::80, 40::80]).max() <= 6


@given(st.integers(2, 4000), st.integers(2, 4000), st.sampled_from(range(112, 183, 2)))
def test_sizes_are_even_and_never_larger(width: int, height: int, short_side: int) -> None:
    small = proxy_size(width, height, short_side)
    assert all(side % 2 == 0 and side >= 2 for side in small)
    assert small[0] <= width and small[1] <= height
    assert min(small) == min(short_side, min(width, height) // 2 * 2)
    scale = min(Fraction(1), Fraction(short_side, min(width, height)))
    assert 0 <= width * scale - small[0] < 2 and 0 <= height * scale - small[1] < 2


def test_small_videos_keep_their_size(tmp_path: Path) -> None:
    write_numbered(tmp_path / "clip.mp4", COUNT)
    write_proxy(tmp_path / "clip.mp4", tmp_path / "proxy.mp4", SMALL)
    check(tmp_path / "clip.mp4", tmp_path / "proxy.mp4")
    assert VideoReader(tmp_path / "proxy.mp4").frames(np.array([0])).shape == (1, 64, 128, 3)


def test_the_stamp_tells_what_a_proxy_is_made_of(tmp_path: Path) -> None:
    source, target = numbered(tmp_path), tmp_path / "proxy.mp4"
    assert not is_current_proxy(source, target, SMALL)
    write_proxy(source, target, SMALL)
    with av.open(str(target)) as container:
        comment = container.metadata["comment"]
    assert comment.startswith("palindrome: proxy") and video_digest(source) in comment
    for said in ("short side 112", "gop 8", "crf 20", f"{source.stat().st_size} bytes"):
        assert said in comment
    assert is_current_proxy(source, target, SMALL)
    for change in ({"short_side": 114}, {"gop": 9}, {"crf": 21}, {"reverse": True}):
        assert not is_current_proxy(source, target, replace(SMALL, **change))
    content = target.read_bytes()
    write_proxy(source, target, SMALL)
    assert target.read_bytes() == content  # what was cached of it is found again
    numbered(tmp_path, count=COUNT - 1)
    assert not is_current_proxy(source, target, SMALL)


def test_times_that_mp4_cannot_hold_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = numbered(tmp_path), tmp_path / "proxy.mp4"

    def late(index: VideoIndex, backwards: bool) -> Timeline:
        line = make_timeline(index, backwards)
        return replace(line, times=line.times * 2**31)  # gaps have 32 bits (ISO 14496-12, 8.6.1)

    monkeypatch.setattr("extract.transcoding.proxy.make_timeline", late)
    with pytest.raises(ValueError):
        write_proxy(source, target, SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["clip.mp4"]


def transcode(videos: Path, out: Path, *more: str) -> str:
    """Run the script in this process; return its last words."""
    return end_of_main(["--videos", str(videos), "--out", str(out), "--short_side=112", *more])


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.slow
def test_bad_files_are_told_at_the_end_and_the_others_are_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    videos, out = tmp_path / "videos", tmp_path / "out"
    for file in ("one", "two", "three"):
        numbered(videos, "B-frames, long GOP", file=file)
    # After the first frames and before the last ones: only who decodes all of it finds it.
    groups = replace(ENCODINGS["H.264"], options=(("g", "24"),), size=(224, 304), noisy=True)
    write_numbered(videos / "holed.mp4", 150, groups)
    content = bytearray((videos / "holed.mp4").read_bytes())
    hole = slice(len(content) * 45 // 100, len(content) * 60 // 100)
    content[hole] = bytes(hole.stop - hole.start)
    (videos / "holed.mp4").write_bytes(content)
    content = bytearray((videos / "one.mp4").read_bytes())
    (videos / "cut.mp4").write_bytes(content[: len(content) // 2])
    (videos / "empty.mkv").touch()
    out.mkdir()
    (out / "two.mp4").write_bytes(b"something of the user's")
    truth = tmp_path / "truth.json"
    entry = {"subset": "all", "annotations": [{"segment": [0.2, 0.6], "label": "wave"}]}
    truth.write_text(json.dumps({"database": dict.fromkeys(("one", "cut"), entry)}, indent=3))

    said = transcode(videos, out, "--annotations", str(truth))
    assert said.startswith("error: 4 videos could not be made small:\n")
    assert f"{videos}/cut.mp4: cannot be read as video: its data are damaged" in said
    assert f"{videos}/empty.mkv: cannot be read as video: the file is empty" in said
    assert f"{videos}/holed.mp4: cannot be decoded: its data are damaged" in said
    assert f"{out}/two.mp4: is not a proxy and would be replaced" in said
    assert (out / "two.mp4").read_bytes() == b"something of the user's"
    assert names_in(out) == ["one.mp4", "proxies.json", "three.mp4", "truth.json", "two.mp4"]
    assert (out / "truth.json").read_text() == truth.read_text()
    check(videos / "one.mp4", out / "one.mp4")

    report = json.loads((out / "proxies.json").read_text())
    pairs = [(videos / name, out / name) for name in ("one.mp4", "three.mp4")]
    before, after = (sum(path.stat().st_size for path in side) for side in zip(*pairs, strict=True))
    assert (report["files"], report["bytes_before"], report["bytes_after"]) == (2, before, after)
    assert report["saved"] == pytest.approx(1 - after / before)
    assert report["gain"] == pytest.approx(report["speed_after"] / report["speed_before"])
    assert set(report["measured"]) == {"one", "three"} and report["size"] == 112
    assert report["settings"] == {"short_side": 112, "gop": 8, "crf": 20, "reverse": False}
    assert set(report["problems"]) == {"cut", "empty", "holed", "two"}
    printed = capsys.readouterr().out
    assert ("train on the videos themselves" in printed) == (after > before)
    header, _, row = (line for line in printed.splitlines() if line.startswith("|"))
    cells = dict(zip(header.split(" | ")[1:4], row.split(" | ")[1:4], strict=True))
    assert cells["bytes before"] == f"{before:,}" and cells["saved"] == f"{report['saved']:.1%}"


@pytest.mark.slow
def test_proxies_are_made_once_and_anew_when_something_changed(tmp_path: Path) -> None:
    videos, out = tmp_path / "videos", tmp_path / "out"
    for file in ("one", "two"):
        numbered(videos, file=file)
    assert transcode(videos, out) == ""
    made = {name: (out / name).stat() for name in ("one.mp4", "two.mp4")}
    assert transcode(videos, out) == ""
    assert {name: (out / name).stat() for name in made} == made

    numbered(videos, count=COUNT + 7, file="two")
    assert transcode(videos, out) == ""
    assert (out / "one.mp4").stat() == made["one.mp4"]
    assert len(VideoReader(out / "two.mp4")) == COUNT + 7

    before = {name: (out / name).read_bytes() for name in made}
    assert transcode(videos, out, "--reverse") == ""
    assert all((out / name).read_bytes() != content for name, content in before.items())
    check(videos / "two.mp4", out / "two.mp4", replace(SMALL, reverse=True))


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_run_that_was_ended_goes_on(tmp_path: Path, how: signal.Signals) -> None:
    videos, out = tmp_path / "videos", tmp_path / "out"
    numbered(videos, count=20, file="short")
    write_numbered(videos / "long.mp4", 6000)
    command = ["extract/transcode.py", "--videos", str(videos), "--out", str(out), "--processes=1"]
    process = subprocess.Popen(
        [sys.executable, *command, "--short_side=112"],
        cwd=REPOSITORY,
        env=ENVIRONMENT,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.default_int_handler),
    )
    while not (out / "long.mp4.part").exists() or not (out / "long.mp4.part").stat().st_size:
        assert process.poll() is None
        time.sleep(0.005)
    children = psutil.Process(process.pid).children(recursive=True)
    if how == signal.SIGKILL:
        process.kill()
        process.communicate()
        assert names_in(out) == ["long.mp4.part"]
    else:  # as Ctrl-C: all of the group hear it
        os.killpg(process.pid, how)
        printed, complained = process.communicate(timeout=60)
        assert process.returncode == 130 and "the same command goes on" in printed
        assert "Traceback" not in complained
        assert names_in(out) == []
    _, alive = psutil.wait_procs(children, 5)
    assert not alive  # nobody goes on writing what the next run writes
    assert transcode(videos, out) == ""
    assert names_in(out) == ["long.mp4", "proxies.json", "short.mp4"]
    assert len(VideoReader(out / "long.mp4")) == 6000
    check(videos / "short.mp4", out / "short.mp4")


@pytest.mark.slow
def test_a_decoder_that_hangs_or_crashes_costs_no_other_file(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(making, "SILENCE_S", 1.0)
    makers: dict[str, Callable[..., object]] = {
        "crashes": guarded_calls.crash,
        "exhausts": guarded_calls.run_out_of_memory,
        "hangs": guarded_calls.hang,
        "fails": guarded_calls.fail,
        **{f"good {number}": guarded_calls.process_id for number in range(3)},
    }
    todo = [FileToMake(Path(f"{name}.mp4"), 0, 5, make) for name, make in makers.items()]
    results = dict(zip(makers, make_files(todo, 1, "trying"), strict=True))
    assert all(isinstance(results[f"good {number}"], int) for number in range(3))
    for name, how in {
        "crashes": f"the process that reads it crashed (signal {int(signal.SIGSEGV)}): a video",
        "exhausts": "cannot be rewritten: too many frames",
        "hangs": "the process that reads it hangs (no answer within 1.05 s): a video",
        "fails": "cannot be rewritten: No space left on device",
    }.items():
        assert isinstance(results[name], VideoError)
        assert str(results[name]).startswith(f"{name}.mp4: {how}")
    assert "trying" in capfd.readouterr().err


def test_a_bug_ends_the_run() -> None:
    with pytest.raises(RuntimeError, match="KeyError: 'absent'"):
        make_files([FileToMake(Path("clip.mp4"), 0, 5, guarded_calls.meet_a_bug)], 1, "trying")


@pytest.mark.slow
def test_proxies_are_trained_on_like_their_originals(tmp_path: Path) -> None:
    videos, out = tmp_path / "videos", tmp_path / "out"
    numbered(videos, "B-frames, long GOP", 97, "even")
    numbered(videos, "variable frame rate", 97, "uneven")
    entry = {"subset": "all", "annotations": [{"segment": [0.9, 2.6], "label": "wave"}]}
    truth = tmp_path / "truth.json"
    truth.write_text(json.dumps({"database": dict.fromkeys(("even", "uneven"), entry)}))
    assert transcode(videos, out, "--annotations", str(truth)) == ""

    found = []
    for annotations, folder in ((truth, videos), (out / "truth.json", out)):
        data = DataConfig(str(annotations), str(folder), "all", None, "all")
        config = load(Experiment, str(DEMO), ["--pixels.size=96", "--pixels.random_crop=null"])
        items = load_items(data, load_annotations(data), "all")
        found.append((items, TrainingWindows(items, WindowInputs.of(config))))
    (items, samples), (small_items, small_samples) = found
    for position, (item, small) in enumerate(zip(items, small_items, strict=True)):
        assert (small.name, small.frames) == (item.name, item.frames)
        assert small.duration_s == pytest.approx(item.duration_s, abs=1e-9)
        assert (small.times_s is None) == (item.name == "even")
        assert small.segments == pytest.approx(item.segments, abs=1e-6)
        for epoch in range(3):
            one, other = samples[epoch, position], small_samples[epoch, position]
            assert np.array_equal(one.window.frames, other.window.frames)
            assert torch.equal(one.labels, other.labels)
            pixels = (one.inputs[0].float() - other.inputs[0].float()).abs()
            assert pixels.mean() < 6


def test_activations_of_proxies_and_originals_never_mix(tmp_path: Path) -> None:
    original = numbered(tmp_path / "videos", count=150)
    (tmp_path / "out").mkdir()
    small, backbone = tmp_path / "out/clip.mp4", new_backbone()
    write_proxy(original, small, SMALL)
    old, new = spans_of(original), spans_of(small)
    assert info_of(original).digest != info_of(small).digest
    with Store.open(tmp_path / "cache", "a") as store:
        activations = seam(store, backbone)
        for span in old:
            activations.get(span, "features")
        activations.flush()
        store.refresh()
        place = activations.cached_cuts()["features"]
        assert all(place.contains(span) for span in old) and not any(
            place.contains(span) for span in new
        )
        for before, after in zip(old, new, strict=True):  # both under one name, in one store
            assert torch.equal(activations.get(after, "features"), fresh(backbone, after))
            assert torch.equal(activations.get(before, "features"), fresh(backbone, before))
            assert not torch.equal(fresh(backbone, after), fresh(backbone, before))
        assert activations.counts.full == len(old) + len(new)
        activations.close()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("--short_side=110", "--short_side: 110 is not an even number from 112 to 182"),
        ("--short_side=184", "--short_side: 184 is not an even number from 112 to 182"),
        ("--short_side=161", "--short_side: 161 is not an even number from 112 to 182"),
        ("--short_side=160 --gop=0", "--gop: 0 is not 1 to 250 frames"),
        ("--short_side=160 --crf=52", "--crf: 52 is not 1 (best) to 51 (worst)"),
        ("--short_side=160 --out=videos", "--out: choose a folder other than --videos"),
        ("--short_side=160 --videos=none", "--videos: there is no folder none"),
        ("--short_side=160 --videos=out", "--videos: out holds no video"),
        ("--short_side=160 --processes=0", "--processes: 0 is not at least 1"),
        ("--short_side=160 --annotations=no.json", "no.json"),
        ("--short_side=160 --annotations=proxies.json", "--annotations: proxies.json is the rep"),
        ("--reverse --gop=8", "--gop: is for proxies"),
        ("", "nothing to write: give --short_side N for proxies, --reverse, or both"),
    ],
)
def test_wrong_settings_end_with_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: str, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    numbered(tmp_path / "videos", count=5)
    (tmp_path / "out").mkdir()
    told = end_of_main(["--videos=videos", "--out=new", *arguments.split()])
    assert told.startswith("error: ") and said in told and "\n" not in told
    assert names_in(tmp_path / "videos") == ["clip.mp4"] and names_in(tmp_path / "out") == []
