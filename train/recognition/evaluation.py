"""Tests of a recogniser on a subset of its experiment's clips, and on their reversals."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from configs.messages import truncated
from evaluate.metrics.accuracy import Accuracy, flat_names, within_pairs
from train.engine.session import inference_accelerator
from train.recognition.dataset import Example, label_swaps, load_examples, read_clips
from train.recognition.recogniser import Recogniser
from train.recognition.training import (
    ClipScores,
    score_clips,
    score_examples,
    select_labelled,
    share_loader,
)


@dataclass(frozen=True)
class RecognitionEvaluation:
    """A recogniser's scores of a subset's clips.

    Args:
        out: folder for the results, which exists.
        scores: of all classes, by the clip's position among `examples`.
        reversed_scores: the same of reversed clips; empty unless they were asked for.
        pairs: classes that are each other's time reversal, both ways.
        skipped: clips that do not count, with causes; `listed`: how many were to be read.
    """

    recogniser: Recogniser
    out: Path
    examples: Sequence[Example]
    scores: ClipScores
    reversed_scores: ClipScores
    pairs: dict[int, int]
    skipped: dict[str, str]
    listed: int

    @property
    def has_labels(self) -> bool:
        return any(self.examples[position].labels for position in self.scores)

    def accuracy(self) -> Accuracy:
        """Return how often the clips that have labels are recognised."""
        return score_clips(self.recogniser.sets, self.examples, self.scores)

    def accuracy_of_time(self) -> dict[str, float]:
        """Return how far the scores depend on the direction of time (`accuracy_of_time`).

        Raises:
            ValueError: no clip is of a class that has a reversal.
        """
        if not self.reversed_scores:
            return {}
        return accuracy_of_time(
            self.recogniser, self.examples, self.scores, self.reversed_scores, self.pairs
        )


def evaluate_recogniser(
    recogniser: Recogniser,
    checkpoint: Path,
    subset: str | None = None,
    on_reversed: bool = False,
    out: Path | None = None,
) -> RecognitionEvaluation | None:
    """Return a recogniser's scores of a subset's clips; None on all but the main process.

    Args:
        checkpoint: file that the recogniser is from.
        subset: default: the config's test subset.
        on_reversed: test on reversed clips as well.
        out: folder for the results, which is made; default: one beside the checkpoint.

    Raises:
        ValueError: the recogniser and the clips do not fit; before any is tested.
        VideoError: no video could be read, or one could not and `data.bad_videos` is `stop`.
    """
    config = recogniser.config
    accelerator = inference_accelerator(config)
    pairs = label_swaps(config.data.reversed_labels, recogniser.sets, "data.reversed_labels")
    if on_reversed and not pairs:
        raise ValueError(
            "--reversed: name the classes that are each other's time reversal, as "
            "--data.reversed_labels '[[SlideLeft, SlideRight]]'"
        )
    subset = subset or config.data.test_subset
    clips = read_clips(config.data)
    strangers = sorted(set(flat_names(clips.sets)) - set(recogniser.classes))
    if strangers:
        raise ValueError(
            f"{checkpoint} has classes {', '.join(truncated(recogniser.classes))}, but "
            f"{config.data.annotations} also has {', '.join(truncated(strangers))}: it was "
            "trained on another dataset"
        )
    # A list of a few clips need not have all classes.
    clips = clips._replace(sets=recogniser.sets)
    (examples,) = load_examples(config.data, clips, [subset], accelerator)
    out = out or checkpoint.parent / "evaluation" / f"{checkpoint.stem}-{subset}"
    out.mkdir(parents=True, exist_ok=True)  # now, not after hours of testing
    recogniser.network.to(accelerator.device)
    views = share_loader(recogniser, examples, accelerator)
    scores, dropped = score_examples(recogniser, examples, views, accelerator, "recognising")
    back: ClipScores = {}
    if on_reversed:
        views = share_loader(recogniser, examples, accelerator, turned=True)
        back, _ = score_examples(recogniser, examples, views, accelerator, "recognising, reversed")
    if not accelerator.is_main_process:
        return None
    return RecognitionEvaluation(
        recogniser,
        out,
        examples,
        scores,
        back,
        pairs,
        examples.skipped | dropped,
        examples.listed,
    )


def accuracy_of_time(
    recogniser: Recogniser,
    examples: Sequence[Example],
    scores: ClipScores,
    back: ClipScores,
    turned: dict[int, int],
) -> dict[str, float]:
    """Return how far a recogniser's scores depend on the direction of time.

    Reversed clips count with the reversed class's label, where it has one. Within pairs, the two
    classes of a pair are compared alone: a network that does not see the order of frames scores a
    clip and its reversal alike, and is right in half of both.
    """
    first = slice(0, len(recogniser.sets[0].classes))
    labels, values = select_labelled(examples, scores)
    labels_back, values_back = select_labelled(examples, back)
    labels, labels_back = labels[:, 0], labels_back[:, 0]
    has_reversal = np.array([int(label) in turned for label in labels_back])
    if not has_reversal.any():
        raise ValueError("--reversed: no clip is of a class in data.reversed_labels")
    mirrored = np.array([turned[int(label)] for label in labels_back[has_reversal]])
    values, values_back = values[:, first], values_back[has_reversal][:, first]
    pairs = [(a, b) for a, b in turned.items() if a < b]
    found = {"top1_on_reversed": float((values_back.argmax(1) == mirrored).mean())}
    both = {
        "within_pairs": within_pairs(labels, values, pairs),
        "within_pairs_on_reversed": within_pairs(mirrored, values_back, pairs),
    }
    return found | {name: value for name, value in both.items() if value is not None}
