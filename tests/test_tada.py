"""TAdaConv from its formula, in networks of others, and the published networks."""

import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from timm.layers import StdConv2d
from torch import Tensor, nn
from torchvision.models import video

from benchmarks import tada as benchmark
from configs import cli
from extract.checkpoints.strict import load_state_dict_strict
from extract.checkpoints.tensor_files import TensorFile
from extract.settings.network import NetworkConfig
from extract.tada.conv import Calibrates, Route, TAdaConv, average_over_time, calibrate_convs
from extract.tada.convnext import ConvNeXtBlock, TAdaConvNeXt, TAdaConvNeXtConfig
from extract.tada.pretrained import (
    Config,
    build_tada,
    load_tada,
    load_tada_features,
    recognise_tada,
)
from extract.tada.tada2d import Bottleneck, TAda2D, TAda2DConfig, lift_resnet
from extract.weights import main as weights_main
from tests.conftest import GOLDEN
from tests.marks import slow
from tests.tada import convnext, drawn, tada2d, two_tasks
from tests.test_backbone import relative

SMALL = TAda2DConfig(classes=5, blocks=(1, 2), width=8)
SMALL_CONVNEXT = TAdaConvNeXtConfig(classes=5, depths=(1, 2), widths=(8, 16))


M = TypeVar("M", bound=nn.Module)


def shaken(module: M) -> M:
    """Make every number of a module matter."""
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point():
            noise = 0.2 * torch.randn_like(tensor)
            tensor.add_(noise.abs() if name.endswith("running_var") else noise)
    return module


def layer_norm_of_batch(norm: nn.BatchNorm1d, x: Tensor) -> Tensor:
    """Batch norm of a vector [H] in eval mode, by its formula."""
    assert norm.running_mean is not None and norm.running_var is not None
    return (x - norm.running_mean) / (norm.running_var + 1e-5).sqrt() * norm.weight + norm.bias


def factors(route: Route, clip: Tensor) -> list[Tensor]:
    """α_t = 1 + b(ReLU(BN(a(p_t + g(q))))) for every frame of a clip [C, T, H, W]."""
    means = [frame.mean((-2, -1)) for frame in clip.unbind(1)]
    whole = torch.stack(means).mean(0)
    assert route.clip.bias is not None and route.down.bias is not None
    known = [p + route.clip.weight[..., 0] @ whole + route.clip.bias for p in means]

    def over_time(kernel: Tensor, x: list[Tensor], t: int) -> Tensor:
        near = [(k, t + k - 1) for k in range(3) if 0 <= t + k - 1 < len(x)]
        return sum((kernel[..., k] @ x[u] for k, u in near), torch.zeros(len(kernel)))

    times = range(len(means))
    hidden = [over_time(route.down.weight, known, t) + route.down.bias for t in times]
    hidden = [F.relu(layer_norm_of_batch(route.norm, h)) for h in hidden]
    return [1 + over_time(route.up.weight, hidden, t) for t in times]


def scaled(weight: Tensor, alpha: Tensor, calibrates: Calibrates, groups: int) -> Tensor:
    """W_t = α_t · W for a base weight [C', C / groups, …], channel by channel."""
    made = weight.clone()
    for o in range(weight.shape[0]):
        for i in range(weight.shape[1]):
            group = o // (weight.shape[0] // groups)
            made[o, i] *= alpha[o] if calibrates == "out" else alpha[group * weight.shape[1] + i]
    return made


@settings(deadline=None, max_examples=30)
@given(
    calibrates=st.sampled_from(["in", "out"]),
    frames=st.integers(1, 5),
    clips=st.integers(1, 3),
    kernel=st.sampled_from([1, 3, 5]),
    stride=st.sampled_from([1, 2]),
    dilation=st.sampled_from([1, 2]),
    groups=st.sampled_from([1, 4, 8]),
    bias=st.booleans(),
)
def test_frames_are_convolved_with_weights_of_their_own(
    calibrates: Calibrates,
    frames: int,
    clips: int,
    kernel: int,
    stride: int,
    dilation: int,
    groups: int,
    bias: bool,
) -> None:
    torch.manual_seed(frames)
    conv = nn.Conv2d(8, 16, kernel, stride, kernel // 2, dilation, groups, bias)
    conv.requires_grad_(False)
    adaptive = shaken(TAdaConv(conv, calibrates, frames)).eval()
    x = torch.randn(clips * frames, 8, 9, 7)
    expected = []
    for clip in x.split(frames):
        for alpha, frame in zip(factors(adaptive.route, clip.transpose(0, 1)), clip, strict=True):
            weight = scaled(conv.weight, alpha, calibrates, groups)
            sizes = (stride, kernel // 2, dilation, groups)
            expected.append(F.conv2d(frame[None], weight, conv.bias, *sizes)[0])
    for folded in (x, x.contiguous(memory_format=torch.channels_last)):
        assert relative(adaptive(folded), torch.stack(expected)) < 1e-5
    adaptive.frames = None
    assert relative(adaptive(x, frames), torch.stack(expected)) < 1e-5


@settings(deadline=None, max_examples=30)
@given(
    calibrates=st.sampled_from(["in", "out"]),
    frames=st.integers(1, 7),
    depth=st.sampled_from([1, 3, 5]),
    stride=st.sampled_from([1, 2, 3]),
    dilation=st.sampled_from([1, 2]),
    groups=st.sampled_from([1, 2]),
    bias=st.booleans(),
)
def test_clips_are_convolved_with_the_weights_of_the_frame_that_an_output_stands_at(
    calibrates: Calibrates,
    frames: int,
    depth: int,
    stride: int,
    dilation: int,
    groups: int,
    bias: bool,
) -> None:
    torch.manual_seed(frames)
    pad = depth // 2 * dilation
    sizes = ((stride, 2, 1), (pad, 1, 1), (dilation, 1, 1), groups)
    conv = nn.Conv3d(4, 8, (depth, 3, 3), *sizes, bias).requires_grad_(False)
    adaptive = shaken(TAdaConv(conv, calibrates)).eval()
    x = torch.randn(2, 4, frames, 6, 5)
    found = adaptive(x)
    assert found.shape == conv(x).shape
    padded = F.pad(x, (0, 0, 0, 0, pad, pad))
    for clip, zeros_around, outputs in zip(x, padded, found, strict=True):
        alphas = factors(adaptive.route, clip)
        for number, output in enumerate(outputs.unbind(1)):
            t = number * stride  # the middle of what the output is made of
            seen = zeros_around[:, t : t + 2 * pad + 1][None]
            weight = scaled(conv.weight, alphas[t], calibrates, groups)
            inner = ((1, 2, 1), (0, 1, 1), (dilation, 1, 1), groups)
            expected = F.conv3d(seen, weight, conv.bias, *inner)[0, :, 0]
            assert relative(output, expected) < 1e-5


@torch.inference_mode()
@pytest.mark.parametrize("calibrates", ["in", "out"])
@pytest.mark.parametrize("build", [video.r3d_18, slow(video.mc3_18), slow(video.r2plus1d_18)])
def test_calibrated_networks_over_clips_begin_as_the_plain_ones(
    build: Callable[..., nn.Module], calibrates: Calibrates
) -> None:
    torch.manual_seed(0)
    network = build(weights=None).eval()
    clip, plain = torch.randn(2, 3, 8, 32, 32), dict(network.state_dict())
    before = network(clip)
    names = calibrate_convs(network, calibrates=calibrates)
    assert relative(network(clip), before) < 1e-5
    # All of the residual blocks' that look at more than one pixel, and not the pixels' own.
    assert len(names) == 16 and not any(name.startswith("stem") for name in names)
    after = network.state_dict()
    assert all(torch.equal(after[f"{name}.conv.weight"], plain[f"{name}.weight"]) for name in names)
    routes = sum(".route." in name for name in after)
    assert len(after) == len(plain) + routes and routes == 10 * len(names)
    for name in names:
        module = network.get_submodule(name)
        assert isinstance(module, TAdaConv) and not module.training
        nn.init.normal_(module.route.up.weight, std=0.01)
    assert relative(network(clip), before) > 1e-3


@torch.inference_mode()
@pytest.mark.parametrize("calibrates", ["in", "out"])
@pytest.mark.parametrize("name", [slow("resnet18"), slow("resnet50"), "resnext50_32x4d"])
def test_calibrated_networks_over_frames_begin_as_the_plain_ones(
    name: str, calibrates: Calibrates
) -> None:
    torch.manual_seed(0)
    network = timm.create_model(name, pretrained=False, num_classes=7)
    frames = torch.randn(2 * 4, 3, 32, 32)
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.ones_(
                norm.weight
            )  # the last ones of the branches begin with 0, whatever these hold
            norm.momentum = 1.0
    network.train()(frames)  # norms come to fit
    network.eval()
    before = network(frames)
    names = calibrate_convs(network, frames=4, calibrates=calibrates)
    assert len(names) == 16 and not any("downsample" in name for name in names)
    assert relative(network(frames), before) < 1e-5
    for found in names:
        nn.init.normal_(network.get_submodule(f"{found}.route.up").weight, std=0.01)  # type: ignore[arg-type]
    # Clips know nothing of each other, and frames of one clip do.
    alone, together = network(frames[:4]), network(frames)
    assert relative(together[:4], alone) < 1e-4
    other = frames.clone()
    other[0] = torch.randn(3, 32, 32)
    changed = network(other)
    assert relative(changed[3], together[3]) > 1e-5 > relative(changed[4:], together[4:])
    with pytest.raises(ValueError, match=r"7 frames .* do not divide into clips of 4"):
        network(frames[:7])
    with pytest.raises(ValueError, match="holds no convolution that could be calibrated"):
        calibrate_convs(network, frames=4)  # all are already


def test_what_cannot_be_calibrated_is_told() -> None:
    with pytest.raises(ValueError, match=r"layer1\.0\.conv1 sees single frames: say how many"):
        calibrate_convs(timm.create_model("resnet18", pretrained=False))
    flawed: dict[str, nn.Module] = {
        "0: it pads with 'reflect'": nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect"),
        "0: Conv2d does not convolve as torch's own": nn.Conv2d(8, 8, 3, padding="same"),
        "0: a kernel of 3 frames with padding 0": nn.Conv3d(8, 8, 3),
    }
    for said, conv in flawed.items():
        with pytest.raises(ValueError, match=said):
            calibrate_convs(nn.Sequential(conv), frames=2)
    with pytest.raises(ValueError, match="StdConv2d does not convolve as torch's own"):
        TAdaConv(StdConv2d(8, 8, 3))  # it standardises its weights
    with pytest.raises(ValueError, match="reads 3 channels; a route needs at least 4"):
        TAdaConv(nn.Conv2d(3, 8, 3))
    with pytest.raises(ValueError, match="no convolution"):
        calibrate_convs(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1)), frames=2)
    with pytest.raises(ValueError, match="into clips of None; say how many frames"):
        TAdaConv(nn.Conv2d(8, 8, 3))(torch.zeros(2, 8, 4, 4))


def test_neighbours_in_time_are_averaged_with_zeros_beyond_the_ends() -> None:
    for frames in (1, 2, 5):
        x = torch.randn(2 * frames, 3, 4, 6)
        found = average_over_time(x, frames)
        for clip in (0, frames):
            for t in range(frames):
                near = [x[clip + u] for u in (t - 1, t, t + 1) if 0 <= u < frames]
                expected = torch.stack(near).sum(0) / 3
                torch.testing.assert_close(found[clip + t], expected)


def published_block(p: Callable[[str], Tensor], x: Tensor, stride: int, training: bool) -> Tensor:
    """A block of TAda2D as it is described, over [B, C, T, H, W].

    Args:
        p: its tensors by the published names after `conv2.res_1.`.
    """

    def norm(y: Tensor, name: str) -> Tensor:
        mean, var = p(f"{name}.running_mean").clone(), p(f"{name}.running_var").clone()
        return F.batch_norm(y, mean, var, p(f"{name}.weight"), p(f"{name}.bias"), training, 0.1)

    steps = (1, stride, stride)
    y = F.relu(norm(F.conv3d(x, p("conv_branch.a.weight")), "conv_branch.a_bn"))
    here, whole = y.mean((3, 4), keepdim=True), y.mean((2, 3, 4), keepdim=True)
    route = "conv_branch.b_rf"
    known = here + F.conv3d(whole, p(f"{route}.g.weight"), p(f"{route}.g.bias"))
    hidden = F.conv3d(known, p(f"{route}.a.weight"), p(f"{route}.a.bias"), padding=(1, 0, 0))
    hidden = F.relu(norm(hidden, f"{route}.bn"))
    alpha = 1 + F.conv3d(hidden, p(f"{route}.b.weight"), padding=(1, 0, 0))
    clips = []
    for clip, factor in zip(y, alpha, strict=True):
        kernels = [p("conv_branch.b.weight")[0, 0] * a[None, :] for a in factor.unbind(1)]
        pairs = zip(clip.unbind(1), kernels, strict=True)
        clips.append(torch.stack([F.conv2d(f, w, None, stride, 1) for f, w in pairs], 1))
    y = torch.stack(clips)
    averaged = F.avg_pool3d(y, (3, 1, 1), 1, (1, 0, 0))
    y = F.relu(norm(y, "conv_branch.b_bn") + norm(averaged, "conv_branch.b_avgpool_bn"))
    y = norm(F.conv3d(y, p("conv_branch.c.weight")), "conv_branch.c_bn")
    return F.relu(y + norm(F.conv3d(x, p("short_cut.weight"), None, steps), "short_cut_bn"))


@pytest.mark.parametrize("training", [False, True])
def test_a_block_is_the_published_one(training: bool) -> None:
    """In training, too, where norms look at the batch."""
    state = drawn(tada2d(5, (1,), 8))
    found = recognise_tada(TensorFile(state, ()), "it")
    assert found is not None
    network = build_tada(found.config).train(training)
    network.load_state_dict(found.tensors)
    block = network.get_submodule("stages.0.0")
    x = torch.randn(2, 8, 5, 10, 10)
    y = block(x.transpose(1, 2).flatten(0, 1), 5).unflatten(0, (2, 5)).transpose(1, 2)
    expected = published_block(lambda n: state[f"backbone.conv2.res_1.{n}"], x, 2, training)
    assert relative(y, expected) < 1e-5


COUNTS: list[tuple[Config, dict[str, tuple[int, ...]], int, int]] = [
    (TAda2DConfig(400), tada2d(400), 27_485_472, 560),
    (TAda2DConfig(174), tada2d(174), 27_022_398, 560),
    (TAda2DConfig(397), two_tasks(tada2d(), (97, 300)), 27_479_325, 562),
    (TAdaConvNeXtConfig(400), convnext(400), 45_971_488, 434),
]


@pytest.mark.parametrize(("config", "shapes", "parameters", "tensors"), COUNTS)
def test_parameters_and_tensors_are_as_many_as_published(
    config: Config, shapes: dict[str, tuple[int, ...]], parameters: int, tensors: int
) -> None:
    assert len(shapes) == tensors
    with torch.device("meta"):
        network = build_tada(config)
        found = recognise_tada(TensorFile({n: torch.empty(s) for n, s in shapes.items()}, ()), "it")
    assert sum(p.numel() for p in network.parameters()) == parameters
    assert found is not None and found.config == config
    own = network.state_dict()
    assert {n: t.shape for n, t in found.tensors.items()} == {n: t.shape for n, t in own.items()}


REFERENCES = {
    "tada2d_r50_k400": (tada2d(), 8, "TAda2D ResNet-50 (TAdaConv project)"),
    "tadaconvnextv2_t_k400": (convnext(), 16, "TAdaConvNeXtV2-T (TAdaConv project)"),
}


@torch.inference_mode()
@pytest.mark.parametrize("name", REFERENCES)
def test_probabilities_match_the_reference(name: str, tmp_path: Path) -> None:
    shapes, frames, said = REFERENCES[name]
    save_file(drawn(shapes), tmp_path / "x.safetensors")
    network = load_tada(tmp_path / "x.safetensors")
    found = recognise_tada(TensorFile(drawn(shapes), ()), "it")
    assert str(found) == said
    shape = (1, 3, frames, 64, 64)
    clip = torch.from_numpy(np.random.default_rng(0).standard_normal(shape).astype(np.float32))
    features = network.features(clip)
    assert features.shape == (1, network.width, 8)
    mean = features.mean(-1)
    if isinstance(network, TAdaConvNeXt):
        mean = network.norm(mean)
    reference = load_file(GOLDEN / "tadaconv.safetensors")
    assert relative(mean, reference[f"{name}.features"]) < 1e-4
    probabilities = network(clip).softmax(-1)
    assert relative(probabilities, reference[f"{name}.probabilities"]) < 1e-4


@pytest.mark.parametrize("config", [SMALL, SMALL_CONVNEXT])
def test_features_and_scores_of_clips_of_any_length(config: Config) -> None:
    network = shaken(build_tada(config)).eval()
    for frames in (1, 2, 3, 5, 8):
        pixels = torch.randint(0, 256, (2, 3, frames, 40, 48), dtype=torch.uint8)
        features = network.features(pixels)
        steps = -(-frames // 2) if isinstance(config, TAdaConvNeXtConfig) else frames
        assert features.shape == (2, network.width, steps)
        assert network(pixels).shape == (2, 5)
        by_hand = (pixels.double() / 255 - 0.45) / 0.225
        assert relative(network.features(by_hand.float()), features) < 1e-5
        # Clips of a batch know nothing of each other.
        assert relative(network.features(pixels[1:]), features[1:]) < 1e-4


@pytest.mark.parametrize("config", [SMALL, SMALL_CONVNEXT])
def test_everything_learns(config: Config) -> None:
    torch.manual_seed(0)
    network = shaken(build_tada(config)).train()
    network(torch.randn(2, 3, 6, 64, 64)).square().sum().backward()
    without = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert not without


def test_new_networks_begin_without_calibration_and_averages() -> None:
    torch.manual_seed(0)
    network = TAda2D(TAda2DConfig(classes=3, blocks=(1, 1), width=32))
    for name, tensor in network.state_dict().items():
        if name.endswith(("route.up.weight", "average_norm.weight", "average_norm.bias")):
            assert not tensor.any(), name
        elif name.endswith("norm.weight"):
            assert (tensor == 1).all(), name
    block = network.get_submodule("stages.1.0")
    assert isinstance(block, Bottleneck)
    bound = (64 * 64 * 9) ** -0.5  # 1 / √fan-in of [1, 1, 64, 64, 3, 3]
    weight = block.adaptive.conv.weight
    assert 0.99 * bound < weight.abs().max() <= bound
    for conv, fan_out in ((block.reduce, 64), (block.expand, 256), (network.stem, 32 * 49)):
        assert conv.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.1)
    assert block.adaptive.route.down.weight.std().item() == pytest.approx(
        (2 / (16 * 3)) ** 0.5, rel=0.1
    )
    new = TAdaConvNeXt(TAdaConvNeXtConfig(classes=3, depths=(1, 1), widths=(32, 64)))
    second = new.get_submodule("stages.1.0")
    assert isinstance(second, ConvNeXtBlock) and not second.average_norm.weight.any()
    assert (second.gamma == 1e-6).all() and not second.route.shifts.weight.any()
    assert second.grow.weight.std().item() == pytest.approx(0.02, rel=0.1)
    # Factors of 1, whatever the frames show.
    scales, shifts = second.route(torch.randn(2, 64, 5))
    assert (scales == 1).all() and (shifts == 1).all()


def image_resnet() -> nn.Module:
    """A random ResNet-50 with norms that have seen something."""
    torch.manual_seed(0)
    network = timm.create_model("resnet50", pretrained=False).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            shaken(module)
    return network


@torch.inference_mode()
def test_a_lifted_resnet_gives_for_every_frame_what_it_gave() -> None:
    image = image_resnet()
    network = TAda2D(TAda2DConfig(classes=7)).eval()
    classifier = network.classifier.weight.clone()
    state: dict[str, Tensor] = dict(image.state_dict())
    lift_resnet(network, state, "timm")
    assert torch.equal(network.classifier.weight, classifier)
    # TAda2D has a stride in its first stage where an image ResNet has max pooling.
    image.maxpool = nn.Identity()
    image.layer1[0].conv2.stride = image.layer1[0].downsample[0].stride = (2, 2)  # type: ignore[index, union-attr]
    clips = torch.randn(2, 3, 3, 64, 64)
    frames = clips.transpose(1, 2).flatten(0, 1)
    pooled = image.forward_features(frames).mean((-2, -1))  # type: ignore[operator]
    expected = pooled.unflatten(0, (2, 3)).transpose(1, 2)
    assert relative(network.features(clips), expected) < 1e-5


def test_only_the_right_resnet_is_lifted() -> None:
    with torch.device("meta"):
        state: dict[str, Tensor] = timm.create_model("resnet50", pretrained=False).state_dict()
        other = timm.create_model("resnet18", pretrained=False).state_dict()
    network = TAda2D(TAda2DConfig(classes=7, blocks=(3, 4, 6, 2)))
    before = network.stem.weight.clone()
    with pytest.raises(ValueError, match=r"unexpected stages\.3\.2\.adaptive\.conv\.weight"):
        lift_resnet(network, state, "timm")
    with pytest.raises(ValueError, match=r"missing +stages\.0\.0\.expand\.weight"):
        lift_resnet(network, other, "timm")
    assert torch.equal(network.stem.weight, before)
    # Old files have no counters of batches.
    old = {n: torch.zeros(t.shape) for n, t in state.items() if "num_batches" not in n}
    lift_resnet(TAda2D(TAda2DConfig(classes=7)), old, "torchvision")


def test_drop_path_skips_whole_clips() -> None:
    torch.manual_seed(0)
    block = shaken(ConvNeXtBlock(8, 1, drop=0.5)).train()
    x = torch.randn(64 * 3, 8, 4, 4)
    changed = (block(x, 3) != x).flatten(1).any(1).view(64, 3)
    assert (changed.all(1) == changed.any(1)).all()
    assert 16 < changed[:, 0].sum() < 48
    assert (block.eval()(x, 3) != x).flatten(1).any(1).all()


def checkpoint(config: Config) -> dict[str, Any]:
    """A checkpoint as the project writes it; its averaged weights differ from the others."""
    if isinstance(config, TAda2DConfig):
        state = drawn(tada2d(config.classes, config.blocks, config.width))
    else:
        state = drawn(convnext(config.classes, config.depths, config.widths))
    other = {name: tensor + 1 for name, tensor in state.items()}
    record = {"epoch": 63, "optimizer_state": {"state": {}}, "cfg": "TRAIN:\n  ENABLE: true\n"}
    return record | {"model_state": other, "model_ema_state": state}


@pytest.mark.parametrize("config", [SMALL, SMALL_CONVNEXT])
def test_published_checkpoints_load_strictly(tmp_path: Path, config: Config) -> None:
    path, clip = tmp_path / "x.pyth", torch.randn(1, 3, 4, 32, 32)
    content = checkpoint(config)
    torch.save(content, path)
    averaged = load_tada(path)
    assert averaged.config == config and not averaged.training
    del content["model_ema_state"]
    torch.save(content, path)
    assert not torch.equal(load_tada(path)(clip), averaged(clip))
    # All but the classifier, for other classes.
    torch.save({"model_state": checkpoint(config)["model_ema_state"]}, path)
    other = build_tada(replace(config, classes=3)).eval()
    classifier = other.classifier.weight.clone()
    load_tada_features(other, path)
    assert torch.equal(other.classifier.weight, classifier)
    assert torch.equal(other.features(clip), averaged.features(clip))
    # Nothing may be missing or too much.
    with pytest.raises(ValueError, match=r"x\.pyth does not fit this model"):
        load_tada_features(build_tada(TAda2DConfig(5, (1, 1), 8)), path)
    state = content["model_state"]
    torch.save({"model_state": state | {"head.other.weight": torch.ones(2)}}, path)
    with pytest.raises(ValueError, match=r"unexpected head\.other\.weight \(2,\)"):
        load_tada(path)
    last = list(state)[-5]
    torch.save({"model_state": {name: t for name, t in state.items() if name != last}}, path)
    with pytest.raises(ValueError, match="missing"):
        load_tada(path)
    torch.save({"model_state": {"backbone.x": torch.ones(2)}}, path)
    with pytest.raises(ValueError, match="holds no TAdaConv network"):
        load_tada(path)


def said_of(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object
) -> str:
    monkeypatch.setattr(sys, "argv", ["weights.py", *map(str, arguments)])
    cli.run(weights_main)
    return capsys.readouterr().out


def test_the_script_says_what_a_file_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "x.pyth"
    with torch.device("meta"):
        shapes = two_tasks(tada2d(), (97, 300))
        state = {name: torch.empty(shape) for name, shape in shapes.items()}
    torch.save({"model_state": {n: torch.zeros(t.shape) for n, t in state.items()}}, path)
    said = said_of(monkeypatch, capsys, path)
    assert "x.pyth: TAda2D ResNet-50 (TAdaConv project)\n" in said
    assert "562 tensors, of its 'model_state', " in said
    assert "classifier of 97 classes, as EPIC-Kitchens-100's verbs has and 300 classes" in said
    assert "missing" not in said and "not known" not in said
    torch.save(checkpoint(SMALL_CONVNEXT), path)
    said = said_of(monkeypatch, capsys, path)
    assert "a TAdaConvNeXtV2 of another size (TAdaConv project)" in said
    assert "of its 'model_ema_state'" in said and "classifier of 5 classes; not named" in said
    broken = checkpoint(SMALL)["model_state"]
    broken["backbone.conv2.res_1.strange"] = torch.ones(1)
    broken["head.out.bias"] = torch.ones(6)
    del broken["backbone.conv3.res_2.conv_branch.b_rf.g.bias"]
    torch.save({"model_state": broken}, path)
    said = said_of(monkeypatch, capsys, path)
    for line in (
        "missing: stages.1.1.adaptive.route.clip.bias\n",
        "not known: stages.0.0.strange\n",
        "classifier.bias is (6,), not (5,)\n",
    ):
        assert line in said, said
    with pytest.raises(SystemExit, match=r"cannot be converted: missing: stages\.1\.1"):
        said_of(monkeypatch, capsys, path, "--convert", tmp_path / "y.safetensors")


@pytest.mark.parametrize("config", [SMALL, SMALL_CONVNEXT])
def test_a_converted_file_is_the_same_network(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    config: Config,
) -> None:
    path, ours = tmp_path / "x.pyth", tmp_path / "ours.safetensors"
    torch.save(checkpoint(config), path)
    said_of(monkeypatch, capsys, path, "--convert", ours)
    assert "(Palindrome weights)" in said_of(monkeypatch, capsys, ours)
    converted, original = load_tada(ours).state_dict(), load_tada(path).state_dict()
    assert all(torch.equal(converted[name], tensor) for name, tensor in original.items())
    with pytest.raises(SystemExit, match=r"becomes a \.safetensors file, not .*y\.pth"):
        said_of(monkeypatch, capsys, path, "--convert", tmp_path / "y.pth")
    with pytest.raises(SystemExit, match="is the file itself"):
        said_of(monkeypatch, capsys, ours, "--convert", ours)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["ours.safetensors", "x.pyth"]


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_damaged_files_are_refused_in_words(data: st.DataObject) -> None:
    """Whatever is missing or has another shape: a ValueError, nothing else."""
    configs: list[Config] = [SMALL, SMALL_CONVNEXT]
    config = data.draw(st.sampled_from(configs))
    state: dict[str, Tensor] = dict(checkpoint(config)["model_state"])
    for name in data.draw(st.lists(st.sampled_from(sorted(state)), min_size=1, max_size=3)):
        shape = data.draw(st.one_of(st.none(), st.lists(st.integers(0, 3), max_size=6)))
        state.pop(name, None)
        if shape is not None:
            state[name] = torch.zeros(shape)
    try:
        found = recognise_tada(TensorFile(state, ()), "it")
        if found is not None:
            load_state_dict_strict(build_tada(found.config), found.tensors, "it")
    except ValueError as error:
        assert str(error).startswith("it")


def test_the_benchmark_compares_the_same_network(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--frames", "2", "--size", "32", "--repeats", "1")
    monkeypatch.setattr(sys, "argv", ["tada.py", *options])
    benchmark.main()
    said = capsys.readouterr().out
    assert all(f"| {way} |" in said for way in ("TAda2D", "plain", "TAda2D, per frame"))


@pytest.mark.parametrize("name", ["dropout", "drop_path"])
@pytest.mark.parametrize("value", [-0.1, 1.0, float("nan")])
def test_probabilities_are_checked_wherever_they_are_given(name: str, value: float) -> None:
    kinds: list[tuple[str, Callable[..., object]]] = [
        (name, partial(TAda2DConfig, 5)),
        (name, partial(TAdaConvNeXtConfig, 5)),
        (f"network.{name}", NetworkConfig),
    ]
    for setting, kind in kinds:
        with pytest.raises(ValueError, match=rf"^{setting} is a probability .*, not {value}$"):
            kind(**{name: value})
