"""The training loop: steps, validation, checkpoints, and resuming."""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Generic, NamedTuple, NoReturn, Protocol, TypeVar

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer
from torch.utils.data import DataLoader
from tqdm import tqdm

from configs.loader import flatten
from configs.messages import truncated
from configs.progress import ProgressBar
from extract.parallel.lookahead import copied_ahead
from extract.parallel.processes import gather_objects, translate_lost_process
from train.config import Trained
from train.data.loading import EpochSampler
from train.device.compiling import compile_network
from train.device.device_clock import DeviceClock
from train.engine.checkpoint import Checkpoint, check_same_run, load_checkpoint
from train.engine.checkpoint_writer import CheckpointWriter
from train.engine.lengths import describe_other_average, resolve_lengths
from train.engine.optim import (
    Average,
    batch_norm_statistics,
    build_schedule,
    describe_updates,
    step_optimizer,
)
from train.engine.sharding import (
    gather_tensors,
    gathered,
    load_model,
    load_optimizer,
    prepare_sharding,
)
from train.engine.stopwatch import START_UP, Stopwatch
from train.errors import SMALLER_BATCHES, translate_oom, translate_worker_death
from train.tracking.metrics_log import MetricsLog

LOG_EVERY = 10  # updates between two lines of metrics
WAITING, STEPS, VALIDATION, SAVING = "waiting for data", "steps", "validation", "checkpoints"
SAVE_EVERY = 5  # epochs between two checkpoints where nothing is validated


class Score(Protocol):
    """The score of a model: one number to choose by, in [0, 1], and all numbers by name."""

    @property
    def average(self) -> float: ...

    def to_dict(self) -> dict[str, float]: ...


class Task(Protocol):
    """A model to train, with its losses and its validation; `DetectionTask` is one.

    Attributes:
        config: the resolved experiment; `classes`: names in the order of the logits.
        model: on the accelerator's device after the run has prepared it, or sharded.
        optimizer: of the model's weights.
        clipped: parts whose gradients are clipped, each by itself.
        losses: their names; the sum of all is minimised.
        measure: name of the score's average.
        videos: names of the training videos, by position.
        validates: whether there are videos to validate with.
        frame_rates: the training videos' lowest and highest, for a task that depends on them.
    """

    @property
    def config(self) -> Any: ...

    @property
    def classes(self) -> tuple[str, ...]: ...

    @property
    def model(self) -> nn.Module: ...

    @property
    def optimizer(self) -> Optimizer: ...

    @property
    def losses(self) -> tuple[str, ...]: ...

    @property
    def measure(self) -> str: ...

    @property
    def videos(self) -> Sequence[str]: ...

    @property
    def clipped(self) -> Sequence[nn.Module]: ...

    @property
    def validates(self) -> bool: ...

    @property
    def frame_rates(self) -> tuple[float, float] | None: ...

    def hold_frozen(self) -> None:
        """Make once what no step changes, of a model on its device with all its weights."""

    def loader(self, sampler: EpochSampler) -> "DataLoader[Any]":
        """Return a loader of training batches, which have `videos` and `problems`."""

    def prepare(self, batches: Sequence[Any]) -> Sequence[Any]:
        """Move all micro-batches of an update to the device; return the input of `loss` for each.

        Nothing here or in `loss` may make the host wait for the device.
        """

    def loss(self, network: nn.Module, prepared: Any) -> Tensor:
        """Return the network's losses on a micro-batch [len(losses)]."""

    def validate(self) -> tuple[Score, int]:
        """Return the score of the model as it is, and how many videos were skipped."""

    def observe(self, batch: Any) -> None:
        """Count a batch before it is trained on."""

    def log_counts(self, when: str) -> None:
        """Print the counts so far."""

    def close(self) -> None:
        """Release the resources of the run."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state that resuming needs beside weights and optimizer."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load a state."""


T = TypeVar("T", bound=Task)


class MicroBatch(NamedTuple):
    """A micro-batch's record until its update is logged.

    Attributes:
        videos: names of its windows' videos.
        losses: the task's [n], still on the device.
        stand_ins: windows that replace those of videos that cannot be read.
    """

    videos: tuple[str, ...]
    losses: Tensor
    stand_ins: int


class TrainingRun(Generic[T]):
    """A training run; `train` trains to the end and writes its files into `config.out`.

    Args:
        task: its model is moved to the accelerator's device, or sharded.
        resume: from last.pt.
        watch: stopwatch of the launch; default: one that starts now.
    """

    def __init__(
        self, task: T, accelerator: Accelerator, resume: bool, watch: Stopwatch | None = None
    ) -> None:
        self.task, self.accelerator = task, accelerator
        self.watch = watch or Stopwatch(START_UP)
        self.clock = DeviceClock.of(accelerator.device)
        settings: Trained = task.config
        self.config = task.config
        self.out = Path(settings.out)
        self.epoch, self.saved_epoch, self.best = 0, 0, -1.0
        self.validated = True  # no validation is due
        self.problems: set[str] = set()  # causes already warned of
        self.writer = CheckpointWriter()
        self.sampler = EpochSampler(
            len(task.videos),
            settings.training.global_batch,
            accelerator.process_index,
            accelerator.num_processes,
            settings.training.seed,
            settings.training.accumulate,
        )
        self.updates = self.sampler.updates
        self.training, self.notes = resolve_lengths(settings.training, self.updates)
        self.epochs = self.training.last_epoch
        self.loader = task.loader(self.sampler)
        self.schedule = build_schedule(task.optimizer, self.training, self.updates)
        prepare_sharding(accelerator)
        self.model = task.model
        compile_network(self.model, self.training.compile)
        with translate_lost_process():
            self.wrapped, prepared = accelerator.prepare(task.model, task.optimizer)
        # Without accelerate's wrapper, which looks for a package on the disk in every step.
        self.optimizer: Optimizer = prepared.optimizer
        # After `prepare`, which may have moved or sharded the weights.
        self.average = Average(self.model, self.training.ema_decay)
        self.clipped = [
            [weight for weight in part.parameters() if weight.requires_grad]
            for part in task.clipped
        ]
        if resume:
            self._resume()
        if not accelerator.is_fsdp2:  # shards are what they are
            task.hold_frozen()

    def train(self) -> None:
        """Train to the last epoch.

        Raises:
            FloatingPointError: a loss is not finite.
            OSError: something could not be written; what was written before is whole.
        """
        main, first_step = self.accelerator.is_main_process, self.epoch * self.updates
        if main:
            for line in self.notes:
                tqdm.write(line)
            tqdm.write(describe_updates(self.updates, self.epochs))
        self.log = MetricsLog(
            self.out, main, first_step, self.validated, self.training.trackers, flatten(self.config)
        )
        self.bar: ProgressBar = ProgressBar(
            total=self.epochs * self.updates,
            initial=first_step,
            unit="step",
            desc="training",
            disable=not main,
        )
        with (
            translate_lost_process(),
            self.bar,
            closing(self.log),
            closing(self.writer),
            self.watch.stage(STEPS),
        ):
            if not self.validated:
                self._validate()
            while self.epoch < self.epochs:
                with self._explain_write_errors():
                    self.writer.raise_failure()
                self._train_epoch()
                self._share_statistics()
                self.epoch += 1
                self._end_epoch()
            self.task.log_counts("in all")
            self.task.close()
            with self.watch.stage(SAVING), self._explain_write_errors():
                self.writer.wait()
                if main:
                    self.writer.finish(self.out)

    def _end_epoch(self) -> None:
        due = self.training.validates_after(self.epoch)
        self.validated = not self.task.validates or not due
        if due or self.epoch % SAVE_EVERY == 0:
            # Before validating, too: an error there must not cost the epoch.
            self.save("last.pt")
        if not self.validated:
            self._validate()
            self.task.log_counts(f"up to epoch {self.epoch}")

    def _train_epoch(self) -> None:
        self.wrapped.train()
        self.sampler.epoch = self.epoch
        began, recent = time.monotonic(), list[MicroBatch]()
        with translate_worker_death(), translate_oom(SMALLER_BATCHES):
            on_device = copied_ahead(self.loader, self.accelerator.device)
            updates = zip(*[on_device] * self.training.accumulate, strict=True)
            came = self.watch.time_waiting(updates, WAITING, self.clock)
            for step, batches in enumerate(came, self.epoch * self.updates):
                self._warn_of_problems(batches)
                for batch in batches:
                    self.task.observe(batch)
                recent += self.update(step, batches)
                self.bar.update()
                if (step + 1) % LOG_EVERY == 0 or (step + 1) % self.updates == 0:
                    self._log_losses(step + 1, recent, began)
                    began, recent = time.monotonic(), []

    def _share_statistics(self) -> None:
        """Average the running statistics of batch norms over all processes.

        Each normalises by its own batches, and the running statistics are linear in theirs, so
        averaging them once an epoch equals averaging them in every step.
        """
        for tensors in (batch_norm_statistics(self.model), self._average_statistics()):
            for tensor in tensors.values():
                tensor.copy_(self.accelerator.reduce(tensor, "mean"))

    def _average_statistics(self) -> dict[str, Tensor]:
        return {name: self.average.tensors[name] for name in batch_norm_statistics(self.model)}

    def update(self, step: int, batches: Sequence[Any]) -> list[MicroBatch]:
        """Make one update of the weights. Nothing here may make the host wait for the device."""
        settings, accelerator = self.training, self.accelerator
        self.schedule.step_update(step)
        done = []
        for number, (batch, prepared) in enumerate(
            zip(batches, self.task.prepare(batches), strict=True)
        ):
            # Drop path needs no state of its own to be resumed.
            seed = _seed(settings.seed, step, number, accelerator.process_index)
            _seed_generators(accelerator.device, seed)
            last = number + 1 == len(batches)
            with nullcontext() if last else accelerator.no_sync(self.wrapped):
                losses = self.task.loss(self.wrapped, prepared)
                accelerator.backward(losses.sum())
            done.append(MicroBatch(batch.videos, losses.detach(), len(batch.problems)))
        accelerator.unscale_gradients()
        for weights in self.clipped:
            clip_grad_norm_(weights, settings.clip_norm)
        step_optimizer(self.optimizer, accelerator.scaler)
        self.optimizer.zero_grad()
        self.average.update()
        if self.clock is not None:
            self.clock.mark()
        return done

    def _warn_of_problems(self, batches: Sequence[Any]) -> None:
        """Warn once per video that it cannot be read and that another replaces it."""
        for cause in (cause for batch in batches for cause in batch.problems.values()):
            if cause not in self.problems:
                self.problems.add(cause)
                tqdm.write(f"warning: {cause}; another video is trained on in its place")

    def _log_losses(self, step: int, recent: list[MicroBatch], began: float) -> None:
        """Log the mean losses since the last line, over updates and processes."""
        updates = len(recent) // self.training.accumulate
        losses = torch.stack([batch.losses for batch in recent])
        stand_ins = losses.new_tensor([sum(batch.stand_ins for batch in recent)])
        sums = self.accelerator.reduce(torch.cat([losses.sum(0) / updates, stand_ins]), "sum")
        # The host waits here for all work of the device since the last line.
        *losses_of_all, stand_in_count = sums.tolist()
        if self.clock is not None:
            self.clock.set_anew()
        means = [x / self.accelerator.num_processes for x in losses_of_all]
        if not math.isfinite(loss := sum(means)):
            self._check_finite(recent, losses)
        self.bar.set_postfix(epoch=self.epoch + 1, loss=f"{loss:.3f}")
        with self._explain_write_errors():
            self.log.write(
                step,
                epoch=self.epoch + 1,
                loss=loss,
                **dict(zip(self.task.losses, means, strict=True)),
                stand_ins=int(stand_in_count),
                lr=self.optimizer.param_groups[0]["lr"],
                learning_rates={
                    f"{group['initial_lr']:g}": group["lr"] for group in self.optimizer.param_groups
                },
                seconds_per_step=round((time.monotonic() - began) / updates, 4),
            )

    def _check_finite(self, recent: list[MicroBatch], losses: Tensor) -> NoReturn:
        """Raise FloatingPointError on all processes, with the first bad micro-batch's videos."""
        bad = [
            (index, float(row.sum()), recent[index].videos)
            for index, row in enumerate(losses.cpu())
            if not row.isfinite().all()
        ]
        _, loss, videos = min(gather_objects(bad[:1]))
        raise FloatingPointError(
            f"the loss became {loss} on windows of {', '.join(videos)}; "
            "lower training.lr or training.backbone_lr, or set training.precision to fp32. "
            f"Earlier checkpoints are in {self.out}"
        )

    def _validate(self) -> None:
        """Score the averaged weights, and save them if they are the best so far."""
        self.model.eval()
        with (
            self.watch.stage(VALIDATION),
            self.average.applied(),
            gathered(self.model),
        ):
            result, skipped = self.task.validate()
        with self._explain_write_errors():
            self.log.write(
                self.epoch * self.updates, validation=result.to_dict(), skipped_videos=skipped
            )
        if self.accelerator.is_main_process:
            self.bar.write(
                f"epoch {self.epoch}: validation {self.task.measure} {result.average:.4f}"
            )
        self.validated = True
        if result.average > self.best:
            self.best = result.average
            self.save("best.pt")
        self.save("last.pt")

    def save(self, name: str) -> None:
        """Write a checkpoint, last.pt or best.pt; every process must call this."""
        with self.watch.stage(SAVING):
            self._write_checkpoint(name)

    def _write_checkpoint(self, name: str) -> None:
        """Gather and write a checkpoint; every process must call this, as it may hold a shard."""
        main, scaler = self.accelerator.is_main_process, self.accelerator.scaler
        resumable = name == "last.pt"
        model = gather_tensors(self.model.state_dict(), main)
        average = gather_tensors(self.average.tensors, main)
        optimizer = gather_tensors(self.optimizer.state_dict(), main) if resumable else {}
        if not main:
            return
        training = {
            "epoch": self.epoch,
            "validated": self.validated,
            "best": self.best,
            "averaged": self.average.updates,
            "processes": self.accelerator.num_processes,
            "videos": list(self.task.videos),
            "optimizer": optimizer,
            "scaler": scaler.state_dict() if scaler else None,
        } | self.task.state_dict()
        checkpoint = Checkpoint(
            config=self.config,
            classes=self.task.classes,
            model=model,
            ema=model | average,
            training=training if resumable else {},
            frame_rates=self.task.frame_rates,
        )
        frozen = {
            name
            for name, weight in self.model.named_parameters(remove_duplicate=False)
            if not weight.requires_grad
        }
        epoch = self.epoch

        def written() -> None:
            if resumable:
                self.saved_epoch = epoch

        with self._explain_write_errors():
            self.writer.write(self.out / name, checkpoint, frozen, written)

    @contextmanager
    def _explain_write_errors(self) -> Iterator[None]:
        """Add to an error of writing which checkpoint is safe and how to resume."""
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
        checkpoint = load_checkpoint(path, type(self.config))
        check_same_run(
            path, checkpoint, self.config, self.task.classes, self.accelerator.num_processes
        )
        state = checkpoint.training
        load_model(self.model, checkpoint.model)
        # Runs of earlier versions did not count updates: they continue as they began.
        averages = {name: checkpoint.ema[name] for name in self.average.tensors}
        self.average.load(averages, state.get("averaged", math.inf))
        load_optimizer(self.optimizer, state["optimizer"])
        self.task.load_state_dict(state)
        if self.accelerator.scaler:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        other = describe_other_average(checkpoint.config.training, self.training, self.updates)
        if other and self.accelerator.is_main_process:
            tqdm.write(other)
        self.epoch = self.saved_epoch = state["epoch"]
        self.best, self.validated = state["best"], state["validated"]
        if self.accelerator.is_main_process and set(state["videos"]) != set(self.task.videos):
            gone = sorted(set(state["videos"]) - set(self.task.videos))
            new = sorted(set(self.task.videos) - set(state["videos"]))
            tqdm.write(
                f"warning: resumes with training videos other than those of {path}, so its "
                "result will differ from an uninterrupted run's:\n  "
                + "\n  ".join(
                    truncated([f"without {n}" for n in gone] + [f"with {n}" for n in new])
                )
            )


def _seed(*numbers: int) -> int:
    """Return a seed that shares nothing with those of neighbouring numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def _seed_generators(device: torch.device, seed: int) -> None:
    """Seed the generators of the CPU and of a device, as `torch.manual_seed` does for all devices.

    For every kind of device that is not there it would note the present stack of calls.
    """
    torch.default_generator.manual_seed(seed)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(seed)
