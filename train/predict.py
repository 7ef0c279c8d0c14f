"""From raw predictions of windows to the detections of whole videos."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from evaluate.annotations import Detection
from evaluate.nms import suppress
from extract.reversal import reverse_segments
from train.actionformer import HeadOutput
from train.batch import Batch
from train.config import EvaluationConfig, Experiment
from train.items import Item
from train.points import decode, pyramid_points

Model = Callable[[Batch], HeadOutput]


class Candidates(NamedTuple):
    """Scored segments of one window or video: [N, 2] (unit: see the maker), [N], [N]."""

    segments: NDArray[np.float32]
    scores: NDArray[np.float32]
    labels: NDArray[np.int64]


def strongest(output: HeadOutput, config: EvaluationConfig) -> list[Candidates]:
    """Return per window the best-scored segments, in feature steps of the window's direction."""
    logits, distances, valid = output.flat()
    scores = logits.float().sigmoid().masked_fill(~valid.unsqueeze(-1), 0.0)
    points = pyramid_points(output.masks[0].shape[-1], len(output.masks), logits.device)
    segments = decode(points, distances)
    count = min(config.max_per_window, scores[0].numel())
    best, where = scores.flatten(1).topk(count)
    point, label = where // scores.shape[-1], where % scores.shape[-1]
    chosen = segments.gather(1, point.unsqueeze(-1).expand(-1, -1, 2))
    return [
        Candidates(*(part[kept].numpy() for part in parts))
        for *parts, kept in zip(
            chosen.cpu(), best.cpu(), label.cpu(), (best > config.min_score).cpu(), strict=True
        )
    ]


def predict(
    model: Model, batches: Iterable[Batch], config: Experiment, device: torch.device
) -> dict[str, list[Candidates]]:
    """Run all windows; return per video its windows' candidates, in forward frames.

    Samples with a problem are left out; `Batch.problems` says which.
    """
    found: dict[str, list[Candidates]] = defaultdict(list)
    for batch in batches:
        batch = batch.to(device)
        with torch.inference_mode():
            windows = strongest(model(batch), config.evaluation)
        for row, (video, window, (segments, scores, labels)) in enumerate(
            zip(batch.videos, batch.windows, windows, strict=True)
        ):
            if row in batch.problems:
                continue
            if config.direction == "reversed":
                segments = reverse_segments(segments, window.reflection)
            frames = window.to_frames(segments).astype(np.float32)
            found[video].append(Candidates(frames, scores, labels))
    return found


def detections(
    windows: Sequence[Candidates], item: Item, classes: Sequence[str], config: EvaluationConfig
) -> list[Detection]:
    """Join the windows of one video and let overlapping segments give way to the best."""
    joined = Candidates(*(np.concatenate(parts) for parts in zip(*windows, strict=True)))
    seconds = item.to_seconds(joined.segments).astype(np.float32)
    try:
        segments, scores, labels = suppress(seconds, joined.scores, joined.labels, config.nms)
    except ValueError as error:
        raise ValueError(f"video {item.name}: {error}") from error
    return [
        Detection(classes[label], float(start), float(end), float(score))
        for (start, end), score, label in zip(segments, scores, labels, strict=True)
        if end > start  # an empty segment overlaps nothing
    ]
