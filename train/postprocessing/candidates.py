"""From raw predictions of windows to the detections of whole videos."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evaluate.annotations import Detection
from evaluate.nms import suppress_rows
from extract.parallel.lookahead import copied_ahead, start_ahead, start_fetch
from extract.sampling.reversal import reverse_segments
from extract.sampling.windows import Window
from extract.settings.sampling import Direction
from train.config import EvaluationConfig
from train.data.batch import Batch
from train.data.items import VideoItem
from train.modeling.actionformer import HeadOutput
from train.modeling.points import decode_segments, pyramid_points

Prediction = tuple[tuple[HeadOutput, Direction], ...]
"""Raw predictions that together make up one result, each in the time of its direction."""

Predictions = dict[str, Prediction]
"""By the results' names."""
Model = Callable[[Batch], Predictions]


class Candidates(NamedTuple):
    """Scored segments of one window or video: [N, 2] (unit: see where they are made), [N], [N]."""

    segments: NDArray[np.floating]
    scores: NDArray[np.float32]
    labels: NDArray[np.int64]

    def take(self, rows: NDArray[Any]) -> "Candidates":
        """Return some of them, by their numbers or a mask."""
        return Candidates(self.segments[rows], self.scores[rows], self.labels[rows])


class _Started(NamedTuple):
    """What is known of a batch whose predictions are on their way to the host."""

    videos: tuple[str, ...]
    windows: tuple[Window, ...]
    problems: dict[int, str]
    directions: dict[str, list[Direction]]
    shapes: list[torch.Size]
    fetch: Callable[[], Tensor]


def strongest(output: HeadOutput, config: EvaluationConfig) -> Tensor:
    """Return per window the best-scored segments, where the output is, without waiting for it.

    Returns:
        Float32 [B, N, 4]: start and end in feature steps of the window's direction, score, label.
    """
    logits, distances, valid = output.flat()
    scores = logits.float().sigmoid().masked_fill(~valid.unsqueeze(-1), 0.0)
    points = pyramid_points(output.masks[0].shape[-1], len(output.masks), logits.device)
    segments = decode_segments(points, distances)
    count = min(config.max_per_window, scores[0].numel())
    best, where = scores.flatten(1).topk(count)
    point, label = where // scores.shape[-1], where % scores.shape[-1]
    chosen = segments.gather(1, point.unsqueeze(-1).expand(-1, -1, 2))
    # One tensor is one copy to the host; float32 has every label up to 16 millions.
    return torch.cat([chosen, best.unsqueeze(-1), label.unsqueeze(-1).float()], -1)


def read_candidates(found: Tensor, config: EvaluationConfig) -> list[Candidates]:
    """Return the candidates of every window in what `strongest` returned, now on the host.

    Raises:
        FloatingPointError: scores or segments are NaN, which no threshold would let pass.
    """
    chosen, best, label = found[..., :2], found[..., 2], found[..., 3].long()
    scored = ~(best <= config.min_score)
    if best.isnan().any() or (chosen.isnan().any(-1) & scored).any():
        raise FloatingPointError(
            "the detector gives NaN where scores should be: its numbers overflow; set "
            "training.precision to fp32 or bf16, or take an earlier checkpoint"
        )
    # Fusion may have moved a start past its end.
    kept = (best > config.min_score) & (chosen[..., 0] <= chosen[..., 1])
    return [
        Candidates(*(part[choice].numpy() for part in parts))
        for *parts, choice in zip(chosen, best, label, kept, strict=True)
    ]


def predict_windows(
    model: Model, batches: Iterable[Batch], config: EvaluationConfig, device: torch.device
) -> dict[str, dict[str, list[Candidates]]]:
    """Return the candidates of all windows, by result and video, in forward frames.

    Samples with a problem (`Batch.problems`) are skipped.
    """
    found: dict[str, dict[str, list[Candidates]]] = defaultdict(lambda: defaultdict(list))
    for video, candidates in predict_each_window(model, batches, config, device):
        for name, parts in candidates.items():
            found[name][video] += parts
    return found


def predict_each_window(
    model: Model, batches: Iterable[Batch], config: EvaluationConfig, device: torch.device
) -> Iterator[tuple[str, dict[str, list[Candidates]]]]:
    """Yield each window's video, and its candidates by result, in forward frames.

    Samples with a problem (`Batch.problems`) are skipped. A GPU computes the next batch while the
    host reads what was found in one.
    """

    def start(batch: Batch) -> _Started:
        batch = batch.to(device).turned()
        with torch.inference_mode():
            predictions = model(batch)
            found = [strongest(output, config) for of in predictions.values() for output, _ in of]
            fetch = start_fetch(torch.cat([each.flatten() for each in found]))
        # Without the inputs, which take most of the memory.
        directions = {name: [direction for _, direction in of] for name, of in predictions.items()}
        shapes = [each.shape for each in found]
        return _Started(batch.videos, batch.windows, batch.problems, directions, shapes, fetch)

    on_device = copied_ahead(batches, device)
    ahead = start_ahead if device.type == "cuda" else _one_by_one
    for started in ahead(on_device, start):
        parts = started.fetch().split([shape.numel() for shape in started.shapes])
        read = iter(
            read_candidates(part.view(shape), config)
            for part, shape in zip(parts, started.shapes, strict=True)
        )
        candidates = {
            name: [(next(read), direction) for direction in directions]
            for name, directions in started.directions.items()
        }
        for row, (video, window) in enumerate(zip(started.videos, started.windows, strict=True)):
            if row not in started.problems:
                yield (
                    video,
                    {
                        name: [_forward_frames(of[row], window, d) for of, d in some]
                        for name, some in candidates.items()
                    },
                )


def _one_by_one(items: Iterable[Batch], start: Callable[[Batch], _Started]) -> Iterator[_Started]:
    return map(start, items)


def _forward_frames(found: Candidates, window: Window, direction: Direction) -> Candidates:
    segments = found.segments
    if direction == "reversed":
        segments = reverse_segments(segments, window.reflection)
    return found._replace(segments=window.to_timeline(segments).astype(np.float32))


def concatenate(windows: Sequence[Candidates]) -> Candidates:
    """Return the candidates of several windows as one."""
    return Candidates(*(np.concatenate(parts) for parts in zip(*windows, strict=True)))


def merge_windows(
    windows: Sequence[Candidates], item: VideoItem, classes: Sequence[str], config: EvaluationConfig
) -> list[Detection]:
    """Return the detections of one video: its windows joined, overlapping segments suppressed."""
    joined = concatenate(windows)
    seconds = item.to_seconds(joined.segments)
    found = suppress_candidates(
        joined._replace(segments=seconds.astype(np.float32)), item.name, classes, config
    )
    return [detection for detection, _ in found]


def suppress_candidates(
    candidates: Candidates, name: str, classes: Sequence[str], config: EvaluationConfig
) -> list[tuple[Detection, int]]:
    """Return what is left of a video's candidates, best first, and the row of each.

    Args:
        candidates: in seconds.
        name: of the video, for errors.
    """
    # Of equal scores, which half precision makes common, the earlier row goes first: that must not
    # depend on how loader workers and processes took turns.
    order = np.lexsort((candidates.labels, *candidates.segments.T[::-1]))
    table = candidates.take(order)
    try:
        segments, scores, rows = suppress_rows(*table, config.nms)
    except ValueError as error:
        raise ValueError(f"video {name}: {error}") from error
    return [
        (Detection(classes[table.labels[row]], float(start), float(end), float(score)), order[row])
        for (start, end), score, row in zip(segments, scores, rows, strict=True)
        if end > start  # an empty segment overlaps nothing
    ]


def describe_nothing_found(videos: int, min_score: float) -> str:
    """Return in words that no segment at all was found, with likely causes."""
    return (
        f"not one segment was found in {videos} videos: no score is above evaluation.min_score "
        f"{min_score:g}; lower it, or see whether the checkpoint is trained, and whether sampling, "
        "pixels and backbone.mean are as in its training"
    )
