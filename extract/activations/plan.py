"""What it takes to bring a cache up to date: the passes that are missing, and their cost."""

import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from shlex import quote
from typing import Any, NoReturn

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray

from cache.address import DTYPES
from cache.errors import StoreUnreachable
from configs.messages import format_bytes, truncated
from extract.activations.activations import Activations
from extract.activations.stored import deepest, missing
from extract.backbone.imported import require_pixels
from extract.parallel.processes import broadcast_object
from extract.sampling.spans import Span
from extract.settings.backbone import Cut
from extract.settings.units import CLIP_FRAMES
from extract.video.reader import VideoError, VideoReader

JOURNAL_BYTES = 2**29  # what folding the journal needs beside the lasting form


@dataclass(frozen=True)
class SpanRequest:
    """Spans whose activations at these cuts are wanted of one backbone."""

    activations: Activations
    spans: Sequence[Span]
    cuts: tuple[Cut, ...]


@dataclass(frozen=True)
class Todo:
    """A pass that is to be made: over span `span` of request `wanted`, from `start`, to `cuts`."""

    wanted: int
    span: int
    start: Cut | None
    cuts: tuple[Cut, ...]


@dataclass(frozen=True)
class Plan:
    """The passes that are missing, and what they cost.

    Attributes:
        there: spans that need no pass; `lost`: spans left out because their files are gone.
        gone: the videos of the latter, with causes.
        clips: to be encoded; `frames`: to be decoded; `bytes`: to be stored, before compression.
    """

    wanted: Sequence[SpanRequest]
    todo: list[Todo]
    there: int
    lost: int
    gone: dict[str, str]
    clips: int = 0
    frames: int = 0
    bytes: int = 0

    @property
    def partial(self) -> int:
        """How many of the passes begin at a stored cut."""
        return sum(todo.start is not None for todo in self.todo)

    def headline(self) -> str:
        """Return in one line what is there and what has to be computed."""
        full = len(self.todo) - self.partial
        total = self.there + len(self.todo) + self.lost
        line = f"cache: {self.there:,} of {total:,} spans are there"
        if self.lost:
            line += f", {self.lost:,} are left out, for {len(self.gone):,} videos are gone"
        if not self.todo:
            return line
        changed = any(w.activations.is_stale(w.cuts) for w in self.wanted)
        why = " (the weights, settings or code have changed)" if changed else ""
        return f"{line}{why}; {full:,} full and {self.partial:,} partial passes make the others"

    def span(self, todo: Todo) -> Span:
        """Return what a pass goes over."""
        return self.wanted[todo.wanted].spans[todo.span]


def plan(wanted: Sequence[SpanRequest], accelerator: Accelerator, skip_gone: bool = False) -> Plan:
    """Find out what is missing; the same on all processes.

    Args:
        skip_gone: leave out videos that are gone and would have to be decoded.

    Raises:
        ValueError: videos that would have to be decoded are gone.
    """
    for request in wanted:
        with suppress(StoreUnreachable):  # then what was there before is what is there
            request.activations.store.refresh()
    # Asked by one for all: the store may change while the processes look.
    asked: Any = _missing(wanted) if accelerator.is_main_process else None
    todo, there, lost, gone = broadcast_object(asked)
    if gone and not skip_gone:
        _check_present(wanted, gone)
    made = Plan(wanted, todo, there, lost, gone)
    return replace(
        made,
        clips=sum(made.span(t).window.samples // CLIP_FRAMES for t in todo),
        frames=distinct_frames(made.span(t) for t in todo if t.start is None),
        bytes=sum(_bytes(wanted[t.wanted].activations, made.span(t), t.cuts) for t in todo),
    )


def distinct_frames(spans: Iterable[Span]) -> int:
    """Return how many frames the spans have, each counted once for either kind of span."""
    used: dict[tuple[str, str], list[NDArray[np.int64]]] = {}
    for span in spans:
        used.setdefault((span.video.digest, span.kind), []).append(span.window.frames)
    return sum(len(np.unique(np.concatenate(parts))) for parts in used.values())


def _missing(wanted: Sequence[SpanRequest]) -> tuple[list[Todo], int, int, dict[str, str]]:
    """Return what a plan says: `todo`, `there`, `lost` and `gone`."""
    todo, asked, gone = [], set[bytes](), dict[str, str]()
    there = lost = 0
    for number, request in enumerate(wanted):
        places = request.activations.cached_cuts()
        for index, span in enumerate(request.spans):
            key = places[request.cuts[0]].address(span).key
            if key in asked:
                continue  # subsets may overlap
            asked.add(key)
            cuts = missing(places, span, request.cuts)
            start = deepest(places, span, cuts[0]) if cuts else None
            if not cuts:
                there += 1
            elif start is None and not span.path.exists():
                lost += 1
                gone[span.video.name] = f"{span.path}: it does not exist"
            else:
                todo.append(Todo(number, index, start, tuple(cuts)))
    return todo, there, lost, gone


def _check_present(wanted: Sequence[SpanRequest], gone: dict[str, str]) -> NoReturn:
    url, origin = wanted[0].activations.store.url, wanted[0].activations.origin
    weights = "--config" if origin.endswith((".yaml", ".yml")) else "--checkpoint"
    raise ValueError(
        f"activations of {len(gone)} videos are not in {url}, and the videos are gone; bring them "
        f"back and run `python extract/run.py {weights} {quote(origin)} "
        f"--cache {quote(url)}` with the settings that you used here, or leave them out with "
        "--data.bad_videos skip:\n  " + "\n  ".join(truncated(sorted(gone.values())))
    )


def _bytes(activations: Activations, span: Span, cuts: Sequence[Cut]) -> int:
    config = activations.backbone.config
    positions = (activations.pixels.size // config.trunk.patch) ** 2
    tokens = {"features": 1, "ladder": positions * len(config.adapted_blocks)}
    numbers = sum(tokens.get(str(cut), positions) for cut in cuts) * config.width
    return numbers * span.rows * DTYPES[activations.config.dtype].itemsize


def needed_bytes(made: Plan) -> int:
    """Return how many bytes of disk have to be free to store what is planned."""
    return made.bytes + min(made.bytes, JOURNAL_BYTES)


def check_disk_space(made: Plan) -> None:
    """Stop unless what is planned fits on the disk of the store, if that is local.

    Raises:
        ValueError: it does not.
    """
    free = made.wanted[0].activations.store.files.free_bytes()
    needed = needed_bytes(made)
    if free is not None and free < needed:
        url = made.wanted[0].activations.store.url
        raise ValueError(
            f"the activations need up to {format_bytes(needed)}, but the disk of {url} has "
            f"{format_bytes(free)} free; make room (`python cache/show.py {quote(url)} --prune`), "
            "choose another --cache, set cache.dtype float16 or fewer cache.blocks"
        )


def estimate_s(made: Plan, workers: int) -> float:
    """Return about how many seconds the passes take on this process alone, from a trial of each."""
    encode = decode = 0.0
    for number, request in enumerate(made.wanted):
        if clips := full_clips(made, number):
            encode += clips * _clip_s(request.activations)
    first = next((made.span(t) for t in made.todo if t.start is None), None)
    if first is not None:
        decode = made.frames * _frame_s(first, made.wanted[0].activations) / max(workers, 1)
    return max(encode, decode) if workers else encode + decode


def full_clips(made: Plan, number: int) -> float:
    """Return how many clips a request's passes encode; half of the blocks is half a clip."""
    config = made.wanted[number].activations.backbone.config
    return sum(
        made.span(todo).window.samples
        // CLIP_FRAMES
        * len(config.blocks_between(todo.start, todo.cuts[-1]))
        / config.depth
        for todo in made.todo
        if todo.wanted == number
    )


def _clip_s(activations: Activations) -> float:
    backbone, size = require_pixels(activations.backbone), activations.pixels.size
    clip = torch.zeros(1, 3, CLIP_FRAMES, size, size, dtype=torch.uint8)
    clip = clip.to(backbone.mean.device)
    for _ in range(2):  # the first one warms up
        began = time.monotonic()
        with torch.no_grad(), activations.autocast():
            backbone(clip).sum().item()
        seconds = time.monotonic() - began
    return seconds


def _frame_s(span: Span, activations: Activations) -> float:
    try:
        reader = VideoReader(span.path)
        began, some = time.monotonic(), span.window.frames[:64]
        reader.frames(some)
    except VideoError:
        return 0.0  # the run will say so
    return (time.monotonic() - began) / len(some)
