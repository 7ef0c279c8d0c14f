"""The length of a run, from its settings and the user's data, and what a short one changes."""

from dataclasses import replace
from typing import TypeVar

from configs.messages import format_count
from train.config import TrainingConfig

# Measured with 300 updates of the demo: averages that reach back over all of them are 6 points of
# mAP worse than the last weights, over a tenth .4, over a thirtieth 0 (docs/measured.md).
SHORT_REACH = 1 / 30

T = TypeVar("T", bound=TrainingConfig)


def resolve_lengths(training: T, per_epoch: int) -> tuple[T, list[str]]:
    """Return the settings with lengths that fit each other, and a line for each that was changed.

    Averages reach back over half of the updates at most.

    With `training.updates`, everything counted in epochs is scaled so that the schedule, in whole
    epochs, has about so many updates.

    Args:
        per_epoch: updates in an epoch of the data.
    """
    notes = []
    if training.updates is not None:
        epochs = max(1, round(training.updates / per_epoch))
        ratio = epochs / training.epochs
        stop = training.stop_epoch
        notes.append(
            f"training.updates {training.updates}: {format_count(epochs, 'epoch')} of "
            f"{format_count(per_epoch, 'update')}, and all that is counted in epochs as in a "
            f"schedule of training.epochs {training.epochs}"
        )
        training = replace(
            training,
            epochs=epochs,
            stop_epoch=None if stop is None else max(1, round(stop * ratio)),
            warmup_epochs=round(training.warmup_epochs * ratio),
            validate_every=max(1, round(training.validate_every * ratio)),
            validate_from=round(training.validate_from * ratio),
            updates=None,
        )
    stop = training.last_epoch
    if stop > training.epochs:
        notes.append(f"training.stop_epoch {stop} is beyond the last of {training.epochs} epochs")
        stop = training.epochs
    warmup = training.warmup_epochs
    if warmup >= training.epochs:
        warmup = training.epochs // 4
        notes.append(
            f"training.warmup_epochs {training.warmup_epochs} of {training.epochs} epochs leave "
            f"nothing to train at the full rate: {warmup} instead"
        )
    decay, updates = training.ema_decay, stop * per_epoch
    if (reach := 1 / (1 - decay)) > max(updates / 2, 1):
        decay = max(0.0, round(1 - 1 / (SHORT_REACH * updates), 3))
        notes.append(
            f"training.ema_decay {training.ema_decay:g} averages the weights of some {reach:.0f} "
            f"updates, but there are {updates}: {decay:g} instead, so that early ones count little"
        )
    return replace(training, stop_epoch=stop, warmup_epochs=warmup, ema_decay=decay), notes


def describe_other_average(
    before: TrainingConfig, now: TrainingConfig, per_epoch: int
) -> str | None:
    """Return a warning if a run, resumed to end elsewhere, averages otherwise than it began.

    Args:
        before: settings of the run so far; `now`: resolved, with the lengths that it has from here.
        per_epoch: updates in an epoch of the data.
    """
    began = resolve_lengths(before, per_epoch)[0]
    if began.ema_decay == now.ema_decay:
        return None
    return (
        f"warning: the run was to end after {format_count(began.last_epoch, 'epoch')} and averaged "
        f"weights with ema_decay {began.ema_decay:g}; for {now.last_epoch} it goes on with "
        f"{now.ema_decay:g}, so its result will differ from that of a run of this length"
    )
