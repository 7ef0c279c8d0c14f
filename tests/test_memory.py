"""What a training step needs of a GPU's memory, counted on tensors without numbers."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator

import train.device.memory
from benchmarks.gpu_steps import NAMES
from benchmarks.memory import count_memory, count_step
from benchmarks.sizes import experiment
from extract.activations.fingerprints import fingerprints, settings
from extract.backbone.backbone import Backbone
from extract.backbone.frozen import hold_frozen
from extract.backbone.videomae import Attention, Linear
from extract.settings.backbone import Mode, Recompute
from train.config import Experiment
from train.data.items import VideoItem
from train.detector.model import Detector
from train.detector.training import DetectionTask
from train.device.memory import (
    CHOICES,
    GRADIENTS_AND_AVERAGES,
    _bytes_to_come,
    activation_bytes,
    exact_bytes,
    free_bytes,
    settle_recompute,
)

LONG, SIDE = "v2-g, 1536 frames", "v2-g, 1536 frames, side"
SLOW_MODES: tuple[Mode, ...] = ("full", "side")
slow = pytest.mark.slow
COUNTED: list[tuple[str, Recompute, int, float]] = [
    ("s", "none", 2, 10.4),
    ("s", "selective", 2, 3.9),
    ("b", "none", 2, 20.3),
    ("h", "full", 2, 18.9),
    (LONG, "full", 2, 70.6),
    (SIDE, "full", 2, 38.8),
]


@pytest.mark.slow
@pytest.mark.parametrize(("size", "recompute", "windows", "gigabytes"), COUNTED)
def test_a_step_needs_what_was_counted(
    size: str, recompute: Recompute, windows: int, gigabytes: float
) -> None:
    assert count_step(size, recompute, windows).peak / 1e9 == pytest.approx(gigabytes, rel=0.1)


def estimated(config: Experiment, recompute: Recompute, windows: int) -> float:
    with torch.device("meta"):
        parameters = {*Detector(config, NAMES).parameters()}
    held = exact_bytes(config)
    weights = sum((4 if p.requires_grad else held) * p.numel() for p in parameters)
    learning = sum(p.numel() for p in parameters if p.requires_grad)
    return (
        weights + GRADIENTS_AND_AVERAGES * learning + activation_bytes(config, recompute, windows)
    )


def in_bf16(size: str) -> Experiment:
    config = experiment(size)
    return replace(config, training=replace(config.training, precision="bf16"))


@pytest.mark.parametrize(("size", "recompute", "windows", "gigabytes"), COUNTED)
def test_what_auto_goes_by_is_what_was_counted(
    size: str, recompute: Recompute, windows: int, gigabytes: float
) -> None:
    found = estimated(in_bf16(size), recompute, windows) / 1e9
    assert found == pytest.approx(gigabytes, rel=0.1)


@pytest.mark.parametrize("recompute", CHOICES)
@pytest.mark.parametrize("mode", ["adapter", *(pytest.param(m, marks=slow) for m in SLOW_MODES)])
def test_what_auto_goes_by_is_what_is_counted_in_every_mode(
    mode: Mode, recompute: Recompute
) -> None:
    config = in_bf16("s")
    trunk = replace(config.backbone.trunk, depth=4)  # takes a third of the time
    backbone = replace(config.backbone, trunk=trunk, mode=mode, recompute=recompute)
    config = replace(config, backbone=backbone)
    found = estimated(config, recompute, 1)
    assert found == pytest.approx(count_memory(config, 1).peak, rel=0.15)


def choose(config: Experiment, free: float, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    """Return what is chosen on a GPU with so many bytes free, and the line about it."""
    monkeypatch.setattr(train.device.memory, "free_bytes", lambda device, processes: free)
    with torch.device("meta"):
        detector = Detector(config, NAMES)
    line = settle_recompute(detector.streams, config, torch.device("cuda"), 1)
    (stream,) = detector.streams
    assert isinstance(stream.backbone, Backbone)
    return stream.backbone.recompute, line


@pytest.mark.parametrize(
    ("size", "gigabytes", "expected"),
    [
        *[("s", 24, "none"), ("s", 12, "selective"), ("b", 24, "selective"), ("b", 80, "none")],
        *[("h", 24, "full"), ("h", 80, "selective"), (LONG, 85, "full"), (SIDE, 80, "none")],
    ],
)
def test_auto_recomputes_as_little_as_fits_the_card(
    size: str, gigabytes: float, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, line = choose(in_bf16(size), gigabytes * 1e9, monkeypatch)
    assert found == expected
    assert line.startswith(f"backbone.recompute auto: {expected} (a step needs about ")
    assert "\n" not in line and "likely too little" not in line


def test_auto_says_that_even_the_least_is_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    found, line = choose(in_bf16(LONG), 24e9, monkeypatch)
    assert found == "full" and "likely too little; raise training.accumulate" in line
    # Others have nearly all of it.
    assert ", and 0 B of the CUDA's memory are free: " in choose(in_bf16("s"), 5e8, monkeypatch)[1]


def test_what_is_held_already_is_not_counted_again() -> None:
    """A head pass holds frozen matrices before training asks how much memory is left."""
    config, device = in_bf16("tiny"), torch.device("cpu")
    detector = Detector(config, NAMES)
    before = _bytes_to_come(detector.streams, device, 2)
    hold_frozen(detector, "bf16", config.pixels.size)
    blocks = [part for part in detector.modules() if isinstance(part, Linear | Attention)]
    held = {id(part.working): part.working for part in blocks if part.working is not None}
    biases = sum(part.q_bias.numel() for part in blocks if isinstance(part, Attention))
    numbers = sum(weight.numel() + bias.numel() for weight, bias in held.values())
    # Of the keys, whose bias is 0, there is no weight.
    after = _bytes_to_come(detector.streams, device, 2)
    assert before - after == 2 * (numbers - biases) > 0


def test_a_setting_is_taken_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    config = in_bf16("s")
    config = replace(config, backbone=replace(config.backbone, recompute="full"))
    assert choose(config, 80e9, monkeypatch) == ("full", "")


def test_a_cpu_counts_its_own_memory_and_shares_it_among_processes() -> None:
    device = torch.device("cpu")
    whole, half = free_bytes(device, 1), free_bytes(device, 2)
    assert whole > 0 and half == pytest.approx(whole / 2, rel=0.1)


def test_a_task_chooses_before_its_first_step_and_no_fingerprint_knows(
    monkeypatch: pytest.MonkeyPatch, tiny_task: Callable[[], DetectionTask]
) -> None:
    found = []
    for free in (1e12, 1e6):
        monkeypatch.setattr(train.device.memory, "free_bytes", lambda *_, free=free: free)
        task = tiny_task()
        (stream,) = task.model.streams
        backbone = stream.backbone
        config = task.config
        of = settings(config.backbone, config.pixels, "fp32")
        found.append((backbone.recompute, fingerprints(backbone.eval(), of)))
        assert task.memory.startswith(f"backbone.recompute auto: {backbone.recompute}")
        assert config.backbone.recompute == "auto"  # as a checkpoint and a resumed run have it
    (one, before), (other, after) = found
    assert (one, other) == ("none", "full") and before == after


@pytest.fixture
def tiny_task() -> Callable[[], DetectionTask]:
    def build() -> DetectionTask:
        torch.manual_seed(0)
        truth = np.array([[0.0, 9.0]]), np.zeros(1, np.int64), ()
        video = VideoItem("noise", Path("noise"), 64, 1.0, 64, *truth)
        detector = Detector(experiment("tiny"), NAMES)
        return DetectionTask(detector, [video], None, Accelerator(cpu=True))

    return build
