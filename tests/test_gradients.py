"""Two processes learn what one process with their common batch learns, gradient by gradient."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from extract.demo import DemoConfig, write_dataset
from tests.conftest import REPOSITORY
from train.checkpoint import Checkpoint, load_checkpoint
from train.detector import Detector
from train.optim import build_optimizer

STEPS = 3  # six of the ten training videos have an action
SETTINGS = [
    "--data.validation_subset=null",
    "--sampling.window_size=64",
    "--training.epochs=2",
    "--training.stop_epoch=1",
    "--training.warmup_epochs=1",
    "--training.workers=0",
    # What is drawn at random per process cannot be equal.
    "--head.drop_path=0",
    "--backbone.trunk.drop_path=0",
    # Clipping would hide a gradient that is wrong by a factor.
    "--training.clip_norm=1e9",
]
# Softmax does not feel a constant added to all scores: the gradients of these are zero but for
# rounding, which no two ways of summing share.
NO_GRADIENT = (".attention.key.norm.bias", ".attention.key.linear.bias")
# `accelerate launch --cpu --num_processes 2` would start one.
TWO_PROCESSES = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
ENVIRONMENT = os.environ | {
    "OMP_NUM_THREADS": "1",
    "ACCELERATE_USE_CPU": "1",
    "GLOO_SOCKET_IFNAME": "lo",
}


def train(data: Path, out: Path, batch_size: int, launcher: tuple[str, ...] = ()) -> Checkpoint:
    arguments = [
        *("train/e2e.py", "--config", "configs/e2e/demo/forward.yaml", "--out", str(out)),
        f"--data.annotations={data / 'annotations.json'}",
        f"--data.videos={data / 'videos'}",
        f"--data.classes={data / 'classes.txt'}",
        *SETTINGS,
        f"--training.batch_size={batch_size}",
    ]
    done = subprocess.run(
        [sys.executable, *launcher, *arguments],
        cwd=REPOSITORY,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return load_checkpoint(out / "last.pt")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Checkpoint, Checkpoint]:
    """What one process with batches of two leaves, and two processes with batches of one."""
    folder = tmp_path_factory.mktemp("gradients")
    data = folder / "demo"
    sizes = DemoConfig(training=10, validation=1, test=1, shortest=4, longest=7)
    write_dataset(data, sizes, processes=2)
    one = train(data, folder / "one", batch_size=2)
    return one, train(data, folder / "two", batch_size=1, launcher=TWO_PROCESSES)


def moments(run: Checkpoint) -> dict[str, Tensor]:
    """AdamW's average of the gradients, per name of a learning tensor."""
    detector = Detector(run.config, run.classes)
    names = {parameter: name for name, parameter in detector.named_parameters()}
    groups = build_optimizer(detector, run.config.training).param_groups
    order = [names[parameter] for group in groups for parameter in group["params"]]
    state = run.training["optimizer"]["state"]
    assert len(state) == len(order) and all(entry["step"] == STEPS for entry in state.values())
    # In double precision, where the squares of tiny gradients do not vanish.
    return {name: state[index]["exp_avg"].double() for index, name in enumerate(order)}


def test_gradients_are_those_of_the_common_batch(runs: tuple[Checkpoint, Checkpoint]) -> None:
    """Compared where they are still linear: in the first moments.

    AdamW divides by the gradient's own size. The weights therefore hardly show a factor that all
    gradients have in common, and blow up the rounding of those that are next to nothing.
    """
    one, two = map(moments, runs)
    constant = {name for name in one if name.endswith(NO_GRADIENT)}
    largest = max(float(moment.norm()) for moment in one.values())
    for name in constant:
        assert max(float(one[name].norm()), float(two[name].norm())) < 1e-9 * largest, name
    wrong = {
        name: float((two[name] - moment).norm() / moment.norm())
        for name, moment in one.items()
        if name not in constant and (two[name] - moment).norm() > 1e-4 * moment.norm()
    }
    assert not wrong
    # The adapters behind the frozen blocks learn from the second update on.
    assert all(one[f"backbone.adapters.{k}.down.weight"].norm() > 0 for k in range(6))


def test_weights_and_normaliser_are_those_of_the_common_batch(
    runs: tuple[Checkpoint, Checkpoint],
) -> None:
    one, two = runs
    ours, theirs = one.training["normaliser"], two.training["normaliser"]
    assert ours.keys() == theirs.keys() and len(ours) == 1
    for name, value in ours.items():
        # A sum of counts is exact. It starts at 100.
        assert torch.equal(value, theirs[name]) and value < 99
    start = Detector(one.config, one.classes)
    start.load_pretrained()
    assert one.model.keys() == two.model.keys() == start.state_dict().keys()
    # A step moves a weight by up to its learning rate, here 0, 3e-4 and 7e-4.
    for name, tensor in one.model.items():
        torch.testing.assert_close(two.model[name], tensor, rtol=0, atol=2e-5, msg=name)
    moved = one.model["head.class_out.bias"] - start.state_dict()["head.class_out.bias"]
    assert float(moved.abs().max()) > 1e-4
