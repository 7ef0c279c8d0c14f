"""Detections in a whole subset, its windows shared out over all processes."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader

from configs.progress import ProgressBar
from configs.system import count_cores
from evaluate.annotations import Detection
from evaluate.files.video_scores import assign_classes, check_scored, read_video_scores
from extract.parallel.processes import gather_objects, processes_here
from extract.sampling.frame_cache import FrameCache
from extract.video.reader import VideoError
from train.config import Experiment
from train.data.batch import Batch, Sample
from train.data.cached import CachedStreams
from train.data.items import VideoItem
from train.data.windows import EvaluationWindows, WindowInputs, evaluation_loader
from train.detector.model import Detector
from train.errors import translate_oom, translate_worker_death
from train.postprocessing.candidates import (
    Candidates,
    Predictions,
    merge_windows,
    predict_each_window,
)

OnFeatures = Callable[[Batch, Sequence[Tensor]], None]
Found = dict[str, dict[str, list[Detection]]]
"""The detections, by result (`Detector.stream_names`) and video."""
VideoDetections = dict[str, list[Detection]]
"""The detections of one video, by result."""
Parts = dict[str, list[Candidates]]
"""The candidates of one video's windows, by result."""
SUPPRESSION_THREADS = 4  # at most


def window_loader(
    items: list[VideoItem],
    overlap: float,
    config: Experiment,
    accelerator: Accelerator,
    cached: CachedStreams | None = None,
    frame_cache: FrameCache | None = None,
) -> "DataLoader[Sample]":
    """Return a loader of this process's share of the items' sliding windows.

    Args:
        cached: where each stream's activations are stored; None decodes.
        frame_cache: of small frames, if they will be read again.
    """
    rank, count = accelerator.process_index, accelerator.num_processes
    inputs = WindowInputs.of(config, cached, frame_cache)
    windows = EvaluationWindows(items, inputs, overlap, rank, count)
    return evaluation_loader(windows, config.evaluation.batch_size, config.training.workers)


def detect_subset(
    detector: Detector,
    items: list[VideoItem],
    windows: "DataLoader[Sample]",
    accelerator: Accelerator,
    what: str,
    on_features: OnFeatures | None = None,
    of_streams: bool = False,
) -> tuple[Found, dict[str, str]]:
    """Detect in all videos, each window counted once; every process returns the same.

    Args:
        detector: in eval mode, on the accelerator's device.
        windows: this process's share of the windows of `items` (`window_loader`).
        what: name of the progress bar.
        on_features: called with every batch and every stream's features [B, C, F/2].
        of_streams: the single streams' results, too.

    Returns:
        Detections per result and video, and why videos were skipped: each is in one of them.

    Raises:
        VideoError: no video could be read, or one could not and `data.bad_videos` is `stop`.
        ValueError: `evaluation.video_scores` is malformed or lacks a video.
    """
    config, rank, count = detector.config, accelerator.process_index, accelerator.num_processes
    # Read before hours of detection, in case they are malformed or lack a video.
    file = config.evaluation.video_scores
    scores = read_video_scores(file) if file else None
    if scores is not None:
        check_scored(scores, (item.name for item in items))

    def predict_batch(batch: Batch) -> Predictions:
        features = detector.features(batch.inputs, batch.start)
        if on_features is not None:
            on_features(batch, features)
        return detector.predict(features, batch.mask, batch.reflection, of_streams)

    places = {item.name: item for item in items}
    names = [detector.main_output, *(detector.stream_names if of_streams else ())]

    def suppress_video(video: str, parts: Parts) -> VideoDetections:
        found = {
            name: merge_windows(parts[name], places[video], detector.classes, config.evaluation)
            for name in names
        }
        if scores is not None:
            classes = config.evaluation.video_classes
            found = {n: assign_classes(d, video, scores, classes) for n, d in found.items()}
        return found

    share = _detect_share(predict_batch, suppress_video, windows, config, accelerator, what)
    parts, skipped = _join_parts(share)
    read = [item for item in items if item.name not in skipped]
    if not read:
        raise VideoError(f"not one video can be read; for example, {next(iter(skipped.values()))}")
    shared = [item.name for item in read if item.name in parts]
    mine = share.found | {
        video: suppress_video(video, parts[video]) for video in shared[rank::count]
    }
    everyone = {v: found for each in gather_objects([mine]) for v, found in each.items()}
    return {
        name: {item.name: everyone[item.name][name] for item in read} for name in names
    }, skipped


@dataclass(frozen=True)
class _Share:
    """What one process found in its share of the windows.

    Args:
        found: detections in the videos whose windows are all in this share.
        parts: of every other video, candidates in the windows that are.
        dropped: why videos could not be read.
    """

    found: dict[str, VideoDetections]
    parts: dict[str, Parts]
    dropped: dict[str, str]


def _detect_share(
    predict: Callable[[Batch], Predictions],
    suppress_video: Callable[[str, Parts], VideoDetections],
    windows: "DataLoader[Sample]",
    config: Experiment,
    accelerator: Accelerator,
    what: str,
) -> _Share:
    """Run the network over a share of the windows; suppress each video when it is complete."""
    assert isinstance(windows.dataset, EvaluationWindows)
    missing = windows.dataset.whole_videos(windows.num_workers)
    dropped: dict[str, str] = {}
    open_videos: dict[str, Parts] = {}
    done: dict[str, Future[VideoDetections]] = {}
    with (
        # Suppression goes on beside the network, and holds no lock of Python's for long.
        ThreadPoolExecutor(suppression_threads(accelerator.num_processes)) as pool,
        accelerator.autocast(),
        translate_oom("lower evaluation.batch_size"),
        translate_worker_death(),
        _progress_bar(windows, what, accelerator) as bar,
    ):
        batches = _follow_progress(windows, bar, dropped)
        for video, candidates in predict_each_window(
            predict, batches, config.evaluation, accelerator.device
        ):
            parts = open_videos.setdefault(video, {name: [] for name in candidates})
            for name, some in candidates.items():
                parts[name] += some
            if video in missing:
                missing[video] -= 1
                if not missing[video]:
                    done[video] = pool.submit(suppress_video, video, open_videos.pop(video))
    found = {video: future.result() for video, future in done.items()}
    return _Share(found, open_videos, dropped)


def _join_parts(share: _Share) -> tuple[dict[str, Parts], dict[str, str]]:
    """Return what all processes have of the videos that lie in several, and unreadable videos."""
    joined: dict[str, Parts] = {}
    skipped: dict[str, str] = {}
    for shared, dropped in gather_objects([(share.parts, share.dropped)]):
        skipped |= dropped
        for video, parts in shared.items():
            so_far = joined.setdefault(video, {name: [] for name in parts})
            for name, some in parts.items():
                so_far[name] += some
    return joined, skipped


def suppression_threads(processes: int) -> int:
    """Return how many videos a process suppresses side by side, each on one core.

    Args:
        processes: of the run; those of this machine share its cores.
    """
    return max(1, min(SUPPRESSION_THREADS, count_cores() // processes_here(processes)))


def _progress_bar(
    windows: "DataLoader[Sample]", what: str, accelerator: Accelerator
) -> ProgressBar:
    assert isinstance(windows.dataset, EvaluationWindows)
    total = windows.dataset.length(windows.num_workers)
    quiet = not accelerator.is_main_process
    return ProgressBar(total=total, desc=what, unit="window", leave=False, disable=quiet)


def _follow_progress(
    windows: Iterable[Batch], bar: ProgressBar, dropped: dict[str, str]
) -> Iterator[Batch]:
    """Yield the batches, advance the bar, and add videos that could not be read to `dropped`."""
    for batch in windows:
        dropped |= {batch.videos[row]: cause for row, cause in batch.problems.items()}
        yield batch
        bar.update(len(batch.videos))
