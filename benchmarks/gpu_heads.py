"""The parts of `benchmarks.gpu` on heads, whose features are on the device already."""

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from accelerate import Accelerator
from torch import Tensor

from benchmarks.gpu_loop import measure_epoch, two_epochs
from benchmarks.gpu_parts import Plan, Row
from benchmarks.gpu_steps import (
    BACKENDS,
    NAMES,
    Step,
    measure,
    new_accelerator,
    noise_batch,
    noise_video,
    settings,
)
from cache.address import DTYPES
from cache.store import Store
from extract.activations.stored import Cached
from extract.backbone.precision import autocast
from train.config import Compile, Experiment
from train.data.cached import CachedStreams, hold_features, training_spans
from train.data.items import VideoItem
from train.detector.model import Detector
from train.detector.training import DetectionTask, build_optimizer
from train.device import compiling
from train.engine.loop import TrainingRun
from train.engine.session import settle_device
from train.modeling.losses import detection_losses
from train.modeling.points import assign_batch, pyramid_points

VIDEOS, WINDOWS = 200, 2  # as many rows of features as THUMOS-14's training videos have
GRAPH = "CUDA graph"
WAYS: dict[str, dict[str, Any] | None] = {  # of an update: torch.compile's options; None: eager
    "modules walked": None,
    "lists kept": None,
    "compiled": {},
    GRAPH: {"mode": "reduce-overhead"},
}


def time_heads(plan: Plan) -> Iterator[Row]:
    """Yield updates of a head alone, on one batch of features, made in several ways."""
    (size,) = plan.sizes("s")
    for way in WAYS:
        if way == GRAPH and plan.device != "cuda":
            yield {"size": size, "way": way, "skipped": "there is no GPU"}
            continue
        with tempfile.TemporaryDirectory() as folder:
            config = settings(size, 2, "none", folder)
        build = partial(build_head_step, config, plan, way)
        row = measure(build, plan.repeats, plan.device)
        updates = {} if "failed" in row else {"updates_per_s": 1 / row["step_s"]}
        yield {"size": size, "way": way} | row | updates


def build_head_step(config: Experiment, plan: Plan, way: str) -> Step:
    """Return a function that makes an update of a head in one of `WAYS`."""
    device = torch.device(plan.device)
    settle_device(device, config)
    with device:
        detector = Detector(config, NAMES).train()
        batch = noise_batch(config, plan.device)
    (stream,) = detector.streams
    stream.backbone.requires_grad_(False)
    optimizer = build_optimizer(detector, config.training)
    steps = batch.mask.shape[1]
    features = torch.randn(len(batch.mask), config.backbone.width, steps, device=plan.device)
    points = pyramid_points(steps, config.head.levels, features.device)

    def learning() -> list[Tensor]:
        return [weight for weight in detector.parameters() if weight.requires_grad]

    kept = learning()

    def losses() -> Tensor:
        targets = assign_batch(points, batch.segments[0], batch.labels, len(NAMES))
        with autocast(config.training.precision, device):
            output = stream.head(features, batch.mask)
        return torch.stack(detection_losses(output, targets))

    options = WAYS[way]
    backend = BACKENDS[plan.device]
    work = losses if options is None else torch.compile(losses, backend=backend, **options)

    def step() -> Tensor:
        found = work()
        found.sum().backward()
        weights = learning() if way == "modules walked" else kept
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return found.detach()

    return step


def time_head_training(plan: Plan) -> Iterator[Row]:
    """Yield the second epoch of a run on features that are held on the device."""
    (size,) = plan.sizes("s")
    ways: tuple[Compile, ...] = "off", "all"
    with tempfile.TemporaryDirectory() as folder:
        for way in ways:
            config = two_epochs(settings(size, 2, "none", str(Path(folder) / way)), 0, way)
            row = measure_epoch(plan, start_run(plan, config, resume=False))
            rate = {"updates_per_s": 1 / row["seconds_per_update"]}
            yield {"size": size, "compile": way} | row | rate


def resume_training(plan: Plan) -> Iterator[Row]:
    """Yield how far a resumed run's losses are from those of a run that went on.

    Beside it stands how far two that went on are from each other, which is 0 where the device
    computes the same twice.
    """
    (size,) = plan.sizes("s")
    with tempfile.TemporaryDirectory() as folder:

        def train(name: str, epochs: int, resume: bool) -> Tensor:
            """Return the losses of every update [N]."""
            config = two_epochs(settings(size, 2, "none", str(Path(folder) / name)), 0, "off")
            config = replace(config, training=replace(config.training, stop_epoch=epochs))
            run = start_run(plan, config, resume)
            losses, update = list[Tensor](), run.update

            def noted(step: int, batches: Any) -> Any:
                done = update(step, batches)
                losses.append(torch.stack([batch.losses for batch in done]).sum())
                return done

            run.update = noted  # type: ignore[method-assign]
            run.train()
            return torch.stack(losses).cpu()

        whole, again = train("whole", 2, resume=False), train("again", 2, resume=False)
        parts = train("broken", 1, resume=False), train("broken", 2, resume=True)
    yield {
        "size": size,
        "updates": len(whole),
        "resumed_after": len(parts[0]),
        "between_runs": float((whole - again).abs().max()),
        "after_resuming": float((whole - torch.cat(parts)).abs().max()),
    }


def start_run(plan: Plan, config: Experiment, resume: bool) -> TrainingRun[DetectionTask]:
    """Return a run of the head alone, in `config.out`, on features of noise that are beside it."""
    depth = config.backbone.depth
    config = replace(config, backbone=replace(config.backbone, trainable_from_block=depth))
    out = Path(config.out)
    out.mkdir(exist_ok=True)
    accelerator = new_accelerator(config, plan.device)
    # Their numbers of actions differ, and so do the shapes of what is learned from.
    count = 6 if plan.small else VIDEOS
    items = [noise_video(number, WINDOWS, 1 + number % 5, config) for number in range(count)]
    cached = hold_noise(config, items, accelerator, out.parent / "features")
    # A GPU's compiler is the run's own; a CPU only traces.
    with patch.object(compiling, "BACKEND", BACKENDS[plan.device]):
        task = DetectionTask(Detector(config, NAMES), items, None, accelerator, cached)
        return TrainingRun(task, accelerator, resume)


def hold_noise(
    config: Experiment, items: list[VideoItem], accelerator: Accelerator, folder: Path
) -> CachedStreams:
    """Return features of the items' spans, held on the device; a folder keeps them for others."""
    spans = training_spans(items, config.sampling, config.direction, config.cache.span)
    generator = torch.Generator()  # of its own: a run's weights come from its seed
    with Store.open(folder, "a") as store:
        place = Cached(store, "features", "0" * 32, config.cache.dtype)
        with store.writer() as writer:
            for span in (span for span in spans if not place.contains(span)):
                rows = torch.randn(span.rows, config.backbone.width, generator=generator)
                writer.write(place.address(span), rows.to(DTYPES[config.cache.dtype]))
        store.refresh()
        cached = CachedStreams((place,), config.cache.span)
        held = hold_features(cached, [spans], accelerator, "train on", accelerator.device)
    if not held or held[0].rows.device.type != accelerator.device.type:
        raise RuntimeError("the device has no room for the features")
    return replace(cached, held=held)


PARTS = {
    "heads": time_heads,
    "head training": time_head_training,
    "resuming": resume_training,
}
