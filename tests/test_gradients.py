"""However an update's windows are spread out, it learns the same, gradient by gradient.

One process with batches of two is the measure; the others see the same two windows in an update.
"""

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env
from torch import Tensor

from evaluate.reports.metrics_file import read_metrics
from extract.demo import DemoConfig, write_dataset
from tests.conftest import REPOSITORY, SHARDS_ON_CPUS
from tests.test_e2e import the_same_curve
from train.config import Experiment
from train.detector.model import Detector
from train.detector.training import build_optimizer
from train.engine.checkpoint import Checkpoint, load_checkpoint, save_checkpoint

UPDATES = 3  # six of the ten training videos have an action
SETTINGS = [
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
TORCHRUN = (sys.executable, "-m", "torch.distributed.run")
ENVIRONMENT = os.environ | {
    "OMP_NUM_THREADS": "1",
    "ACCELERATE_USE_CPU": "1",
    "GLOO_SOCKET_IFNAME": "lo",
}
Train = Callable[[Path, list[str]], None]
"""Runs the script with its output folder and arguments."""


def run(*command: str, environment: dict[str, str] = ENVIRONMENT) -> str:
    done = subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def one_process(out: Path, arguments: list[str]) -> None:
    run(sys.executable, "train/e2e.py", f"--out={out}", *arguments, "--training.global_batch=2")


def accumulated(out: Path, arguments: list[str]) -> None:
    small = ("--training.global_batch=2", "--training.accumulate=2")
    run(sys.executable, "train/e2e.py", f"--out={out}", *arguments, *small)


def two_processes(out: Path, arguments: list[str]) -> None:
    launcher = (*TORCHRUN, "--standalone", "--nproc_per_node=2")
    run(*launcher, "train/e2e.py", f"--out={out}", *arguments, "--training.global_batch=2")


def sharded(out: Path, arguments: list[str]) -> None:
    printed = run_sharded("train/e2e.py", f"--out={out}", *arguments, "--training.global_batch=2")
    assert "sharded: {'Block': 6, 'Detector': 1}" in printed


def run_sharded(*script: str) -> str:
    """Run a script as `accelerate launch` would with our launch file for FSDP, but on two CPUs."""
    config = ["--config_file", "configs/accelerate/fsdp.yaml", *script]
    launch, *_ = _validate_launch_command(launch_command_parser().parse_args(config))
    environment = ENVIRONMENT | {
        name: value
        for name, value in prepare_multi_gpu_env(launch).items()
        if name.startswith(("FSDP_", "ACCELERATE_USE_FSDP"))
    }
    launcher = (*TORCHRUN, "--standalone", "--nproc_per_node=2", "tests/fsdp_on_cpu.py")
    return run(*launcher, *script, environment=environment)


def two_nodes(out: Path, arguments: list[str]) -> None:
    """Two launchers, as on two machines, that know nothing of each other but an address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = ("--nnodes=2", "--master_addr=127.0.0.1", f"--master_port={port}")
    nodes = [
        subprocess.Popen(
            [
                *(*TORCHRUN, *address, f"--node_rank={rank}", "--nproc_per_node=1"),
                *("train/e2e.py", f"--out={out}", *arguments, "--training.global_batch=2"),
            ],
            cwd=REPOSITORY,
            env=ENVIRONMENT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in (0, 1)
    ]
    printed = [node.communicate(timeout=300)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], "\n".join(printed)


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    data = tmp_path_factory.mktemp("gradients")
    sizes = DemoConfig(training=10, validation=1, test=1, shortest=4, longest=7)
    write_dataset(data, sizes, processes=2)
    return [
        *("--config", "configs/e2e/demo/forward.yaml"),
        f"--data.annotations={data / 'annotations.json'}",
        f"--data.videos={data / 'videos'}",
        f"--data.classes={data / 'classes.txt'}",
        *SETTINGS,
    ]


@pytest.fixture(scope="module")
def one(arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the run that the others are compared with."""
    out = tmp_path_factory.mktemp("one") / "run"
    one_process(out, arguments)
    return out


@pytest.fixture(
    scope="module",
    params=[
        accumulated,
        two_processes,
        pytest.param(sharded, marks=SHARDS_ON_CPUS),
        two_nodes,
    ],
    ids=lambda train: train.__name__,
)
def other(
    request: pytest.FixtureRequest, arguments: list[str], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The folder of a run on the same windows in another way."""
    out = tmp_path_factory.mktemp("other") / "run"
    train: Train = request.param
    train(out, arguments)
    return out


def moments(run: Checkpoint[Experiment]) -> dict[str, Tensor]:
    """AdamW's average of the gradients, per name of a learning tensor."""
    detector = Detector(run.config, run.classes)
    names = {parameter: name for name, parameter in detector.named_parameters()}
    groups = build_optimizer(detector, run.config.training).param_groups
    order = [names[parameter] for group in groups for parameter in group["params"]]
    state = run.training["optimizer"]["state"]
    assert len(state) == len(order) and all(entry["step"] == UPDATES for entry in state.values())
    # In double precision, where the squares of tiny gradients do not vanish.
    return {name: state[index]["exp_avg"].double() for index, name in enumerate(order)}


@pytest.mark.slow
def test_gradients_are_those_of_the_common_batch(one: Path, other: Path) -> None:
    """Compared where they are still linear: in the first moments.

    AdamW divides by the gradient's own size. The weights therefore hardly show a factor that all
    gradients have in common, and blow up the rounding of those that are next to nothing.
    """
    ours, theirs = (moments(load_checkpoint(out / "last.pt", Experiment)) for out in (one, other))
    constant = {name for name in ours if name.endswith(NO_GRADIENT)}
    largest = max(float(moment.norm()) for moment in ours.values())
    for name in constant:
        assert max(float(ours[name].norm()), float(theirs[name].norm())) < 1e-9 * largest, name
    wrong = {
        name: float((theirs[name] - moment).norm() / moment.norm())
        for name, moment in ours.items()
        if name not in constant and (theirs[name] - moment).norm() > 1e-4 * moment.norm()
    }
    assert not wrong
    # The adapters after the frozen blocks learn from the second update on.
    assert all(ours[f"streams.0.backbone.adapters.{k}.down.weight"].norm() > 0 for k in range(6))


@pytest.mark.slow
def test_weights_and_normaliser_are_those_of_the_common_batch(one: Path, other: Path) -> None:
    ours, theirs = (load_checkpoint(out / "last.pt", Experiment) for out in (one, other))
    count, same = (run.training["normaliser"] for run in (ours, theirs))
    assert count.keys() == same.keys() and len(count) == 1
    for name, value in count.items():
        # A sum of counts is exact. It starts at 100.
        assert torch.equal(value, same[name]) and value < 99
    start = Detector(ours.config, ours.classes)
    start.load_pretrained()
    assert ours.model.keys() == theirs.model.keys() == start.state_dict().keys()
    # A step moves a weight by up to its learning rate, here 0, 3e-4 and 7e-4.
    for part in ("model", "ema"):
        for name, tensor in getattr(ours, part).items():
            weight = getattr(theirs, part)[name]
            torch.testing.assert_close(weight, tensor, rtol=0, atol=2e-5, msg=f"{part} {name}")
    name = "streams.0.head.class_out.bias"
    moved = ours.model[name] - start.state_dict()[name]
    assert float(moved.abs().max()) > 1e-4


@pytest.mark.slow
def test_metrics_are_those_of_the_common_batch(one: Path, other: Path) -> None:
    """Losses are the mean over updates and processes; steps are updates; validation is whole."""
    ours, theirs = (read_metrics(out / "metrics.jsonl") for out in (one, other))
    assert [line["step"] for line in ours] == [line["step"] for line in theirs] == [UPDATES] * 2
    for name in ("loss", "classification", "regression", "lr"):
        assert theirs[0][name] == pytest.approx(ours[0][name], rel=1e-4), name
    assert theirs[1]["validation"] == pytest.approx(ours[1]["validation"], abs=1e-3)


@pytest.mark.slow
def test_every_way_leaves_a_detector(other: Path, arguments: list[str]) -> None:
    """One process can use what several have left, sharded or not."""
    detector = Detector.from_checkpoint(other / "last.pt")
    videos = Path(next(a for a in arguments if "data.videos" in a).split("=")[1])
    assert detector.detect(next(videos.glob("test_*.mp4")))


@SHARDS_ON_CPUS
@pytest.mark.slow
def test_a_sharded_run_resumes(arguments: list[str], tmp_path: Path) -> None:
    """Bit for bit, with drop path, clipping and a validation to make up for."""
    random = [a for a in arguments if "drop_path" not in a and "clip_norm" not in a]
    validated = ["--training.validate_from=1", "--training.validate_every=1"]
    sharded(tmp_path / "whole", [*random, *validated, "--training.stop_epoch=2"])
    sharded(tmp_path / "broken", [*random, *validated])
    path = tmp_path / "broken/last.pt"
    saved = load_checkpoint(path, Experiment)
    unvalidated = saved.training | {"validated": False, "best": -1.0}
    save_checkpoint(path, saved._replace(training=unvalidated))
    sharded(tmp_path / "broken", [*random, *validated, "--training.stop_epoch=2", "--resume"])
    the_same_curve(tmp_path / "whole", tmp_path / "broken")


@pytest.mark.parametrize(
    ("name", "processes", "machines"),
    [("one_process", 1, 1), ("multi_gpu", 2, 1), ("multi_node", 16, 2), ("fsdp", 8, 1)],
)
def test_launch_files_are_what_accelerate_reads(name: str, processes: int, machines: int) -> None:
    path = REPOSITORY / f"configs/accelerate/{name}.yaml"
    config = load_config_from_file(str(path))  # it refuses fields that it does not know
    assert (config.num_processes, config.num_machines) == (processes, machines)
    launch, *_ = _validate_launch_command(
        launch_command_parser().parse_args(["--config_file", str(path), "train/e2e.py"])
    )
    assert launch.num_processes == processes and launch.use_fsdp == (name == "fsdp")
    assert launch.multi_gpu == name.startswith("multi")
    # One would override what the caller's OMP_NUM_THREADS says.
    assert "num_cpu_threads_per_process" not in path.read_text()


@pytest.mark.slow
def test_sharding_where_it_is_impossible_is_an_error(tmp_path: Path, arguments: list[str]) -> None:
    """Accelerate would go on without it, and without a word."""
    done = subprocess.run(
        [sys.executable, "train/e2e.py", f"--out={tmp_path}", *arguments],
        cwd=REPOSITORY,
        env=ENVIRONMENT | {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert "error: sharding needs fsdp_version 2 and several GPUs" in done.stderr
