"""TAda2D as a detector's backbone: spans, cuts, weights and the cache, as for the transformer."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from torch import Tensor, nn

from cache.store import Store
from configs.loader import load
from extract.activations.fingerprints import fingerprints, settings
from extract.backbone.backbone import Backbone
from extract.backbone.streaming import StreamingPass
from extract.backbone.tada_backbone import TAdaBackbone, load_tada_trunk
from extract.settings.backbone import BackboneConfig, Mode, TAdaSize, TrunkConfig
from extract.settings.pixels import PixelConfig
from tests.marks import slow
from tests.test_e2e import DEMO, QUICK
from tests.test_heads import loaded
from train.config import Experiment
from train.data.cached import ensure_cached, evaluation_spans, training_spans
from train.detector.detection import detect_subset, window_loader
from train.detector.model import Detector
from train.detector.setup import activations_of
from train.detector.training import DetectionTask
from train.engine.loop import TrainingRun

SMALL = TAdaSize((1, 1), 8)
TINY = TrunkConfig(32, 1, 2)
SETTINGS = [
    "--backbone.network=tada2d",
    "--backbone.tada.blocks=[1,1]",
    "--backbone.tada.width=8",
    "--backbone.weights=null",
]


def shake(module: nn.Module) -> None:
    """Give weights and statistics values at which nothing is 0 or 1 by chance."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point():
            noise = torch.rand(tensor.shape, generator=generator)
            tensor.copy_(noise + 0.5 if name.endswith("running_var") else noise / 4 - 0.1)


def backbone(mode: Mode = "frozen") -> TAdaBackbone:
    config = BackboneConfig(
        TINY,
        network="tada2d",
        tada=SMALL,
        mode=mode,
        mean=(114.75,) * 3,
        std=(57.375,) * 3,
    )
    made = TAdaBackbone(config)
    shake(made)
    return made.eval()


def video(frames: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(256, (1, 3, frames, 32, 32), dtype=torch.uint8, generator=generator)


@torch.inference_mode()
def test_features_are_those_of_every_clip_alone() -> None:
    made, frames = backbone(), video(48)
    expected = []
    for first in range(0, 48, 16):
        pixels = (frames[:, :, first : first + 16] / 255 - 0.45) / 0.225
        each = made.trunk.features(pixels)
        expected += [(each[..., k] + each[..., k + 1]) / 2 for k in range(0, 16, 2)]
    features = made(frames)
    assert features.shape == (1, SMALL.features, 24) and made.config.width == SMALL.features
    torch.testing.assert_close(features, torch.stack(expected, -1), rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="clips of 16"):
        made(video(20))


@torch.inference_mode()
@pytest.mark.parametrize("backwards", [False, True])
def test_a_span_of_any_length_gives_the_same_group_by_group(backwards: bool) -> None:
    made, frames = backbone(), video(80)
    groups = frames.split([32, 16, 32], 2)
    front = StreamingPass(made, ["features"], backwards=backwards)
    found = [front.push(group)["features"] for group in (groups[::-1] if backwards else groups)]
    assert not front.finish()
    features = torch.cat(found[::-1] if backwards else found, 2)
    torch.testing.assert_close(features, made(frames), rtol=1e-5, atol=1e-5)


def test_a_fingerprint_names_weights_statistics_and_sizes() -> None:
    made = backbone()
    of = settings(made.config, PixelConfig(), "fp32")
    first = fingerprints(made, of)
    assert first.keys() == {"features"} and made.config.cuts == ("features",)
    for name, tensor in made.state_dict().items():
        if tensor.is_floating_point():
            kept = tensor.clone()
            tensor.flatten()[0] += 1
            assert fingerprints(made, of) != first, name
            tensor.copy_(kept)
    assert fingerprints(made, of) == first
    transformer = settings(BackboneConfig(TINY), PixelConfig(), "fp32")
    assert transformer["trunk"] != of["trunk"]


def test_pretrained_networks_and_lifted_resnets_load_strictly(tmp_path: Path) -> None:
    config = BackboneConfig(TINY, network="tada2d", mode="frozen")
    image: Any = timm.create_model("resnet50")
    save_file(image.state_dict(), tmp_path / "image.safetensors")
    made = TAdaBackbone(config).eval()
    coverage = load_tada_trunk(made.trunk, tmp_path / "image.safetensors")
    assert set(coverage.dropped) == {"fc.weight", "fc.bias"} and len(coverage.loaded) == 318
    state = made.trunk.state_dict()
    assert torch.equal(state["stages.0.0.adaptive.conv.weight"], image.layer1[0].conv2.weight)
    save_file(state | {"classifier.weight": torch.ones(6, 2048)}, tmp_path / "ours.safetensors")
    again = TAdaBackbone(config)
    load_tada_trunk(again.trunk, tmp_path / "ours.safetensors")
    for name, tensor in again.trunk.state_dict().items():
        assert torch.equal(tensor, state[name])
    with pytest.raises(ValueError, match="does not fit this model"):
        load_tada_trunk(backbone().trunk, tmp_path / "ours.safetensors")
    transformer = Backbone(BackboneConfig(TINY))
    save_file(transformer.state_dict(), tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="holds neither a TAda2D network nor a ResNet"):
        load_tada_trunk(made.trunk, tmp_path / "other.safetensors")


@pytest.mark.parametrize("mode", ["frozen", "full"])
def test_what_should_learn_moves_and_statistics_stay(
    data: list[str], tmp_path: Path, accelerator: Accelerator, mode: Mode
) -> None:
    quick = [*QUICK, "--training.stop_epoch=1", "--data.validation_subset=null"]
    chosen = [*SETTINGS, f"--backbone.mode={mode}", f"--out={tmp_path}"]
    config = load(Experiment, DEMO, [*data, *quick, *chosen])
    store = Store.open(tmp_path / "none", "a")
    items = loaded(config, "training", store)
    detector = Detector(config, tuple("abcdef"))
    before = {name: t.clone() for name, t in detector.state_dict().items()}
    TrainingRun(DetectionTask(detector, items, None, accelerator), accelerator, False).train()
    moved = {name for name, t in detector.state_dict().items() if not torch.equal(t, before[name])}
    trunk = {name for name in moved if ".trunk." in name}
    assert len(moved) > len(trunk) and bool(trunk) == (mode == "full")
    assert not any("running_" in name or "num_batches" in name for name in moved)
    assert detector.count_parameters()["trunk"] > 0


@pytest.mark.parametrize("span", ["window", slow("video")])
def test_both_directions_from_the_cache_are_those_from_pixels(
    data: list[str], tmp_path: Path, accelerator: Accelerator, span: str
) -> None:
    fixed = ["--training.global_batch=1", "--evaluation.batch_size=1", "--cache.dtype=float32"]
    chosen = [
        *SETTINGS,
        "--backbone.mode=frozen",
        "--fusion.method=average",
        f"--cache.span={span}",
    ]
    config = load(Experiment, DEMO, [*data, *QUICK, *fixed, *chosen, f"--out={tmp_path}"])
    torch.manual_seed(1)
    detector = Detector(config, tuple("abcdef")).eval()
    shake(detector.streams[0].backbone)
    first, second = detector.streams
    assert isinstance(first.backbone, TAdaBackbone) and isinstance(second.backbone, TAdaBackbone)
    assert first.backbone.trunk is second.backbone.trunk
    with Store.open(tmp_path / "cache", "a") as store:
        items = loaded(config, "test", store)
        overlap = config.sampling.test_overlap
        pixels = window_loader(items, overlap, config, accelerator)
        expected, _ = detect_subset(detector, items, pixels, accelerator, "pixels")
        activations = activations_of(detector, store, ["weights.pt"])
        spans = [
            evaluation_spans(items, overlap, config.sampling, direction)
            + training_spans(items, config.sampling, direction, config.cache.span)
            for direction in config.directions
        ]
        cached, _ = ensure_cached(activations, spans, "features", [items], accelerator, 0)
        windows = window_loader(items, overlap, config, accelerator, cached)
        found, _ = detect_subset(detector, items, windows, accelerator, "cached")
        assert found == expected and any(expected["fused"].values())
        # The same video forwards and backwards: the network is no mirror of itself.
        place, span_of = cached.places[0], spans[0][0]
        ours, theirs = place.read(span_of), cached.places[1].read(spans[1][0])
        assert ours.shape == theirs.shape == (span_of.rows, SMALL.features)
        assert not torch.allclose(ours, theirs.flip(0), rtol=1e-3)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["--backbone.mode=adapter"], "tada2d has no adapters"),
        (["--backbone.mode=frozen", "--backbone.recompute=full"], "no recomputation"),
        (["--backbone.mode=frozen", "--cache.blocks=[0]"], "cache.blocks must be blocks"),
        (["--backbone.mode=full", "--backbone.trainable_from_block=2"], "must lie in 0 to 1"),
    ],
)
def test_settings_that_it_has_not_are_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(Experiment, DEMO, [*SETTINGS, *overrides])
