"""Frame-exactness by every access path, one clear error for every bad file."""

from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from extract.video import VideoError, VideoReader
from train.dataset import item_of


def sequential(path: Path) -> NDArray[np.uint8]:
    """All frames by another decoder, in sequence."""
    with av.open(str(path)) as container:
        return np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])


def difference(left: NDArray[np.uint8], right: NDArray[np.uint8]) -> float:
    return float(np.abs(left.astype(int) - right.astype(int)).mean((1, 2, 3)).max())


def paths(count: int) -> dict[str, NDArray[np.int64]]:
    rng = np.random.default_rng(0)
    return {
        "sequence": np.arange(count),
        "strided": np.arange(0, count, 4),
        "from the middle": np.arange(count // 2, count),
        "reversed": np.arange(count)[::-1],
        "random with repeats": rng.integers(0, count, 40),
        "last": np.array([count - 1]),
        "first after last": np.array([count - 1, 0]),
    }


def check_exact(path: Path) -> None:
    expected = sequential(path)
    assert len(VideoReader(path)) == len(expected)
    whole = VideoReader(path).frames(np.arange(len(expected)))
    # Two decoders convert colours a little differently; neighbouring frames differ far more.
    assert difference(whole, expected) < 3
    for name, indices in paths(len(expected)).items():
        assert np.array_equal(VideoReader(path).frames(indices), whole[indices]), name
    reader = VideoReader(path)
    for name, indices in paths(len(expected)).items():
        assert np.array_equal(reader.frames(indices), whole[indices]), f"{name}, reader reused"


@pytest.mark.parametrize("clip", ["demo.mp4", "part_0.mp4", "flipping_a_pancake.mkv"])
def test_real_clips_are_frame_exact(shared: Path, clip: str) -> None:
    check_exact(shared / "clips" / clip)


@pytest.mark.parametrize(
    "options",
    [{}, {"bf": "3", "g": "250"}, {"bf": "0", "g": "1"}],
    ids=["default", "long GOP", "intra only"],
)
def test_generated_clips_are_frame_exact(tmp_path: Path, options: dict[str, str]) -> None:
    path = tmp_path / "numbered.mp4"
    write_numbered(path, 130, options)
    check_exact(path)
    # Every frame carries its number: the right one comes, not only the same one always.
    frames = VideoReader(path).frames(np.arange(130)[::-1])
    assert read_numbers(frames) == list(range(130))[::-1]


def write_numbered(path: Path, count: int, options: dict[str, str]) -> None:
    """Write frames that show their number as eight black or white bars."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = 64, 128, "yuv420p"
        stream.options = dict(options)
        for number in range(count):
            bits = [(number >> bit) & 1 for bit in range(8)]
            row = np.repeat(np.array(bits, np.uint8) * 200 + 20, 16)
            picture = np.broadcast_to(row[None, :, None], (64, 128, 3))
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def read_numbers(frames: NDArray[np.uint8]) -> list[int]:
    bits = frames[:, 32, 8::16, 0] > 120
    return [int(n) for n in (bits * (1 << np.arange(8))).sum(1)]


def test_times_follow_the_frame_rate(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    write_numbered(path, 30, {})
    reader = VideoReader(path)
    assert reader.fps == pytest.approx(25)
    assert reader.times(np.array([0, 5, 29])) == pytest.approx([0, 0.2, 1.16])


def test_bad_files_are_refused_by_name_and_cause(tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(5000))
    causes = {
        "absent.mp4": "does not exist",
        "empty.mp4": "is empty",
        "noise.mp4": "cannot be read",
        ".": "is a folder",
    }
    for name, cause in causes.items():
        with pytest.raises(VideoError, match=cause) as caught:
            VideoReader(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_damaged_clip_is_refused(shared: Path) -> None:
    with pytest.raises(
        ValueError, match=r"corrupted\.mp4: cannot be decoded: its data are damaged"
    ):
        item_of(shared / "clips/corrupted.mp4")


def test_frames_outside_the_video_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    write_numbered(path, 20, {})
    for indices in ([20], [-1, 3], []):
        with pytest.raises(IndexError, match=r"clip\.mp4"):
            VideoReader(path).frames(np.array(indices, np.int64))
