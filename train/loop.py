"""The training loop: steps, validation, checkpoints, and going on after an interruption."""

import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

from train.batch import Batch
from train.checkpoint import Checkpoint, load_checkpoint, refuse_other_run, save_checkpoint
from train.dataset import EpochSampler, TrainingWindows, training_loader
from train.detector import Detector
from train.errors import memory_advice
from train.items import Item
from train.log import MetricsLog
from train.losses import PositivesAverage, detection_losses
from train.optim import build_average, build_optimizer, build_schedule
from train.points import assign_batch, pyramid_points
from train.validate import detect_all, score, window_loader

LOG_EVERY = 10  # steps between two lines of metrics
SAVE_EVERY = 5  # epochs between two checkpoints where nothing is validated


class StepLosses(NamedTuple):
    """Losses of one step, still on the device."""

    total: Tensor
    classification: Tensor
    regression: Tensor


class TrainingRun:
    """What one run holds together; `go` trains to the end and leaves its files in `config.out`.

    Args:
        detector: as built and initialised; it is moved to the accelerator's device.
        training, validation: videos; validation None trains without looking.
        resume: go on from last.pt.
    """

    def __init__(
        self,
        detector: Detector,
        training: list[Item],
        validation: list[Item] | None,
        accelerator: Accelerator,
        resume: bool,
    ) -> None:
        self.config = config = detector.config
        self.accelerator, self.validation = accelerator, validation
        self.out = Path(config.out)
        self.epoch, self.best = 0, -1.0
        self.validated = True  # nothing to make up for
        dataset = TrainingWindows(training, config)
        self.sampler = EpochSampler(
            len(dataset),
            config.training.batch_size,
            accelerator.process_index,
            accelerator.num_processes,
            config.training.seed,
            config.training.accumulate,
        )
        self.loader = training_loader(dataset, self.sampler, config)
        if validation is not None:
            # Kept: starting decoding workers anew would cost every validation some seconds.
            overlap = config.sampling.validation_overlap
            self.validation_windows = window_loader(validation, overlap, config, accelerator)
        self.detector = detector.to(accelerator.device)
        self.average = build_average(detector, config.training)
        self.normaliser = PositivesAverage().to(accelerator.device)
        optimizer = build_optimizer(detector, config.training)
        self.schedule = build_schedule(optimizer, config.training, self.sampler.steps)
        self.wrapped, self.optimizer = accelerator.prepare(detector, optimizer)
        if resume:
            self._resume()
        first_step = self.epoch * self.sampler.steps
        self.log = MetricsLog(self.out, accelerator.is_main_process, first_step, self.validated)
        self.bar: tqdm[Any] = tqdm(
            total=config.training.stop_epoch * self.sampler.steps,
            initial=first_step,
            unit="step",
            desc="training",
            disable=not accelerator.is_main_process,
        )

    def go(self) -> Detector:
        """Train to the last epoch; return the detector with its averaged weights, eval mode."""
        settings = self.config.training
        if not self.validated:
            self._validate()
        while self.epoch < settings.stop_epoch:
            self._train_epoch()
            self.epoch += 1
            last = self.epoch == settings.stop_epoch
            due = self.epoch >= settings.validate_from and self.epoch % settings.validate_every == 0
            self.validated = self.validation is None or not (due or last)
            if due or last or self.epoch % SAVE_EVERY == 0:
                # Before validating, too: what goes wrong there must not cost the epoch.
                self._save("last.pt")
            if not self.validated:
                self._validate()
        self.bar.close()
        self.log.close()
        averaged: Detector = self.average.module.eval()
        return averaged

    def _train_epoch(self) -> None:
        self.wrapped.train()
        self.sampler.epoch = self.epoch
        began, logged = time.monotonic(), 0
        previous: tuple[StepLosses, Batch] | None = None
        for index, batch in enumerate(self.loader):
            step = self.epoch * self.sampler.steps + index
            losses = self._step(step, batch)
            # Looked at one step late, so that the device need not wait for the host.
            if previous is not None:
                self._refuse_nan(*previous)
            previous = losses, batch
            self.bar.update()
            if (step + 1) % LOG_EVERY == 0 or index + 1 == self.sampler.steps:
                self._refuse_nan(losses, batch)
                seconds = (time.monotonic() - began) / (index + 1 - logged)
                began, logged = time.monotonic(), index + 1
                self._report(step + 1, losses, seconds)
        if previous is not None:
            self._refuse_nan(*previous)

    def _step(self, step: int, batch: Batch) -> StepLosses:
        settings, accelerator = self.config.training, self.accelerator
        self.schedule.step_update(step)
        # One seed per step and process: drop path needs no state of its own to be resumed.
        torch.manual_seed(settings.seed * 1_000_003 + step * 1009 + accelerator.process_index)
        with memory_advice("training.batch_size"), accelerator.accumulate(self.wrapped):
            batch = batch.to(accelerator.device)
            with accelerator.autocast():
                output = self.wrapped(batch.frames, batch.mask)
            points = pyramid_points(batch.mask.shape[1], len(output.masks), accelerator.device)
            classes = len(self.detector.classes)
            targets = assign_batch(points, batch.segments, batch.labels, classes)
            sums = detection_losses(output, targets)
            self.normaliser.update(accelerator.reduce(sums.positives, "sum"))
            # Gradients are averaged over processes, but positives were summed: undo the average.
            weight = accelerator.num_processes / self.normaliser.value
            total = (sums.classification + sums.regression) * weight
            accelerator.backward(total)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(self.detector.parameters(), settings.clip_norm)
            self.optimizer.step()
            self.optimizer.zero_grad()
        if accelerator.sync_gradients:
            self.average.update(self.detector)
        return StepLosses(
            total.detach(),
            (sums.classification * weight).detach(),
            (sums.regression * weight).detach(),
        )

    def _report(self, step: int, losses: StepLosses, seconds: float) -> None:
        self.bar.set_postfix(epoch=self.epoch + 1, loss=f"{float(losses.total):.3f}")
        self.log.write(
            step,
            epoch=self.epoch + 1,
            loss=float(losses.total),
            classification=float(losses.classification),
            regression=float(losses.regression),
            lr=self.optimizer.param_groups[0]["lr"],
            seconds_per_step=round(seconds, 4),
        )

    def _refuse_nan(self, losses: StepLosses, batch: Batch) -> None:
        if not losses.total.isfinite():
            raise FloatingPointError(
                f"the loss became {float(losses.total)} on windows of {', '.join(batch.videos)}; "
                "lower training.lr or training.backbone_lr, or set training.precision to fp32. "
                f"What was saved before stands in {self.out}"
            )

    def _validate(self) -> None:
        """Score the averaged weights and keep them if they are the best so far."""
        assert self.validation is not None
        averaged: Detector = self.average.module.eval()
        found = detect_all(
            averaged, self.validation, self.validation_windows, self.accelerator, "validation"
        )
        result = score(self.validation, found, averaged)
        self.log.write(self.epoch * self.sampler.steps, validation=result.as_dict())
        if self.accelerator.is_main_process:
            self.bar.write(f"epoch {self.epoch}: validation mAP {result.average:.4f}")
        self.validated = True
        if result.average > self.best:
            self.best = result.average
            self._save("best.pt")
        self._save("last.pt")

    def _save(self, name: str) -> None:
        if not self.accelerator.is_main_process:
            return
        scaler = self.accelerator.scaler
        training = {
            "epoch": self.epoch,
            "validated": self.validated,
            "best": self.best,
            "processes": self.accelerator.num_processes,
            "optimizer": self.optimizer.state_dict(),
            "normaliser": self.normaliser.state_dict(),
            "scaler": scaler.state_dict() if scaler else None,
        }
        checkpoint = Checkpoint(
            config=self.config,
            classes=self.detector.classes,
            model=self.detector.state_dict(),
            ema=self.average.module.state_dict(),
            training=training if name == "last.pt" else {},
        )
        save_checkpoint(self.out / name, checkpoint)

    def _resume(self) -> None:
        path = self.out / "last.pt"
        checkpoint = load_checkpoint(path)
        refuse_other_run(
            path, checkpoint, self.config, self.detector.classes, self.accelerator.num_processes
        )
        state = checkpoint.training
        self.detector.load_state_dict(checkpoint.model)
        self.average.module.load_state_dict(checkpoint.ema)
        self.optimizer.load_state_dict(state["optimizer"])
        self.normaliser.load_state_dict(state["normaliser"])
        if self.accelerator.scaler:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.epoch, self.best = state["epoch"], state["best"]
        self.validated = state["validated"]
