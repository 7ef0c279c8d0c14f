"""How long a run is, from its settings and its data."""

from dataclasses import replace

import pytest

from train.config import TrainingConfig
from train.engine.lengths import describe_other_average, resolve_lengths
from train.recognition.config import RecognitionTraining


def lengths(training: TrainingConfig) -> tuple[int, int | None, int, int, int]:
    return (
        training.epochs,
        training.stop_epoch,
        training.warmup_epochs,
        training.validate_every,
        training.validate_from,
    )


@pytest.mark.parametrize(
    ("settings", "per_epoch", "expected", "told"),
    [
        # All by default, and as published: nothing to say.
        ({}, 100, (100, 100, 5, 5, 40), ()),
        ({"stop_epoch": 60}, 100, (100, 60, 5, 5, 40), ()),
        # --training.epochs 4 alone.
        (
            {"epochs": 4},
            100,
            (4, 4, 1, 5, 40),
            ("training.warmup_epochs 5", "training.ema_decay 0.999"),
        ),
        (
            {"epochs": 1, "ema_decay": 0.9},
            100,
            (1, 1, 0, 5, 40),
            ("training.warmup_epochs 5",),
        ),
        (
            {"epochs": 4, "stop_epoch": 60},
            1000,
            (4, 4, 1, 5, 40),
            ("training.stop_epoch 60", "training.warmup_epochs 5"),
        ),
        # 12 videos, two an update: 3000 updates are 500 epochs, in the shape of 100.
        ({"updates": 3000}, 6, (500, 500, 25, 25, 200), ("training.updates 3000: 500 epochs",)),
        (
            {"updates": 3000, "stop_epoch": 60},
            6,
            (500, 300, 25, 25, 200),
            ("training.updates 3000", "training.ema_decay 0.999"),
        ),
        # More data than updates: one epoch, validated once.
        (
            {"updates": 3000},
            5000,
            (1, 1, 0, 1, 0),
            ("training.updates 3000: 1 epoch of 5,000 updates",),
        ),
    ],
)
def test_lengths_fit_each_other(
    settings: dict[str, float],
    per_epoch: int,
    expected: tuple[int, ...],
    told: tuple[str, ...],
) -> None:
    resolved, notes = resolve_lengths(TrainingConfig(**settings), per_epoch)  # type: ignore[arg-type]
    assert lengths(resolved) == expected
    assert [note for note in notes if note.startswith(told)] == notes and len(notes) == len(told)
    assert resolve_lengths(resolved, per_epoch) == (resolved, [])


@pytest.mark.parametrize(
    ("decay", "updates", "expected"),
    [
        (0.999, 6000, 0.999),  # THUMOS-14 as published
        (0.999, 2000, 0.999),  # it reaches back 1,000 of 2,000 updates
        (0.999, 1999, 0.985),
        (0.999, 300, 0.9),
        (0.98, 300, 0.98),
        (0.967, 300, 0.967),
        (0.9, 3, 0.0),
        (0.0, 1, 0.0),  # no averages are wanted
    ],
)
def test_averages_reach_back_over_half_of_the_updates_at_most(
    decay: float, updates: int, expected: float
) -> None:
    training = TrainingConfig(epochs=1, warmup_epochs=0, ema_decay=decay)
    resolved, notes = resolve_lengths(training, updates)
    assert resolved.ema_decay == expected
    assert len(notes) == (decay != expected)
    assert all(
        f"training.ema_decay {decay:g}" in note and f"{expected:g}" in note for note in notes
    )
    stopped, _ = resolve_lengths(replace(training, epochs=2, stop_epoch=1), updates)
    assert stopped.ema_decay == expected


def test_a_run_that_goes_on_longer_tells_that_it_averages_otherwise() -> None:
    """`training.stop_epoch` may change at a resumption, but a short run's averages hang on it."""
    stopped, whole = TrainingConfig(stop_epoch=5), resolve_lengths(TrainingConfig(), 40)[0]
    told = describe_other_average(stopped, whole, 40)  # of 200 updates, now 4,000
    assert told is not None and "5 epochs" in told and "0.85;" in told and "0.999," in told
    assert describe_other_average(TrainingConfig(stop_epoch=60), whole, 40) is None
    assert describe_other_average(TrainingConfig(), whole, 40) is None


def test_kinds_of_training_keep_what_else_they_have() -> None:
    resolved, _ = resolve_lengths(RecognitionTraining(updates=10, momentum=0.5), 5)
    assert isinstance(resolved, RecognitionTraining) and resolved.momentum == 0.5
    assert resolved.epochs == 2
