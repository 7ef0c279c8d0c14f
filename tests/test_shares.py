"""Shares of the videos: each a job that knows of no other, and together what one process makes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import pytest
import torch
from accelerate.state import AcceleratorState

from cache.store import Store
from cache.upkeep.verify import verify
from extract.parallel.jobs import open_executor, parse_resources
from extract.parallel.shares import Share, submit_shares, without_options
from tests.conftest import REPOSITORY
from tests.forks import Script, script
from tests.test_e2e import DEMO, QUICK
from tests.test_extract_kill import wanted

NAMES = [f"video_{n}" for n in range(23)]


@pytest.mark.parametrize("count", [1, 2, 5, 23, 40])
def test_shares_are_whole_equal_and_the_same_everywhere(count: int) -> None:
    shares = [Share(number, count).of(NAMES) for number in range(1, count + 1)]
    assert sorted(name for share in shares for name in share) == sorted(NAMES)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    other_order = [Share(number, count).of(NAMES[::-1]) for number in range(1, count + 1)]
    assert [set(share) for share in other_order] == [set(share) for share in shares]


@pytest.mark.parametrize("text", ["3", "0/2", "3/2", "a/2", "1/0", "-1/2", "1/2/3"])
def test_what_is_no_share(text: str) -> None:
    with pytest.raises(ValueError, match="--share"):
        Share.parse(text)
    assert Share.parse("2/3") == Share(2, 3)


def test_jobs_are_given_the_command_without_what_made_them() -> None:
    words = "--on slurm --cache c --resources a=1 b=2 --shares=3 --of test"
    options = {"--on": 1, "--shares": 1, "--resources": None}
    assert without_options(words.split(), options) == ["--cache", "c", "--of", "test"]
    assert parse_resources(["timeout_min=5", "slurm_partition=gpu"]) == {
        "timeout_min": 5,
        "slurm_partition": "gpu",
    }
    # YAML would take the first for a number of seconds, and end at the second.
    assert parse_resources(["slurm_time=12:30:00", "name=[a", "mem_gb=1.5", "exclusive=true"]) == {
        "slurm_time": "12:30:00",
        "name": "[a",
        "mem_gb": 1.5,
        "exclusive": True,
    }
    with pytest.raises(ValueError, match="timeout_min"):
        parse_resources(["5"])


def test_a_failed_share_is_named_and_the_others_are_done(tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    code = (
        "import sys; from pathlib import Path; number = sys.argv[-1][0]\n"
        f"Path({str(tmp_path)!r}, number).touch()\n"
        "sys.exit('error: no such luck' if number == '2' else 0)"
    )
    with pytest.raises(OSError, match="1 of 3 shares failed") as caught:
        submit_shares("local", 3, {"timeout_min": 5}, tmp_path / "jobs", ["-c", code])
    assert "share 2/3: error: no such luck" in str(caught.value)
    assert all((tmp_path / str(number)).exists() for number in (1, 2, 3))
    with pytest.raises(ValueError, match="--resources"):
        submit_shares("local", 1, {"no_such_thing": 5}, tmp_path / "jobs", ["-c", "0"])


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_the_shares_of_this_machine(tmp_path: Path, number: int) -> None:
    pytest.importorskip("submitit")
    code = (
        "import os, sys, time; from pathlib import Path\n"
        f"Path({str(tmp_path)!r}, sys.argv[-1][0]).write_text(str(os.getpid())); time.sleep(600)"
    )
    submit = (
        "import signal; from pathlib import Path\n"
        "from configs import cli; from extract.parallel.shares import submit_shares\n"
        "signal.signal(signal.SIGTERM, signal.default_int_handler)\n"
        "parts = 'local', 2, {'timeout_min': 5}, Path('jobs'), ['-c', CODE]\n"
        "cli.run(lambda: submit_shares(*parts), 'the same command goes on')"
    ).replace("CODE", repr(code))
    process = subprocess.Popen(
        [sys.executable, "-c", submit],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    files, limit = [tmp_path / "1", tmp_path / "2"], time.monotonic() + 120
    while not all(file.exists() and file.read_text() for file in files):
        assert time.monotonic() < limit and process.poll() is None, process.communicate()
        time.sleep(0.05)
    family = psutil.Process(process.pid).children(recursive=True)
    assert {int(file.read_text()) for file in files} < {each.pid for each in family}
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "interrupted; the same command goes on" in out
    assert not err and not psutil.wait_procs(family, timeout=30)[1]


@pytest.mark.parametrize(
    ("engine", "resources"),
    [
        ("local", {}),
        ("local", {"timeout_min": 0}),
        ("slurm", {"slurm_timeout_min": -5}),
        ("local", {"timeout_min": None}),
        ("local", {"slurm_time": "4:00:00"}),  # of which local jobs take no notice
    ],
)
def test_how_long_a_job_may_take_must_be_said(engine: str, resources: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="--resources: say how many minutes a job may take"):
        open_executor(engine, resources, Path("jobs"))


def test_what_only_jobs_have_needs_jobs() -> None:
    for words in (["--shares", "4"], ["--resources", "timeout_min=5"]):
        done = script("extract/run.py", "--config", DEMO, "--cache", "runs/none", *words)
        assert done.returncode == 2 and "add --on" in done.stderr


@pytest.mark.slow
def test_shares_make_what_one_process_makes(data: list[str], tmp_path: Path) -> None:
    """One is killed, another never begins; jobs make the rest."""
    pytest.importorskip("submitit")
    AcceleratorState._reset_state(reset_partial_state=True)
    overrides = [*data, *QUICK, "--cache.blocks=[2]", "--cache.dtype=float32", "--cache.flush_s=0"]
    command = ["extract/run.py", "--config", str(DEMO), "--of", "train", "validation", "test"]
    command += overrides
    whole, shared = tmp_path / "whole", tmp_path / "shared"
    assert script(*command, "--cache", whole).returncode == 0

    killed = Script(*command, "--cache", shared, "--share", "2/3")
    while killed.poll() is None and not list(shared.glob("**/*")):
        time.sleep(0.01)
    killed.kill()
    jobs = ["--on", "local", "--shares", "2", "--resources", "timeout_min=8"]
    done = script(*command, "--cache", shared, *jobs)
    assert done.returncode == 0, done.stdout + done.stderr
    with Store.open(whole) as one, Store.open(shared) as other:
        places, spans = wanted(overrides, one)
        assert verify(other) == []
        for span in spans:
            for place in places.values():
                address = place.address(span)
                assert one.contains(address) == other.contains(address)
                if one.contains(address):
                    assert torch.equal(one.read(address), other.read(address))
