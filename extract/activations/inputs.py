"""What passes over spans begin with: frames of one decode, or a stored block's activation.

A video's spans share its decode: overlapping windows do, and so do both directions.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from cache.errors import Damaged, Missing, StoreError, StoreUnreachable
from extract.sampling.spans import Span
from extract.sampling.transforms import evaluation_transform
from extract.sampling.window_frames import check_unchanged, open_unchanged, window_frames
from extract.sampling.windows import Window
from extract.settings.pixels import PixelConfig
from extract.settings.units import CLIP_FRAMES, CLIP_STEPS
from extract.video.reader import VideoError

CLIPS_AT_ONCE = {"cpu": 8}
"""Clips of a video span that a kind of device gets at a time: a CPU few, they stay in its cache."""
CLIPS_AT_ONCE_ELSEWHERE = 32  # a GPU computes 8 of a small transformer faster than it is asked to


class Stored(Protocol):
    """Stored activations at one cut (`extract.activations.activations.Cached`)."""

    def read(self, span: Span, rows: slice = ...) -> Tensor: ...


@dataclass(frozen=True)
class PassInput:
    """A pass that needs inputs.

    Args:
        number: for whoever asks.
        source: the stored activations where the pass starts; None for pixels.
    """

    number: int
    span: Span
    source: Stored | None


Job = Sequence[PassInput]
"""Passes over spans of one video, whose inputs are made together."""


@dataclass(frozen=True)
class Piece:
    """Some input of one or two passes: those that see the same frames.

    Args:
        numbers: of the tasks whose passes take it.
        window: whose valid frames these are; None for rows of a stored activation.
        inputs: uint8 frames [3, S, size, size] in the order of the file, or tokens [n, P, C] in
            the dtype of the store, the smallest to copy.
        last: nothing more comes for these passes.
        problem: why the video cannot be read; the inputs then mean nothing.
    """

    numbers: tuple[int, ...]
    window: Window | None
    inputs: Tensor
    last: bool = True
    problem: str | None = None

    def clips(self, span: Span) -> int:
        """Return how many clips of a span this is."""
        if span.kind == "window":
            return span.window.samples // CLIP_FRAMES
        return (
            self.inputs.shape[1] // CLIP_FRAMES if self.window else len(self.inputs) // CLIP_STEPS
        )

    def pin_memory(self) -> "Piece":
        """Return the piece where a copy to a GPU need not wait; a loader calls this."""
        return replace(self, inputs=self.inputs.pin_memory())

    def to(self, device: torch.device) -> "Piece":
        """Return the piece with its inputs on a device: once for all passes that take it."""
        return replace(self, inputs=self.inputs.to(device, non_blocking=True))

    def arranged(self, span: Span) -> Tensor:
        """Return the inputs as the span's direction has them, padded; activations in float32."""
        if self.window is None:
            return self.inputs.float()
        if span.kind == "video":
            return self.inputs if span.direction == "forward" else self.inputs.flip(1)
        places = np.searchsorted(self.window.frames, span.frames)
        return self.inputs[:, _copy_ahead(torch.from_numpy(places), self.inputs.device)]


def _copy_ahead(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor of the host on a device, which copies it while the host goes on."""
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)


def job_pieces(job: Job, pixels: PixelConfig, device: torch.device) -> Iterator[Piece]:
    """Yield all inputs of a job; each pass's pieces come in its order.

    Where the stored activation cannot be read, in its middle too, a pass gets pixels, all of them.

    Args:
        device: that the passes run on, which decides how much comes at a time.

    Raises:
        VideoError: the video cannot be read.
    """
    decoded, clips = [], CLIPS_AT_ONCE.get(device.type, CLIPS_AT_ONCE_ELSEWHERE)
    for task in job:
        if task.source is None:
            decoded.append(task)
            continue
        try:
            yield from _stored_pieces(task, clips)
        except (Missing, Damaged, StoreUnreachable):
            decoded.append(task)
    for kind in ("window", "video"):
        same = [task for task in decoded if task.span.kind == kind]
        if same:
            yield from _decoded_pieces(same, pixels, clips)


def _stored_pieces(task: PassInput, clips: int) -> Iterator[Piece]:
    assert task.source is not None
    total = task.span.rows
    step = clips * CLIP_STEPS if task.span.kind == "video" else total
    for first in range(0, total, step):
        rows = task.source.read(task.span, slice(first, min(first + step, total)))
        yield Piece((task.number,), None, rows, last=first + step >= total)


def _decoded_pieces(tasks: Sequence[PassInput], pixels: PixelConfig, clips: int) -> Iterator[Piece]:
    """Decode once for all these tasks of one video and one kind of span."""
    windows: list[Window] = []
    takers: list[tuple[int, ...]] = []
    lasts: list[bool] = []
    for _, group in groupby(sorted(tasks, key=_extent), key=_extent):
        same = list(group)
        window = same[0].span.window
        parts = _groups(window, clips) if same[0].span.kind == "video" else [window]
        windows += parts
        takers += [tuple(task.number for task in same)] * len(parts)
        lasts += [False] * (len(parts) - 1) + [True]
    video, path = tasks[0].span.video, tasks[0].span.path
    reader = open_unchanged(path, video.frames, video.digest)
    frames = window_frames(reader, windows, evaluation_transform(pixels))
    for window, numbers, last, some in zip(windows, takers, lasts, frames, strict=True):
        check_unchanged(path, video.digest)  # what is stored now is stored for good
        yield Piece(numbers, window, torch.stack(some, 1), last)


def _extent(task: PassInput) -> tuple[int, int, bytes]:
    frames = task.span.window.frames
    return int(frames[0]), int(frames[-1]), frames.tobytes()


def _groups(window: Window, clips: int) -> list[Window]:
    """Cut a whole video, padding included, into groups of so many clips."""
    padded, step = window.indices("forward"), clips * CLIP_FRAMES
    return [replace(window, frames=padded[a : a + step]) for a in range(0, len(padded), step)]


class JobInputs(IterableDataset[Piece]):
    """The pieces of many jobs, decoded ahead; each worker takes every n-th job.

    A video that cannot be read gives one piece with a `problem` in place of the rest of its job.
    """

    def __init__(self, jobs: Sequence[Job], pixels: PixelConfig, device: torch.device) -> None:
        self.jobs, self.pixels, self.device = jobs, pixels, device

    def __iter__(self) -> Iterator[Piece]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        for job in self.jobs[worker::workers]:
            try:
                yield from job_pieces(job, self.pixels, self.device)
            except (VideoError, StoreError) as error:
                numbers = tuple(task.number for task in job)
                yield Piece(numbers, None, torch.zeros(0), problem=str(error))
