"""What is held of a frozen transformer: no number changes, and the weights stay exact."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from configs.loader import load
from extract.activations.activations import Activations
from extract.activations.fingerprints import fingerprints, settings
from extract.activations.glance import glance_at_weights
from extract.backbone.backbone import Backbone
from extract.backbone.frozen import hold_frozen
from extract.backbone.precision import AUTOCAST
from extract.backbone.videomae import Attention, Linear
from extract.settings.backbone import BackboneConfig, Precision, TrunkConfig
from extract.settings.pixels import PixelConfig
from tests.test_e2e import DEMO, QUICK, build
from train.config import Experiment
from train.data.truth import load_annotations
from train.detector import cached_training
from train.detector.model import Detector
from train.detector.setup import freeze_by_default
from train.engine.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from train.heads import train_heads

SIZE = 24  # three patches a side, where the positions have four
SMALL = TrunkConfig(width=32, depth=3, heads=2, patch=8, image_size=32)
MODES: dict[str, dict[str, Any]] = {
    "adapter": {"mode": "adapter"},
    "recomputed": {"mode": "adapter", "recompute": "full"},
    "side": {"mode": "side"},
    "frozen": {"mode": "frozen"},
    "upper blocks learn": {"mode": "full", "trainable_from_block": 2},
    "all learns": {"mode": "full"},
}


class Calls(TorchDispatchMode):
    """Counts operations by name, and casts to half precision by shape."""

    def __init__(self) -> None:
        super().__init__()
        self.seen, self.cast = Counter[str](), Counter[tuple[int, ...]]()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        self.seen[func.__name__.split(".")[0]] += 1
        if func.__name__.startswith("_to_copy") and result.dtype == torch.bfloat16:
            self.cast[tuple(result.shape)] += 1
        return result


def new_backbone(**config: Any) -> Backbone:
    torch.manual_seed(0)
    backbone = Backbone(BackboneConfig(SMALL, **config)).train()
    with torch.no_grad():
        for weight in backbone.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.1)
    return backbone


def frames() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (2, 3, 32, SIZE, SIZE), generator=generator, dtype=torch.uint8)


def pass_through(backbone: Backbone, precision: Precision) -> list[Tensor]:
    """Return features and all gradients."""
    torch.manual_seed(1)  # of drop path
    half = AUTOCAST.get(precision)
    with torch.autocast("cpu", half, enabled=half is not None):
        features = backbone(frames())
    learning = [p for p in backbone.parameters() if p.requires_grad]
    if not learning:
        return [features]
    return [features.detach(), *torch.autograd.grad(features.float().square().sum(), learning)]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("mode", MODES)
def test_no_number_changes(mode: str, precision: Precision) -> None:
    plain, held = new_backbone(**MODES[mode]), new_backbone(**MODES[mode])
    hold_frozen(held, precision, SIZE)
    expected, found = pass_through(plain, precision), pass_through(held, precision)
    assert all(torch.equal(one, other) for one, other in zip(expected, found, strict=True))


def test_a_cpu_holds_what_autocast_gives_it() -> None:
    """Accelerate computes fp16 in float32 there."""
    plain, held = new_backbone(mode="adapter"), new_backbone(mode="adapter")
    hold_frozen(held, "fp16", SIZE)
    expected, found = pass_through(plain, "fp32"), pass_through(held, "fp32")
    assert all(torch.equal(one, other) for one, other in zip(expected, found, strict=True))


@pytest.mark.parametrize("mode", MODES)
def test_what_learns_is_not_held(mode: str) -> None:
    backbone = new_backbone(**MODES[mode])
    hold_frozen(backbone, "bf16", SIZE)
    for part in backbone.trunk.modules():
        if isinstance(part, Linear | Attention):
            learns = any(p.requires_grad for p in part.parameters())
            assert (part.working is None) == learns
            assert part.working is None or part.working[0].dtype == torch.bfloat16


def test_nothing_frozen_is_cast_or_computed_twice() -> None:
    backbone, counts = new_backbone(mode="adapter"), []
    for held in (False, True):
        if held:
            hold_frozen(backbone, "bf16", SIZE)
        with torch.autocast("cpu", torch.bfloat16), Calls() as calls:
            backbone(frames())
        counts.append(calls)
    before, after = counts
    width, hidden = SMALL.width, round(SMALL.width * SMALL.mlp_ratio)
    for shape in ((3 * width, width), (width, width), (hidden, width), (width, hidden)):
        assert before.cast[shape] >= SMALL.depth and not after.cast[shape]
    assert before.seen["upsample_bicubic2d"] and not after.seen["upsample_bicubic2d"]
    assert before.seen["zeros_like"] and not after.seen["zeros_like"]
    assert not after.seen["cat"]


def test_weights_fingerprints_and_the_glance_at_them_stay() -> None:
    backbone = new_backbone(mode="adapter").eval()
    of = settings(backbone.config, PixelConfig(size=SIZE), "bf16")
    weights = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    before, seen = fingerprints(backbone, of), cast(Any, glance_at_weights(backbone))[1]
    hold_frozen(backbone, "bf16", SIZE)
    after = backbone.state_dict()
    assert after.keys() == weights.keys()
    assert all(torch.equal(t, after[name]) for name, t in weights.items())
    assert all(t.dtype == torch.float32 for t in after.values())
    assert fingerprints(backbone, of) == before
    assert cast(Any, glance_at_weights(backbone))[1] == seen


def test_passes_of_head_training_and_a_teacher_use_what_is_held(
    data: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of = [*data, *QUICK, "--training.precision=bf16", "--data.validation_subset=null"]
    config = load(Experiment, DEMO, [*of, f"--out={tmp_path / 'out'}"])
    detector = Detector(config, load_annotations(config.data).classes)
    detector.load_pretrained()
    state, path = detector.state_dict(), tmp_path / "weights.pt"
    saved = Checkpoint(config, detector.classes, state, state, {})
    save_checkpoint(path, saved)
    training = replace(config.training, teacher=str(path))
    backbone = freeze_by_default(config.backbone)
    cache = replace(config.cache, url=str(tmp_path / "cache"))
    taught = replace(config, training=training, backbone=backbone, cache=cache)
    held = list[set[torch.dtype | None]]()

    def look(activations: list[Activations], *more: Any) -> None:
        for each in activations:
            assert isinstance(each.backbone, Backbone)
            linears = [part for part in each.backbone.modules() if isinstance(part, Linear)]
            held.append({part.working and part.working[0].dtype for part in linears})
        raise ValueError("seen enough")

    monkeypatch.setattr(cached_training, "ensure_cached", look)
    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        with pytest.raises(ValueError, match="seen enough"):
            train_heads(taught, [(str(path), saved)], "", resume=False)
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
    assert held == [{torch.bfloat16}] * 2


@pytest.mark.slow
def test_a_checkpoint_and_a_resumed_run_have_the_exact_weights(
    data: list[str], tmp_path: Path
) -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(cpu=True, mixed_precision="bf16")
    of = [*data, *QUICK, "--data.validation_subset=null", "--training.precision=bf16"]
    config = load(Experiment, DEMO, [*of, f"--out={tmp_path / 'whole'}"])
    build(config, accelerator).train()
    half = replace(config, out=str(tmp_path / "parts"))
    first = build(replace(half, training=replace(half.training, stop_epoch=1)), accelerator)
    frozen = {
        name: weight.clone()
        for name, weight in first.model.state_dict().items()
        if ".trunk." in name
    }
    first.train()
    build(half, accelerator, resume=True).train()
    AcceleratorState._reset_state(reset_partial_state=True)
    whole, parts = (
        load_checkpoint(tmp_path / name / "last.pt", Experiment) for name in ("whole", "parts")
    )
    assert all(torch.equal(t, whole.model[name]) for name, t in frozen.items())
    assert any((t != t.bfloat16()).any() for t in frozen.values())
    for one, other in ((whole.model, parts.model), (whole.ema, parts.ema)):
        assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
