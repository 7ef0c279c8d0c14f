"""A checkpoint's detections and scores in a subset."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from accelerate import Accelerator

from cache.errors import StoreUnreachable
from cache.store import Store, open_cache
from configs.messages import format_error, truncated
from evaluate.annotations import Detection, Segment
from evaluate.mean_ap import MeanAP, mean_average_precision
from evaluate.metrics.scored import ScoredDetections
from evaluate.reports.launches import FINISHED, Launch, new_launch
from extract.activations.stored import Counts
from extract.backbone.frozen import hold_frozen
from extract.checkpoints.hub import folder_of
from extract.settings.sampling import SpanKind
from train.config import DataConfig, EvaluationConfig
from train.data.cached import CachedStreams, ensure_cached, evaluation_spans
from train.data.frame_rates import describe_unlike_rates
from train.data.items import Subset, VideoItem, format_skipped
from train.data.truth import ACTION, load_annotations
from train.data.videos import load_items
from train.detector.detection import Found, detect_subset, window_loader
from train.detector.model import Detector
from train.detector.setup import activations_of
from train.detector.sources import read_source, resolve_config
from train.engine.checkpoint import find_data
from train.engine.session import PASSES, device_names, inference_accelerator
from train.engine.stopwatch import START_UP, Stopwatch
from train.postprocessing.candidates import describe_nothing_found

Truth = Mapping[str, Sequence[Segment]]
"""The annotated segments, by video."""


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
    items: Subset[VideoItem]
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
    items: Subset[VideoItem],
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


def _check_labels(checkpoint: Path, detector: Detector, items: Subset[VideoItem]) -> None:
    """Raise ValueError if classes are annotated that the detector cannot find."""
    strangers = {s.label for item in items for s in item.truth} - set(detector.classes)
    if strangers and not detector.config.data.class_agnostic:
        raise ValueError(
            f"{checkpoint} has classes {', '.join(detector.classes)}, but the annotations also "
            f"have {', '.join(sorted(strangers))}: it was trained on another dataset"
        )
