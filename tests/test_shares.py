"""Shares of the videos: each a job that knows of no other, and together what one process makes."""

import time
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState

from cache.store import Store
from cache.upkeep.verify import verify
from extract.parallel.jobs import parse_resources
from extract.parallel.shares import Share, submit_shares, without_options
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
