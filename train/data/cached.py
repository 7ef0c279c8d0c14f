"""Which spans an experiment needs, and their activations as the detector's inputs."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor

from configs.messages import truncated
from extract.activations.activations import Activations
from extract.activations.plan import SpanRequest, plan
from extract.activations.refresh import refresh
from extract.activations.stored import Cached, Counts
from extract.backbone.backbone import Cut
from extract.sampling.spans import Span, random_window_of_span, whole_video_window
from extract.sampling.units import CLIP_FRAMES, TUBELET
from extract.sampling.windows import Direction, Window, sliding_windows, truth_inside
from train.config import Experiment
from train.data.videos import Subset, VideoItem, format_skipped
from train.errors import translate_oom, translate_worker_death

CachedStreams = tuple[Cached, ...]
"""Where the activations of every stream of a detector are, all at one cut."""


def evaluation_spans(
    items: Sequence[VideoItem], overlap: float, config: Experiment, direction: Direction
) -> list[Span]:
    """Return the sliding windows of all videos, as end-to-end runs see them.

    Imported features are of whole videos; windows are cut out of them.
    """
    if config.backbone.mode == "imported":
        return [_video_span(item, config, direction) for item in items]
    return [
        window_span(item, window, direction)
        for item in items
        for window in sliding_windows(item.frames, overlap, config.sampling)
    ]


def training_spans(
    items: Sequence[VideoItem], config: Experiment, direction: Direction
) -> list[Span]:
    """Return what heads are trained on: videos with an action, or windows that hold one."""
    chosen = [item for item in items if len(item.segments)]
    if config.cache.span == "video":
        return [_video_span(item, config, direction) for item in chosen]
    return [
        window_span(item, window, direction)
        for item in chosen
        for window in training_windows(item, config)
    ]


def training_windows(item: VideoItem, config: Experiment) -> list[Window]:
    """Return the sliding windows of a video that hold a sufficiently complete action.

    Where no window holds one whole enough, all that hold a part of one.
    """
    windows = sliding_windows(item.frames, config.sampling.test_overlap, config.sampling)
    for completeness in (config.sampling.min_completeness, 1e-6):
        kept = [w for w in windows if len(truth_inside(w, item.segments, completeness)[0])]
        if kept:
            break
    return kept or windows


def window_span(item: VideoItem, window: Window, direction: Direction) -> Span:
    """Return a window of a video as a span."""
    return Span(item.info, item.path, window, direction, "window")


def _video_span(item: VideoItem, config: Experiment, direction: Direction) -> Span:
    window = whole_video_window(item.frames, config.sampling)
    return Span(item.info, item.path, window, direction, "video")


def ensure_cached(
    activations: Sequence[Activations],
    spans: Sequence[Sequence[Span]],
    cut: Cut,
    subsets: Sequence[Subset],
    config: Experiment,
    accelerator: Accelerator,
    counts: Counts | None = None,
) -> CachedStreams:
    """Compute the activations that the cache lacks, on all processes together.

    Args:
        activations: of every stream.
        spans: of every stream.
        subsets: whose spans these are; videos that turn out to be bad are moved to their skipped.
        counts: to which spans that are there, and passes that are made, of all processes, are
            added.

    Returns:
        Where all of the activations are.

    Raises:
        ValueError: a video cannot be read or is gone, or the disk is too small.
    """
    if config.backbone.mode == "imported":
        return _imported(activations, spans, config)
    skip = config.data.bad_videos == "skip"
    wanted = [SpanRequest(of, some, (cut,)) for of, some in zip(activations, spans, strict=True)]
    made = plan(wanted, accelerator, skip)
    if accelerator.is_main_process:
        print(made.headline())
    if counts is not None:
        counts.hits += made.there
        counts.partial += made.partial
        counts.full += len(made.todo) - made.partial
    with translate_worker_death(), translate_oom("sampling.window_size or pixels.size"):
        skipped = refresh(made, accelerator, config.training.workers, skip)
    if skipped and accelerator.is_main_process:
        print(format_skipped(skipped, sum(map(len, subsets))))
    for items in subsets:
        items.leave_out(skipped)
        if not items:
            raise ValueError(f"not one video can be read; for one, {next(iter(skipped.values()))}")
    return tuple(of.cached_cuts()[cut] for of in activations)


def _imported(
    activations: Sequence[Activations], spans: Sequence[Sequence[Span]], config: Experiment
) -> CachedStreams:
    """Return where imported features are; ValueError unless all are there."""
    places = tuple(of.cached_cuts()["features"] for of in activations)
    gone = {
        span.video.name
        for place, some in zip(places, spans, strict=True)
        for span in some
        if not place.contains(span)
    }
    if gone:
        name, store = config.backbone.imported, places[0].store
        known = [
            f"{about['imported']} with {about['width']} channels"
            for about in (info.about for info in store.fingerprints.values())
            if "imported" in about
        ]
        raise ValueError(
            f"{store.url} lacks the features '{name}' of {len(gone)} videos with "
            f"{config.backbone.imported_width} channels, a row every "
            f"{config.sampling.snippet_stride} frames, in {config.cache.dtype}; it has "
            f"{', '.join(known) or 'none'}. Import them (extract/features.py), or set "
            "backbone.imported_width, sampling.snippet_stride and cache.dtype as they were "
            f"imported:\n  " + "\n  ".join(truncated(sorted(gone)))
        )
    return places


def draw_inputs(
    rng: np.random.Generator, item: VideoItem, config: Experiment, cached: CachedStreams
) -> tuple[Window, tuple[Tensor, ...]]:
    """Draw a training window and read its activations, features [C, F/2] or tokens [F/2, P, C].

    Raises:
        Missing, Damaged: the store does not have one.
    """
    if config.cache.span == "window":
        windows = training_windows(item, config)
        window = windows[int(rng.integers(len(windows)))]
        return window, next(read_windows(item, [window], config, cached))
    spans = [_video_span(item, config, direction) for direction in config.directions]
    grain = TUBELET if cached[0].cut == "features" else CLIP_FRAMES
    window, parts = random_window_of_span(
        rng, spans[0], item.segments, config.sampling, grain, config.directions
    )
    return window, tuple(
        _padded(_as_input(of.read(span, rows), of), window.samples // TUBELET, of)
        for of, span, rows in zip(cached, spans, parts, strict=True)
    )


def read_windows(
    item: VideoItem, windows: Sequence[Window], config: Experiment, cached: CachedStreams
) -> Iterator[tuple[Tensor, ...]]:
    """Yield the activations of a video's windows as the detector's inputs.

    Raises:
        Missing, Damaged: the store does not have one.
    """
    if config.backbone.mode == "imported":
        ((of,), span) = cached, _video_span(item, config, config.direction)
        for window in windows:
            first = round(window.start / config.sampling.snippet_stride)
            inputs = _as_input(of.read(span, slice(first, first + window.valid)), of)
            yield (_padded(inputs, window.size, of),)
        return
    streams = [
        of.read_all([window_span(item, window, direction) for window in windows])
        for of, direction in zip(cached, config.directions, strict=True)
    ]
    for rows in zip(*streams, strict=True):
        yield tuple(_as_input(some, of) for some, of in zip(rows, cached, strict=True))


def _as_input(rows: Tensor, cached: Cached) -> Tensor:
    return rows.float().mT if cached.cut == "features" else rows.float()


def _padded(inputs: Tensor, steps: int, cached: Cached) -> Tensor:
    """Repeat the last step, as the pixels of padded windows repeat the last frame."""
    if cached.cut == "features":
        return F.pad(inputs, (0, steps - inputs.shape[-1]), mode="replicate")
    missing = steps - len(inputs)
    return F.pad(inputs.permute(1, 2, 0), (0, missing), mode="replicate").permute(2, 0, 1)
