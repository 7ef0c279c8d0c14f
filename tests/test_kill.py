"""A training run killed with -9 at any moment and resumed is the run that would have been."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.test_e2e import DEMO, ENVIRONMENT, QUICK, script, the_same_curve

LONGER = ["--training.epochs=12", "--training.stop_epoch=12", "--sampling.window_size=32"]


def lines(out: Path) -> int:
    path = out / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


def run_and_kill(arguments: list[str], out: Path, rng: random.Random) -> str | None:
    """Start the script, kill its whole process group a little after some new metrics lines.

    Returns what it printed if it ended by itself before that.
    """
    process = subprocess.Popen(
        [sys.executable, *arguments],
        cwd=REPOSITORY,
        env=ENVIRONMENT,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    # The file is rewritten when a run begins: wait for the begin, then count from there.
    before = (out / "metrics.jsonl").stat().st_ino if (out / "metrics.jsonl").exists() else 0
    while process.poll() is None and not (
        (out / "metrics.jsonl").exists() and (out / "metrics.jsonl").stat().st_ino != before
    ):
        time.sleep(0.02)
    goal = lines(out) + rng.randint(0, 4)
    while process.poll() is None and lines(out) < goal:
        time.sleep(0.005)
    time.sleep(rng.uniform(0, 0.6))
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return None
    return process.communicate()[0]


@pytest.mark.slow
@pytest.mark.parametrize("kills", [1, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_runs_end_as_if_they_had_not_been(
    data: list[str], tmp_path: Path, kills: int
) -> None:
    common = ["train/e2e.py", "--resume", "--config", str(DEMO), *data, *QUICK, *LONGER]
    done = script(*common, "--out", tmp_path / "whole")
    assert done.returncode == 0, done.stdout + done.stderr

    out, rng = tmp_path / "killed", random.Random(kills)
    arguments = [*common, "--out", str(out)]
    for _ in range(kills):
        printed = run_and_kill(arguments, out, rng)
        # Near the end a run may finish before its kill; anything else it says is an error.
        assert printed is None or "finished; report: " in printed, printed
    done = script(*arguments)
    assert done.returncode == 0, done.stdout + done.stderr

    assert len(the_same_curve(tmp_path / "whole", out)) > 12
