"""The task of training a recognition network: its losses and its validation."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer
from torch.utils.data import DataLoader
from tqdm import tqdm

from configs.progress import ProgressBar
from evaluate.metrics.accuracy import Accuracy, LabelSet, compute_accuracy
from extract.parallel.processes import gather_objects
from extract.tada.networks import VideoNetwork
from extract.video.reader import VideoError
from train.data.items import format_skipped
from train.data.loading import EpochSampler
from train.engine.optim import group_by_decay
from train.errors import translate_oom, translate_worker_death
from train.recognition.config import RecognitionTraining
from train.recognition.dataset import (
    EvaluationViews,
    Example,
    TrainingViews,
    Views,
    evaluation_views_loader,
    training_views_loader,
)
from train.recognition.recogniser import Recogniser


class PreparedViews(NamedTuple):
    """A micro-batch on the device, and its share of the update."""

    batch: Views
    share: float


class RecognitionTask:
    """The task of a recogniser; see `train.engine.loop.Task` for its members.

    Args:
        recogniser: as built and initialised.
        training, validation: clips; validation None trains without validation.
    """

    measure = "top-1"
    frame_rates = None  # clips are sampled by time

    def __init__(
        self,
        recogniser: Recogniser,
        training: Sequence[Example],
        validation: Sequence[Example] | None,
        accelerator: Accelerator,
    ) -> None:
        self.recogniser, self.accelerator = recogniser, accelerator
        self.config = config = recogniser.config
        self.classes, self.model = recogniser.classes, recogniser.network
        self.sizes = [len(each.classes) for each in recogniser.sets]
        self.losses = loss_names(recogniser.sets)
        self.dataset = TrainingViews(training, config, recogniser.sets)
        self.videos = [example.name for example in self.dataset.examples]
        self.validation = validation
        if validation is not None:
            # Kept: starting new decoding workers would cost every validation some seconds.
            self.views = share_loader(recogniser, validation, accelerator)
        self.optimizer = build_recognition_optimizer(self.model, config.training)

    @property
    def validates(self) -> bool:
        return self.validation is not None

    @property
    def clipped(self) -> Sequence[nn.Module]:
        return [self.model]

    def hold_frozen(self) -> None:
        pass

    def loader(self, sampler: EpochSampler) -> "DataLoader[Any]":
        return training_views_loader(self.dataset, sampler, self.config)

    def prepare(self, batches: Sequence[Views]) -> list[PreparedViews]:
        device = self.accelerator.device
        return [PreparedViews(batch.to(device), 1 / len(batches)) for batch in batches]

    def loss(self, network: nn.Module, shared: PreparedViews) -> Tensor:
        batch, share = shared
        with self.accelerator.autocast():
            logits = network(batch.views[:, 0])
        smoothing = self.config.training.label_smoothing
        parts = zip(logits.float().split(self.sizes, 1), batch.labels.unbind(1), strict=True)
        each = [F.cross_entropy(part, of, label_smoothing=smoothing) for part, of in parts]
        return share * torch.stack(each)

    def validate(self) -> tuple[Accuracy, int]:
        assert self.validation is not None
        examples, main = self.validation, self.accelerator.is_main_process
        scores, skipped = score_examples(
            self.recogniser, examples, self.views, self.accelerator, "validation"
        )
        if skipped and main:
            tqdm.write(format_skipped(skipped, len(examples)))
        return score_clips(self.recogniser.sets, examples, scores), len(skipped)

    def observe(self, batch: Views) -> None:
        pass

    def log_counts(self, when: str) -> None:
        pass

    def close(self) -> None:
        pass

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


ClipScores = dict[int, NDArray[np.float64]]
"""The scores of all classes [K], by the position of the example."""


def loss_names(sets: Sequence[LabelSet]) -> tuple[str, ...]:
    """Return the names of the losses of label sets."""
    return tuple(each.name or "classification" for each in sets)


def share_loader(
    recogniser: Recogniser,
    examples: Sequence[Example],
    accelerator: Accelerator,
    turned: bool = False,
) -> "DataLoader[Any]":
    """Return a loader of the test views of this process's share of the examples.

    Args:
        turned: show them in the direction of time opposite to training.
    """
    config = recogniser.config
    forward = (config.direction == "forward") != turned
    rank, count = accelerator.process_index, accelerator.num_processes
    views = EvaluationViews(examples, config, "forward" if forward else "reversed", rank, count)
    return evaluation_views_loader(views, config, config.training.workers)


def score_examples(
    recogniser: Recogniser,
    examples: Sequence[Example],
    views: "DataLoader[Any]",
    accelerator: Accelerator,
    what: str,
) -> tuple[ClipScores, dict[str, str]]:
    """Return scores of all examples, each once; every process returns the same.

    Args:
        recogniser: in eval mode, on the accelerator's device.
        views: this process's share of them (`share_loader`).
        what: name of the progress bar.

    Returns:
        Scores by the example's position, and why others were skipped, by name.

    Raises:
        VideoError: no video could be read, or one could not and `data.bad_videos` is `stop`.
    """
    rank, count = accelerator.process_index, accelerator.num_processes
    positions = iter(range(rank, len(examples), count))
    quiet = not accelerator.is_main_process
    found: ClipScores = {}
    dropped: dict[str, str] = {}
    total = len(range(rank, len(examples), count))
    with (
        accelerator.autocast(),
        translate_oom("lower evaluation.batch_size"),
        translate_worker_death(),
        ProgressBar(total=total, desc=what, unit="clip", leave=False, disable=quiet) as bar,
    ):
        for position, (name, scores, problem) in zip(
            positions, recogniser.score(views), strict=True
        ):
            bar.update()
            if problem:
                dropped[name] = problem
            else:
                found[position] = scores
    everyone: ClipScores = {}
    skipped: dict[str, str] = {}
    for mine, bad in gather_objects([(found, dropped)]):
        everyone |= mine
        skipped |= bad
    if not everyone:
        raise VideoError(f"not one video can be read; for example, {next(iter(skipped.values()))}")
    return dict(sorted(everyone.items())), skipped


def score_clips(
    sets: Sequence[LabelSet], examples: Sequence[Example], scores: ClipScores
) -> Accuracy:
    """Return the accuracy of the scores of labelled examples."""
    labels, values = select_labelled(examples, scores)
    return compute_accuracy(sets, labels, values)


def select_labelled(
    examples: Sequence[Example], scores: ClipScores
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return labels [N, sets] and scores [N, K] of the examples that have both."""
    rows = [position for position in scores if examples[position].labels]
    labels = np.array([examples[position].labels for position in rows], np.int64)
    return labels, np.array([scores[position] for position in rows])


def build_recognition_optimizer(network: VideoNetwork, config: RecognitionTraining) -> Optimizer:
    """Return AdamW or SGD with one rate for the classifier and one for the rest."""
    head = set(network.classifier.parameters())
    groups = []
    for group in group_by_decay(network, config.weight_decay):
        for lr, of_head in ((config.lr, True), (config.backbone_lr, False)):
            chosen = [p for p in group["params"] if (p in head) == of_head]
            if chosen:
                groups.append(group | {"params": chosen, "lr": lr})
    groups.sort(key=lambda group: group["params"][0] not in head)  # the head's rate is logged
    if config.optimizer == "sgd":
        return SGD(groups, momentum=config.momentum, nesterov=True, fused=True)
    return AdamW(groups, fused=True)
