"""Small layers and transforms of our own against timm's and torchvision's, bit for bit."""

from itertools import product

import pytest
import timm.layers
import torch
from timm.optim import param_groups_weight_decay
from torch import nn
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from extract.backbone.videomae import Mlp
from extract.layers.initial import trunc_normal_
from extract.layers.residual import DropPath, LayerScale, drop_path
from extract.sampling.transforms import (
    RandomFlip,
    RandomResizedCrop,
    Shrink,
    evaluation_transform,
    resize,
    shrink_frames,
    train_transform,
    transform_frames,
)
from extract.settings.pixels import PixelConfig
from train.engine.optim import group_by_decay

SIZES = (96, 128), (112, 96), (101, 137), (64, 64), (37, 200), (340, 256)


def frames_of(height: int, width: int, count: int = 3) -> torch.Tensor:
    """Return frames uint8 [N, 3, H, W] as a decoder lays them out, channels last."""
    torch.manual_seed(height * width)
    return torch.randint(256, (count, height, width, 3), dtype=torch.uint8).permute(0, 3, 1, 2)


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("square", [True, False])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("count", [1, 3])
def test_frames_are_resized_as_torchvision_does(
    size: tuple[int, int], square: bool, antialias: bool, count: int
) -> None:
    frames = frames_of(*size, count)
    for short_side in (24, 33, 64, 72, 160):
        expected = functional.resize(frames, [short_side], antialias=antialias)
        if square:
            expected = functional.center_crop(expected, [short_side])
        found = shrink_frames(
            frames.permute(0, 2, 3, 1).numpy(), Shrink(short_side, square, antialias)
        )
        assert torch.equal(torch.from_numpy(found).permute(0, 3, 1, 2), expected)


def test_without_a_way_for_bytes_levels_are_rounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    frames = frames_of(101, 137)
    expected = functional.resize(frames, [40, 50], antialias=True)
    assert torch.equal(resize(frames, (40, 50), antialias=True), expected)


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("scale", [(0.08, 1.0), (0.9, 1.0)])
@pytest.mark.parametrize("size", SIZES)
def test_random_crops_are_torchvisions(
    size: tuple[int, int], scale: tuple[float, float], antialias: bool
) -> None:
    """Those that never fit into a long frame, too, and the numbers that are drawn afterwards."""
    frames = frames_of(*size)
    theirs = v2.RandomResizedCrop(48, scale=scale, antialias=antialias)
    ours = RandomResizedCrop(48, scale, antialias)
    for seed in range(20):
        torch.manual_seed(seed)
        expected, after = theirs(frames), torch.rand(1)
        torch.manual_seed(seed)
        assert torch.equal(ours(frames), expected) and torch.equal(torch.rand(1), after)


def test_flips_are_torchvisions() -> None:
    frames, theirs, ours = frames_of(20, 30), v2.RandomHorizontalFlip(0.4), RandomFlip(0.4)
    for seed in range(20):
        torch.manual_seed(seed)
        expected = theirs(frames)
        torch.manual_seed(seed)
        assert torch.equal(ours(frames), expected)


def test_a_window_is_transformed_in_that_order() -> None:
    config = PixelConfig(size=48, train_short_side=56, random_crop=(0.3, 1.0), flip=0.5)
    frames = frames_of(96, 128)
    whole = v2.Compose(
        [
            v2.RandomResizedCrop(48, scale=(0.3, 1.0), antialias=config.antialias),
            v2.RandomHorizontalFlip(0.5),
        ]
    )
    small = functional.resize(frames, [56], antialias=config.antialias)
    for seed in range(6):
        torch.manual_seed(seed)
        expected = whole(small).transpose(0, 1)
        found = transform_frames(
            train_transform(config), frames.permute(0, 2, 3, 1).numpy(), seed=seed
        )
        assert torch.equal(found, expected)
    plain = transform_frames(evaluation_transform(config), frames.permute(0, 2, 3, 1).numpy())
    centre = functional.center_crop(functional.resize(frames, [48]), [48])
    assert torch.equal(plain, centre.transpose(0, 1))


def test_layers_are_timms() -> None:
    x = torch.randn(7, 5, 8)
    for probability, training in product((0.0, 0.3, 1.0), (True, False)):
        torch.manual_seed(0)
        expected = timm.layers.drop_path(x, probability, training)
        torch.manual_seed(0)
        assert torch.equal(drop_path(x, probability, training), expected)
        torch.manual_seed(0)
        assert torch.equal(DropPath(probability).train(training)(x), expected)
    torch.manual_seed(0)
    theirs = timm.layers.Mlp(8, 20)
    torch.manual_seed(0)
    ours = Mlp(8, 20)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    assert torch.equal(ours(x), theirs(x))
    scale = LayerScale(8, 0.2)
    assert torch.equal(scale(x), timm.layers.LayerScale(8, 0.2)(x)) and [*scale.state_dict()] == [
        "gamma"
    ]


@pytest.mark.parametrize("std", [0.02, 1.0, 3.0])
@pytest.mark.filterwarnings("ignore:mean is more than 2 std")
def test_truncated_normal_numbers_are_timms(std: float) -> None:
    torch.manual_seed(0)
    expected = timm.layers.trunc_normal_(torch.empty(50, 40), std=std)
    torch.manual_seed(0)
    assert torch.equal(trunc_normal_(torch.empty(50, 40), std=std), expected)


@pytest.mark.parametrize("decay", [0.05, 0.0])
def test_groups_of_the_optimizer_are_timms(decay: float) -> None:
    network = nn.Sequential(
        nn.Conv1d(3, 4, 3), nn.LayerNorm(4), LayerScale(4, 1.0), nn.Linear(4, 2)
    )
    network[3].weight.requires_grad_(False)
    expected = param_groups_weight_decay(network, decay)
    found = group_by_decay(network, decay)
    if not decay:  # older versions of timm make two groups then, which are alike
        expected = [
            {"weight_decay": 0.0, "params": [p for p in network.parameters() if p.requires_grad]}
        ]
    assert [g["weight_decay"] for g in found] == [g["weight_decay"] for g in expected]
    for ours, theirs in zip(found, expected, strict=True):
        assert [*map(id, ours["params"])] == [*map(id, theirs["params"])]
