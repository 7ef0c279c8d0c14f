"""Detections and scores of a whole subset, its windows shared out over all processes."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from configs.messages import first_of
from evaluate.annotations import Detection, Segment
from evaluate.files.video_scores import classified, read_video_scores
from evaluate.mean_ap import MeanAP, mean_average_precision
from extract.sampling.frame_cache import FrameCache
from extract.video.reader import VideoError
from train.config import Experiment
from train.data.batch import Batch, Sample
from train.data.cached import Streams
from train.data.videos import ACTION, Item
from train.data.windows import EvaluationWindows, evaluation_loader
from train.detector.model import Detector
from train.detector.postprocess import Answers, Candidates, detections, predict
from train.errors import memory_advice, worker_advice

Keep = Callable[[Batch, Sequence[Tensor]], None]
Truth = Mapping[str, Sequence[Segment]]
"""Per video what is annotated."""
Found = dict[str, dict[str, list[Detection]]]
"""Per answer (`Detector.answers`) and video what was detected."""


def window_loader(
    items: list[Item],
    overlap: float,
    config: Experiment,
    accelerator: Accelerator,
    cached: Streams | None = None,
    kept: FrameCache | None = None,
) -> "DataLoader[Sample]":
    """Return a loader of this process's share of the items' sliding windows.

    Args:
        cached: where each stream's activations are stored; None decodes.
        kept: where small frames are kept, if they will be wanted again.
    """
    rank, count = accelerator.process_index, accelerator.num_processes
    windows = EvaluationWindows(items, overlap, config, rank, count, cached, kept)
    return evaluation_loader(windows, config, config.training.workers)


def detect_all(
    detector: Detector,
    items: list[Item],
    windows: "DataLoader[Sample]",
    accelerator: Accelerator,
    what: str,
    keep: Keep | None = None,
    of_streams: bool = False,
) -> tuple[Found, dict[str, str]]:
    """Detect in all videos, each window counted once; every process returns the same.

    Args:
        detector: in eval mode, on the accelerator's device.
        windows: this process's share of the windows of `items` (`window_loader`).
        what: name of the progress bar.
        keep: is given every batch with every stream's features [B, C, F/2].
        of_streams: the single streams' answers, too.

    Returns:
        Detections per answer and video, and why videos were skipped: each is in one of them.

    Raises:
        VideoError: no video could be read, or one could not and `data.bad_videos` is `stop`.
    """
    config, rank, count = detector.config, accelerator.process_index, accelerator.num_processes
    dropped: dict[str, str] = {}
    # What is wrong with them is said before hours of detection.
    scores = config.evaluation.video_scores and read_video_scores(config.evaluation.video_scores)

    def run(batch: Batch) -> Answers:
        features = detector.features(batch.inputs, batch.start)
        if keep is not None:
            keep(batch, features)
        return detector.answers(features, batch.mask, batch.reflection, of_streams)

    with (
        accelerator.autocast(),
        memory_advice("evaluation.batch_size"),
        worker_advice(),
        _bar(windows, what, accelerator) as bar,
    ):
        batches = _followed(windows, bar, dropped)
        found = predict(run, batches, config.evaluation, accelerator.device)
    # A video's windows may lie in two processes; suppression needs them together.
    names = [detector.answer, *(detector.names if of_streams else ())]
    joined = {name: {item.name: list[Candidates]() for item in items} for name in names}
    for share in gather_object([{name: dict(videos) for name, videos in found.items()}]):
        for name, videos in share.items():
            for video, parts in videos.items():
                joined[name][video] += parts
    skipped: dict[str, str] = {}
    for part in gather_object([dropped]):
        skipped |= part
    read = [item for item in items if item.name not in skipped]
    if not read:
        raise VideoError(f"not one video can be read; for one, {next(iter(skipped.values()))}")
    mine: Found = {name: {} for name in joined}
    for name, videos in joined.items():
        for item in read[rank::count]:
            found_here = detections(videos[item.name], item, detector.classes, config.evaluation)
            if scores:
                found_here = classified(
                    found_here, item.name, scores, config.evaluation.video_classes
                )
            mine[name][item.name] = found_here
    shares = gather_object([mine])
    everyone = {name: {v: d for share in shares for v, d in share[name].items()} for name in names}
    return {
        name: {item.name: videos[item.name] for item in read} for name, videos in everyone.items()
    }, skipped


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
    truth: Truth = {item.name: item.truth for item in items if item.name in found}
    truth = as_detected(truth, detector.config)
    if detector.config.evaluation.video_scores:
        _refuse_other_classes(truth, found)
    return mean_average_precision(truth, found, detector.config.evaluation.tious)


def as_detected(truth: Truth, config: Experiment) -> Truth:
    """Return truth with the labels that the experiment's detections have: one, or the classes."""
    if not config.data.class_agnostic or config.evaluation.video_scores:
        return truth
    return {
        name: tuple(segment._replace(label=ACTION) for segment in segments)
        for name, segments in truth.items()
    }


def _refuse_other_classes(truth: Truth, found: Mapping[str, Sequence[Detection]]) -> None:
    """Raise ValueError if not one class of the video scores is annotated."""
    wanted = {segment.label for segments in truth.values() for segment in segments}
    given = {detection.label for detections in found.values() for detection in detections}
    if given and not wanted & given:
        raise ValueError(
            f"evaluation.video_scores calls classes {', '.join(first_of(sorted(given)))}, but the "
            f"annotations {', '.join(first_of(sorted(wanted)))}; the names must be the same"
        )
