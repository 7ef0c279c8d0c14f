"""Detection goes on where a decoder hangs or crashes in the middle of one file."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from configs import cli
from evaluate import detect
from evaluate.files.predictions import read_predictions
from extract.parallel.guarded_frames import DecodingProcess
from extract.settings.pixels import PixelConfig
from extract.settings.sampling import SamplingConfig
from extract.video import watchdog
from extract.video.reader import VideoError
from tests.encodings import ENCODINGS, write_numbered
from tests.test_detect import detector_of, save
from tests.test_detector import small_experiment
from train.data.video_files import probe_item
from train.data.windows import EvaluationWindows, WindowInputs

SAMPLING = SamplingConfig(window_size=32, snippet_stride=1)
# What processes for decoding import first of all. Files called `bad` end at their 32nd frame.
SITE = """
import os, re, signal, time
from extract.video import watchdog
from extract.video.reader import VideoReader

watchdog.BASE_TIMEOUT_S, watchdog.SLOWEST_FPS = 0.2, 100.0
original = VideoReader.chunks

def chunks(self, rising):
    for number, chunk in enumerate(original(self, rising)):
        if self.path.stem == "bad" and rising[0] == 0 and number == 2:
            {end}
        yield chunk

VideoReader.chunks = chunks
"""
ENDS = {
    "exits": ("os._exit(139)", "crashed (exit code 139"),
    "is killed": ("os.kill(os.getpid(), signal.SIGKILL)", "crashed (signal 9)"),
    "sleeps": ("time.sleep(600)", "hangs"),
    "keeps Python's lock": ('re.match(r"(a+)+$", "a" * 60 + "b")', "hangs"),
}


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    """A folder of a file that will end its decoder between two that are whole."""
    folder = tmp_path / "videos"
    folder.mkdir()
    for name in ("a", "bad", "c"):
        write_numbered(folder / f"{name}.mp4", 130, ENCODINGS["intra only"])
    return folder


def end_with(code: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "site").mkdir()
    (folder / "site/sitecustomize.py").write_text(SITE.format(end=code))
    monkeypatch.syspath_prepend(folder / "site")
    # Time enough for a worker's own watchdog, except where this is kept from running.
    monkeypatch.setattr(watchdog, "BASE_TIMEOUT_S", 2.0)
    monkeypatch.setattr(watchdog, "SLOWEST_FPS", 100.0)


def windows_of(path: Path, process: DecodingProcess | None = None) -> EvaluationWindows:
    inputs = WindowInputs(SAMPLING, PixelConfig(32), ("forward", "reversed"), process=process)
    return EvaluationWindows([probe_item(path)], inputs, 0.5)


@pytest.fixture(scope="module")
def process() -> Iterator[DecodingProcess]:
    with DecodingProcess() as process:
        yield process


@pytest.mark.slow
def test_windows_from_a_process_are_those_of_this_one(
    videos: Path, process: DecodingProcess
) -> None:
    path = videos / "a.mp4"
    windows = windows_of(path)
    for _ in range(2):
        found = [*windows_of(path, process)]
        assert len(found) == windows.length() > 3
        for one, other in zip(found, windows, strict=True):
            assert (one.video, one.problem) == (other.video, other.problem)
            assert one.window.start == other.window.start
            for left, right in zip(one.inputs, other.inputs, strict=True):
                assert left.dtype == torch.uint8 and torch.equal(left, right)


@pytest.mark.slow
def test_a_pass_that_is_left_does_not_mix_with_the_next(
    videos: Path, process: DecodingProcess
) -> None:
    expected = [sample.inputs[0] for sample in windows_of(videos / "a.mp4")]
    first, second = (iter(windows_of(videos / "a.mp4", process)) for _ in range(2))
    for wanted in expected:
        assert torch.equal(next(first).inputs[0], wanted)
        assert torch.equal(next(second).inputs[0], wanted)


@pytest.mark.slow
def test_a_process_that_dies_between_two_chunks_is_replaced(videos: Path) -> None:
    """As when the system needs its memory: no video is to blame."""
    expected = [sample.inputs[0] for sample in windows_of(videos / "a.mp4")]
    with DecodingProcess() as process:
        for number, sample in enumerate(windows_of(videos / "a.mp4", process)):
            assert torch.equal(sample.inputs[0], expected[number])
            if number == 1:
                for one in process._pool._processes:
                    one.popen.kill()
                    one.popen.wait()


def test_errors_in_the_process_are_errors_here(videos: Path, process: DecodingProcess) -> None:
    windows = windows_of(videos / "a.mp4", process)
    (videos / "a.mp4").unlink()
    with pytest.raises(VideoError, match=r"a\.mp4"):
        next(iter(windows))
    (sample, *_) = windows_of(videos / "c.mp4", process)
    assert sample.video == "c"


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind",
    [
        "is killed",
        *(
            pytest.param(kind, marks=pytest.mark.slow)
            for kind in ("sleeps", "exits", "keeps Python's lock")
        ),
    ],
)
def test_a_decoder_that_ends_in_the_middle_costs_its_video(
    videos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    kind: str,
) -> None:
    code, told = ENDS[kind]
    end_with(code, tmp_path, monkeypatch)
    checkpoint = save(detector_of(small_experiment(tmp_path)), tmp_path / "model.pt")
    out = tmp_path / "found.json"
    command = ["detect.py", videos, "--checkpoint", checkpoint, "--cpu", "--json", out]
    monkeypatch.setattr("sys.argv", [*map(str, command), "--threshold", "0"])
    with pytest.raises(SystemExit) as end:
        cli.run(detect.main)
    (first, second) = str(end.value).splitlines()
    assert first == "error: 1 of the videos could not be read:"
    assert second.startswith(f"  {videos / 'bad.mp4'}: cannot be decoded: its decoder {told}")
    assert read_predictions(out).keys() == {"a", "c"}
    assert "2 videos" in capsys.readouterr().out
