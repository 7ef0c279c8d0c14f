"""Memory of a CPU's tensors is mapped once, not in every step."""

import os
import platform
import subprocess
import sys

import pytest

from tests.conftest import REPOSITORY

STEPS = """
import resource, sys, torch
from configs.loader import load
from train.config import Experiment
from train.engine.session import settle_device

if "settled" in sys.argv:
    config = load(Experiment, "configs/e2e/demo/forward.yaml", [])
    settle_device(torch.device("cpu"), config)

def step():
    return sum(tensor.sum() for tensor in [torch.ones(2**20) for _ in range(20)])  # 80 MiB

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

for _ in range(5):
    step()
before = faults()
for _ in range(10):
    step()
print((faults() - before) // 10)
"""


def pages_a_step(*how: str, **environment: str) -> int:
    """Return how many pages the system maps in a step that needs 20,480 of them."""
    run, env = [sys.executable, "-c", STEPS, *how], os.environ | environment
    said = subprocess.run(run, cwd=REPOSITORY, env=env, check=True, capture_output=True, text=True)
    return int(said.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other libraries keep memory or not")
def test_a_step_finds_its_memory_mapped() -> None:
    assert pages_a_step() > 5_000, "else this shows nothing"
    assert pages_a_step("settled") < 500
    user_chose = {"MALLOC_TRIM_THRESHOLD_": "100000"}
    assert pages_a_step("settled", **user_chose) > 5_000
