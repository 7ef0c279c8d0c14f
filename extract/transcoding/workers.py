"""Files made side by side, each by a process of its own that may hang or crash."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple

import av
import torch
from tqdm import tqdm

from extract.video.index import VideoError


class Job(NamedTuple):
    """What is made of one file: `make(tell=…)` is told how to say how many frames are done."""

    source: Path
    frames: int
    make: Callable[..., Any]


def make_all(jobs: Sequence[Job], processes: int, title: str) -> list[Any]:
    """Carry out every job, `processes` at a time; show a bar with a title.

    Returns:
        Per job what it returned, or the VideoError that names the file and the cause.
    """
    if not jobs:
        return []
    workers = [_Worker() for _ in range(min(processes, len(jobs)))]
    idle: SimpleQueue[_Worker] = SimpleQueue()
    for worker in workers:
        idle.put(worker)

    def carry_out(job: Job) -> Any:
        worker = idle.get()
        try:
            return worker.carry_out(job)
        finally:
            idle.put(worker)

    pool = ThreadPoolExecutor(len(workers))
    try:
        # Long ones first: none is begun when the others are done.
        order = sorted(range(len(jobs)), key=lambda number: -jobs[number].frames)
        answers = {number: pool.submit(carry_out, jobs[number]) for number in order}
        pending = set(answers.values())
        with tqdm(total=sum(job.frames for job in jobs), desc=title, unit="frame") as bar:
            while pending:
                finished, pending = wait(pending, timeout=0.5, return_when=FIRST_COMPLETED)
                bar.update(sum(worker.done.value for worker in workers) - bar.n)
                for future in finished:
                    future.result()  # an interrupt, or a bug, ends the run
        return [answers[number].result() for number in range(len(jobs))]
    finally:
        pool.shutdown(cancel_futures=True)
        for worker in workers:
            worker.process.shutdown()


class _Worker:
    """A process that makes one file after another; when it ends over one, the next gets a new one.

    `done` counts frames.
    """

    def __init__(self) -> None:
        self.context = multiprocessing.get_context("spawn")
        self.done: Any = self.context.RawValue("q", 0)
        self.process = self._new()

    def _new(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(1, self.context, _begin, (self.done,))

    def carry_out(self, job: Job) -> Any:
        try:
            return self.process.submit(_carry_out, job).result()
        except BrokenProcessPool:
            self.process = self._new()
            return VideoError(
                f"{job.source}: the process that reads it ended unexpectedly (a video that its "
                "decoder cannot stand, or too little memory: lower --processes)"
            )


_done: Any = None  # frames, of this process


def _begin(done: Any) -> None:
    global _done
    _done = done
    torch.set_num_threads(1)
    av.logging.set_level(av.logging.PANIC)  # what is wrong is told once, in the end
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # between two files the parent tells the end
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this process behind a killed one, whose next run writes the same files."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _carry_out(job: Job) -> Any:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # nothing half made stays
    try:
        return job.make(tell=_tell)
    except VideoError as error:
        return error
    except (ValueError, OSError, MemoryError, av.FFmpegError) as error:
        return VideoError(f"{job.source}: cannot be written anew: {error}")
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def _tell(frames: int) -> None:
    _done.value += frames
