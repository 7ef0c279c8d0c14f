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
from extract.settings.backbone import BackboneConfig, Mode, TrunkConfig
from extract.settings.sampling import SamplingConfig
from tests.conftest import REPOSITORY
from train.config import DetectionTraining, Experiment, TrainingConfig
from train.detector.model import Detector
from train.detector.training import build_optimizer
from train.engine.optim import Average, build_schedule, step_optimizer
from train.modeling.config import HeadConfig
from train.recognition.config import RecognitionTraining

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
def test_a_heads_biases_norms_and_scales_do_not_decay_and_all_of_a_backbone_does(
    mode: Mode,
) -> None:
    """Without a gradient, a step of AdamW is its decay: w · (1 - lr · decay).

    Of a backbone OpenTAD lets all that learns decay: also an adapter's biases and its γ.
    """
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
            if ".backbone." in name:
                expected = 1 - RATES.backbone_lr * RATES.weight_decay
            elif name in decaying:
                expected = 1 - RATES.lr * RATES.weight_decay
            else:
                assert parameter.ndim <= 1, name
                spared.add(name.split(".")[-1])
        torch.testing.assert_close(parameter, torch.full_like(parameter, expected), msg=name)
    # The case holds every kind: norms' and layers' own, and layer scales.
    assert spared == {"weight", "bias", "gamma"}


# ------------------------------------------------------------------ schedule


def published_rate(
    step: int, rate: float, epochs: int, warmup_epochs: int, steps: int, detection: bool
) -> float:
    """Linear from 0, then half a cosine to 0 at `epochs`.

    A detector's warm-up of W updates is t / (W - 1) of the full rate, where its cosine begins; the
    cosine of TAdaConv begins with the first update, and the warm-up meets it.
    """
    t, w, e = step, warmup_epochs * steps, epochs * steps
    begin = w if detection else 0

    def cosine(at: int) -> float:
        return rate / 2 * (1 + math.cos(math.pi * (at - begin) / (e - begin)))

    return cosine(w) * t / (max(w - 1, 1) if detection else w) if t < w else cosine(t)


@pytest.mark.parametrize(
    ("epochs", "warmup_epochs", "stop_epoch", "steps"),
    [(100, 5, 60, 3), (10, 3, 10, 7), (4, 0, 1, 5), (2, 1, 1, 1)],
)
@pytest.mark.parametrize("kind", [DetectionTraining, RecognitionTraining])
def test_schedule_is_the_published_one(
    epochs: int, warmup_epochs: int, stop_epoch: int, steps: int, kind: type[TrainingConfig]
) -> None:
    config = kind(epochs=epochs, warmup_epochs=warmup_epochs, stop_epoch=stop_epoch)
    optimizer = lone_optimizer(0.01, 0.003)
    schedule = build_schedule(optimizer, config, steps)
    shape = epochs, warmup_epochs, steps, kind is DetectionTraining
    # To the end of the schedule, wherever training stops: that does not bend the curve.
    for step in range(epochs * steps + 1):
        schedule.step_update(step)
        expected = [published_rate(step, rate, *shape) for rate in (0.01, 0.003)]
        assert rates_of(optimizer) == pytest.approx(expected, rel=1e-9, abs=1e-12), step
    assert rates_of(optimizer) == pytest.approx([0, 0], abs=1e-12)
    if kind is DetectionTraining:
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
@pytest.mark.parametrize("decay", [0.0, 0.9, 0.999])
def test_average_is_exponential_over_what_learns_without_its_start(
    mode: Mode, decay: float
) -> None:
    """The moving average less the share dⁿ that the initial weights have in it."""
    model = detector(mode)
    average = Average(model, decay)
    first, moving = exact(model), exact(model)
    for name, value in average.tensors.items():
        assert torch.equal(value.double(), first[name])
    for n in range(1, 6):
        wander(model)
        average.update()
        moving = {
            name: decay * moving[name] + (1 - decay) * value for name, value in exact(model).items()
        }
        share = decay**n
        for name, value in average.tensors.items():
            expected = (moving[name] - share * first[name]) / (1 - share)
            torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-6, msg=name)
    learning = {name for name, p in model.named_parameters() if p.requires_grad}
    assert average.tensors.keys() == learning and average.updates == 5


def test_a_long_average_is_the_moving_one_but_for_its_start() -> None:
    """After 6,000 steps with 0.999 the start had a share of 0.25 %, after 300 one of 74 %."""
    weight, decay = nn.Parameter(torch.zeros(())), 0.999
    module = nn.ParameterList([weight])
    average, mean = Average(module, decay), 0.0
    for n in range(1, 6001):
        with torch.no_grad():
            weight.fill_(1.0)
        average.update()
        mean = decay * mean + (1 - decay)
        if n == 300:
            assert mean == pytest.approx(0.26, abs=0.01)
        assert float(average.tensors["0"]) == 1
    assert mean == pytest.approx(1 - 0.0025, abs=1e-4)


def test_an_average_that_goes_on_is_the_one_that_would_have_been() -> None:
    torch.manual_seed(0)
    whole, resumed = detector("adapter"), detector("adapter")
    resumed.load_state_dict(whole.state_dict())
    one, two = Average(whole, 0.9), Average(resumed, 0.9)
    for n in range(6):
        wander(whole)
        resumed.load_state_dict(whole.state_dict())
        if n == 3:
            kept = {name: tensor.clone() for name, tensor in two.tensors.items()}
            updates, two = two.updates, Average(resumed, 0.9)
            two.load(kept, updates)
        one.update()
        two.update()
        assert all(torch.equal(t, two.tensors[name]) for name, t in one.tensors.items())


def test_an_average_without_a_count_goes_on_as_it_began() -> None:
    """Checkpoints of earlier versions keep the share of their initial weights, which falls."""
    module = nn.ParameterList([nn.Parameter(torch.ones(()))])
    average = Average(module, 0.5)
    average.load({"0": torch.tensor(0.0)}, math.inf)
    average.update()
    average.update()
    assert float(average.tensors["0"]) == 0.75 and average.updates == math.inf


@pytest.mark.parametrize("mode", MODES)
def test_averages_are_lent_to_the_model(mode: Mode) -> None:
    model = detector(mode)
    average = Average(model, 0.9)
    places = {name: p.data_ptr() for name, p in model.named_parameters()}
    for _ in range(2):
        wander(model)
        average.update()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with pytest.raises(KeyboardInterrupt), average.applied():
        for name, parameter in model.named_parameters():
            assert torch.equal(parameter, average.tensors.get(name, before[name])), name
            assert torch.equal(parameter, before[name]) == (name not in average.tensors), name
        raise KeyboardInterrupt
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]), name
        assert parameter.data_ptr() == places[name], name


def test_a_step_on_overflowed_gradients_is_left_out() -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = AdamW([weight], lr=0.1, weight_decay=0.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    weight.grad = torch.tensor([float("inf"), 1.0, 1.0])
    scaler.scale(torch.ones(()))
    step_optimizer(optimizer, scaler)
    assert weight.tolist() == [1.0, 1.0, 1.0] and scaler.get_scale() == 4.0
    weight.grad = torch.full((3,), 4.0)
    step_optimizer(optimizer, scaler)
    assert weight.tolist() == pytest.approx([0.9] * 3), "Adam's first step is the learning rate"
    assert scaler.get_scale() == 4.0
