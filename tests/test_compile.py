"""Compiled networks: no graph breaks, the same numbers, the same names."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from configs.loader import load
from extract.activations.activations import Activations
from extract.settings.backbone import BackboneConfig, Recompute, TAdaSize, TrunkConfig
from extract.settings.sampling import SamplingConfig
from tests.conftest import REPOSITORY
from tests.marks import slow
from tests.test_e2e import DEMO, QUICK, build
from train.config import Compile, Experiment
from train.detector.model import Detector
from train.detector.training import DetectionTask
from train.device import compiling
from train.device.compiling import compile_function, compile_network, describe_unused
from train.modeling.actionformer import HeadOutput
from train.modeling.config import HeadConfig, Method
from train.modeling.losses import detection_losses, distillation_losses
from train.modeling.points import Targets, assign, assign_batch, pad_truth, pyramid_points

TINY = TrunkConfig(32, 2, 2, image_size=32)
STEPS = 32


@pytest.fixture(autouse=True)
def forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start with nothing compiled, and compile without a compiler of C++."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    monkeypatch.setattr(compiling, "BACKEND", "eager")


def new_detector(fusion: Method = "none", **backbone: Any) -> Detector:
    demo = load(Experiment, REPOSITORY / "configs/e2e/demo/forward.yaml")
    config = replace(
        demo,
        sampling=SamplingConfig(window_size=STEPS, snippet_stride=2),
        backbone=BackboneConfig(TINY, **backbone),
        head=HeadConfig(width=16, heads=2, levels=3),
        fusion=replace(demo.fusion, method=fusion),
    )
    torch.manual_seed(0)
    return Detector(config, ("a", "b")).train()


def inputs_of(detector: Detector) -> tuple[tuple[Tensor, ...], Tensor, Tensor]:
    frames = torch.randint(0, 256, (2, 3, STEPS, 32, 32), dtype=torch.uint8)
    mask = torch.arange(STEPS) < torch.tensor([[STEPS], [21]])
    return (frames,) * len(detector.streams), mask, torch.tensor([31.0, 20.0])


def targets() -> Targets:
    points = pyramid_points(STEPS, 3, torch.device("cpu"))
    segments = (torch.tensor([[2.0, 9.0]]), torch.tensor([[4.0, 20.0]]))
    return assign_batch(points, segments, (torch.tensor([0]), torch.tensor([1])), 2)


def losses_of(outputs: Sequence[HeadOutput]) -> Tensor:
    each = [torch.stack(detection_losses(output, targets())) for output in outputs]
    return torch.stack(each).sum(0)


def gradients(network: nn.Module, losses: Tensor) -> list[Tensor]:
    network.zero_grad()
    losses.sum().backward()
    return [p.grad.clone() for p in network.parameters() if p.grad is not None]


@pytest.mark.parametrize(
    ("fusion", "backbone"),
    [
        slow("none", {"mode": "adapter", "recompute": "none"}),
        ("none", {"mode": "adapter", "recompute": "selective"}),
        slow("none", {"mode": "adapter", "recompute": "full"}),
        slow("none", {"mode": "side"}),
        slow("none", {"mode": "full"}),
        slow("none", {"mode": "frozen"}),
        slow("average", {"mode": "adapter"}),
        slow("none", {"mode": "full", "network": "tada2d", "tada": TAdaSize((1, 1, 1, 1), 8)}),
    ],
)
def test_a_detector_is_one_graph(fusion: Method, backbone: dict[str, Any]) -> None:
    detector = new_detector(fusion, **backbone)
    inputs = inputs_of(detector)
    torch.manual_seed(1)
    expected = losses_of(detector(*inputs)).detach()
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(detector, backend=counter, fullgraph=True)
    torch.manual_seed(1)
    found = losses_of(compiled(*inputs))
    assert counter.frame_count == 1
    assert torch.allclose(found, expected, rtol=1e-5)
    assert gradients(detector, found)


@pytest.mark.slow
@pytest.mark.parametrize("recompute", [pytest.param("none", marks=pytest.mark.slow), "selective"])
def test_gradients_are_traced_too(recompute: Recompute) -> None:
    detector = new_detector(mode="adapter", recompute=recompute)
    inputs = inputs_of(detector)
    torch.manual_seed(1)
    expected = gradients(detector, losses_of(detector(*inputs)))
    compiled = torch.compile(detector, backend="aot_eager", fullgraph=True)
    torch.manual_seed(1)
    found = gradients(detector, losses_of(compiled(*inputs)))
    assert len(found) == len(expected) > 10
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-6)


def test_a_head_and_its_losses_are_one_graph() -> None:
    head, mask = new_detector().streams[0].head, torch.ones(2, STEPS, dtype=torch.bool)
    features, goal = torch.randn(2, 32, STEPS), targets()

    def work(x: Tensor) -> Tensor:
        return torch.stack(detection_losses(head(x, mask), goal))

    counter = CompileCounterWithBackend("eager")
    compiled: Callable[[Tensor], Tensor] = torch.compile(work, backend=counter, fullgraph=True)
    torch.manual_seed(1)
    expected = work(features)
    torch.manual_seed(1)
    assert torch.allclose(compiled(features), expected, rtol=1e-5)
    assert counter.frame_count == 1


def test_targets_of_any_number_of_actions_share_their_graphs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counter = CompileCounterWithBackend("eager")
    monkeypatch.setattr(compiling, "BACKEND", counter)
    compiled = compile_function(assign, "all")
    points = pyramid_points(STEPS, 3, torch.device("cpu"))
    for counts in ((0, 0), (1, 0), (1, 1), (2, 1), (3, 0), (5, 7), (12, 3), (40, 2)):
        starts = [20 * torch.rand(count, 1) for count in counts]
        segments = [torch.cat([start, start + 9], 1) for start in starts]
        truth = pad_truth(segments, [torch.randint(2, (count,)) for count in counts])
        found, expected = compiled(points, *truth, 2), assign(points, *truth, 2)
        assert all(map(torch.equal, found, expected))
    assert counter.frame_count <= 3
    assert not torch._dynamo.utils.counters["graph_break"]
    assert compile_function(assign, "blocks") is compile_function(assign, "off") is assign


@pytest.mark.parametrize("way", [detection_losses, distillation_losses])
def test_losses_are_one_graph(way: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    counter = CompileCounterWithBackend("eager")
    monkeypatch.setattr(compiling, "BACKEND", counter)
    detector = new_detector("average")
    one, other = detector(*inputs_of(detector))
    goal = targets() if way is detection_losses else other
    found = compile_function(way, "all")(one, goal)
    assert torch.allclose(torch.stack(found), torch.stack(way(one, goal)), rtol=1e-6)
    assert counter.frame_count == 1
    assert not torch._dynamo.utils.counters["graph_break"]


@pytest.mark.parametrize(
    ("parts", "whole"), [("blocks", False), pytest.param("all", True, marks=pytest.mark.slow)]
)
def test_a_run_compiles_its_targets_and_losses_too(
    data: list[str],
    tmp_path: Path,
    accelerator: Accelerator,
    monkeypatch: pytest.MonkeyPatch,
    parts: Compile,
    whole: bool,
) -> None:
    seen = set[Any]()

    def compiled(function: Any, **options: Any) -> Any:
        seen.add(function)
        return function

    monkeypatch.setattr(torch, "compile", compiled)
    settings = [*data, *QUICK, "--data.validation_subset=null", f"--training.compile={parts}"]
    build(load(Experiment, DEMO, [*settings, f"--out={tmp_path}"]), accelerator)
    assert {assign, detection_losses, distillation_losses} & seen == (
        {assign, detection_losses, distillation_losses} if whole else set()
    )


@pytest.mark.parametrize("parts", ["off", "blocks", slow("all")])
def test_names_stay_and_alike_blocks_share(parts: Compile) -> None:
    detector = new_detector(mode="adapter")
    names = [*detector.state_dict()]
    compile_network(detector, parts)
    assert [*detector.state_dict()] == names
    detector(*inputs_of(detector))
    compiled = [
        name for name, part in detector.named_modules() if part._compiled_call_impl is not None
    ]
    blocks = [f"streams.0.backbone.trunk.blocks.{k}" for k in range(2)]
    adapters = [f"streams.0.backbone.adapters.{k}" for k in range(2)]
    expected = {"off": [], "blocks": [*blocks, *adapters], "all": [""]}
    assert sorted(compiled) == sorted(expected[parts])
    assert [*detector.state_dict()] == names
    assert not torch._dynamo.utils.counters["graph_break"]


def test_adapters_beside_the_blocks_are_compiled_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a cache of what a ladder reads there is nothing else to compile."""
    counter = CompileCounterWithBackend("eager")
    monkeypatch.setattr(compiling, "BACKEND", counter)
    detector = new_detector(mode="side", trainable_from_block=1)
    names = [*detector.state_dict()]
    for name, weight in detector.named_parameters():
        if name.endswith("up.weight"):  # 0, so that adapters change nothing
            torch.nn.init.normal_(weight, std=0.1)
    frames, *places = inputs_of(detector)
    (stream,) = detector.streams
    with torch.no_grad():
        tokens = stream.backbone(frames[0], None, "ladder")
    torch.manual_seed(1)
    expected = losses_of(detector((tokens,), *places, "ladder"))
    compile_network(detector, "blocks")
    torch.manual_seed(1)
    found = losses_of(detector((tokens,), *places, "ladder"))
    assert torch.allclose(found, expected, rtol=1e-5)
    assert counter.frame_count == 2, "one learns, one does not"
    assert gradients(detector, found)
    detector(frames, *places)
    assert counter.frame_count > 2, "blocks are compiled where they run"
    assert [*detector.state_dict()] == names
    assert not torch._dynamo.utils.counters["graph_break"]


def test_a_network_without_blocks_is_refused() -> None:
    tada = new_detector(mode="full", network="tada2d", tada=TAdaSize((1, 1, 1, 1), 8))
    with pytest.raises(ValueError, match=r"training\.compile blocks"):
        compile_network(tada, "blocks")


def test_blocks_that_stay_on_the_cache_are_not_compiled_in_silence() -> None:
    (line,) = describe_unused("blocks", learns=False)
    assert "training.compile all" in line
    used: list[tuple[Compile, bool]] = [("blocks", True), ("all", False), ("off", False)]
    assert not any(describe_unused(parts, learns) for parts, learns in used)


def test_a_machine_without_a_compiler_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "BACKEND", "inductor")
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(ValueError, match=r"training\.compile needs a compiler"):
        compile_network(new_detector(), "all")
    compile_network(new_detector(), "off")


@pytest.mark.parametrize(
    ("parts", "precision"),
    [("blocks", "fp32"), pytest.param("all", "bf16", marks=pytest.mark.slow)],
)
def test_a_compiled_run_learns_the_same(
    data: list[str], tmp_path: Path, parts: Compile, precision: str
) -> None:
    found = {}
    for each in ("off", parts):
        AcceleratorState._reset_state(reset_partial_state=True)
        half = "no" if precision == "fp32" else precision
        accelerator = Accelerator(cpu=True, mixed_precision=half)
        settings = [*data, *QUICK, "--data.validation_subset=null", f"--training.compile={each}"]
        settings += [f"--training.precision={precision}", f"--out={tmp_path / each}"]
        run = build(load(Experiment, DEMO, settings), accelerator)
        run.wrapped.train()
        batch = next(iter(run.loader))
        found[each] = [run.update(step, [batch])[0].losses for step in range(3)]
        assert not any("_orig_mod" in name for name in run.model.state_dict())
    AcceleratorState._reset_state(reset_partial_state=True)
    for one, other in zip(found["off"], found[parts], strict=True):
        assert torch.allclose(one, other, rtol=1e-5 if precision == "fp32" else 1e-3)
    assert not torch._dynamo.utils.counters["graph_break"]


def test_blocks_that_validation_would_store_are_refused(
    data: list[str], tmp_path: Path, accelerator: Accelerator
) -> None:
    settings = [*data, *QUICK, "--data.validation_subset=null", f"--out={tmp_path}"]
    run = build(load(Experiment, DEMO, settings), accelerator)
    detector, items = run.task.model, run.task.dataset.items
    training = replace(run.config.training, compile="blocks")
    detector.config = replace(run.config, training=training)
    with pytest.raises(ValueError, match=r"training\.compile blocks"):
        DetectionTask(detector, items, None, accelerator, activations=[cast(Activations, None)])
    DetectionTask(detector, items, None, accelerator)
