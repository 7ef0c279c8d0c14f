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

# Time without progress that is no hang: encoding a stretch, hashing the source, opening a file.
SILENCE_S = 180.0
SLOWEST_BYTES_PER_S = 20e6
SLOWEST_PACKETS_PER_S = 100.0
GRACE_S = 10.0


class Job(NamedTuple):
    """A file to be made of `source`: `make(progress=…)` reports how many more frames are done."""

    source: Path
    size: int  # bytes
    frames: int
    make: Callable[..., Any]


def run_jobs(jobs: Sequence[Job], processes: int, title: str) -> list[Any]:
    """Return the result of every job, or the VideoError that names the file and the cause.

    Args:
        processes: jobs that run at once.
        title: of the progress bar.

    Raises:
        OSError: the processes cannot be started.
    """
    if not jobs:
        return []
    done = [0] * len(jobs)

    def run(number: int) -> Any:
        job = jobs[number]

        def count(frames: int) -> None:
            done[number] += frames

        longest_s = SILENCE_S + job.size / SLOWEST_BYTES_PER_S + job.frames / SLOWEST_PACKETS_PER_S
        try:
            return pool.call(run_job, job, timeout_s=longest_s, progress=count)
        except VideoError as error:
            return error
        except CallFailed as failure:
            return VideoError(
                f"{job.source}: the process that reads it {failure}: a video that breaks its "
                "decoder, or too little memory (lower --processes)"
            )

    with GuardedPool(min(processes, len(jobs)), GRACE_S) as pool:
        # Long ones first, so that none is begun when all others are done.
        order = sorted(range(len(jobs)), key=lambda number: -jobs[number].frames)
        answers = {number: pool.threads.submit(run, number) for number in order}
        pending = set(answers.values())
        with ProgressBar(total=sum(job.frames for job in jobs), desc=title, unit="frame") as bar:
            while pending:
                finished, pending = wait(pending, timeout=0.5, return_when=FIRST_COMPLETED)
                bar.update(sum(done) - bar.n)
                for future in finished:
                    future.result()  # a bug ends the run
        return [answers[number].result() for number in range(len(jobs))]


def run_job(job: Job, progress: Progress) -> Any:
    """Return what a job returns; called in a process of the pool.

    Raises:
        VideoError: it cannot be done; names the source and the cause.
    """
    torch.set_num_threads(1)
    try:
        return job.make(progress=progress)
    except VideoError:
        raise
    except (ValueError, OSError, MemoryError, av.FFmpegError) as error:
        raise VideoError(f"{job.source}: cannot be rewritten: {error}") from error
