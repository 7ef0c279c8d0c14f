"""Runs on cached activations: train a detector, or compose one in which nothing learns."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import Accelerator

from extract.activations.activations import Activations
from extract.activations.fingerprints import fingerprints, settings
from extract.sampling.spans import Span
from extract.settings.backbone import Cut
from extract.settings.sampling import SpanKind
from train.config import Experiment
from train.data.cached import ensure_cached, evaluation_spans, hold_features, training_spans
from train.data.items import Subset, VideoItem
from train.data.loading import micro_batch
from train.detector.calibrate import fit_class_weights
from train.detector.detection import window_loader
from train.detector.model import Detector
from train.detector.setup import TrainingData, write_detector_record
from train.detector.training import DetectionTask
from train.device.compiling import describe_unused
from train.engine.checkpoint import (
    Checkpoint,
    changed_settings,
    check_same_run,
    load_checkpoint,
    save_checkpoint,
)
from train.engine.loop import TrainingRun
from train.engine.session import PASSES, Session


def train_on_cache(
    session: Session,
    detector: Detector,
    activations: Sequence[Activations],
    data: TrainingData,
    origins: Sequence[str],
    teacher: Detector | None = None,
) -> None:
    """Train the parts of a detector that learn; compute missing activations first.

    Args:
        detector: in eval mode, on the device.
        activations: of every stream, the teacher's after the detector's own.
        origins: files that its streams are from, for messages.
        teacher: whose predictions it learns beside the truth, on the device.

    Raises:
        ValueError: the run to resume had another backbone, or a video cannot be read.
    """
    config, accelerator = detector.config, session.accelerator
    windows, parts = config.training.global_batch, config.training.accumulate
    micro_batch(windows, accelerator.num_processes, parts)  # raises now, not after hours of passes
    cut = config.backbone.last_frozen_cut
    assert cut is not None
    if session.begun:  # checked before hours of passes
        _check_same_backbone(session.out / "last.pt", detector, cut, origins, accelerator)
    sampling, kind = config.sampling, config.cache.span
    theirs = teacher.config.directions if teacher is not None else ()
    tested: SpanKind = "video" if config.backbone.mode == "imported" else "window"

    def spans_to_train_on() -> list[list[Span]]:
        directions = *config.directions, *theirs
        return [training_spans(data.training, sampling, d, kind) for d in directions]

    def spans_to_validate_on() -> list[list[Span]]:
        items, overlap = data.validation or (), sampling.validation_overlap
        return [evaluation_spans(items, overlap, sampling, d, tested) for d in config.directions]

    spans = spans_to_train_on()
    for of, also in zip(spans, spans_to_validate_on(), strict=False):  # a teacher is not validated
        of += also
    workers, skip_bad = config.training.workers, config.data.bad_videos == "skip"
    with session.watch.stage(PASSES):
        cached, before = ensure_cached(
            activations, spans, cut, data.subsets, accelerator, workers, skip_bad
        )
    # Asked again: videos may have been skipped. The windows of validations go to loader workers.
    held = hold_features(cached, spans_to_train_on(), accelerator, "train on", accelerator.device)
    own, cpu = cached.first(len(config.directions)), torch.device("cpu")
    held_tests = hold_features(own, spans_to_validate_on(), accelerator, "validate on", cpu)
    cached = replace(cached, held=held, held_tests=held_tests)
    task = DetectionTask(
        detector, data.training, data.validation, accelerator, cached, teacher=teacher
    )
    run = TrainingRun(task, accelerator, session.begun, session.watch)
    with session.report() as notes:
        notes.activations = {"before training": before, "training and validation": task.total}
        if accelerator.is_main_process:
            notes.about = write_detector_record(session.out, detector, data)
            notices = describe_unused(config.training.compile, config.backbone.learns)
            for line in filter(None, (task.memory, *notices)):
                print(line)
            if teacher is not None:
                print(f"the head learns what {len(theirs)} streams predict, beside the truth")
            notes.about["epochs"] = run.epochs
        run.train()


def compose_detector(
    session: Session, detector: Detector, activations: Sequence[Activations], data: TrainingData
) -> None:
    """Write the checkpoint of a fusion that learns nothing by gradients, fitted if need be.

    Args:
        detector: in eval mode, on the device.
        activations: of every stream.

    Raises:
        ValueError: there is a checkpoint of another run.
    """
    path, accelerator = session.out / "last.pt", session.accelerator
    if session.begun:
        _check_same_composition(path, detector.config)
    with session.report() as notes:
        if detector.config.fusion.method == "calibrated":
            _calibrate(detector, activations, data.training, accelerator)
        if accelerator.is_main_process:
            state = detector.state_dict()
            parts = detector.config, detector.classes, state, state
            whole = Checkpoint(*parts, training={}, frame_rates=detector.frame_rates)
            save_checkpoint(path, whole)
            print(f"nothing to train; the fused detector is {path}")
            notes.about = write_detector_record(session.out, detector, data)


def _calibrate(
    detector: Detector,
    activations: Sequence[Activations],
    items: Subset[VideoItem],
    accelerator: Accelerator,
) -> None:
    """Fit the fusion's class weights to the streams' predictions in windows of the items."""
    config, overlap = detector.config, detector.config.sampling.test_overlap
    spans = [evaluation_spans(items, overlap, config.sampling, d) for d in config.directions]
    workers, skip_bad = config.training.workers, config.data.bad_videos == "skip"
    cached, _ = ensure_cached(
        activations, spans, "features", [items], accelerator, workers, skip_bad
    )
    windows = window_loader(items, overlap, config, accelerator, cached)
    fit_class_weights(detector, windows, accelerator)


def _check_same_composition(path: Path, config: Experiment) -> None:
    """Raise ValueError if the checkpoint is of another run."""
    kept = load_checkpoint(path, Experiment)
    if kept.training or changed_settings(kept.config, config):
        raise ValueError(f"{path} belongs to another run; choose another --out")


def _check_same_backbone(
    path: Path, detector: Detector, cut: Cut, origins: Sequence[str], accelerator: Accelerator
) -> None:
    """Raise ValueError unless the run can resume, with the backbones that it began with."""
    config, kept = detector.config, load_checkpoint(path, Experiment)
    check_same_run(path, kept, config, detector.classes, accelerator.num_processes)
    about = settings(config.backbone, config.pixels, config.training.precision)
    then = Detector.restore(kept, path)
    for ours, theirs in zip(detector.streams, then.streams, strict=True):
        if fingerprints(ours.backbone, about)[cut] != fingerprints(theirs.backbone, about)[cut]:
            raise ValueError(
                f"{path.parent} was trained on a different backbone from what "
                f"{' and '.join(origins)} has now; start afresh in another `out`"
            )
