"""What the training loop asks of every task, whatever it trains."""

import importlib.util
import inspect
import json
import traceback
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from configs.loader import load
from tests import test_e2e, test_recognition
from tests.marks import slow
from tests.test_recognition import clips  # noqa: F401  a fixture
from tests.waits import Copies, Operations
from train.config import Experiment
from train.engine.checkpoint import load_checkpoint
from train.engine.loop import Task, TrainingRun

Build = Callable[..., TrainingRun[Any]]
SLOW_LOOKS: list[tuple[Any, str]] = [
    (torch.nn.Module, "named_parameters"),
    (importlib.util, "find_spec"),
    (inspect, "signature"),
    (traceback, "format_stack"),
]


@pytest.fixture(params=["detector", slow("detector of two streams"), "recogniser"])
def build(request: pytest.FixtureRequest, tmp_path: Path, accelerator: Accelerator) -> Build:
    """Return what builds a short run; the same one each time, or going on with the last."""
    if request.param == "recogniser":
        found: list[str] = request.getfixturevalue("clips")
        recognition = test_recognition.config_of(*found, f"--out={tmp_path}")
        return lambda resume=False: test_recognition.build(recognition, accelerator, resume)
    found = request.getfixturevalue("data")
    both = ["--fusion.method=average"] if "two" in request.param else []
    settings = [*found, *test_e2e.QUICK, *both, f"--out={tmp_path}"]
    detection = load(Experiment, test_e2e.DEMO, settings)
    return lambda resume=False: test_e2e.build(detection, accelerator, resume)


def batches(run: TrainingRun[Any], count: int) -> list[Any]:
    run.wrapped.train()
    return list(islice(iter(run.loader), count))


def test_batches_name_their_videos(build: Build) -> None:
    task: Task = build().task
    assert len(set(task.videos)) == len(task.videos) > 0
    for batch in batches(build(), 2):
        assert set(batch.videos) <= set(task.videos)
        assert not any(batch.problems)


def test_a_loss_moves_what_the_optimizer_holds(build: Build) -> None:
    run = build()
    task: Task = run.task
    held = {id(p) for group in task.optimizer.param_groups for p in group["params"]}
    learning = {id(p) for p in task.model.parameters() if p.requires_grad}
    assert held == learning
    assert all(list(part.parameters()) for part in task.clipped)
    bounded = [id(p) for part in task.clipped for p in part.parameters() if p.requires_grad]
    assert sorted(bounded) == sorted(learning), "every weight is bounded once"
    (batch,) = batches(run, 1)
    task.observe(batch)
    (prepared,) = task.prepare([batch])
    losses = task.loss(run.wrapped, prepared)
    assert losses.shape == (len(task.losses),) and bool(losses.isfinite().all())
    assert bool((losses > 0).all())
    losses.sum().backward()
    assert all(p.grad is not None for p in task.model.parameters() if p.requires_grad)
    assert not any(p.grad is not None for p in task.model.parameters() if not p.requires_grad)


def noted(function: Callable[..., Any], calls: list[str]) -> Callable[..., Any]:
    """Return the function, which adds its name to the calls."""
    return lambda *args, **kwargs: calls.append(function.__name__) or function(*args, **kwargs)  # type: ignore[func-returns-value]


def test_an_update_neither_waits_nor_looks_for_anything(
    build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not for weights, packages, signatures or lines of code, up to half a millisecond each."""
    run = build()
    first, second = batches(run, 2)
    run.update(0, [first])  # states and tables are made
    moved = {name: tensor.clone() for name, tensor in run.average.tensors.items()}
    looked: list[str] = []
    for place, name in SLOW_LOOKS:
        monkeypatch.setattr(place, name, noted(getattr(place, name), looked))
    with Operations() as operations, Copies() as copies:
        run.update(1, [second])
    assert [*operations.seen, *copies.seen, *looked] == []
    assert not all(torch.equal(moved[name], t) for name, t in run.average.tensors.items())


def test_a_validation_scores_and_changes_nothing(build: Build) -> None:
    run = build()
    task: Task = run.task
    assert task.validates
    task.model.eval()  # as the loop asks for it
    before = {name: tensor.clone() for name, tensor in task.model.state_dict().items()}
    score, skipped = task.validate()
    again, _ = task.validate()
    assert 0 <= score.average <= 1 and skipped == 0
    assert json.loads(json.dumps(score.to_dict())) == json.loads(json.dumps(again.to_dict()))
    after = task.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(p.grad is None for p in task.model.parameters())


def test_a_run_goes_on_from_its_file(build: Build) -> None:
    run = build()
    run.train()
    state = run.task.state_dict()
    kept = load_checkpoint(run.out / "last.pt", type(run.config))
    assert kept.classes == run.task.classes and kept.config == run.config
    resumed = build(resume=True)
    assert resumed.epoch == run.training.stop_epoch
    assert str(resumed.task.state_dict()) == str(state)
    mine, theirs = run.task.model.state_dict(), resumed.task.model.state_dict()
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
