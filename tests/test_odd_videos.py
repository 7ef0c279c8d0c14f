"""Videos as people have them are read like sequential decoding, whatever their clocks say."""

import shutil
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import Identity

from extract.sampling.frame_cache import FrameCache
from extract.sampling.transforms import Shrink, Transform
from extract.sampling.window_frames import window_frames
from extract.sampling.windows import sliding_windows
from extract.settings.sampling import SamplingConfig
from extract.transcoding.proxy import ProxyConfig, write_proxy
from extract.transcoding.reverse import write_reversed
from extract.video.header import announced_frames
from extract.video.index import VideoError, VideoIndex
from extract.video.indexing import video_index
from extract.video.probe import decode_ends
from extract.video.reader import VideoReader
from tests.encodings import access_paths
from tests.marks import quick_only, slow
from tests.odd_videos import (
    change_matroska_times,
    joined,
    sequential_frames,
    untimed,
    write_clip,
    write_sizes,
    write_streams,
)
from train.data.video_files import make_item, with_digest


@pytest.fixture(scope="session")
def cases(shared: Path) -> Path:
    folder = shared / "cases/video"
    if not folder.is_dir():
        pytest.skip("../shared/cases is not here")
    return folder


def check_exact(path: Path, count: int) -> VideoIndex:
    """Assert that every access path gives the frames of sequential decoding, and times rise."""
    expected = sequential_frames(path)
    assert len(expected) == count
    found = decode_ends(path, lambda done: None)
    assert len(found.pts) == count and np.all(np.diff(found.pts) > 0)
    whole = VideoReader(path).frames(np.arange(count))
    # Two decoders convert colours a little differently; neighbouring frames differ far more.
    assert np.abs(whole.astype(int) - expected).mean((1, 2, 3)).max() < 3
    reader = VideoReader(path)
    for name, indices in access_paths(count).items():
        assert np.array_equal(reader.frames(indices), whole[indices]), name
    assert VideoIndex.from_bytes(found.to_bytes()).to_bytes() == found.to_bytes()
    assert announced_frames(path, found) == count
    return found


def check_clock(path: Path, count: int, seconds: float, fps: float | None = None) -> VideoIndex:
    found = check_exact(path, count)
    assert found.fps == pytest.approx(fps or count / seconds, rel=1e-3)
    assert make_item(path, found).duration_s == pytest.approx(seconds, rel=1e-3)
    return found


# Frames, seconds, times that are replaced.
CASES = {
    "overlap.ts": (200, 8.0, 1),
    "jumpback.ts": (200, 8.0, 1),
    "negpts.mkv": (100, 4.0, 25),
    "reschange.webm": (100, 4.0, 0),
    "narrow_72.mp4": (5, 0.2, 0),
    "empty_chunk.avi": (58, 58 / 30, 0),
    "two_streams_big_second.mp4": (100, 4.0, 0),
    "single.mp4": (1, 0.04, 0),
}


@pytest.mark.parametrize("name", CASES)
def test_files_that_people_have(cases: Path, name: str) -> None:
    count, seconds, repaired = CASES[name]
    found = check_exact(cases / name, count)
    assert found.repaired == repaired
    assert make_item(cases / name, found).duration_s == pytest.approx(seconds, rel=0.03)


TS = {"codec": "libx264", "encoder": {"g": "24", "bf": "2"}}
JOINED: dict[str, tuple[str, list[int], list[float], int]] = {
    "falls": (".ts", [100, 100], [30, 0], 1),
    "overlaps by 4 frames": (".ts", [100, 60], [10, 13.84], 1),
    "overlaps by 30 frames": (".ts", [100, 60], [10, 12.8], 1),
    "overlaps by one frame": (".ts", [100, 60], [10, 13.96], 1),
    "several jumps": (".ts", [40, 40, 40, 40], [90, 50, 51, 10], 3),
    "at the first frame": (".ts", [1, 80], [50, 0], 1),
    "at the last frame": (".ts", [80, 1], [50, 0], 1),
    "leaps ahead": (".ts", [60, 60], [0, 4000], 1),
    "of a camera": (".mts", [80, 80], [60, 10], 1),
    "of a camcorder": (".m2ts", [80, 80], [10, 11], 1),
}


@pytest.mark.parametrize("name", quick_only(JOINED, "falls", "leaps ahead", "of a camera"))
def test_joined_recordings_go_on(tmp_path: Path, name: str) -> None:
    suffix, lengths, starts_s, jumps = JOINED[name]
    kind = {"format": "mpegts"}
    if suffix != ".ts":
        kind["options"] = {"mpegts_m2ts_mode": "1"}  # type: ignore[assignment]
    path = joined(tmp_path / f"clip{suffix}", lengths, starts_s, **TS, **kind)
    found = check_clock(path, sum(lengths), sum(lengths) / 25)
    assert found.repaired == jumps


@pytest.mark.parametrize("codec", ["mpeg2video", slow("libx265"), slow("mpeg4")])
def test_joined_recordings_of_other_codecs_go_on(tmp_path: Path, codec: str) -> None:
    path = joined(tmp_path / "clip.ts", [60, 60], [20, 20.4], codec=codec, format="mpegts")
    assert check_clock(path, 120, 4.8).repaired == 1


def test_recordings_of_two_rates_keep_both(tmp_path: Path) -> None:
    slow = write_clip(tmp_path / "slow.ts", 50, 10)
    fast = write_clip(tmp_path / "fast.ts", 50, 0, fps=50, seed=50)
    path = tmp_path / "clip.ts"
    path.write_bytes(slow.read_bytes() + fast.read_bytes())
    found = check_exact(path, 100)
    assert found.repaired == 1
    steps = np.diff(found.times(np.arange(100)))
    assert steps[:48] == pytest.approx(0.04) and steps[51:] == pytest.approx(0.02)


@pytest.mark.parametrize("bf", ["0", "3"])
def test_a_clock_that_wraps_round_goes_on(tmp_path: Path, bf: str) -> None:
    """The 33 bits of a transport stream are through two seconds after its first frame."""
    source = write_clip(tmp_path / "whole.mkv", encoder={"bf": bf})
    options = {"output_ts_offset": str(2**33 / 90000 - 2), "mpegts_copyts": "1"}
    path = tmp_path / "wraps.ts"
    with av.open(str(source)) as whole, av.open(str(path), "w", options=options) as file:
        stream = file.add_stream_from_template(whole.streams.video[0])
        for packet in whole.demux(video=0):
            if packet.size:
                packet.stream = stream
                file.mux(packet)
    assert check_clock(path, 100, 4.0, fps=25).repaired == 0


@pytest.mark.parametrize("encoder", [slow({"bf": "0"}), {"bf": "2", "g": "20"}])
def test_matroska_clocks_go_on(tmp_path: Path, encoder: dict[str, str]) -> None:
    settings = {"options": {"cluster_time_limit": "400"}, "encoder": {"g": "10"} | encoder}
    path = write_clip(tmp_path / "falls.mkv", 100, 20, **settings)  # type: ignore[arg-type]
    change_matroska_times(path, lambda place, time: time - 5000 * (place >= 3))
    assert check_clock(path, 100, 4).repaired == 1
    path = write_clip(tmp_path / "untimed.mkv", 100, encoder={"bf": "0"})
    assert check_clock(untimed(path, 10), 100, 4).repaired == 10


def test_seeking_is_not_trusted_where_it_fails(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.webm", 60, codec="libvpx")
    check_clock(untimed(path, 10), 60, 2.4)
    check_exact(joined(tmp_path / "clip.gif", [30, 30], [0, 0], codec="gif"), 60)


@pytest.mark.parametrize("codec", ["libvpx", slow("libvpx-vp9")])
def test_hidden_pictures_are_no_frames(tmp_path: Path, codec: str) -> None:
    hidden = {"auto-alt-ref": "1", "lag-in-frames": "16", "arnr-maxframes": "7"}
    path = write_clip(tmp_path / "clip.webm", 200, codec=codec, encoder=hidden)
    check_clock(path, 200, 8)


SIZES = [(96, 64), (128, 96)]


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("clip.webm", "libvpx-vp9"),
        slow("clip.mkv", "mjpeg"),
        slow("clip.webm", "libvpx"),
        slow("clip.avi", "mjpeg"),
        slow("clip.mov", "mjpeg"),
    ],
)
def test_pictures_of_another_size_are_scaled_to_the_first(
    tmp_path: Path, name: str, codec: str
) -> None:
    for sizes in (SIZES, SIZES[::-1], [*SIZES, SIZES[0]]):
        path = write_sizes(tmp_path / name, codec, sizes)
        found = check_exact(path, 30 * len(sizes))
        assert found.size == sizes[0][::-1]
        path.unlink()


def test_joined_streams_of_two_sizes_are_scaled(tmp_path: Path) -> None:
    small = write_clip(tmp_path / "small.ts", 40, 10, size=SIZES[0])
    large = write_clip(tmp_path / "large.ts", 40, 20, size=SIZES[1], seed=40)
    path = tmp_path / "clip.ts"
    path.write_bytes(small.read_bytes() + large.read_bytes())
    assert check_exact(path, 80).size == (64, 96)


NARROW = [2, 6, 8, 16, 24, 32, 48, 50, 64, 72, 74, 96]


@pytest.mark.parametrize(
    ("suffix", "codec"),
    [(".mp4", "libx264"), (".mkv", "libx264"), (".avi", "mpeg4"), (".webm", "libvpx")],
)
def test_narrow_videos_are_read(tmp_path: Path, suffix: str, codec: str) -> None:
    for width in NARROW:
        path = write_clip(tmp_path / f"{width}{suffix}", 6, codec=codec, size=(width, 32))
        assert check_exact(path, 6).size == (32, width)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
@pytest.mark.parametrize("default", quick_only([None, 0, 1], 1))
@pytest.mark.parametrize("sizes", [SIZES, SIZES[::-1]])
def test_of_two_streams_all_read_the_same(
    tmp_path: Path, suffix: str, default: int | None, sizes: list[tuple[int, int]]
) -> None:
    path = write_streams(tmp_path / f"clip{suffix}", sizes, default)
    found = check_exact(path, 50)
    assert VideoReader(path).frames(np.array([7])).shape[1:3] == found.size
    if default == 0:
        assert found.size == sizes[0][::-1]


ONE_FRAME = {
    ".mp4": "libx264", ".mov": "libx264", ".mkv": "libx264", ".ts": "libx264", ".flv": "libx264",
    ".avi": "mpeg4", ".webm": "libvpx", ".m2ts": "libx264", ".3gp": "mpeg4", ".ogv": "libtheora",
    ".gif": "gif", ".wmv": "wmv2",
}  # fmt: skip


@pytest.mark.parametrize("suffix", ONE_FRAME)
def test_one_frame_lasts_one_frame(tmp_path: Path, suffix: str) -> None:
    codec = ONE_FRAME[suffix]
    if codec not in av.codecs_available:
        pytest.skip(f"no encoder {codec}")
    for count in (1, 12):
        path = write_clip(tmp_path / f"clip{count}{suffix}", count, codec=codec)
        found = check_exact(path, count)
        # A single picture's file need not hold its rate.
        assert make_item(path, found).duration_s == pytest.approx(count / 25, rel=0.1)


@pytest.mark.parametrize("suffix", [".avi", ".mp4", ".mkv"])
@pytest.mark.parametrize("gap", [slow((30, 31)), slow((99, 100)), (40, 44)])
def test_empty_packets_are_no_missing_end(
    tmp_path: Path, suffix: str, gap: tuple[int, int]
) -> None:
    """Frames that repeat the one before are stored as nothing."""
    source = write_clip(tmp_path / "source.mkv", 100, codec="mpeg4", encoder={"bf": "0"})
    path = tmp_path / f"clip{suffix}"
    with av.open(str(source)) as old, av.open(str(path), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0], opaque=True)
        for number, packet in enumerate(old.demux(video=0)):
            if packet.dts is not None and not gap[0] <= number < gap[1]:
                packet.stream = stream
                new.mux(packet)
    found = check_exact(path, 100 - (gap[1] - gap[0]))
    assert not found.repaired


def test_a_header_of_more_frames_is_no_missing_end(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.avi", 100, codec="mpeg4", encoder={"bf": "0"})
    content = bytearray(path.read_bytes())
    for place in (content.index(b"avih") + 8 + 16, content.index(b"strh") + 8 + 32):
        assert int.from_bytes(content[place : place + 4], "little") == 100
        content[place : place + 4] = (110).to_bytes(4, "little")
    path.write_bytes(content)
    check_exact(path, 100)


def odd_kinds(folder: Path) -> list[Path]:
    return [
        joined(folder / "joined.ts", [40, 40], [20, 20.8], **TS),
        write_sizes(folder / "sizes.webm", "libvpx", SIZES),
        write_sizes(folder / "sizes.avi", "mjpeg", SIZES[::-1]),
        write_clip(folder / "narrow.mp4", 30, size=(72, 32)),
        write_streams(folder / "two.mp4", SIZES, 1),
        write_clip(folder / "single.mp4", 1),
    ]


@pytest.mark.slow
def test_proxies_and_reversed_files_hold_the_same_frames(tmp_path: Path) -> None:
    for path in odd_kinds(tmp_path):
        reader = VideoReader(path)
        frames, times = reader.frames(np.arange(len(reader))), reader.times(np.arange(len(reader)))
        proxy, turned = tmp_path / "proxy.mp4", tmp_path / "turned.mp4"
        write_proxy(path, proxy, ProxyConfig(112, crf=1))
        small = VideoReader(proxy)
        assert np.allclose(small.times(np.arange(len(small))), times, atol=1e-4)
        near = np.abs(small.frames(np.arange(len(small))).astype(int) - frames).mean((1, 2, 3))
        assert near.max() < 8, path  # their colours are subsampled
        write_reversed(path, turned)
        back = VideoReader(turned)
        assert np.array_equal(back.frames(np.arange(len(back)))[::-1], frames), path
        for made in (proxy, turned):
            made.unlink()


@pytest.mark.parametrize("square", [True, slow(False)])
def test_kept_frames_are_the_same(tmp_path: Path, square: bool) -> None:
    (tmp_path / "frames").mkdir()
    sampling = SamplingConfig(window_size=16, snippet_stride=2)
    for path in odd_kinds(tmp_path):
        item = with_digest(make_item(path, video_index(path)))
        cache = FrameCache(tmp_path / "frames", sampling)
        windows = sliding_windows(item, 0.5, sampling)
        transform = Transform(Shrink(24, square), Identity())
        decoded = [*window_frames(VideoReader(path), windows, transform)]
        for _ in range(2):  # made, and read again
            kept = [*cache.frames_of(path, item.info, windows, transform)]
            for left, right in zip(decoded, kept, strict=True):
                assert torch.equal(torch.stack(left), torch.stack(right)), path
    assert len([*(tmp_path / "frames").glob("*.npy")]) == 6


NAMES = [
    "10:15.mp4", "http:x.mp4", "a#b?.mp4", "50%.mp4", "%03d.mp4", "-x.mp4", "file:y.mp4", "ü ö.mp4",
    "concat:a|b.mp4", "[1].mp4", "x.MP4", "x.y.Mp4", "no_suffix", "wrong.txt", "pipe:0.mp4",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    write_clip(tmp_path / "clip.mp4", 20)
    (tmp_path / "clip.mp4").rename(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    assert len(decode_ends(Path(name), lambda done: None).pts) == 20
    frames = VideoReader(Path(name)).frames(np.arange(20))
    assert np.abs(frames.astype(int) - sequential_frames(tmp_path / name)).mean() < 3


@pytest.mark.parametrize("codec", ["libx264", "libx265"])
def test_encrypted_files_are_refused(tmp_path: Path, codec: str) -> None:
    keys = {"encryption_scheme": "cenc-aes-ctr", "encryption_key": "1" * 32,
            "encryption_kid": "2" * 32}  # fmt: skip
    path = write_clip(tmp_path / "clip.mp4", 60, codec=codec, options=keys)
    told = hasattr(av.Packet, "has_sidedata")  # older ones only see that nothing decodes
    cause = "it is encrypted" if told else ".*damaged"
    with pytest.raises(VideoError, match=rf"clip\.mp4: cannot be read as video: {cause}"):
        video_index(path)


def test_files_whose_decoder_only_complains_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Encrypted slices after whole headers decode to noise, one complaint after another."""
    path = write_clip(tmp_path / "clip.ts", 60, encoder={"g": "30", "bf": "0"})
    content = bytearray(path.read_bytes())
    noise = np.random.default_rng(0)
    for unit in (b"\0\0\1\x65", b"\0\0\1\x41"):
        at = content.find(unit)
        while at >= 0:
            begin, end = at + 9, 188 * (at // 188 + 1)
            content[begin:end] = noise.bytes(max(0, end - begin))
            at = content.find(unit, max(end, at + 1))
    path.write_bytes(content)
    with pytest.raises(VideoError, match=r"clip\.ts: cannot be (read|decoded)"):
        decode_ends(path, lambda done: None)


def test_a_real_missing_end_is_still_found(tmp_path: Path) -> None:
    for suffix, codec in ((".avi", "mpeg4"), (".mkv", "libx264")):
        whole = write_clip(tmp_path / f"whole{suffix}", 100, codec=codec, encoder={"bf": "0"})
        path = Path(shutil.copy(whole, tmp_path / f"cut{suffix}"))
        path.write_bytes(whole.read_bytes()[: whole.stat().st_size * 7 // 10])
        found = video_index(path)
        assert len(found.pts) < announced_frames(path, found) <= 101
