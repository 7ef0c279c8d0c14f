"""Several processes: what they tell each other, and that none waits for one that is gone."""

import os
import re
import signal
import subprocess
import sys
import time
from typing import IO

import pytest

from extract.parallel.processes import broadcast_object, connect, gather_objects, wait_for_all
from tests.conftest import REPOSITORY

ENVIRONMENT = os.environ | {
    "OMP_NUM_THREADS": "1",
    "ACCELERATE_USE_CPU": "1",
    "GLOO_SOCKET_IFNAME": "lo",
}
COMMAND = [
    *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"),
    *("--module", "tests.joined_processes"),
]


def read_processes(output: IO[str]) -> dict[int, int]:
    """Return the processes by rank, once both say that they are there."""
    found: dict[int, int] = {}
    for line in output:
        # Both write at once, so that two may stand in one line.
        for rank, process in re.findall(r"process (\d) (\d+)(?=process|\s)", line):
            found[int(rank)] = int(process)
        if len(found) == 2:
            break
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "killed"), [("stepping", 0), pytest.param("waiting", 1, marks=pytest.mark.slow)]
)
def test_a_killed_process_ends_the_others_and_is_named(how: str, killed: int) -> None:
    launcher = subprocess.Popen(
        COMMAND,
        cwd=REPOSITORY,
        env=ENVIRONMENT | {"HOW": how},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert launcher.stdout is not None
    every = read_processes(launcher.stdout)
    assert set(every) == {0, 1}
    os.kill(every[killed], signal.SIGKILL)
    began = time.monotonic()
    text, _ = launcher.communicate(timeout=60)
    assert launcher.returncode and time.monotonic() - began < 60
    for process in every.values():
        with pytest.raises(ProcessLookupError):
            os.kill(process, 0)
    assert f"rank      : {killed} " in text and "-9" in text, text
    errors = [line for line in text.splitlines() if line.startswith("error: ")]
    # Another process may be ended by the launcher before it notices.
    assert all("another process of this run ended unexpectedly" in line for line in errors)
    assert "Connection" not in text and len(errors) <= 1, text


def test_one_process_has_nobody_to_wait_for() -> None:
    connect()
    wait_for_all()
    mine = [object()]
    assert gather_objects(mine) is mine and broadcast_object(mine) is mine
