"""The length of a run: epochs of the user's data, from the settings."""

from dataclasses import replace
from typing import TypeVar

from train.config import TrainingConfig

T = TypeVar("T", bound=TrainingConfig)


def resolve_lengths(training: T, per_epoch: int) -> tuple[T, list[str]]:
    """Return the settings with epochs that fit each other, and a line for each that was changed.

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
            f"training.updates {training.updates}: {epochs} epochs of {per_epoch} updates, and all "
            f"that is counted in epochs as in a schedule of training.epochs {training.epochs}"
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
    return replace(training, stop_epoch=stop, warmup_epochs=warmup), notes
