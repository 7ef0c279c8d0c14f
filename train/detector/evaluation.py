"""Detections and scores of a whole subset, its windows shared out over all processes."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader

from cache.errors import StoreUnreachable
from cache.store import Store, open_cache
from configs.messages import format_error, truncated
from configs.progress import ProgressBar
from configs.system import count_cores
from evaluate.annotations import Detection, Segment
from evaluate.files.video_scores import assign_classes, check_scored, read_video_scores
from evaluate.mean_ap import MeanAP, mean_average_precision
from evaluate.metrics.scored import ScoredDetections
from evaluate.reports.launches import FINISHED, Launch, new_launch
from extract.activations.stored import Counts
from extract.backbone.frozen import hold_frozen
from extract.checkpoints.hub import folder_of
from extract.parallel.processes import gather_objects, processes_here
from extract.sampling.frame_cache import FrameCache
from extract.settings.sampling import SpanKind
from extract.video.reader import VideoError
from train.config import DataConfig, EvaluationConfig, Experiment
from train.data.batch import Batch, Sample
from train.data.cached import CachedStreams, ensure_cached, evaluation_spans
from train.data.frame_rates import describe_unlike_rates
from train.data.videos import (
    ACTION,
    Subset,
    VideoItem,
    format_skipped,
    load_annotations,
    load_items,
)
from train.data.windows import EvaluationWindows, WindowInputs, evaluation_loader
from train.detector.model import Detector
from train.detector.postprocess import (
    Candidates,
    Predictions,
    describe_nothing_found,
    merge_windows,
    predict_each_window,
)
from train.detector.setup import activations_of
from train.detector.sources import read_source, resolve_config
from train.engine.checkpoint import find_data
from train.engine.session import PASSES, device_names, inference_accelerator
from train.engine.stopwatch import START_UP, Stopwatch
from train.errors import translate_oom, translate_worker_death

OnFeatures = Callable[[Batch, Sequence[Tensor]], None]
Truth = Mapping[str, Sequence[Segment]]
"""The annotated segments, by video."""
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


def score_detections(
    items: list[VideoItem], found: dict[str, list[Detection]], detector: Detector
) -> MeanAP:
    """Score detections against the truth at the config's tIoUs; videos not in `found` are out."""
    truth: Truth = {item.name: item.truth for item in items if item.name in found}
    truth = relabel_truth(truth, detector.config.data, detector.config.evaluation)
    if detector.config.evaluation.video_scores:
        _check_classes(truth, found)
    return mean_average_precision(truth, found, detector.config.evaluation.tious)


def relabel_truth(truth: Truth, data: DataConfig, evaluation: EvaluationConfig) -> Truth:
    """Return truth with the labels that an experiment's detections have: one, or the classes."""
    if not data.class_agnostic or evaluation.video_scores:
        return truth
    return {
        name: tuple(segment._replace(label=ACTION) for segment in segments)
        for name, segments in truth.items()
    }


def _check_classes(truth: Truth, found: Mapping[str, Sequence[Detection]]) -> None:
    """Raise ValueError if not one class of the video scores is annotated."""
    wanted = {segment.label for segments in truth.values() for segment in segments}
    given = {detection.label for detections in found.values() for detection in detections}
    if given and not wanted & given:
        raise ValueError(
            f"evaluation.video_scores has classes {', '.join(truncated(sorted(given)))}, but the "
            f"annotations have {', '.join(truncated(sorted(wanted)))}; the names must be the same"
        )


@dataclass(frozen=True)
class Evaluation:
    """A checkpoint's detections in a subset. `score` scores them later, so that they can be saved
    before truth that does not fit them raises.

    Args:
        out: folder for the results, which exists.
        items: the videos that could be opened; `detections`: those of them that decode.
        of_streams: detections of each stream, of a detector that has several.
        skipped: videos that do not count, with causes; `dropped`: those of them that failed late.
        minutes, seconds: how long the videos last, and how long detecting took.
        counts: hits and passes of cached activations; None without a cache.
        launch: of this evaluation, as it began; `watch`: of its time.
    """

    detector: Detector
    out: Path
    items: Subset
    detections: dict[str, list[Detection]]
    of_streams: Found
    dropped: dict[str, str]
    minutes: float
    seconds: float
    counts: Counts | None
    launch: Launch
    watch: Stopwatch

    @property
    def skipped(self) -> dict[str, str]:
        return self.items.skipped | self.dropped

    @property
    def has_truth(self) -> bool:
        return any(item.truth for item in self.items)

    def truth(self) -> Truth:
        """Return what is annotated of the videos that count, with labels as detections have."""
        found = {item.name: item.truth for item in self.items if item.name in self.detections}
        config = self.detector.config
        return relabel_truth(found, config.data, config.evaluation)

    def score(self) -> ScoredDetections:
        """Return the scores at the config's tIoUs, and each stream's of several.

        Raises:
            ValueError: no class of `evaluation.video_scores` is annotated.
        """
        streams = {
            name: score_detections(self.items, found, self.detector)
            for name, found in self.of_streams.items()
        }
        result = score_detections(self.items, self.detections, self.detector)
        return ScoredDetections(self.truth(), self.detections, result, streams, self.skipped)

    def check_found(self) -> None:
        """Raise ValueError, with likely causes, if not one segment was found in any video."""
        if not any(self.detections.values()):
            min_score = self.detector.config.evaluation.min_score
            raise ValueError(describe_nothing_found(len(self.items), min_score))

    def finished_launch(self) -> Launch:
        """Return the record of this evaluation, which ends now."""
        counts = self.counts
        came_about = {"detecting": [counts.hits, counts.partial, counts.full]} if counts else {}
        return replace(
            self.launch,
            outcome=FINISHED,
            seconds=self.watch.seconds(),
            activations=came_about,
        )


def evaluate_checkpoint(
    checkpoint: Path,
    file: Path | None = None,
    overrides: Sequence[str] = (),
    subset: str | None = None,
    cache: str | None = None,
    out: Path | None = None,
) -> Evaluation | None:
    """Return a detector's detections in a subset; None on all but the main process.

    Args:
        file, overrides: a config and single settings, laid over the checkpoint's.
        subset: default: the config's test subset.
        cache: store of activations to read from and to add to; None decodes.
        out: folder for the results, which is made; default: one beside the checkpoint.

    Raises:
        ValueError: the checkpoint, the config and the annotations do not fit together, or videos
            are missing; before anything is detected.
        VideoError: no video could be read, or one could not and `data.bad_videos` is `stop`.
    """
    watch = Stopwatch(START_UP)
    saved = read_source(checkpoint, file, overrides)
    config = resolve_config(file, saved, str(checkpoint), overrides)
    if len(config.directions) != len(saved.config.directions):
        raise ValueError(
            f"{checkpoint} has {len(saved.config.directions)} stream(s), but fusion.method "
            f"{config.fusion.method} needs {len(config.directions)}; join streams with "
            "train/heads.py, or set --fusion.method none"
        )
    config = find_data(config, saved, checkpoint, not (cache or config.backbone.imported))
    subset = subset or config.data.test_subset
    config = replace(config, data=replace(config.data, test_subset=subset))
    accelerator = inference_accelerator(config)
    launch = new_launch(accelerator.num_processes, device_names(accelerator))
    annotations = load_annotations(config.data)
    imported = config.backbone.imported
    url = config.cache.url if imported else cache
    if imported and not url:
        raise ValueError(f"--cache: give the store that the features '{imported}' are in")
    store = open_cache(url) if url else None
    items = load_items(
        config.data, annotations, subset, accelerator, store, imported, config.sampling.fps
    )
    if items.skipped and accelerator.is_main_process:
        print(format_skipped(items.skipped, items.listed))
    rates = {item.name: item.fps for item in items}
    unlike = describe_unlike_rates(rates, saved.frame_rates, config.sampling, bool(imported))
    if unlike and accelerator.is_main_process:
        print(unlike)
    detector = Detector.restore(saved._replace(config=config), checkpoint)
    _check_labels(checkpoint, detector, items)
    out = out or folder_of(checkpoint) / "evaluation" / f"{checkpoint.stem}-{subset}"
    out.mkdir(parents=True, exist_ok=True)  # now, not after hours of detection
    detector = detector.to(accelerator.device)
    hold_frozen(detector, config.training.precision, config.pixels.size)
    began = time.monotonic()
    found, dropped, counts = _detect_items(detector, items, accelerator, store, checkpoint, watch)
    if not accelerator.is_main_process:
        return None
    return Evaluation(
        detector,
        out,
        items,
        found.pop(detector.main_output),
        found,
        dropped,
        sum(item.duration_s for item in items) / 60,
        time.monotonic() - began,
        counts,
        launch,
        watch,
    )


def _detect_items(
    detector: Detector,
    items: Subset,
    accelerator: Accelerator,
    store: Store | None,
    checkpoint: Path,
    watch: Stopwatch,
) -> tuple[Found, dict[str, str], Counts | None]:
    """Detect in stored activations; in the pixels where there is no store or it does not answer.

    Returns:
        What `detect_subset` returns, and hits and passes; None where the pixels were read.
    """
    config = detector.config
    imported, overlap = config.backbone.imported, config.sampling.test_overlap
    several = len(detector.streams) > 1

    def detect(cached: CachedStreams | None) -> tuple[Found, dict[str, str]]:
        windows = window_loader(items, overlap, config, accelerator, cached)
        with watch.stage("detecting"):
            return detect_subset(
                detector, items, windows, accelerator, "detecting", of_streams=several
            )

    if store is None:
        return *detect(None), None
    try:
        activations = activations_of(detector, store, [checkpoint])
        kind: SpanKind = "video" if imported else "window"
        spans = [
            evaluation_spans(items, overlap, config.sampling, direction, kind)
            for direction in config.directions
        ]
        workers, skip_bad = config.training.workers, config.data.bad_videos == "skip"
        with watch.stage(PASSES):
            cached, counts = ensure_cached(
                activations, spans, "features", [items], accelerator, workers, skip_bad
            )
        return *detect(cached), counts
    except StoreUnreachable as error:
        # Of several processes only some may have met it.
        if imported or accelerator.num_processes > 1:
            raise
        cause = format_error(error).removeprefix("error: ")
        print(f"warning: {cause}; the videos are decoded instead")
    return *detect(None), None


def _check_labels(checkpoint: Path, detector: Detector, items: Subset) -> None:
    """Raise ValueError if classes are annotated that the detector cannot find."""
    strangers = {s.label for item in items for s in item.truth} - set(detector.classes)
    if strangers and not detector.config.data.class_agnostic:
        raise ValueError(
            f"{checkpoint} has classes {', '.join(detector.classes)}, but the annotations also "
            f"have {', '.join(sorted(strangers))}: it was trained on another dataset"
        )
