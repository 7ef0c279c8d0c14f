"""The profile of a run: what its clocks count, and that it finds every stage of a small one."""

import functools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from benchmarks import profile
from benchmarks.profile import (
    FUNCTIONS,
    GROUPS,
    ITERATORS,
    Sampler,
    Stages,
    format_stacks,
    format_table,
    operators_by_stage,
    profiled,
    timed_items,
    watch_module,
)
from tests.conftest import REPOSITORY
from tests.test_loop import SINGLE, batches_of, prepare
from train.engine.loop import TrainingRun


def work(seconds: float) -> None:
    """Use a processor for so long."""
    began = time.thread_time()
    while time.thread_time() - began < seconds:
        pass


def test_all_that_is_timed_is_there() -> None:
    for place in (*GROUPS, *FUNCTIONS, *ITERATORS):
        module, _, path = place.partition(":")
        assert callable(functools.reduce(getattr, path.split("."), import_module(module))), place


def test_every_moment_belongs_to_the_innermost_stage() -> None:
    stages = Stages("start-up")
    with stages.group("training"):
        with stages.stage("losses"):
            work(0.02)
            with stages.stage("head"):
                work(0.05)
        # What another thread does beside is no time of the stage that waits for it.
        other = threading.Thread(target=timed_work, args=(stages,))
        other.start()
        other.join()
    stages.switch(stages.current)
    taken = {key: cpu for key, (_, cpu) in stages.taken.items()}
    assert taken["training", "head"] > 0.05 > taken["training", "losses"] > 0.02
    assert taken["training", "suppression"] > 0.04 and taken["training", profile.REST] < 0.02
    assert sum(taken.values()) == pytest.approx(time.process_time(), abs=0.02)
    assert "| training | head |" in format_table(stages, updates=2)


def timed_work(stages: Stages) -> None:
    with stages.stage("suppression"):
        work(0.04)


def test_items_are_timed_without_what_is_done_with_them() -> None:
    stages = Stages("training")

    def slow_items() -> object:
        for item in range(3):
            work(0.01)
            yield item

    for _ in timed_items(stages, slow_items, "decode")():
        work(0.02)
    assert stages.taken["training", "decode"][1] < 0.05 < stages.taken["training", profile.REST][1]


def test_operators_belong_to_the_stage_that_made_them_and_to_its_way_back() -> None:
    stages, runs = Stages("training"), list[list[object]]()
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    watch_module(stages, first, "backbone")
    watch_module(stages, second, "head")
    with profiled(stages, runs), stages.stage("losses"):
        loss = (second(torch.tanh(first(torch.randn(3, 4)))) * 2).sum()
        with stages.stage("losses"):
            loss.backward()
    found = operators_by_stage(runs)
    assert found["head"]["aten::addmm"][0] == found["backbone"]["aten::addmm"][0] == 1
    assert found["head"]["aten::mm"][0] == 2 and found["backbone"]["aten::mm"][0] == 1
    assert "aten::tanh" in found["losses"] and "aten::tanh_backward" in found["head"]


def test_stacks_are_collapsed_without_rare_ones() -> None:
    stages = Stages("training")
    sampler = Sampler(stages)
    sampler.start()
    work(0.1)
    sampler.end()
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)
    text = format_stacks(sampler.stacks)
    assert any(
        line.startswith("training;rest;") and "tests/test_profile.py:work " in line
        for line in text.splitlines()
    )
    assert format_stacks(Counter({("a", "b"): 99_999, ("c",): 1})) == "a;b 99999\n"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["nowhere.yaml"], "no config at nowhere.yaml"),
        (["configs/e2e/demo/forward.yaml", "--videos", "0"], "--videos: give 1 or more"),
    ],
)
def test_what_cannot_be_profiled_is_one_line(
    tmp_path: Path, arguments: list[str], told: str
) -> None:
    """The sampler's timer ends first: its signal would kill the process where it ends."""
    command = [sys.executable, "-m", "benchmarks.profile", *arguments, "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode in (1, 2) and told in done.stderr, done
    assert done.stderr.count("\n") == 1 and not list(tmp_path.iterdir())


@pytest.mark.parametrize("updates", [1, 2, 3])
def test_the_profiler_takes_updates_that_others_are_left_of(
    updates: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(run: TrainingRun[Any], *_: Any) -> None:
        run.epochs, run.updates = 1, updates
        run.accelerator = SimpleNamespace(device=torch.device("cpu"))
        run.task = SimpleNamespace(model=nn.Linear(1, 1))

    monkeypatch.setattr(TrainingRun, "__init__", build)
    with profile.instrumented(Stages("start-up")), ExitStack() as told:
        if updates < 3:
            told.enter_context(pytest.raises(ValueError, match=f"has {updates}: .* --epochs"))
        TrainingRun(*[None] * 3)  # type: ignore[type-var, arg-type]


def test_all_that_an_optimizer_does_counts_for_it(
    data: list[str], tmp_path: Path, accelerator: Accelerator
) -> None:
    stages = Stages("training")
    with profile.instrumented(stages):
        run = prepare(data, tmp_path, accelerator, *SINGLE)
        batches = batches_of(run)
        with profiled(stages, runs := list[list[object]]()):
            run.update(0, batches)
    assert stages.calls["training", "optimizer"] == 3, "clipping, a step, and its end"
    assert "aten::_fused_adamw_" in operators_by_stage(runs)["optimizer"]


@pytest.mark.slow
def test_a_run_is_split_into_its_stages(tmp_path: Path, data: list[str]) -> None:
    config, out = "configs/e2e/demo/forward.yaml", tmp_path / "profile"
    command = [sys.executable, "-m", "benchmarks.profile", config, *data, "--out", str(out)]
    command += ["--epochs", "4", "--videos", "2", "--training.global_batch", "2"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0, done.stderr
    found = json.loads((out / "profile.json").read_text())
    assert found["updates"] == 2 and found["operators"]["backbone"]
    stages = {(row["group"], row["stage"]) for row in found["stages"] if row["cpu_s"] > 0}
    assert stages >= {("start-up", name) for name in ("imports", "look at files")}
    training = ("decode", "resize", "backbone", "head", "losses", "optimizer", "averaging")
    assert stages >= {("training", name) for name in training}
    assert stages >= {("validation", name) for name in ("decode", "backbone", "head")}
    assert "start-up;imports;" in (out / "stacks.txt").read_text()
    assert "| training | backbone |" in (out / "profile.md").read_text()
