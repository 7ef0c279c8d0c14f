"""The spans that an experiment needs, and their activations as the detector's inputs."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor

from cache.errors import StoreUnreachable
from configs.messages import format_bytes, truncated
from extract.activations.activations import Activations
from extract.activations.plan import SpanRequest, plan
from extract.activations.refresh import describe_unkept, refresh
from extract.activations.stored import Cached, Counts
from extract.parallel.processes import processes_here
from extract.sampling.spans import Span, random_window_of_span, whole_video_window
from extract.sampling.windows import Window, evaluation_windows, sliding_windows, truth_inside
from extract.settings.backbone import Cut
from extract.settings.sampling import Direction, SamplingConfig, SpanKind
from extract.settings.units import CLIP_FRAMES, TUBELET
from train.data.in_memory import (
    HeldRows,
    decoded_bytes,
    free_device_memory,
    free_memory,
    hold,
)
from train.data.items import Subset, VideoItem, format_skipped
from train.errors import translate_oom, translate_worker_death

FREE_SHARE = 0.25  # of free memory, for features to train on; what else a run needs comes after it
PATIENCE_S = 600.0  # for a store that does not answer; what is stored cannot always be computed


@dataclass(frozen=True)
class CachedStreams:
    """Stored activations of every stream of a detector, all at one cut.

    Args:
        trained_on: the spans that training windows are sampled from; `tested_on`: those that test
            windows are read from.
        held: what training windows are cut from, of every stream, if it is in memory;
            `held_tests`: what test windows are read from.
    """

    places: tuple[Cached, ...]
    trained_on: SpanKind = "video"
    tested_on: SpanKind = "window"
    held: tuple[HeldRows, ...] = ()
    held_tests: tuple[HeldRows, ...] = ()

    @property
    def cut(self) -> Cut:
        return self.places[0].cut

    def first(self, count: int) -> "CachedStreams":
        """Return the first streams alone."""
        held, tests = self.held[:count], self.held_tests[:count]
        return replace(self, places=self.places[:count], held=held, held_tests=tests)


def evaluation_spans(
    items: Sequence[VideoItem],
    overlap: float,
    sampling: SamplingConfig,
    direction: Direction,
    kind: SpanKind = "window",
) -> list[Span]:
    """Return the windows that all videos are tested on, as end-to-end runs see them.

    Args:
        kind: `video` returns whole videos, which imported features are of.
    """
    if kind == "video":
        return [_video_span(item, sampling, direction) for item in items]
    return [
        window_span(item, window, direction)
        for item in items
        for window in evaluation_windows(item, overlap, sampling)
    ]


def training_spans(
    items: Sequence[VideoItem], sampling: SamplingConfig, direction: Direction, kind: SpanKind
) -> list[Span]:
    """Return the spans that heads are trained on: videos, or windows, that hold an action."""
    chosen = [item for item in items if len(item.segments)]
    if kind == "video":
        return [_video_span(item, sampling, direction) for item in chosen]
    return [
        window_span(item, window, direction)
        for item in chosen
        for window in training_windows(item, sampling)
    ]


def training_windows(item: VideoItem, sampling: SamplingConfig) -> list[Window]:
    """Return the sliding windows of a video that hold a sufficiently complete action.

    If none does, return those that hold a part of one.
    """
    windows = sliding_windows(item, sampling.test_overlap, sampling)
    for completeness in (sampling.min_completeness, 1e-6):
        kept = [w for w in windows if len(truth_inside(w, item.segments, completeness)[0])]
        if kept:
            break
    return kept or windows


def window_span(item: VideoItem, window: Window, direction: Direction) -> Span:
    """Return a window of a video as a span."""
    return Span(item.info, item.path, window, direction, "window")


def _video_span(item: VideoItem, sampling: SamplingConfig, direction: Direction) -> Span:
    window = whole_video_window(item, sampling)
    return Span(item.info, item.path, window, direction, "video")


def ensure_cached(
    activations: Sequence[Activations],
    spans: Sequence[Sequence[Span]],
    cut: Cut,
    subsets: Sequence[Subset[VideoItem]],
    accelerator: Accelerator,
    workers: int,
    skip_bad: bool = False,
) -> tuple[CachedStreams, Counts]:
    """Compute the activations that the cache lacks, on all processes together.

    Args:
        activations: of every stream.
        spans: of every stream.
        subsets: whose spans these are; bad videos are moved to their `skipped`.
        workers: decoding processes of each process.
        skip_bad: whether bad videos may be skipped.

    Returns:
        All of the activations, and counts over all processes of the spans that were stored before
        and of the passes made.

    Raises:
        ValueError: a video cannot be read or is gone, or the disk is too small.
        StoreUnreachable: some of the activations could not be stored.
    """
    if activations[0].backbone.config.mode == "imported":
        return _find_imported(activations, spans), Counts()
    wanted = [SpanRequest(of, some, (cut,)) for of, some in zip(activations, spans, strict=True)]
    made = plan(wanted, accelerator, skip_bad)
    if accelerator.is_main_process:
        print(made.headline())
    counts = Counts(made.there, made.partial, len(made.todo) - made.partial)
    with translate_worker_death(), translate_oom("lower sampling.window_size or pixels.size"):
        skipped = refresh(made, accelerator, workers, skip_bad)
    if skipped and accelerator.is_main_process:
        print(format_skipped(skipped, sum(map(len, subsets))))
    for items in subsets:
        items.skip_videos(skipped)
        if not items:
            raise ValueError(
                f"not one video can be read; for example, {next(iter(skipped.values()))}"
            )
    if unkept := describe_unkept(activations, accelerator):
        raise StoreUnreachable(f"{unkept}; the same command goes on when it answers again")
    places = tuple(replace(of.cached_cuts()[cut], patience_s=PATIENCE_S) for of in activations)
    return CachedStreams(places, activations[0].config.span), counts


def _find_imported(
    activations: Sequence[Activations], spans: Sequence[Sequence[Span]]
) -> CachedStreams:
    """Return imported features; ValueError unless all are there."""
    places = tuple(of.cached_cuts()["features"] for of in activations)
    gone = {
        span.video.name
        for place, some in zip(places, spans, strict=True)
        for span in some
        if not place.contains(span)
    }
    if gone:
        backbone, store = activations[0].backbone.config, places[0].store
        (step,) = {span.window.step for some in spans for span in some}
        available = [
            f"{about['imported']} with {about['width']} channels"
            for about in (info.about for info in store.fingerprints.values())
            if "imported" in about
        ]
        raise ValueError(
            f"{store.url} lacks the features '{backbone.imported}' of {len(gone)} videos with "
            f"{backbone.imported_width} channels, a row every {step:.0f} frames, in "
            f"{places[0].dtype}; it has "
            f"{', '.join(available) or 'none'}. Import them (extract/features.py), or set "
            "backbone.imported_width, sampling.snippet_stride and cache.dtype as they were "
            f"imported:\n  " + "\n  ".join(truncated(sorted(gone)))
        )
    patient = tuple(replace(place, patience_s=PATIENCE_S) for place in places)
    return CachedStreams(patient, tested_on="video")


def hold_features(
    cached: CachedStreams,
    spans: Sequence[Sequence[Span]],
    accelerator: Accelerator,
    purpose: str,
    device: torch.device,
) -> tuple[HeldRows, ...]:
    """Return the features of spans that are read again and again, decoded, if they fit in memory.

    They stand in the GPU's if they fit there, too; windows are then cut where they are needed. A
    window is copied from memory in a twentieth of the time that decoding it takes. Blocks are not
    held: they are a hundred times larger, and the network after them is what takes the time.

    Args:
        spans: of every stream.
        purpose: what the features are for, in the line that says where they are.
        device: a GPU whose memory may be used, or the CPU.

    Returns:
        The rows of every stream; none if they do not fit.

    Raises:
        Missing, Damaged: the store does not have them.
    """
    if cached.cut != "features" or not all(spans):
        return ()
    sizes = [decoded_bytes(of, some) for of, some in zip(cached.places, spans, strict=True)]
    processes = processes_here(accelerator.num_processes)
    limit = free_memory() * FREE_SHARE
    needed, quiet = sum(sizes) * processes, not accelerator.is_main_process
    fits = needed <= limit
    on_device = fits and sum(sizes) <= free_device_memory(device) * FREE_SHARE
    if not quiet:
        print(
            f"features: {format_bytes(needed)} to {purpose} "
            + ("are held decoded in memory" if fits else "are read from the cache window by window")
            + (", and on the GPU" if on_device else "")
            + f"; {FREE_SHARE:.0%} of the free memory is {format_bytes(limit)}"
        )
    if not fits:
        return ()
    held = [hold(of, some, quiet) for of, some in zip(cached.places, spans, strict=True)]
    return tuple(rows.on(device) if on_device else rows for rows in held)


def sample_inputs(
    rng: np.random.Generator,
    item: VideoItem,
    sampling: SamplingConfig,
    directions: Sequence[Direction],
    cached: CachedStreams,
) -> tuple[Window, tuple[Tensor, ...]]:
    """Return a random training window and its activations, features [C, F/2] or tokens [F/2, P, C].

    Raises:
        Missing, Damaged: the store does not have one.
    """
    if cached.trained_on == "window":
        windows = training_windows(item, sampling)
        window = windows[int(rng.integers(len(windows)))]
        spans = [window_span(item, window, direction) for direction in directions]
        parts = [slice(None) for _ in directions]
    else:
        spans = [_video_span(item, sampling, direction) for direction in directions]
        grain = TUBELET if cached.cut == "features" else CLIP_FRAMES
        window, parts = random_window_of_span(
            rng, spans[0], item.segments, sampling, grain, directions
        )
    sources: Sequence[Cached | HeldRows] = cached.held or cached.places
    return window, tuple(
        _pad_steps(_as_input(source.read(span, rows), of), window.samples // TUBELET, of)
        for source, of, span, rows in zip(sources, cached.places, spans, parts, strict=True)
    )


def read_windows(
    item: VideoItem,
    windows: Sequence[Window],
    sampling: SamplingConfig,
    directions: Sequence[Direction],
    cached: CachedStreams,
) -> Iterator[tuple[Tensor, ...]]:
    """Yield the activations of a video's windows as the detector's inputs.

    Raises:
        Missing, Damaged: the store does not have one.
    """
    sources: Sequence[Cached | HeldRows] = cached.held_tests or cached.places
    if cached.tested_on == "video":
        (source,), (of,), (direction,) = sources, cached.places, directions
        # Windows overlap: all that they have of the video is read once.
        starts = [round(window.start / sampling.step) for window in windows]
        ends = [first + window.valid for first, window in zip(starts, windows, strict=True)]
        low = min(starts)
        rows = source.read(_video_span(item, sampling, direction), slice(low, max(ends)))
        for first, end, window in zip(starts, ends, windows, strict=True):
            yield (_pad_steps(_as_input(rows[first - low : end - low], of), window.size, of),)
        return
    streams = [
        source.read_all([window_span(item, window, direction) for window in windows])
        for source, direction in zip(sources, directions, strict=True)
    ]
    for together in zip(*streams, strict=True):
        yield tuple(_as_input(some, of) for some, of in zip(together, cached.places, strict=True))


def _as_input(rows: Tensor, cached: Cached) -> Tensor:
    return rows.mT if cached.cut == "features" else rows


def _pad_steps(inputs: Tensor, steps: int, cached: Cached) -> Tensor:
    """Repeat the last step, as the pixels of padded windows repeat the last frame."""
    if cached.cut == "features":
        return F.pad(inputs, (0, steps - inputs.shape[-1]), mode="replicate")
    missing = steps - len(inputs)
    if not missing:
        return inputs
    return F.pad(inputs.permute(1, 2, 0), (0, missing), mode="replicate").permute(2, 0, 1)
