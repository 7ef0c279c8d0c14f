"""Making files in parallel, each in a process that may hang or crash."""

from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, wait
from pathlib import Path
from typing import Any, NamedTuple

import av
import torch

from configs.progress import ProgressBar
from extract.video.guarded import CallFailed, GuardedPool
from extract.video.index import Progress, VideoError

# Time without progress that is not a hang: encoding a stretch, hashing the source, opening a file.
SILENCE_S = 180.0
SLOWEST_BYTES_PER_S = 20e6
SLOWEST_PACKETS_PER_S = 100.0
GRACE_S = 10.0


class FileToMake(NamedTuple):
    """A file to be made of `source`: `make(progress=…)` reports how many more frames are done."""

    source: Path
    size: int  # bytes
    frames: int
    make: Callable[..., Any]


def make_files(files: Sequence[FileToMake], processes: int, title: str) -> list[Any]:
    """Return the result of making each, or the VideoError that names the file and the cause.

    Args:
        processes: how many are made at once.
        title: of the progress bar.

    Raises:
        OSError: the processes cannot be started.
    """
    if not files:
        return []
    done = [0] * len(files)

    def run(number: int) -> Any:
        file = files[number]

        def count(frames: int) -> None:
            done[number] += frames

        longest_s = (
            SILENCE_S + file.size / SLOWEST_BYTES_PER_S + file.frames / SLOWEST_PACKETS_PER_S
        )
        try:
            return pool.call(make_file, file, timeout_s=longest_s, progress=count)
        except VideoError as error:
            return error
        except CallFailed as failure:
            return VideoError(
                f"{file.source}: the process that reads it {failure}: a video that breaks its "
                "decoder, or too little memory (lower --processes)"
            )

    with GuardedPool(min(processes, len(files)), GRACE_S) as pool:
        # Long ones first, so that none is begun when all others are done.
        order = sorted(range(len(files)), key=lambda number: -files[number].frames)
        results = {number: pool.threads.submit(run, number) for number in order}
        pending = set(results.values())
        with ProgressBar(total=sum(file.frames for file in files), desc=title, unit="frame") as bar:
            while pending:
                finished, pending = wait(pending, timeout=0.5, return_when=FIRST_COMPLETED)
                bar.update(sum(done) - bar.n)
                for future in finished:
                    future.result()  # a bug ends the run
        return [results[number].result() for number in range(len(files))]


def make_file(file: FileToMake, progress: Progress) -> Any:
    """Return what `file.make` returns; called in a process of the pool.

    Raises:
        VideoError: it cannot be made; names the source and the cause.
    """
    torch.set_num_threads(1)
    try:
        return file.make(progress=progress)
    except VideoError:
        raise
    except (ValueError, OSError, MemoryError, av.FFmpegError) as error:
        raise VideoError(f"{file.source}: cannot be rewritten: {error}") from error
