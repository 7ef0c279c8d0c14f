"""What moves, how fast, and what is averaged: optimizer groups, schedule, averaged weights."""

import math
import random
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import AdamW

from configs.loader import load
from extract.backbone.backbone import BackboneConfig, Mode
from extract.backbone.videomae import TrunkConfig
from extract.sampling.windows import SamplingConfig
from tests.conftest import REPOSITORY
from train.config import Experiment, TrainingConfig
from train.detector.model import Detector
from train.detector.training import build_optimizer
from train.engine.optim import Average, build_schedule
from train.modeling.actionformer import HeadConfig

MODES: tuple[Mode, ...] = ("adapter", "frozen", "full")
LEARNING = {
    "adapter": ("streams.0.head.", "streams.0.backbone.adapters."),
    "frozen": ("streams.0.head.",),
    "full": ("streams.0.head.", "streams.0.backbone.trunk."),
}
RATES = TrainingConfig(lr=0.01, backbone_lr=0.003, weight_decay=0.5)


def detector(mode: Mode) -> Detector:
    demo = load(Experiment, REPOSITORY / "configs/e2e/demo/forward.yaml")
    config = replace(
        demo,
        sampling=SamplingConfig(window_size=32, snippet_stride=2),
        backbone=BackboneConfig(TrunkConfig(32, 2, 2, image_size=32), mode=mode),
        head=HeadConfig(width=16, heads=2, levels=3),
    )
    torch.manual_seed(0)
    return Detector(config, ("a", "b"))


def lone_optimizer(*rates: float) -> AdamW:
    """One scalar weight per learning rate."""
    return AdamW([{"params": [nn.Parameter(torch.zeros(()))], "lr": rate} for rate in rates])


def rates_of(optimizer: AdamW) -> list[float]:
    return [group["lr"] for group in optimizer.param_groups]


# ------------------------------------------------------------------ groups


@pytest.mark.parametrize("mode", MODES)
def test_every_learning_tensor_is_in_one_group_with_its_rate(mode: Mode) -> None:
    model = detector(mode)
    names = {parameter: name for name, parameter in model.named_parameters()}
    optimizer = build_optimizer(model, RATES)
    grouped = [(names[p], group) for group in optimizer.param_groups for p in group["params"]]
    assert len(grouped) == len(dict(grouped)), "a tensor is in two groups"
    assert {name for name, _ in grouped} == {
        name for name in names.values() if name.startswith(LEARNING[mode])
    }
    for name, group in grouped:
        expected = RATES.lr if ".head." in name else RATES.backbone_lr
        assert group["lr"] == expected, name


def decayed_by_kind(model: nn.Module) -> set[str]:
    """Names of the weights of linear layers and convolutions, found by what holds them."""
    return {
        f"{name}.weight"
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv1d)
    }


@pytest.mark.parametrize("mode", MODES)
def test_weights_decay_and_biases_norms_and_scales_do_not(mode: Mode) -> None:
    """Without a gradient, a step of AdamW is its decay: w · (1 - lr · decay)."""
    model = detector(mode)
    optimizer = build_optimizer(model, RATES)
    for parameter in model.parameters():
        nn.init.ones_(parameter)
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    decaying = decayed_by_kind(model)
    spared = set[str]()
    for name, parameter in model.named_parameters():
        expected = 1.0
        if name.startswith(LEARNING[mode]):
            if name in decaying:
                rate = RATES.lr if ".head." in name else RATES.backbone_lr
                expected = 1 - rate * RATES.weight_decay
            else:
                assert parameter.ndim <= 1, name
                spared.add(name.split(".")[-1])
        torch.testing.assert_close(parameter, torch.full_like(parameter, expected), msg=name)
    # The case holds every kind: norms' and layers' own, layer scales, and attention's two biases.
    attention = {"q_bias", "v_bias"} if mode == "full" else set()
    assert spared == {"weight", "bias", "gamma"} | attention


# ------------------------------------------------------------------ schedule


def published_rate(step: int, rate: float, epochs: int, warmup_epochs: int, steps: int) -> float:
    """Linear from 0 to the full rate, then half a cosine from the full rate to 0 at `epochs`."""
    t, w, e = step, warmup_epochs * steps, epochs * steps
    if t < w:
        return rate * t / w
    return rate / 2 * (1 + math.cos(math.pi * (t - w) / (e - w)))


@pytest.mark.parametrize(
    ("epochs", "warmup_epochs", "stop_epoch", "steps"),
    [(100, 5, 60, 3), (10, 3, 10, 7), (4, 0, 1, 5), (2, 1, 1, 1)],
)
def test_schedule_is_the_published_one(
    epochs: int, warmup_epochs: int, stop_epoch: int, steps: int
) -> None:
    config = TrainingConfig(epochs=epochs, warmup_epochs=warmup_epochs, stop_epoch=stop_epoch)
    optimizer = lone_optimizer(0.01, 0.003)
    schedule = build_schedule(optimizer, config, steps)
    shape = epochs, warmup_epochs, steps
    # To the end of the schedule, wherever training stops: that does not bend the curve.
    for step in range(epochs * steps + 1):
        schedule.step_update(step)
        expected = [published_rate(step, rate, *shape) for rate in (0.01, 0.003)]
        assert rates_of(optimizer) == pytest.approx(expected, rel=1e-9, abs=1e-12), step
    assert rates_of(optimizer) == pytest.approx([0, 0], abs=1e-12)
    schedule.step_update(warmup_epochs * steps)
    assert rates_of(optimizer) == pytest.approx([0.01, 0.003])


def test_schedule_has_no_memory() -> None:
    """A resumed run needs the number of the step, nothing else."""
    config, steps = TrainingConfig(epochs=6, warmup_epochs=2, stop_epoch=5), 4
    whole = lone_optimizer(0.01, 0.003)
    schedule = build_schedule(whole, config, steps)
    visited: list[list[float]] = []
    states: list[dict[str, Any]] = []
    for step in range(25):
        schedule.step_update(step)
        visited.append(rates_of(whole))
        states.append(whole.state_dict())
    order = list(range(25))
    random.Random(0).shuffle(order)
    for step in order:
        fresh = lone_optimizer(0.01, 0.003)
        build_schedule(fresh, config, steps).step_update(step)
        assert rates_of(fresh) == visited[step]
        # As the loop resumes: build both, load the optimizer with the rates it had, go on.
        resumed = lone_optimizer(0.01, 0.003)
        again = build_schedule(resumed, config, steps)
        resumed.load_state_dict(states[step - 1])
        again.step_update(step)
        assert rates_of(resumed) == visited[step]


# ------------------------------------------------------------------ average


def wander(model: Detector) -> None:
    """Move all that learns, as an optimizer would."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter))


def exact(module: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().double().clone() for name, p in module.named_parameters()}


@pytest.mark.parametrize("mode", MODES)
def test_average_is_exponential_over_what_learns(mode: Mode) -> None:
    model, decay = detector(mode), 0.9
    average = Average(model, decay)
    expected = exact(model)
    for _ in range(4):
        wander(model)
        average.update(model)
        expected = {
            name: decay * expected[name] + (1 - decay) * value
            for name, value in exact(model).items()
        }
    learning = {name for name, p in model.named_parameters() if p.requires_grad}
    assert average.tensors.keys() == learning
    for name, value in average.tensors.items():
        torch.testing.assert_close(value.double(), expected[name], rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("mode", MODES)
def test_averages_are_lent_to_the_model(mode: Mode) -> None:
    model = detector(mode)
    average = Average(model, 0.9)
    places = {name: p.data_ptr() for name, p in model.named_parameters()}
    wander(model)
    average.update(model)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with pytest.raises(KeyboardInterrupt), average.applied(model):
        for name, parameter in model.named_parameters():
            assert torch.equal(parameter, average.tensors.get(name, before[name])), name
            assert torch.equal(parameter, before[name]) == (name not in average.tensors), name
        raise KeyboardInterrupt
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]), name
        assert parameter.data_ptr() == places[name], name
