"""The task of training a detector: its losses, its validation, its cache."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import AdamW
from torch.utils.data import DataLoader
from tqdm import tqdm

from cache.errors import StoreError
from evaluate.mean_ap import MeanAP
from extract.activations.activations import Activations
from extract.activations.refresh import describe_unkept
from extract.activations.stored import Counts
from extract.backbone.backbone import Backbone
from extract.backbone.frozen import hold_frozen
from extract.parallel.lookahead import one_behind, start_fetch
from extract.sampling.frame_cache import FrameCache
from train.config import TrainingConfig
from train.data.batch import Batch, Sample
from train.data.cached import CachedStreams, window_span
from train.data.frame_rates import frame_rate_range
from train.data.items import VideoItem, format_skipped
from train.data.loading import EpochSampler
from train.data.windows import TrainingWindows, WindowInputs, training_loader
from train.detector.detection import OnFeatures, detect_subset, window_loader
from train.detector.evaluation import score_detections
from train.detector.model import Detector
from train.device.compiling import compile_function
from train.device.memory import settle_recompute
from train.engine.optim import group_by_decay
from train.modeling.losses import (
    PositivesAverage,
    detection_losses,
    distillation_losses,
    positive_points,
)
from train.modeling.points import Targets, assign, pad_truth, pyramid_mask, pyramid_points


class PreparedBatch(NamedTuple):
    """A micro-batch on the device, with the targets of each output and the weights of the losses.

    Attributes:
        weight: of the losses of every output [outputs], the same in all micro-batches of an update.
    """

    batch: Batch
    targets: list[Targets]
    weight: Tensor


class DetectionTask:
    """The task of a detector; see `train.engine.loop.Task` for its members.

    Args:
        detector: as built and initialised.
        training, validation: videos; validation None trains without validation.
        cached: stored activations of every stream to train on and validate with; None decodes
            videos.
        activations: of every stream, where validation stores features; empty stores none.
        frame_cache: of the videos' small frames, for later epochs.
        teacher: whose predictions are learned beside the truth; `cached` has its streams' features
            after the detector's own.

    Attributes:
        memory: what is recomputed to save memory, and why, as a line; empty if nothing was chosen.
    """

    losses = ("classification", "regression")
    measure = "mAP"

    def __init__(
        self,
        detector: Detector,
        training: list[VideoItem],
        validation: list[VideoItem] | None,
        accelerator: Accelerator,
        cached: CachedStreams | None = None,
        activations: Sequence[Activations] = (),
        frame_cache: FrameCache | None = None,
        teacher: Detector | None = None,
    ) -> None:
        self.config = config = detector.config
        self.teacher = teacher
        self.model, self.classes = detector, detector.classes
        self.accelerator, self.validation = accelerator, validation
        if activations and config.training.compile == "blocks":
            raise ValueError(
                "training.compile blocks changes by rounding what validation stores; set "
                "training.compile all or off, or omit --cache"
            )
        self.activations, self.counts, self.total = activations, Counts(), Counts()
        self.counts_activations = cached is not None or bool(activations)
        self.levels = config.head.levels
        inputs = WindowInputs.of(config, cached and replace(cached, held_tests=()), frame_cache)
        if teacher is not None:
            both = *config.directions, *teacher.config.directions
            inputs = replace(inputs, directions=both)
        self.dataset = TrainingWindows(training, inputs, config.training.seed)
        if not self.dataset.items:
            raise ValueError(f"no video of subset '{config.data.train_subset}' has an action")
        self.videos = [item.name for item in self.dataset.items]
        self.frame_rates = frame_rate_range(self.dataset.items)
        if validation is not None:
            # Kept: starting new decoding workers would cost every validation some seconds.
            overlap = config.sampling.validation_overlap
            # Its workers need no more than what they read.
            tested = cached and replace(cached.first(len(config.directions)), held=())
            self.windows = window_loader(
                validation, overlap, config, accelerator, tested, frame_cache
            )
        device, processes = accelerator.device, accelerator.num_processes
        self.memory = settle_recompute(detector.streams, config, device, processes)
        self.normaliser = PositivesAverage(detector.training_outputs, config.training.positives)
        self.normaliser.to(accelerator.device)
        self.optimizer = build_optimizer(detector, config.training)
        parts = config.training.compile
        self._assign = compile_function(assign, parts)
        self._losses = compile_function(detection_losses, parts)
        self._teaching_losses = compile_function(distillation_losses, parts)

    @property
    def validates(self) -> bool:
        return self.validation is not None

    @property
    def clipped(self) -> Sequence[nn.Module]:
        parts = [part for part in (*self.model.streams, self.model.fusion) if part is not None]
        # Averaging both streams has no weights.
        return [part for part in parts if next(part.parameters(), None) is not None]

    def hold_frozen(self) -> None:
        hold_frozen(self.model, self.config.training.precision, self.config.pixels.size)

    def loader(self, sampler: EpochSampler) -> "DataLoader[Sample]":
        cached = self.dataset.inputs.cached
        # Of held features a window is cut in less time than a worker takes to hand it over.
        workers = 0 if cached and cached.held else self.config.training.workers
        return training_loader(self.dataset, sampler, workers)

    def prepare(self, batches: Sequence[Batch]) -> list[PreparedBatch]:
        accelerator = self.accelerator
        # Turned last: what is made of the frames is made once for all streams.
        batches = [batch.to(accelerator.device).augmented().turned() for batch in batches]
        targets = [self.targets(batch) for batch in batches]
        # Known before the network runs, so that all micro-batches divide by the same number.
        positives = sum(
            torch.stack([positive_points(t, pyramid_mask(b.mask, self.levels)).sum() for t in of])
            for of, b in zip(targets, batches, strict=True)
        )
        assert isinstance(positives, Tensor)
        self.normaliser.update(accelerator.reduce(positives.float(), "sum"))
        # Gradients are averaged over processes, but positives were summed: undo the average.
        weight = accelerator.num_processes / self.normaliser.value
        return [PreparedBatch(b, t, weight) for b, t in zip(batches, targets, strict=True)]

    def loss(self, network: nn.Module, weighed: PreparedBatch) -> Tensor:
        batch, targets, weight = weighed
        own = len(self.model.streams)
        with self.accelerator.autocast():
            outputs = network(batch.inputs[:own], batch.mask, batch.reflection, batch.start)
        pairs = zip(outputs, targets, strict=True)
        of = self.config.training.label_smoothing, self.config.training.boundary_weight
        each = torch.stack([torch.stack(self._losses(o, t, *of)) for o, t in pairs])
        if self.teacher is not None:
            with torch.no_grad(), self.accelerator.autocast():
                places = batch.mask, batch.reflection
                predicted = self.teacher.predict(batch.inputs[own:], *places)
            ((target, _),) = predicted[self.teacher.main_output]
            taught = torch.stack(self._teaching_losses(outputs[0], target))
            each = each + self.config.training.teacher_weight * taught
        return (each * weight[:, None]).sum(0)

    def targets(self, batch: Batch) -> list[Targets]:
        """Return the targets of each output."""
        of = self.config.training
        length, device = batch.mask.shape[1], batch.mask.device
        points = pyramid_points(length, self.levels, device, of.overlapping_ranges)
        return [
            self._assign(
                points, *pad_truth(segments, batch.labels), len(self.classes), of.every_class
            )
            for segments in batch.segments[: self.model.training_outputs]
        ]

    def validate(self) -> tuple[MeanAP, int]:
        assert self.validation is not None
        with one_behind() as finish_later:
            found, skipped = detect_subset(
                self.model,
                self.validation,
                self.windows,
                self.accelerator,
                "validation",
                self._store_features(finish_later),
            )
        with self._tolerate_cache_errors():
            for activations in self.activations:
                activations.flush()
        if skipped and self.accelerator.is_main_process:
            tqdm.write(format_skipped(skipped, len(self.validation)))
        return score_detections(self.validation, found[self.model.main_output], self.model), len(
            skipped
        )

    def observe(self, batch: Batch) -> None:
        if batch.start is None:
            self.counts.full += len(batch.videos)
        else:
            self.counts.hits += len(batch.videos)

    def log_counts(self, when: str) -> None:
        if not self.counts_activations:
            return
        of = self.counts
        mine = torch.tensor([of.hits, of.partial, of.full], device=self.accelerator.device)
        total = self.total
        total.hits, total.partial, total.full = self.accelerator.reduce(mine, "sum").tolist()
        if self.accelerator.is_main_process:
            tqdm.write(f"{when}: activations: {self.total}")

    def close(self) -> None:
        with self._tolerate_cache_errors():
            for activations in self.activations:
                activations.close()
        unkept = describe_unkept(self.activations, self.accelerator)
        if unkept and self.accelerator.is_main_process:
            tqdm.write(f"warning: {unkept}")

    def state_dict(self) -> dict[str, Any]:
        return {"normaliser": self.normaliser.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.normaliser.load_state_dict(state["normaliser"])

    def _store_features(self, finish_later: Callable[[Callable[[], None]], None]) -> OnFeatures:
        """Return a callback that counts validated windows and stores their features.

        Args:
            finish_later: see `one_behind`.
        """
        assert self.validation is not None
        items = {item.name: item for item in self.validation}
        # Of the averaged weights, which are loaded now and do not change meanwhile.
        places = [activations.cached_cuts()["features"] for activations in self.activations]

        def store(batch: Batch, features: Sequence[Tensor]) -> None:
            self.observe(batch)
            if not self.activations:
                return
            rows = enumerate(zip(batch.videos, batch.windows, strict=True))
            whole = [(row, items[v], w) for row, (v, w) in rows if row not in batch.problems]
            missing = []
            with self._tolerate_cache_errors():
                missing = [
                    (stream, row, span)
                    for row, item, window in whole
                    for stream, direction in enumerate(self.config.directions)
                    if not places[stream].contains(span := window_span(item, window, direction))
                ]
            if not missing:
                return
            fetches = [start_fetch(of_stream.mT) for of_stream in features]

            def finish() -> None:
                if not self.activations:  # a batch before could not be written
                    return
                on_host = [fetch() for fetch in fetches]
                with self._tolerate_cache_errors():
                    for stream, row, span in missing:
                        place, of_window = places[stream], on_host[stream][row]
                        self.activations[stream].write(place, span, of_window)

            finish_later(finish)

        return store

    @contextmanager
    def _tolerate_cache_errors(self) -> Iterator[None]:
        """Disable the cache, rather than end the run, if it cannot be written."""
        try:
            yield
        except (OSError, StoreError) as error:
            self.activations = ()
            tqdm.write(f"warning: {error}; training continues without the cache")


def build_optimizer(detector: Detector, config: TrainingConfig) -> AdamW:
    """Return AdamW with a learning rate each for heads and backbones.

    Biases, norms and scales of heads and of the fusion do not decay; all tensors of a backbone do,
    an adapter's biases and γ among them, as in OpenTAD. Every stream, and the fusion, has groups of
    its own.
    """
    groups = []
    parts: list[tuple[nn.Module, float]] = [
        part
        for stream in detector.streams
        for part in ((stream.head, config.lr), (stream.backbone, config.backbone_lr))
    ]
    if detector.fusion is not None:
        parts.append((detector.fusion, config.lr))
    for module, lr in parts:
        # A backbone has these two groups as well: with them optimizers of earlier runs fit in.
        for group in group_by_decay(module, config.weight_decay):
            if isinstance(module, Backbone):
                group["weight_decay"] = config.weight_decay
            groups.append(group | {"lr": lr})
    # Fused, it checks on the device whether fp16 gradients overflowed, without the host waiting.
    return AdamW(groups, fused=True)
