"""Which spans an experiment needs, and their activations as the detector's inputs."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor

from extract.activations import Activations, Cached
from extract.backbone import Cut
from extract.clips import Window, sliding_windows, truth_inside
from extract.plan import Wanted, plan
from extract.refresh import refresh
from extract.spans import Span, random_stretch, whole_video_window
from extract.videomae import CLIP_FRAMES, TUBELET
from train.config import Experiment
from train.errors import memory_advice, worker_advice
from train.items import Item, Items, skipped_warning


def evaluation_spans(items: Sequence[Item], overlap: float, config: Experiment) -> list[Span]:
    """Return the sliding windows of all videos, as end-to-end runs see them."""
    return [
        window_span(item, window, config)
        for item in items
        for window in sliding_windows(item.frames, overlap, config.sampling)
    ]


def training_spans(items: Sequence[Item], config: Experiment) -> list[Span]:
    """Return what heads are trained on: videos with an action, or windows that hold one."""
    chosen = [item for item in items if len(item.segments)]
    if config.cache.span == "video":
        return [_video_span(item, config) for item in chosen]
    return [
        window_span(item, window, config)
        for item in chosen
        for window in training_windows(item, config)
    ]


def training_windows(item: Item, config: Experiment) -> list[Window]:
    """Return the sliding windows of a video that hold a sufficiently complete action.

    Where no window holds one whole enough, all that hold a part of one.
    """
    windows = sliding_windows(item.frames, config.sampling.test_overlap, config.sampling)
    for completeness in (config.sampling.min_completeness, 1e-6):
        kept = [w for w in windows if len(truth_inside(w, item.segments, completeness)[0])]
        if kept:
            break
    return kept or windows


def window_span(item: Item, window: Window, config: Experiment) -> Span:
    """Return a window of a video as a span."""
    return Span(item.info, item.path, window, config.direction, "window")


def _video_span(item: Item, config: Experiment) -> Span:
    window = whole_video_window(item.frames, config.sampling)
    return Span(item.info, item.path, window, config.direction, "video")


def up_to_date(
    activations: Activations,
    spans: Sequence[Span],
    cut: Cut,
    subsets: Sequence[Items],
    config: Experiment,
    accelerator: Accelerator,
) -> Cached:
    """Compute the spans' activations that the cache lacks, on all processes together.

    Args:
        subsets: whose spans these are; videos that turn out to be bad are moved to their skipped.

    Returns:
        Where all of the activations are.

    Raises:
        ValueError: a video cannot be read or is gone, or the disk is too small.
    """
    skip = config.data.bad_videos == "skip"
    made = plan([Wanted(activations, spans, (cut,))], accelerator, skip)
    if accelerator.is_main_process:
        print(made.headline())
    with worker_advice(), memory_advice("sampling.window_size or pixels.size"):
        skipped = refresh(made, accelerator, config.training.workers, skip)
    if skipped and accelerator.is_main_process:
        print(skipped_warning(skipped, sum(map(len, subsets))))
    for items in subsets:
        items.leave_out(skipped)
        if not items:
            raise ValueError(f"not one video can be read; for one, {next(iter(skipped.values()))}")
    return activations.places()[cut]


def draw_inputs(
    rng: np.random.Generator, item: Item, config: Experiment, cached: Cached
) -> tuple[Window, Tensor]:
    """Draw a training window and read its activation: features [C, F/2] or tokens [F/2, P, C].

    Raises:
        Missing, Damaged: the store does not have it.
    """
    if config.cache.span == "window":
        windows = training_windows(item, config)
        window = windows[int(rng.integers(len(windows)))]
        return window, _as_input(cached.read(window_span(item, window, config)), cached)
    span = _video_span(item, config)
    grain = TUBELET if cached.cut == "features" else CLIP_FRAMES
    window, rows = random_stretch(rng, span, item.segments, config.sampling, grain)
    inputs = _as_input(cached.read(span, rows), cached)
    return window, _padded(inputs, window.samples // TUBELET, cached)


def read_windows(
    item: Item, windows: Sequence[Window], config: Experiment, cached: Cached
) -> Iterator[Tensor]:
    """Yield the activations of a video's windows as the detector's inputs.

    Raises:
        Missing, Damaged: the store does not have one.
    """
    for rows in cached.read_all([window_span(item, window, config) for window in windows]):
        yield _as_input(rows, cached)


def _as_input(rows: Tensor, cached: Cached) -> Tensor:
    return rows.float().mT if cached.cut == "features" else rows.float()


def _padded(inputs: Tensor, steps: int, cached: Cached) -> Tensor:
    """Repeat the last step, as the pixels of padded windows repeat the last frame."""
    if cached.cut == "features":
        return F.pad(inputs, (0, steps - inputs.shape[-1]), mode="replicate")
    missing = steps - len(inputs)
    return F.pad(inputs.permute(1, 2, 0), (0, missing), mode="replicate").permute(2, 0, 1)
