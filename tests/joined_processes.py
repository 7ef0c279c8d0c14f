"""What test_processes.py starts twice: processes that take steps together."""

import os
import time

import torch
import torch.distributed as dist

from configs import cli
from configs.loader import load
from extract.parallel import processes
from extract.parallel.processes import (
    broadcast_object,
    gather_objects,
    translate_lost_process,
    wait_for_all,
)
from train.config import Experiment
from train.engine.session import WAIT_IN_STEP, make_accelerator


def main() -> None:
    accelerator = make_accelerator(load(Experiment, "configs/e2e/demo/forward.yaml"))
    rank = accelerator.process_index
    assert gather_objects([rank, "same"]) == [0, "same", 1, "same"]
    assert broadcast_object(rank) == 0
    wait_for_all()
    host = processes._host_group()
    assert dist.get_backend(host) == "gloo" and host is not dist.group.WORLD
    assert WAIT_IN_STEP.total_seconds() <= 1800 < processes.LONGEST_WAIT.total_seconds()
    print(f"process {rank} {os.getpid()}", flush=True)
    waits_for_others = os.environ["HOW"] == "waiting"
    while True:
        if not waits_for_others:
            with translate_lost_process():
                accelerator.reduce(torch.ones(1))
        elif rank == 0:
            gather_objects([rank])
        time.sleep(0.05)


if __name__ == "__main__":
    cli.run(main)
