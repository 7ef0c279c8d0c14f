"""Class scores over the time of one video, gathered from the windows as they are predicted."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from extract.parallel.lookahead import start_fetch
from extract.sampling.reversal import reverse_segments
from extract.sampling.windows import Window
from extract.settings.sampling import Direction
from train.data.batch import Batch
from train.data.items import VideoItem
from train.modeling.actionformer import HeadOutput
from train.postprocessing.candidates import Prediction

MOST_BINS = 2000  # more than a screen has columns; memory does not grow with the video


@dataclass(frozen=True)
class ScoreCurves:
    """The highest score of every class in equally long stretches.

    Args:
        times_s: the bins' edges, [N + 1].
        scores: in [0, 1], [K, N]; `start_adding` raises them.
        length: of the video's timeline.
    """

    times_s: NDArray[np.floating]
    scores: NDArray[np.float32]
    length: float = field(repr=False)

    @classmethod
    def empty(cls, item: VideoItem, step: float, classes: int) -> "ScoreCurves":
        """Return curves at 0, with bins of at least `step` of the timeline, a feature step."""
        bins = max(1, min(MOST_BINS, int(item.length / step)))
        edges = np.linspace(0, item.length, bins + 1)
        return cls(item.to_seconds(edges), np.zeros((classes, bins), np.float32), item.length)

    def start_adding(self, prediction: Prediction, batch: Batch) -> Callable[[], None]:
        """Begin to raise the scores to those of one result in a batch of windows of this video.

        Returns:
            A function that waits for the result and ends it; the device may be given more work
            before it is called.
        """
        outputs, directions = zip(*prediction, strict=True)
        fetch = start_fetch(torch.stack([step_scores(output) for output in outputs]))

        def finish() -> None:
            for scores, direction in zip(fetch().numpy(), directions, strict=True):
                for of_window, window in zip(scores, batch.windows, strict=True):
                    self._add(of_window[:, : window.valid], window, direction)

        return finish

    def _add(self, scores: NDArray[np.float32], window: Window, direction: Direction) -> None:
        """Raise the scores to those of a window's valid steps [K, T], in its direction."""
        bins = self.scores.shape[1]
        steps = np.arange(window.valid)[:, None] + (-0.5, 0.5)
        if direction == "reversed":
            steps = reverse_segments(steps, window.reflection)
        places = np.floor(window.to_timeline(steps) * bins / self.length).astype(np.int64)
        for place in places.clip(0, bins - 1).T:  # a step touches two bins at most
            np.maximum.at(self.scores.T, place, scores.T)


def step_scores(output: HeadOutput) -> Tensor:
    """Return every class's score at each feature step, [B, K, T] float32.

    It is the highest of all levels' scores at the point nearest to the step; 0 outside the video.
    """
    steps = torch.arange(output.masks[0].shape[-1], device=output.masks[0].device)
    best = torch.zeros_like(output.logits[0], dtype=torch.float32)
    for level, (logits, valid) in enumerate(zip(output.logits, output.masks, strict=True)):
        nearest = ((steps + 2**level // 2) // 2**level).clamp(max=valid.shape[-1] - 1)
        scores = logits.float().sigmoid().masked_fill(~valid.unsqueeze(1), 0.0)
        best = torch.maximum(best, scores[..., nearest])
    return best.masked_fill(~output.masks[0].unsqueeze(1), 0.0)
