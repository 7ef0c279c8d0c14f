"""One decode for overlapping windows and both directions; memory that stays flat."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from extract.sampling.transforms import evaluation_transform, train_transform, transform_frames
from extract.sampling.window_frames import arrange, window_frames
from extract.sampling.windows import Window, sliding_windows
from extract.settings.pixels import PixelConfig
from extract.settings.sampling import SamplingConfig
from extract.video.decoders.decoder import Decoder
from extract.video.reader import CHUNK, VideoReader
from tests.conftest import REPOSITORY
from tests.encodings import ENCODINGS, write_numbered

SAMPLING = SamplingConfig(window_size=32, scale_factor=1, snippet_stride=2)
PIXELS = PixelConfig(size=32, train_short_side=40)
# Two that are indexed, one that is sought by time.
READ_DIFFERENTLY = ("H.264", "B-frames, long GOP", "H.265")


class Counting:
    """A decoder that notes which frames it is asked for."""

    def __init__(self, decoder: Decoder) -> None:
        self.decoder, self.asked = decoder, list[int]()

    def chunks(self, rising: NDArray[np.int64]) -> Iterator[NDArray[np.uint8]]:
        decoded = self.decoder.chunks(rising)
        for start in range(0, len(rising), CHUNK):
            self.asked += rising[start : start + CHUNK].tolist()
            yield next(decoded)


@pytest.fixture(scope="module", params=READ_DIFFERENTLY)
def video(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    encoding = ENCODINGS[request.param]
    path = tmp_path_factory.mktemp("stream") / f"clip{encoding.suffix}"
    write_numbered(path, 250, encoding)
    return path


def alone(path: Path, window: Window) -> torch.Tensor:
    """The window's forward input, decoded for itself and transformed in one piece."""
    frames = VideoReader(path).frames(window.indices("forward"))
    return transform_frames(evaluation_transform(PIXELS), frames)


@pytest.mark.parametrize("overlap", [0.0, 0.5, 0.75])
def test_windows_share_one_decode_in_both_directions(video: Path, overlap: float) -> None:
    reader = VideoReader(video)
    windows = sliding_windows(len(reader), overlap, SAMPLING)
    assert len(windows) > 3
    decoded = window_frames(reader, windows, evaluation_transform(PIXELS))
    for window, frames in zip(windows, decoded, strict=True):
        forward = arrange(frames, window, "forward")
        assert torch.equal(forward, alone(video, window))
        assert torch.equal(arrange(frames, window, "reversed"), forward.flip(1))


@pytest.mark.parametrize("overlap", [0.0, 0.5, 0.75])
def test_every_frame_is_decoded_once(tmp_path: Path, overlap: float) -> None:
    path = tmp_path / "clip.mp4"
    write_numbered(path, 251)
    reader = VideoReader(path)
    reader._decoder = counting = Counting(reader._decoder)
    windows = sliding_windows(len(reader), overlap, SAMPLING)
    for window, frames in zip(
        windows, window_frames(reader, windows, evaluation_transform(PIXELS)), strict=True
    ):
        # Nor earlier than needed: what is kept is bounded by a window and a chunk.
        assert counting.asked[-1] < window.frames[-1] + CHUNK * SAMPLING.sample_step
        for direction in ("forward", "reversed"):
            arrange(frames, window, direction)
    assert counting.asked == list(range(0, 251, 2))


def test_short_videos_are_padded_and_squeezed_ones_repeat_frames(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    write_numbered(path, 21)
    resize = SamplingConfig("resize", window_size=32)
    for window in (*sliding_windows(21, 0.5, SAMPLING), *sliding_windows(21, 0.5, resize)):
        (frames,) = window_frames(VideoReader(path), [window], evaluation_transform(PIXELS))
        assert len(frames) == len(window.frames)
        for direction in ("forward", "reversed"):
            direct = VideoReader(path).frames(window.indices(direction))
            expected = transform_frames(evaluation_transform(PIXELS), direct)
            assert torch.equal(arrange(frames, window, direction), expected)


def test_one_draw_holds_for_a_window_that_comes_in_chunks(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    write_numbered(path, 100)
    (window,) = sliding_windows(64, 0.0, SAMPLING)
    assert len(window.frames) > CHUNK
    for seed in range(5):
        transform = train_transform(PIXELS)
        (frames,) = window_frames(VideoReader(path), [window], transform, seed)
        whole = transform_frames(transform, VideoReader(path).frames(window.frames), seed)
        assert torch.equal(torch.stack(frames, 1), whole)


MEMORY = """
import sys
from itertools import cycle, islice
import numpy as np
import torch  # before decord
from extract.sampling.windows import SamplingConfig, random_window, sliding_windows
from extract.sampling.window_frames import arrange, window_frames
from extract.sampling.transforms import PixelConfig, evaluation_transform, train_transform
from extract.video.reader import VideoReader

torch.set_num_threads(1)
count, paths = int(sys.argv[1]), sys.argv[2:]
sampling = SamplingConfig(window_size=32, snippet_stride=2)
pixels = PixelConfig(size=32, train_short_side=40)
test, train = evaluation_transform(pixels), train_transform(pixels)
rng = np.random.default_rng(0)

def windows():
    for path in cycle(paths):
        reader = VideoReader(path)
        overlapping = sliding_windows(len(reader), 0.5, sampling)
        decoded = window_frames(reader, overlapping, test)
        for window, frames in zip(overlapping, decoded):
            yield arrange(frames, window, "forward")
            # As while training: a reader that is opened, sought and dropped.
            drawn = random_window(rng, len(reader), np.zeros((0, 2)), sampling)
            (frames,) = window_frames(VideoReader(path), [drawn], train, 0)
            yield arrange(frames, drawn, "reversed")

def megabytes():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 / 1e6

source = windows()
for _ in islice(source, count // 5):
    pass
early = megabytes()
for _ in islice(source, count - count // 5):
    pass
print(megabytes() - early)
"""


def growth(folder: Path, windows: int) -> float:
    """Return by how many MB a fresh process grows from a fifth of the windows to all of them."""
    files: list[Path] = []
    for name in READ_DIFFERENTLY:
        files.append(folder / f"{len(files)}{ENCODINGS[name].suffix}")
        write_numbered(files[-1], 250, ENCODINGS[name])
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(windows), *map(str, files)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    return float(done.stdout)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
def test_memory_settles(tmp_path: Path) -> None:
    assert growth(tmp_path, 150) < 16


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
def test_memory_stays_flat_over_a_thousand_windows(tmp_path: Path) -> None:
    assert growth(tmp_path, 1000) < 16  # one small frame a window would be 20
