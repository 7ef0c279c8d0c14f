"""Ways to train an experiment here, counted, tried and compared."""

import shutil
import time
from collections.abc import Sequence

from accelerate import Accelerator

from extract.activations.activations import Activations
from extract.activations.plan import SpanRequest, estimate_s, needed_bytes, plan
from extract.backbone.backbone import Cut
from train.cost.measure import measure_reading, measure_step
from train.cost.routes import CachedCost, Measurements, Routes, compare
from train.cost.workload import count, proxy_side, trained_from, with_block
from train.data.cached import evaluation_spans, training_spans
from train.data.videos import VideoItem
from train.detector.model import Detector

LEARNERS = {"adapter": "adapters", "side": "adapters beside", "full": "transformer blocks"}


def not_comparable(
    detector: Detector, training: Sequence[VideoItem], validation: Sequence[VideoItem]
) -> str | None:
    """Return why there is nothing to choose; None if there is."""
    gone = sum(not item.path.exists() for item in (*training, *validation))
    if gone:
        return f"{gone} videos are gone, so that only what is stored can be trained on"
    if not any(len(item.segments) for item in training):
        return "no training video has an action"
    if not any(p.requires_grad for p in detector.parameters()):
        return "nothing learns in this experiment"
    return None


def compared(
    detector: Detector,
    activations: Sequence[Activations],
    training: Sequence[VideoItem],
    validation: Sequence[VideoItem],
    accelerator: Accelerator,
) -> Routes | None:
    """Return the ways to train on videos that are there; None on all processes but the main one.

    Args:
        detector: with what learns end to end; on its device.
        activations: of its streams, in a store that is only looked at.
        validation: looked at while training; may be none.

    Raises:
        VideoError: not one of the videos that are tried can be read.
        MemoryError: the device's memory is too small to try the network.
        OSError: the system's folder for temporary files has no room for some megabytes.
    """
    config, processes, began = detector.config, accelerator.num_processes, time.monotonic()
    active = [item for item in training if len(item.segments)]

    def of_cut(cut: Cut, frozen_below: int) -> CachedCost:
        overlap = config.sampling.validation_overlap
        spans = [
            training_spans(training, config.sampling, direction, config.cache.span)
            + evaluation_spans(validation, overlap, config.sampling, direction)
            for direction in config.directions
        ]
        pairs = zip(activations, spans, strict=True)
        wanted = [SpanRequest(of, some, (cut,)) for of, some in pairs]
        lacks = plan(wanted, accelerator, skip_gone=True)
        filling_h = estimate_s(lacks, config.training.workers) / processes / 3600
        frozen = with_block(config, frozen_below)
        step = measure_step(frozen, detector.classes, active[0], accelerator, cut)
        return CachedCost(cut, frozen_below, lacks.bytes, needed_bytes(lacks), filling_h, step)

    behind = [p for name, p in detector.named_parameters() if ".backbone." not in name]
    learns_behind = any(p.requires_grad for p in behind)
    features = of_cut("features", config.backbone.depth) if learns_behind else None
    k, part = trained_from(config), None
    if k is not None:
        cut = with_block(config, k).backbone.last_frozen_cut
        assert cut is not None
        part = of_cut(cut, k)
    pixels = measure_step(config, detector.classes, active[0], accelerator, None)
    if not accelerator.is_main_process:
        return None
    reading = measure_reading(config, active, proxy_side(config.pixels))
    videos, store = config.data.videos, activations[0].store
    return compare(
        count(config, training, validation, processes),
        Measurements(time.monotonic() - began, reading, pixels, features, part),
        (videos, shutil.disk_usage(videos).free),
        (store.url, store.files.free_bytes()),
        LEARNERS[config.backbone.mode] if config.backbone.learns else None,
    )
