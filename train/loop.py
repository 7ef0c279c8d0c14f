"""The training loop: steps, validation, checkpoints, and going on after an interruption."""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from tqdm import tqdm

from cache.errors import StoreError
from configs.text import first_of
from extract.activations import Activations, Counts
from extract.frames import FrameCache
from train.batch import Batch
from train.cached import Streams, window_span
from train.checkpoint import Checkpoint, load_checkpoint, refuse_other_run, save_checkpoint
from train.dataset import EpochSampler, TrainingWindows, training_loader
from train.detector import Detector
from train.errors import memory_advice, worker_advice
from train.items import Item, skipped_warning
from train.log import MetricsLog
from train.losses import PositivesAverage, detection_losses, positive_points
from train.optim import Average, build_optimizer, build_schedule
from train.points import Targets, assign_batch, pyramid_mask, pyramid_points
from train.sharding import gathered, load_model, load_optimizer, prepare_sharding, whole
from train.validate import Keep, detect_all, score, window_loader

LOG_EVERY = 10  # updates between two lines of metrics
SAVE_EVERY = 5  # epochs between two checkpoints where nothing is validated


class MicroBatch(NamedTuple):
    """What is remembered of a micro-batch until its update is logged.

    Attributes:
        videos: whose windows it held.
        losses: classification and regression [2], still on the device.
        stand_ins: windows that stand in for those of videos that cannot be read.
    """

    videos: tuple[str, ...]
    losses: Tensor
    stand_ins: int


class TrainingRun:
    """What one run holds together; `go` trains to the end and leaves its files in `config.out`.

    Args:
        detector: as built and initialised; it is moved to the accelerator's device, or sharded.
        training, validation: videos; validation None trains without looking.
        resume: go on from last.pt.
        cached: stored activations of every stream to train on and validate with; None decodes
            videos.
        activations: where validation leaves every stream's features; none to keep none.
        kept: where the videos' small frames are kept for the next epochs.
    """

    def __init__(
        self,
        detector: Detector,
        training: list[Item],
        validation: list[Item] | None,
        accelerator: Accelerator,
        resume: bool,
        cached: Streams | None = None,
        activations: Sequence[Activations] = (),
        kept: FrameCache | None = None,
    ) -> None:
        self.config = config = detector.config
        self.activations, self.counts = activations, Counts()
        self.counting = cached is not None or bool(activations)
        self.accelerator, self.validation = accelerator, validation
        self.out = Path(config.out)
        self.levels = config.head.levels
        self.epoch, self.saved_epoch, self.best = 0, 0, -1.0
        self.validated = True  # nothing to make up for
        self.problems: set[str] = set()  # causes that were told
        dataset = TrainingWindows(training, config, cached, kept)
        self.videos = [item.name for item in dataset.items]
        self.sampler = EpochSampler(
            len(dataset),
            config.training.batch_size,
            accelerator.process_index,
            accelerator.num_processes,
            config.training.seed,
            config.training.accumulate,
        )
        self.updates = self.sampler.steps // config.training.accumulate
        self.loader = training_loader(dataset, self.sampler, config)
        if validation is not None:
            # Kept: starting decoding workers anew would cost every validation some seconds.
            overlap = config.sampling.validation_overlap
            self.validation_windows = window_loader(
                validation, overlap, config, accelerator, cached, kept
            )
        self.normaliser = PositivesAverage(detector.learned, self.config.training.positives)
        self.normaliser.to(accelerator.device)
        optimizer = build_optimizer(detector, config.training)
        self.schedule = build_schedule(optimizer, config.training, self.updates)
        prepare_sharding(accelerator)
        self.detector = detector
        self.wrapped, self.optimizer = accelerator.prepare(detector, optimizer)
        # Behind `prepare`, which may have moved or sharded the weights.
        self.average = Average(detector, config.training.ema_decay)
        if resume:
            self._resume()
        first_step = self.epoch * self.updates
        self.log = MetricsLog(self.out, accelerator.is_main_process, first_step, self.validated)
        self.bar: tqdm[Any] = tqdm(
            total=config.training.stop_epoch * self.updates,
            initial=first_step,
            unit="step",
            desc="training",
            disable=not accelerator.is_main_process,
        )

    def go(self) -> None:
        """Train to the last epoch.

        Raises:
            FloatingPointError: a loss is not finite.
            OSError: something could not be written; what was written before is whole.
        """
        with self.bar, closing(self.log):
            if not self.validated:
                self._validate()
            while self.epoch < self.config.training.stop_epoch:
                self._train_epoch()
                self.epoch += 1
                self._end_epoch()
            if self.counting:
                self._tell_counts("in all")
            with self._by_the_way():
                for activations in self.activations:
                    activations.close()

    def _end_epoch(self) -> None:
        settings = self.config.training
        last = self.epoch == settings.stop_epoch
        due = self.epoch >= settings.validate_from and self.epoch % settings.validate_every == 0
        self.validated = self.validation is None or not (due or last)
        if due or last or self.epoch % SAVE_EVERY == 0:
            # Before validating, too: what goes wrong there must not cost the epoch.
            self._save("last.pt")
        if not self.validated:
            self._validate()
            if self.counting:
                self._tell_counts(f"up to epoch {self.epoch}")

    def _train_epoch(self) -> None:
        self.wrapped.train()
        self.sampler.epoch = self.epoch
        began, recent = time.monotonic(), list[MicroBatch]()
        with worker_advice(), memory_advice("training.batch_size"):
            updates = zip(*[iter(self.loader)] * self.config.training.accumulate, strict=True)
            for step, batches in enumerate(updates, self.epoch * self.updates):
                self._warn_of_problems(batches)
                for batch in batches:
                    self._count(batch)
                recent += self._update(step, batches)
                self.bar.update()
                if (step + 1) % LOG_EVERY == 0 or (step + 1) % self.updates == 0:
                    self._report(step + 1, recent, began)
                    began, recent = time.monotonic(), []

    def _update(self, step: int, batches: Sequence[Batch]) -> list[MicroBatch]:
        """Move the weights once. Nothing here may make the host wait for the device."""
        settings, accelerator = self.config.training, self.accelerator
        self.schedule.step_update(step)
        batches = [batch.to(accelerator.device) for batch in batches]
        targets = [self._targets(batch) for batch in batches]
        # Known before the network runs, so that all micro-batches divide by the same number.
        positives = sum(
            torch.stack([positive_points(t, pyramid_mask(b.mask, self.levels)).sum() for t in of])
            for of, b in zip(targets, batches, strict=True)
        )
        assert isinstance(positives, Tensor)
        self.normaliser.update(accelerator.reduce(positives.float(), "sum"))
        # Gradients are averaged over processes, but positives were summed: undo the average.
        weight = accelerator.num_processes / self.normaliser.value
        done = []
        for number, (batch, target) in enumerate(zip(batches, targets, strict=True)):
            # Drop path needs no state of its own to be resumed.
            torch.manual_seed(_seed(settings.seed, step, number, accelerator.process_index))
            last = number + 1 == len(batches)
            with nullcontext() if last else accelerator.no_sync(self.wrapped):
                with accelerator.autocast():
                    outputs = self.wrapped(batch.inputs, batch.mask, batch.reflection, batch.start)
                pairs = zip(outputs, target, strict=True)
                of = settings.label_smoothing, settings.boundary_weight
                each = torch.stack([torch.stack(detection_losses(o, t, *of)) for o, t in pairs])
                losses = (each * weight[:, None]).sum(0)
                accelerator.backward(losses.sum())
            done.append(MicroBatch(batch.videos, losses.detach(), len(batch.problems)))
        accelerator.unscale_gradients()
        for part in (*self.detector.streams, self.detector.fusion):
            if part is not None:
                clip_grad_norm_(part.parameters(), settings.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.average.update(self.detector)
        return done

    def _warn_of_problems(self, batches: Sequence[Batch]) -> None:
        """Say once per video that it cannot be read and that others stand in for it."""
        for cause in (cause for batch in batches for cause in batch.problems.values()):
            if cause not in self.problems:
                self.problems.add(cause)
                tqdm.write(f"warning: {cause}; another video is trained on in its place")

    def _targets(self, batch: Batch) -> list[Targets]:
        """Return what each output should be."""
        points = pyramid_points(batch.mask.shape[1], self.levels, batch.mask.device)
        return [
            assign_batch(points, segments, batch.labels, len(self.detector.classes))
            for segments in batch.segments[: self.detector.learned]
        ]

    def _report(self, step: int, recent: list[MicroBatch], began: float) -> None:
        """Look at the losses since the last line; write their mean over updates and processes."""
        updates = len(recent) // self.config.training.accumulate
        losses = torch.stack([batch.losses for batch in recent])
        stand_ins = losses.new_tensor([sum(batch.stand_ins for batch in recent)])
        sums = self.accelerator.reduce(torch.cat([losses.sum(0) / updates, stand_ins]), "sum")
        # The host waits here for all that it asked of the device since the last line.
        *losses_of_all, stand_in_count = sums.tolist()
        classification, regression = (x / self.accelerator.num_processes for x in losses_of_all)
        if not math.isfinite(classification + regression):
            self._refuse_nan(recent, losses)
        loss = classification + regression
        self.bar.set_postfix(epoch=self.epoch + 1, loss=f"{loss:.3f}")
        with self._what_is_safe():
            self.log.write(
                step,
                epoch=self.epoch + 1,
                loss=loss,
                classification=classification,
                regression=regression,
                stand_ins=int(stand_in_count),
                lr=self.optimizer.param_groups[0]["lr"],
                seconds_per_step=round((time.monotonic() - began) / updates, 4),
            )

    def _refuse_nan(self, recent: list[MicroBatch], losses: Tensor) -> NoReturn:
        """Stop all processes with the videos of the micro-batch where it began."""
        bad = [
            (index, float(row.sum()), recent[index].videos)
            for index, row in enumerate(losses.cpu())
            if not row.isfinite().all()
        ]
        _, loss, videos = min(gather_object(bad[:1]))
        raise FloatingPointError(
            f"the loss became {loss} on windows of {', '.join(videos)}; "
            "lower training.lr or training.backbone_lr, or set training.precision to fp32. "
            f"What was saved before stands in {self.out}"
        )

    def _validate(self) -> None:
        """Score the averaged weights and keep them if they are the best so far."""
        assert self.validation is not None
        self.detector.eval()
        with self.average.applied(self.detector), gathered(self.detector):
            found, skipped = detect_all(
                self.detector,
                self.validation,
                self.validation_windows,
                self.accelerator,
                "validation",
                self._keep(),
            )
            with self._by_the_way():
                for activations in self.activations:
                    activations.flush()
        result = score(self.validation, found[self.detector.answer], self.detector)
        with self._what_is_safe():
            self.log.write(
                self.epoch * self.updates,
                validation=result.as_dict(),
                skipped_videos=len(skipped),
            )
        if self.accelerator.is_main_process:
            if skipped:
                self.bar.write(skipped_warning(skipped, len(self.validation)))
            self.bar.write(f"epoch {self.epoch}: validation mAP {result.average:.4f}")
        self.validated = True
        if result.average > self.best:
            self.best = result.average
            self._save("best.pt")
        self._save("last.pt")

    def _keep(self) -> Keep:
        """Return what counts validated windows and puts their features into the cache."""
        assert self.validation is not None
        items = {item.name: item for item in self.validation}
        # Of the averaged weights, which are in place and do not move meanwhile.
        places = [activations.places()["features"] for activations in self.activations]

        def keep(batch: Batch, features: Sequence[Tensor]) -> None:
            self._count(batch)
            rows = enumerate(zip(batch.videos, batch.windows, strict=True))
            for row, (video, window) in rows:
                if not self.activations or row in batch.problems:
                    continue
                with self._by_the_way():
                    for activations, place, direction, of_all in zip(
                        self.activations, places, self.config.directions, features, strict=True
                    ):
                        span = window_span(items[video], window, direction)
                        if not place.has(span):
                            activations.put(place, span, of_all[row].mT)

        return keep

    @contextmanager
    def _by_the_way(self) -> Iterator[None]:
        """Give the cache up, not the run, if it cannot be written."""
        try:
            yield
        except (OSError, StoreError) as error:
            self.activations = ()
            tqdm.write(f"warning: {error}; training goes on without the cache")

    def _count(self, batch: Batch) -> None:
        if batch.start is None:
            self.counts.full += len(batch.videos)
        else:
            self.counts.hits += len(batch.videos)

    def _tell_counts(self, when: str) -> None:
        """Say how the activations of all processes came about."""
        of = self.counts
        mine = torch.tensor([of.hits, of.partial, of.full], device=self.accelerator.device)
        hits, partial, full = self.accelerator.reduce(mine, "sum").tolist()
        if self.accelerator.is_main_process:
            self.bar.write(f"{when}: activations: {Counts(hits, partial, full)}")

    def _save(self, name: str) -> None:
        """Write a checkpoint; all processes take part, for each may hold a share of the weights."""
        main, scaler = self.accelerator.is_main_process, self.accelerator.scaler
        resumable = name == "last.pt"
        model = whole(self.detector.state_dict(), main)
        average = whole(self.average.tensors, main)
        optimizer = whole(self.optimizer.state_dict(), main) if resumable else {}
        if not main:
            return
        training = {
            "epoch": self.epoch,
            "validated": self.validated,
            "best": self.best,
            "processes": self.accelerator.num_processes,
            "videos": self.videos,
            "optimizer": optimizer,
            "normaliser": self.normaliser.state_dict(),
            "scaler": scaler.state_dict() if scaler else None,
        }
        checkpoint = Checkpoint(
            config=self.config,
            classes=self.detector.classes,
            model=model,
            ema=model | average,
            training=training if resumable else {},
        )
        with self._what_is_safe():
            save_checkpoint(self.out / name, checkpoint)
        if resumable:
            self.saved_epoch = self.epoch

    @contextmanager
    def _what_is_safe(self) -> Iterator[None]:
        """Say what a failed write did not cost, and how to go on."""
        try:
            yield
        except OSError as error:
            safe = (
                f"last.pt of epoch {self.saved_epoch} and all before it is safe"
                if self.saved_epoch
                else "no epoch was saved yet"
            )
            raise OSError(
                f"cannot write into {self.out}: {error.strerror or error}; {safe}. Make room, then "
                "go on with --resume"
            ) from error

    def _resume(self) -> None:
        path = self.out / "last.pt"
        checkpoint = load_checkpoint(path)
        refuse_other_run(
            path, checkpoint, self.config, self.detector.classes, self.accelerator.num_processes
        )
        state = checkpoint.training
        load_model(self.detector, checkpoint.model)
        self.average.load({name: checkpoint.ema[name] for name in self.average.tensors})
        load_optimizer(self.optimizer, state["optimizer"])
        self.normaliser.load_state_dict(state["normaliser"])
        if self.accelerator.scaler:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.epoch = self.saved_epoch = state["epoch"]
        self.best, self.validated = state["best"], state["validated"]
        if self.accelerator.is_main_process and set(state["videos"]) != set(self.videos):
            gone = sorted(set(state["videos"]) - set(self.videos))
            new = sorted(set(self.videos) - set(state["videos"]))
            tqdm.write(
                f"warning: goes on with other training videos than {path} was trained on, so it "
                "will not end as it would have:\n  "
                + "\n  ".join(first_of([f"without {n}" for n in gone] + [f"with {n}" for n in new]))
            )


def _seed(*numbers: int) -> int:
    """Return a seed that shares nothing with those of neighbouring numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])
