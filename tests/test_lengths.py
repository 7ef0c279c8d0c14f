"""How long a run is, from its settings and its data."""

import pytest

from train.config import TrainingConfig
from train.engine.lengths import resolve_lengths
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
        ({"epochs": 4}, 100, (4, 4, 1, 5, 40), ("training.warmup_epochs 5",)),
        ({"epochs": 1}, 100, (1, 1, 0, 5, 40), ("training.warmup_epochs 5",)),
        (
            {"epochs": 4, "stop_epoch": 60},
            100,
            (4, 4, 1, 5, 40),
            ("training.stop_epoch 60", "training.warmup_epochs 5"),
        ),
        # 12 videos, two an update: 3000 updates are 500 epochs, in the shape of 100.
        ({"updates": 3000}, 6, (500, 500, 25, 25, 200), ("training.updates 3000: 500 epochs",)),
        (
            {"updates": 3000, "stop_epoch": 60},
            6,
            (500, 300, 25, 25, 200),
            ("training.updates 3000",),
        ),
        # More data than updates: one epoch, validated once.
        (
            {"updates": 3000},
            5000,
            (1, 1, 0, 1, 0),
            ("training.updates 3000: 1 epochs",),
        ),
    ],
)
def test_lengths_fit_each_other(
    settings: dict[str, int],
    per_epoch: int,
    expected: tuple[int, ...],
    told: tuple[str, ...],
) -> None:
    resolved, notes = resolve_lengths(TrainingConfig(**settings), per_epoch)  # type: ignore[arg-type]
    assert lengths(resolved) == expected
    assert [note for note in notes if note.startswith(told)] == notes and len(notes) == len(told)
    assert resolve_lengths(resolved, per_epoch) == (resolved, [])


def test_kinds_of_training_keep_what_else_they_have() -> None:
    resolved, _ = resolve_lengths(RecognitionTraining(updates=10, momentum=0.5), 5)
    assert isinstance(resolved, RecognitionTraining) and resolved.momentum == 0.5
    assert resolved.epochs == 2
