"""Which detections of a video are which kind of mistake, and which of its actions are missed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from evaluate.annotations import Detection, Segment
from evaluate.diagnosis.false_positives import KINDS, classify_predictions
from evaluate.diagnosis.sensitivity import found_truths
from evaluate.mean_ap import match_predictions

RIGHT, UNKNOWN = "right", "unknown class"
VERDICTS = (RIGHT, *KINDS, UNKNOWN)


@dataclass(frozen=True)
class VideoMistakes:
    """The mistakes in one video.

    Args:
        verdicts: of each detection, in their order, one of `VERDICTS`; `UNKNOWN` if no truth has
            its label.
        found_with: of each truth, in their order, the score of the detection that takes it; None if
            it is missed as `found_truths` counts. Matching begins with the best score, so with
            only the scores from s on exactly those with a lower one are missed, too.
    """

    verdicts: Sequence[str]
    found_with: Sequence[float | None]


def find_mistakes(
    truth: Mapping[str, Sequence[Segment]],
    found: Mapping[str, Sequence[Detection]],
    tiou: float,
) -> dict[str, VideoMistakes]:
    """Return the mistakes of every video, as `diagnose` counts them.

    Args:
        tiou: above `BACKGROUND_TIOU`.

    Raises:
        ValueError: what `mean_average_precision` refuses.
    """
    matches = match_predictions(truth, found, [tiou])
    verdicts = np.full(sum(map(len, found.values())), UNKNOWN, dtype=object)
    # Kind -1 is a true positive.
    verdicts[matches.ranked_order] = np.array(VERDICTS)[classify_predictions(matches, tiou) + 1]
    scores = np.full(sum(map(len, truth.values())), None, dtype=object)
    hits = matches.taken[0] >= 0
    taken = matches.taken[0, hits]
    counted = found_truths(matches)[taken]
    scores[matches.truth_order[taken[counted]]] = matches.scores[hits][counted].tolist()
    of_found, of_truth = iter(verdicts.tolist()), iter(scores.tolist())
    judged = {name: [next(of_found) for _ in found[name]] for name in found}
    missed = {name: [next(of_truth) for _ in truth[name]] for name in truth}
    return {
        name: VideoMistakes(judged.get(name, []), missed.get(name, []))
        for name in dict.fromkeys([*truth, *found])
    }
