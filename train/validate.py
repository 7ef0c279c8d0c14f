"""Detections and scores of a whole subset, its windows shared out over all processes."""

from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from itertools import chain
from typing import Any

from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from evaluate.annotations import Detection
from evaluate.mean_ap import MeanAP, mean_average_precision
from extract.activations import Cached
from extract.video import VideoError
from train.actionformer import HeadOutput
from train.batch import Batch, Sample
from train.config import Experiment
from train.dataset import EvaluationWindows, evaluation_loader
from train.detector import Detector
from train.errors import memory_advice, worker_advice
from train.items import Item
from train.predict import Candidates, detections, predict

Keep = Callable[[Batch, Tensor], None]
WAIT_FOR_OTHERS = timedelta(hours=2)  # processes look at and decode different videos


def window_loader(
    items: list[Item],
    overlap: float,
    config: Experiment,
    accelerator: Accelerator,
    cached: Cached | None = None,
) -> "DataLoader[Sample]":
    """Return a loader of this process's share of the items' sliding windows.

    Args:
        cached: where their activations are stored; None decodes.
    """
    rank, count = accelerator.process_index, accelerator.num_processes
    windows = EvaluationWindows(items, overlap, config, rank, count, cached)
    return evaluation_loader(windows, config, config.training.workers)


def detect_all(
    detector: Detector,
    items: list[Item],
    windows: "DataLoader[Sample]",
    accelerator: Accelerator,
    what: str,
    keep: Keep | None = None,
) -> tuple[dict[str, list[Detection]], dict[str, str]]:
    """Detect in all videos, each window counted once; every process returns the same.

    Args:
        detector: in eval mode, on the accelerator's device.
        windows: this process's share of the windows of `items` (`window_loader`).
        what: name of the progress bar.
        keep: is given every batch with its features [B, C, F/2].

    Returns:
        Detections per video, and why videos were skipped: a video is in one or the other.

    Raises:
        VideoError: no video could be read, or one could not and `data.bad_videos` is `stop`.
    """
    config, rank, count = detector.config, accelerator.process_index, accelerator.num_processes
    dropped: dict[str, str] = {}

    def run(batch: Batch) -> HeadOutput:
        features = detector.backbone(batch.inputs, batch.start)
        if keep is not None:
            keep(batch, features)
        return detector.predict(features, batch.mask)

    with (
        accelerator.autocast(),
        memory_advice("evaluation.batch_size"),
        worker_advice(),
        _bar(windows, what, accelerator) as bar,
    ):
        batches = _followed(windows, bar, dropped)
        found = predict(run, batches, config, accelerator.device)
    # A video's windows may lie in two processes; suppression needs them together.
    joined: dict[str, list[Candidates]] = {item.name: [] for item in items}
    for name, parts in chain.from_iterable(gather_object([list(found.items())])):
        joined[name] += parts
    skipped: dict[str, str] = {}
    for part in gather_object([dropped]):
        skipped |= part
    read = [item for item in items if item.name not in skipped]
    if not read:
        raise VideoError(f"not one video can be read; for one, {next(iter(skipped.values()))}")
    mine = {
        item.name: detections(joined[item.name], item, detector.classes, config.evaluation)
        for item in read[rank::count]
    }
    everyone: dict[str, list[Detection]] = {}
    for share in gather_object([mine]):
        everyone |= share
    return {item.name: everyone[item.name] for item in read}, skipped


def _bar(windows: "DataLoader[Sample]", what: str, accelerator: Accelerator) -> "tqdm[Any]":
    assert isinstance(windows.dataset, EvaluationWindows)
    total = windows.dataset.length(windows.num_workers)
    quiet = not accelerator.is_main_process
    return tqdm(total=total, desc=what, unit="window", leave=False, disable=quiet)


def _followed(
    windows: Iterable[Batch], bar: "tqdm[Any]", dropped: dict[str, str]
) -> Iterator[Batch]:
    """Pass batches through; note in `dropped` the videos that the workers gave up."""
    for batch in windows:
        dropped |= {batch.videos[row]: cause for row, cause in batch.problems.items()}
        yield batch
        bar.update(len(batch.videos))


def score(items: list[Item], found: dict[str, list[Detection]], detector: Detector) -> MeanAP:
    """Score detections against the truth at the config's tIoUs; videos not in `found` are out."""
    truth = {item.name: item.truth for item in items if item.name in found}
    return mean_average_precision(truth, found, detector.config.evaluation.tious)
