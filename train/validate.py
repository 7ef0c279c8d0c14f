"""Detections and scores of a whole subset, its windows shared out over all processes."""

from itertools import chain

from accelerate import Accelerator
from accelerate.utils import gather_object
from torch.utils.data import DataLoader
from tqdm import tqdm

from evaluate.annotations import Detection
from evaluate.mean_ap import MeanAP, mean_average_precision
from train.batch import Sample
from train.config import Experiment
from train.dataset import EvaluationWindows, evaluation_loader
from train.detector import Detector
from train.errors import memory_advice
from train.items import Item
from train.predict import Candidates, detections, predict


def window_loader(
    items: list[Item], overlap: float, config: Experiment, accelerator: Accelerator
) -> "DataLoader[Sample]":
    """Return a loader of this process's share of the items' sliding windows."""
    windows = EvaluationWindows(items, overlap, config)
    rank, count = accelerator.process_index, accelerator.num_processes
    return evaluation_loader(windows, config, config.training.workers, rank, count)


def detect_all(
    detector: Detector,
    items: list[Item],
    windows: "DataLoader[Sample]",
    accelerator: Accelerator,
    what: str,
) -> dict[str, list[Detection]]:
    """Detect in all videos; every process returns all of it, each window counted once.

    Args:
        detector: in eval mode, on the accelerator's device.
        windows: this process's share of the windows of `items` (`window_loader`).
        what: name of the progress bar.
    """
    config, rank, count = detector.config, accelerator.process_index, accelerator.num_processes
    batches = tqdm(
        windows, desc=what, unit="batch", leave=False, disable=not accelerator.is_main_process
    )
    with accelerator.autocast(), memory_advice("evaluation.batch_size"):
        found = predict(detector, batches, config, accelerator.device)
    # A video's windows may lie in two processes; suppression needs them together.
    joined: dict[str, list[Candidates]] = {item.name: [] for item in items}
    for name, parts in chain.from_iterable(gather_object([list(found.items())])):
        joined[name] += parts
    mine = {
        item.name: detections(joined[item.name], item, detector.classes, config.evaluation)
        for item in items[rank::count]
    }
    everyone: dict[str, list[Detection]] = {}
    for share in gather_object([mine]):
        everyone |= share
    return {item.name: everyone[item.name] for item in items}


def score(items: list[Item], found: dict[str, list[Detection]], detector: Detector) -> MeanAP:
    """Score detections against the items' truth at the config's tIoUs."""
    truth = {item.name: item.truth for item in items}
    return mean_average_precision(truth, found, detector.config.evaluation.tious)
