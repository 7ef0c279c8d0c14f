"""Which windows suit a dataset: a proposal from the lengths of its actions and its frame rates."""

import math
from dataclasses import dataclass
from statistics import median

import numpy as np

from extract.backbone.videomae import CLIP_FRAMES
from train.dataset_check.survey import Survey

# With THUMOS-14's actions and 30 frames a second this gives the published stride of 4.
STEPS_OF_SHORT = 6  # feature steps that a short action (the 10th percentile) should span
ROOM = 3  # windows hold so many times an action of ordinary length (the 95th percentile)


@dataclass(frozen=True)
class Suggestion:
    """Values for `sampling.window_size` and `sampling.snippet_stride`, and one sentence why."""

    window_size: int
    snippet_stride: int
    reason: str


def suggest(survey: Survey) -> Suggestion | None:
    """Return windows that suit the training actions; None where there is nothing to go by."""
    config, sampling = survey.config, survey.config.sampling
    items = survey.items(config.data.train_subset)
    seconds = [end_s - start_s for item in items for _, start_s, end_s in item.truth]
    if not seconds or sampling.method == "resize":
        return None
    fps = median(survey.files[item.name].index.fps for item in items)
    short_s, ordinary_s, long_s = np.percentile(seconds, [10, 95, 99]).tolist()
    stride = sampling.scale_factor * max(
        1, round(short_s * fps / STEPS_OF_SHORT / sampling.scale_factor)
    )
    # Whole clips, and whole strides of the coarsest level.
    unit = math.lcm(
        CLIP_FRAMES // math.gcd(CLIP_FRAMES, sampling.scale_factor), 2 ** (config.head.levels - 1)
    )
    window = unit * math.ceil(max(ROOM * ordinary_s, long_s) * fps / stride / unit)
    reason = (
        f"at {fps:.4g} frames/s an action of {short_s:.2f} s (only a tenth are shorter) spans "
        f"{short_s * fps / stride:.1f} feature steps, and a window of {window * stride / fps:.1f} "
        f"s is {window * stride / fps / ordinary_s:.1f} times the length of {ordinary_s:.2f} s "
        "that 95 % of the actions do not exceed"
    )
    return Suggestion(window, stride, reason)
