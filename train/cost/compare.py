"""Ways to train an experiment here, counted, tried and compared."""

import shutil
from collections.abc import Sequence

from accelerate import Accelerator

from extract.activations.activations import Activations
from extract.activations.plan import SpanRequest, plan
from extract.backbone.backbone import Cut
from train.cost.measure_network import measure
from train.cost.routes import Place, Routes, compare
from train.cost.workload import Filling, count, filling, proxy_side, trained_from, with_block
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
    """Compare the ways to train on videos that are there; None on all processes but the main one.

    Args:
        detector: with what learns end to end; on its device. Its weights are moved.
        activations: of its streams, in a store that is only looked at.
        validation: looked at while training; may be none.

    Raises:
        VideoError: not one of the videos that are tried can be read.
        MemoryError: the device's memory is too small to try the network.
        OSError: the system's folder for temporary files has no room for some megabytes.
    """
    config = detector.config

    def lacks(cut: Cut) -> Filling:
        overlap = config.sampling.validation_overlap
        spans = [
            training_spans(training, config.sampling, direction, config.cache.span)
            + evaluation_spans(validation, overlap, config.sampling, direction)
            for direction in config.directions
        ]
        pairs = zip(activations, spans, strict=True)
        wanted = [SpanRequest(of, some, (cut,)) for of, some in pairs]
        return filling(plan(wanted, accelerator, skip_gone=True))

    behind = [p for name, p in detector.named_parameters() if ".backbone." not in name]
    features = lacks("features") if any(p.requires_grad for p in behind) else None
    k, part = trained_from(config), None
    if k is not None:
        cut = with_block(config, k).backbone.last_frozen_cut
        assert cut is not None
        part = k, cut, lacks(cut)
    if not accelerator.is_main_process:
        return None
    work = count(config, training, validation, accelerator.num_processes)
    active = [item for item in training if len(item.segments)]
    trials = measure(detector, active, accelerator, k)
    videos, store = config.data.videos, activations[0].store
    return compare(
        work,
        trials,
        Place(videos, shutil.disk_usage(videos).free),
        Place(store.url, store.files.free_bytes()),
        proxy_side(config.pixels),
        LEARNERS[config.backbone.mode] if config.backbone.learns else None,
        features,
        part,
    )
