"""Looking at files: bad ones of every kind, decoders that hang or crash, and what is remembered."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import av
import numpy as np
import pytest

from extract.identity import user_cache
from extract.identity.digest import remembered_digest, video_digest
from extract.video import guarded, indexing
from extract.video.index import VideoError, VideoIndex
from extract.video.indexing import video_index
from extract.video.probe import _count_free_cores, decode_ends, probe
from tests.encodings import ENCODINGS, write_numbered
from tests.marks import slow

# Stands in for extract/video/guarded_worker.py: a decoder that does what the file's name says.
# Leaves its process id.
ACTOR = """
import os, resource, signal, sys, time
from pathlib import Path
from extract.video import guarded_worker, probe
from extract.video.indexing import video_index

resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
Path(sys.argv[1], str(os.getpid())).touch()

def act(path, progress):
    match Path(path).stem:
        case "hangs": time.sleep(600)
        case "crashes": os.kill(os.getpid(), signal.SIGSEGV)
        case "exits":
            print("no more frames", file=sys.stderr, flush=True)
            os._exit(1)
        case "changes": Path(path).open("ab").write(bytes(100))
        case "slow":
            for _ in range(12):
                time.sleep(0.25)
                progress(0)
    return video_index(path)

probe.decode_ends = act
guarded_worker.main()
"""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where files are remembered: nothing yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/palindrome/videos"


@pytest.fixture
def actors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the ids of all processes that looked at files, as ACTOR does."""
    folder = tmp_path / "actors"
    folder.mkdir()
    monkeypatch.setattr(guarded, "COMMAND", [sys.executable, "-c", ACTOR, str(folder)])
    return folder


@pytest.fixture
def no_child(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Call it to make every process that would look at files fail."""
    command = [sys.executable, "-c", "raise SystemExit('nobody may look')"]
    return lambda: monkeypatch.setattr(guarded, "COMMAND", command)


def good(path: Path, frames: int = 12) -> Path:
    write_numbered(path, frames)
    return path


def frames_of(answer: VideoIndex | VideoError) -> int:
    assert isinstance(answer, VideoIndex), answer
    return len(answer.pts)


def runs(process: int) -> bool:
    """Say whether a process lives; one that nobody has asked for its end does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it did not happen within a minute"
        time.sleep(0.05)


@pytest.mark.slow
def test_decoders_that_hang_or_crash_cost_their_own_file_alone(
    tmp_path: Path, actors: Path
) -> None:
    names = ["hangs", "crashes", "exits", "slow", "one", "two"]
    # Of different lengths: a content that is known is not looked at again.
    paths = [good(tmp_path / f"{name}.mp4", 12 + n) for n, name in enumerate(names)]
    # Silence counts, not time: "slow" takes longer than that.
    answers = dict(zip(names, probe(paths, timeout_s=2.0, processes=2), strict=True))
    for name, cause in {
        "hangs": "its decoder hangs (no answer within 2 s)",
        "crashes": f"its decoder crashed (signal {int(signal.SIGSEGV)})",
        "exits": "its decoder crashed (exit code 1: no more frames)",
    }.items():
        assert str(answers[name]) == f"{tmp_path / name}.mp4: cannot be read as video: {cause}"
    assert [frames_of(answers[name]) for name in ("slow", "one", "two")] == [15, 16, 17]
    processes = [int(file.name) for file in actors.iterdir()]
    assert 2 <= len(processes) <= 5 and not any(map(runs, processes))
    probe([tmp_path / "one.mp4"])


def test_no_more_children_than_files(tmp_path: Path, actors: Path) -> None:
    probe([good(tmp_path / "one.mp4")], processes=4)
    assert len(list(actors.iterdir())) == 1


@pytest.mark.parametrize(("cores", "processes", "share"), [(64, 4, 8), (8, 4, 2), (2, 4, 1)])
def test_processes_of_one_run_share_the_cores(
    monkeypatch: pytest.MonkeyPatch, cores: int, processes: int, share: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(cores))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    assert _count_free_cores() == share


def test_a_file_that_ends_in_the_middle_of_a_frame_says_so(tmp_path: Path) -> None:
    path = tmp_path / "clip.avi"
    write_numbered(path, 100, ENCODINGS["MPEG-4 in AVI"])
    content = path.read_bytes()
    path.write_bytes(content[: content.rindex(b"00dc", 0, 7 * len(content) // 10) + 10])
    with pytest.raises(VideoError, match=r"clip.avi: its end is missing: .* of 100 frames"):
        decode_ends(path, lambda done: None)


@pytest.mark.slow
def test_an_interrupt_ends_the_children(tmp_path: Path, actors: Path) -> None:
    path = good(tmp_path / "hangs.mp4")
    code = (
        # A shell that started the tests in the background has made it ignored.
        "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from extract.video import guarded\nfrom extract.video.probe import probe\n"
        f"guarded.COMMAND = {guarded.COMMAND!r}\nprobe([{str(path)!r}] * 3, 500, 2)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE)
    wait_for(lambda: len(list(actors.iterdir())) == 2)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode != 0 and b"KeyboardInterrupt" in errors
    assert not any(runs(int(file.name)) for file in actors.iterdir())


def test_errors_that_nobody_foresees_cost_their_own_file_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object) -> None:
        raise OverflowError("frame 2**70")

    monkeypatch.setattr(indexing, "_read_index", failing)
    with pytest.raises(VideoError) as caught:
        decode_ends(good(tmp_path / "clip.mp4"), lambda done: None)
    cause = "its decoder crashed (OverflowError: frame 2**70)"
    assert str(caught.value) == f"{tmp_path / 'clip.mp4'}: cannot be read as video: {cause}"


def test_reading_tells_of_its_progress(tmp_path: Path) -> None:
    steps: list[int] = []
    video_index(good(tmp_path / "clip.mp4", 30), steps.append)
    assert len(steps) >= 30


def test_counting_frames_tells_of_its_progress(shared: Path, tmp_path: Path) -> None:
    clip = Path(shutil.copy(shared / "clips/test.avi", tmp_path))
    steps: list[int] = []
    found = video_index(clip, steps.append)
    assert found.access == "sequence" and len(steps) >= 2 * len(found.pts)


def test_the_way_to_the_last_frame_tells_of_its_progress(tmp_path: Path) -> None:
    clip = tmp_path / "clip.mp4"
    write_numbered(clip, 130, ENCODINGS["intra refresh"])
    steps: list[int] = []
    found = decode_ends(clip, steps.append)
    assert len(found.keyframes) == 1 and len(steps) >= 130 + 130 // 16


def spoil_the_end(path: Path) -> None:
    """Overwrite the last tenth of an mp4 file's frames; its tables stay whole."""
    content = bytearray(path.read_bytes())
    end = content.index(b"moov") - 4
    content[end * 9 // 10 : end] = np.random.default_rng(0).bytes(end - end * 9 // 10)
    path.write_bytes(content)


def test_bad_files_are_told_apart(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The real child, on every kind of file that is not a video."""
    good(tmp_path / "good.mp4", 130)
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "empty.mp4").touch()
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "loop.mp4").symlink_to("loop.mp4")
    (tmp_path / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(5000))
    content = (tmp_path / "good.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(content[: len(content) // 2])
    (tmp_path / "spoilt.mp4").write_bytes(content)
    spoil_the_end(tmp_path / "spoilt.mp4")
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        audio = container.add_stream("aac", rate=16000)
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        silence.rate = 16000
        container.mux(audio.encode(silence))
        container.mux(audio.encode())
    causes = {
        "absent.mp4": "cannot be read as video: it does not exist",
        "folder.mp4": "cannot be read as video: it is a folder",
        "empty.mp4": "cannot be read as video: the file is empty",
        "pipe.mp4": "cannot be read as video: it is not a regular file",
        "loop.mp4": "cannot be read as video: Too many levels of symbolic links",
        "noise.mp4": "cannot be read as video: its data are damaged or not a video",
        "cut.mp4": "cannot be read as video: its data are damaged or not a video",
        "sound.mp4": "cannot be read as video: it has no video stream",
        "spoilt.mp4": "cannot be decoded: its data are damaged",
    }
    for again in (False, True):  # what is bad is not remembered
        paths = [tmp_path / name for name in (*causes, "good.mp4")]
        *bad, whole = probe(paths, processes=1, progress=False)
        assert list(map(str, bad)) == [f"{tmp_path / n}: {c}" for n, c in causes.items()], again
        assert frames_of(whole) == 130
    assert capfd.readouterr() == ("", "")  # decoders write of damage: not among our own lines


def test_files_without_permission_are_refused(tmp_path: Path, no_child: Callable[[], None]) -> None:
    path = good(tmp_path / "secret.mp4")
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user may read everything")
    no_child()
    (answer,) = probe([path])
    assert str(answer) == f"{path}: cannot be read as video: Permission denied"


def test_remembered_files_need_no_child(
    tmp_path: Path, actors: Path, no_child: Callable[[], None]
) -> None:
    one, two = good(tmp_path / "one.mp4"), good(tmp_path / "two.mp4", 20)
    seen = probe([one, two])
    no_child()
    again = probe([one, two])
    for left, right in zip(seen, again, strict=True):
        assert isinstance(left, VideoIndex) and isinstance(right, VideoIndex)
        assert np.array_equal(left.pts, right.pts)
        assert np.array_equal(left.keyframes, right.keyframes)
        assert (left.access, left.time_base, left.rotation, left.fps) == (
            (right.access, right.time_base, right.rotation, right.fps)
        )
        assert left.pts.dtype == right.pts.dtype and left.keyframes.dtype == right.keyframes.dtype
    with pytest.raises(OSError, match="videos does not start: exit code 1: nobody may look"):
        probe([good(tmp_path / "three.mp4", 30)])


def test_workers_read_no_packets_of_remembered_files(
    tmp_path: Path, actors: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = good(tmp_path / "clip.mp4")
    probe([path])
    monkeypatch.setattr(indexing, "_read_index", None)
    assert frames_of(video_index(path)) == 12
    monkeypatch.setattr(indexing, "CACHE_FOLDER", "another version")
    os.utime(path, ns=(1, 1))
    with pytest.raises(TypeError):
        video_index(path)


@pytest.mark.slow
def test_changed_files_are_looked_at_again(
    tmp_path: Path, actors: Path, no_child: Callable[[], None]
) -> None:
    path = good(tmp_path / "clip.mp4")
    assert frames_of(*probe([path])) == 12
    before = video_digest(path)
    good(path, 20)
    assert frames_of(*probe([path])) == 20 and video_digest(path) != before
    no_child()
    # Only touched, or under another name: the content is known.
    digest = video_digest(path)
    os.utime(path, ns=(5, 5))
    assert remembered_digest(path) is None
    assert frames_of(*probe([path])) == 20 and remembered_digest(path) == digest
    copy = Path(shutil.copy(path, tmp_path / "copy.mp4"))
    assert frames_of(*probe([copy])) == 20
    # The same size and content is not asked for, only the same size and time.
    path.write_bytes(bytes(reversed(path.read_bytes())))
    with pytest.raises(OSError, match="nobody may look"):
        probe([path])


def test_a_file_that_changes_while_it_is_looked_at_is_not_remembered(
    tmp_path: Path, actors: Path
) -> None:
    path = good(tmp_path / "changes.mp4")
    before = video_digest(path)
    probe([path])
    assert video_digest(path) != before and indexing.remembered_index(before) is None


@pytest.mark.slow
@pytest.mark.parametrize("damage", [slow(b""), b"\x80noise", slow(b'["a", 1, 2, "c"]')])
def test_damaged_memos_count_as_absent(
    tmp_path: Path, cache: Path, actors: Path, damage: bytes
) -> None:
    path = good(tmp_path / "clip.mp4")
    probe([path])
    files = [file for file in cache.rglob("*") if file.is_file()]
    assert len(files) == 2
    for file in files:
        file.write_bytes(damage)
    assert frames_of(*probe([path])) == 12
    assert len(list(actors.iterdir())) == 2
    assert frames_of(*probe([path])) == 12
    assert len(list(actors.iterdir())) == 2  # mended


def test_flipped_bytes_in_a_remembered_index_are_noticed(
    tmp_path: Path, cache: Path, actors: Path
) -> None:
    path = good(tmp_path / "clip.mp4", 100)
    (seen,) = probe([path])
    (file,) = cache.rglob("*.npz")
    whole = file.read_bytes()
    for at in range(0, len(whole), 7):
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 255]) + whole[at + 1 :])
        found = indexing.remembered_index(file.stem)
        assert isinstance(seen, VideoIndex)
        assert found is None or np.array_equal(found.pts, seen.pts)
    for end in range(0, len(whole), 50):
        file.write_bytes(whole[:end])
        assert indexing.remembered_index(file.stem) is None


def test_a_folder_that_cannot_be_written_costs_only_speed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, actors: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    path = good(tmp_path / "clip.mp4")
    for _ in range(2):
        assert frames_of(*probe([path])) == 12
        assert len(list(actors.iterdir())) == 1  # this process remembers
    assert frames_of(video_index(path)) == 12
    assert video_digest(path) == remembered_digest(path) is not None


def test_memos_are_whole_while_many_write_them(cache: Path) -> None:
    contents = [bytes([number]) * 100_000 for number in range(16)]

    def write_and_read(content: bytes) -> bytes | None:
        user_cache.save("one", content)
        return user_cache.load("one")

    with ThreadPoolExecutor(8) as pool:
        assert all(read in contents for read in pool.map(write_and_read, contents * 8))
    assert [file.name for file in cache.iterdir()] == ["one"]


def test_memos_lie_in_the_home_folder_by_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for setting in ("", "relative/folder"):
        monkeypatch.setenv("XDG_CACHE_HOME", setting)
        user_cache.save("name", setting.encode() or b"empty")
        expected = setting or "empty"
        assert (tmp_path / ".cache/palindrome/videos/name").read_text() == expected


def test_digests_are_of_the_content(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_bytes(b"abc")
    two.symlink_to(one)
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert video_digest(one) == video_digest(two) == remembered_digest(two) == expected
    assert remembered_digest(tmp_path / "absent") is None
    with pytest.raises(OSError, match="absent"):
        video_digest(tmp_path / "absent")
