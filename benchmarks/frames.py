"""Check that readers give exact frames: a table of files × access paths, then random windows.

    python -m benchmarks.frames [FILE or FOLDER ...] [--windows 1000]

Small videos in many encodings are made, and the files given are checked, too. Every frame
read is compared bit for bit with the reader's own pass from the first frame to the last, and that
pass with PyAV's: of all frames of PyAV's, the nearest must be the same one or one just like it.
Ends with code 1 if a frame differs anywhere.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import av
import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import adaptive_avg_pool2d

from configs.progress import ProgressBar
from extract.sampling.windows import random_window
from extract.settings.sampling import SamplingConfig
from extract.video.files import VIDEO_SUFFIXES
from extract.video.reader import VideoError, VideoReader
from tests.encodings import ENCODINGS, access_paths, turn, write_numbered

PATHS = tuple(access_paths(2))


@dataclass(frozen=True)
class ReferenceFrames:
    """A file and the fingerprints of its frames, decoded in sequence."""

    path: Path
    fingerprints: list[bytes]

    def count_wrong(self, frames: NDArray[np.uint8], indices: NDArray[np.int64]) -> int:
        """Return how many frames are not those of the sequential pass."""
        pairs = zip(frames, indices, strict=True)
        return sum(fingerprint(frame) != self.fingerprints[index] for frame, index in pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("files", type=Path, nargs="*", help="videos or folders of videos")
    parser.add_argument("--windows", type=int, default=1000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        files = [*write_videos(Path(folder)), *list_videos(args.files)]
        print(f"| file | frames | access | unlike PyAV | {' | '.join(PATHS)} |")
        print("|---" * (4 + len(PATHS)) + "|")
        good, differences = [], 0
        for file in files:
            row, reference, wrong = inspect_file(file)
            print(row, flush=True)
            differences += wrong
            good += [reference] if reference else []
        wrong, frames = check_random_windows(good, args.windows)
    print(
        f"\n{args.windows} random windows of {len(good)} files, {frames} frames: "
        f"{wrong} frames differ; by access path: {differences}"
    )
    sys.exit(bool(wrong + differences))


def write_videos(folder: Path) -> Iterator[Path]:
    for name, encoding in ENCODINGS.items():
        path = folder / f"{name.replace(' ', '_')}{encoding.suffix}"
        write_numbered(path, 130, encoding)
        yield path
    turned = folder / "rotated.mp4"
    write_numbered(turned, 130)
    turn(turned)
    yield turned


def list_videos(paths: list[Path]) -> Iterator[Path]:
    for path in paths:
        if path.is_dir():
            yield from (p for p in sorted(path.iterdir()) if p.suffix.lower() in VIDEO_SUFFIXES)
        else:
            yield path


def inspect_file(file: Path) -> tuple[str, ReferenceFrames | None, int]:
    """Return a file's row of the table, its sequential frames if readable, and its wrong frames."""
    try:
        reader = VideoReader(file)
        chunks = reader.chunks(np.arange(len(reader)))
        seen = [(fingerprint(frame), thumbnail(frame)) for part in chunks for frame in part]
    except VideoError as error:
        cause = str(error).removeprefix(f"{file}: ")
        return f"| {file.name} | | refused: {cause} |{' |' * (1 + len(PATHS))}", None, 0
    reference = ReferenceFrames(file, [print_ for print_, _ in seen])
    unlike = count_unlike(file, np.stack([small for _, small in seen]))
    outcomes = []
    for indices in access_paths(len(reader)).values():
        outcomes.append(reference.count_wrong(VideoReader(file).frames(indices), indices))
    summary = " | ".join("exact" if not wrong else f"{wrong} wrong" for wrong in outcomes)
    row = f"| {file.name} | {len(reader)} | {reader.index.access} | {unlike} | {summary} |"
    return row, reference, unlike + sum(outcomes)


def count_unlike(file: Path, ours: NDArray[np.float32]) -> int:
    """Return how many frames, or missing ones, are nearer to another frame of PyAV's."""
    prints, small = [], []
    with av.open(str(file)) as container:
        for frame in container.decode(video=0):
            upright = np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90)
            picture = np.ascontiguousarray(upright, np.uint8)
            prints.append(fingerprint(picture))
            small.append(thumbnail(picture))
    theirs = np.stack(small)
    wrong = abs(len(theirs) - len(ours))
    for index, picture in enumerate(ours[: len(theirs)]):
        nearest = int(np.abs(theirs - picture).mean(1).argmin())
        wrong += nearest != index and prints[nearest] != prints[index]
    return wrong


def fingerprint(frame: NDArray[np.uint8]) -> bytes:
    return blake2b(frame.tobytes(), digest_size=16).digest()


def thumbnail(frame: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return 32 × 32 means, flat: enough to tell frames apart, small enough to keep them all."""
    picture = torch.tensor(frame.transpose(2, 0, 1), dtype=torch.float32)
    return adaptive_avg_pool2d(picture, 32).flatten().numpy()


def check_random_windows(files: list[ReferenceFrames], count: int) -> tuple[int, int]:
    """Return how many frames of random windows, in both directions, are wrong, and of how many."""
    rng = np.random.default_rng(0)
    wrong, frames = 0, 0
    for _ in ProgressBar(range(count), desc="random windows", disable=not sys.stderr.isatty()):
        reference = files[rng.integers(len(files))]
        sampling = SamplingConfig(window_size=48, snippet_stride=int(rng.integers(1, 9)))
        nothing = np.zeros((0, 2))
        window = random_window(rng, len(reference.fingerprints), nothing, sampling)
        indices = window.indices("reversed" if rng.random() < 0.5 else "forward")
        wrong += reference.count_wrong(VideoReader(reference.path).frames(indices), indices)
        frames += len(indices)
    return wrong, frames


if __name__ == "__main__":
    main()
