"""The backbone against reference numbers of an independent implementation."""

import json
from dataclasses import replace
from unittest.mock import patch

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import extract.backbone.backbone
from extract.backbone.adapters import TemporalAdapter
from extract.backbone.backbone import Backbone
from extract.backbone.videomae import Block
from extract.checkpoints.layouts import find_networks
from extract.checkpoints.strict import load_state_dict_strict
from extract.settings.backbone import BackboneConfig, Mode, Recompute, TrunkConfig
from tests.conftest import GOLDEN


def relative(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).detach().norm() / expected.detach().norm())


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    return load_file(GOLDEN / "activations.safetensors")


@pytest.fixture(scope="module")
def tiny() -> Backbone:
    sizes = json.loads((GOLDEN / "config.json").read_text())
    trunk = TrunkConfig(sizes["embed"], sizes["depth"], sizes["heads"], image_size=sizes["img"])
    backbone = Backbone(BackboneConfig(trunk)).eval()
    (network,) = find_networks(GOLDEN / "opentad_checkpoint.pth")
    load_state_dict_strict(backbone, network.backbone, "golden")
    return backbone


@torch.inference_mode()
def test_features_match_reference(tiny: Backbone, golden: dict[str, Tensor]) -> None:
    features = torch.nn.functional.interpolate(tiny(golden["video"]), size=64, mode="linear")
    assert relative(features, golden["features"]) < 1e-5


@torch.inference_mode()
def test_features_match_reference_on_another_grid(
    tiny: Backbone, golden: dict[str, Tensor]
) -> None:
    features = tiny(golden["video_other_grid"])
    features = torch.nn.functional.interpolate(features, size=64, mode="linear")
    assert relative(features, golden["features_other_grid"]) < 1e-5


@torch.inference_mode()
@pytest.mark.parametrize("block", [0, 1])
def test_block_tokens_match_reference(
    tiny: Backbone, golden: dict[str, Tensor], block: int
) -> None:
    tokens = tiny(golden["video"][:1], stop=block)
    first_clip = tokens[:, :8].flatten(1, 2)
    assert relative(first_clip, golden[f"block_{block}_tokens"]) < 1e-5


SMALL = TrunkConfig(width=32, depth=3, heads=2, patch=8, image_size=16)


def frames(batch: int = 2, length: int = 32) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (batch, 3, length, 16, 16), generator=generator).to(torch.uint8)


def shaken(backbone: Backbone) -> Backbone:
    """Give every tensor a value that matters (adapters start as the identity)."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return backbone.eval()


@torch.inference_mode()
def test_resuming_from_any_cut_gives_the_same_features() -> None:
    backbone = shaken(Backbone(BackboneConfig(SMALL)))
    whole = backbone(frames())
    assert whole.shape == (2, 32, 16)
    for cut in range(3):
        tokens = backbone(frames(), stop=cut)
        assert tokens.shape == (2, 16, 4, 32)
        assert torch.equal(backbone(tokens, start=cut), whole)


@torch.inference_mode()
def test_adapter_starts_as_identity_and_crosses_clip_borders() -> None:
    x = torch.randn(1, 16, 3, 32)
    adapter = TemporalAdapter(32)
    assert torch.equal(adapter(x), x)
    torch.nn.init.normal_(adapter.up.weight)
    changed = x.clone()
    changed[:, 8] += 1
    difference = (adapter(changed) - adapter(x)).abs().amax((0, 2, 3))
    assert difference[7:10].min() > 1e-3
    assert difference[:7].max() == 0 and difference[10:].max() == 0


def test_adapter_equals_its_convolutions() -> None:
    torch.manual_seed(0)
    adapter = TemporalAdapter(16).double()
    torch.nn.init.normal_(adapter.up.weight)
    torch.nn.init.normal_(adapter.depthwise.bias)  # type: ignore[arg-type]
    torch.nn.init.constant_(adapter.gamma, 0.7)
    x = torch.randn(2, 8, 5, 16, dtype=torch.float64, requires_grad=True)
    y = torch.nn.functional.gelu(adapter.down(x))
    along_time = y.permute(0, 2, 3, 1).flatten(0, 1)
    z = adapter.pointwise(adapter.depthwise(along_time)).view(2, 5, 4, 8).permute(0, 3, 1, 2)
    expected = x + adapter.up(y + z) * adapter.gamma
    learning = [x, *adapter.parameters()]
    wanted = torch.autograd.grad(expected.square().sum(), learning)
    kinds: tuple[Recompute, ...] = ("none", "selective", "full")
    for recompute in kinds:
        actual = adapter(x, recompute)
        torch.testing.assert_close(actual, expected)
        gradients = torch.autograd.grad(actual.square().sum(), learning)
        for one, two in zip(gradients, wanted, strict=True):
            torch.testing.assert_close(one, two)


@pytest.mark.parametrize("mode", ["adapter", "frozen", "full", "side"])
@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
def test_what_learns_in_each_mode(mode: Mode, recompute: Recompute) -> None:
    config = BackboneConfig(SMALL, mode=mode, recompute=recompute)
    backbone = shaken(Backbone(config)).train()
    features = backbone(frames())
    learning = {name for name, p in backbone.named_parameters() if p.requires_grad}
    if mode == "frozen":
        assert not learning and not features.requires_grad
        return
    features.square().sum().backward()
    begins = {"adapter": "adapters.", "full": "trunk.", "side": "ladder.adapters."}[mode]
    assert all(name.startswith(begins) for name in learning)
    assert learning
    for name, parameter in backbone.named_parameters():
        assert (parameter.grad is not None and bool(parameter.grad.abs().sum() > 0)) == (
            name in learning
        ), name


def test_recomputation_changes_no_gradient() -> None:
    gradients = []
    kinds: tuple[Recompute, ...] = ("none", "selective", "full")
    for recompute in kinds:
        config = BackboneConfig(SMALL, recompute=recompute)
        torch.manual_seed(0)
        backbone = shaken(Backbone(config)).train()
        torch.manual_seed(5)
        backbone(frames()).square().sum().backward()
        gradients.append([p.grad for p in backbone.adapters.parameters()])
    for plain, *recomputed in zip(*gradients, strict=True):
        assert plain is not None and plain.abs().sum() > 0
        assert all(torch.equal(plain, again) for again in recomputed)


@pytest.mark.parametrize("clips", [1, 3])
def test_clips_run_in_parts_as_they_do_at_once(monkeypatch: pytest.MonkeyPatch, clips: int) -> None:
    backbone = shaken(Backbone(BackboneConfig(SMALL))).train()
    found = []
    for elements in (2**20, clips * 32 * 32):
        monkeypatch.setattr(extract.backbone.backbone, "CPU_ELEMENTS", elements)
        torch.manual_seed(3)
        features = backbone(frames(length=64))
        gradients = torch.autograd.grad(
            features.square().sum(), list(backbone.adapters.parameters())
        )
        found.append([features, *gradients])
    for one, two in zip(*found, strict=True):
        assert relative(two, one) < 1e-5


def test_a_gpu_takes_clips_in_parts_where_nothing_waits_for_a_backward_pass(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    backbone = shaken(Backbone(BackboneConfig(SMALL, mode="side"))).train()
    expected = backbone(frames(length=64))
    monkeypatch.setattr(extract.backbone.backbone, "runs_on_cpu", lambda tensor: False)
    monkeypatch.setattr(extract.backbone.backbone, "GPU_ELEMENTS", 3 * 32 * 32)
    with patch.object(backbone.trunk.blocks[0], "forward", wraps=Block.forward) as run:
        run.side_effect = lambda *inputs: Block.forward(backbone.trunk.blocks[0], *inputs)  # type: ignore[arg-type]
        assert relative(backbone(frames(length=64)), expected) < 1e-5
    assert [len(call.args[0]) for call in run.call_args_list] == [3, 3, 2]


@torch.inference_mode()
def test_pixels_are_normalised_as_before_they_were_cut_into_patches() -> None:
    backbone = shaken(Backbone(BackboneConfig(SMALL)))
    clips, trunk = frames(2, 16), backbone.trunk
    expected = trunk.embed((clips - backbone.mean) / backbone.std)
    assert torch.equal(trunk.embed(clips, (backbone.mean, backbone.std)), expected)


def test_drop_path_scales_each_branch_of_each_clip() -> None:
    torch.manual_seed(0)
    block = Block(SMALL).eval()
    x = torch.randn(2, 4, 32)
    attended = x + 2 * block.attn(block.norm1(x))
    scale = torch.tensor([[2.0, 0.0], [0.0, 0.0]]).view(2, 2, 1, 1)
    assert torch.allclose(block(x, scale)[0], attended[0], atol=1e-6)
    assert torch.equal(block(x, scale)[1], x[1])
    assert torch.allclose(block(x, torch.ones(2, 2, 1, 1)), block(x), atol=1e-6)


def test_wrong_lengths_and_sizes_say_so() -> None:
    backbone = Backbone(BackboneConfig(SMALL)).eval()
    with pytest.raises(ValueError, match="30 frames do not divide into clips of 16"):
        backbone(frames(length=30))
    with pytest.raises(ValueError, match="hold no patch of 8"):
        backbone(torch.zeros(1, 3, 16, 7, 16, dtype=torch.uint8))
    # The published giant sees 154 of 160 pixels, as its convolution does.
    pixels = torch.randint(0, 256, (1, 3, 16, 19, 16), dtype=torch.uint8)
    assert torch.equal(backbone(pixels), backbone(pixels[..., :16, :]))


def test_weights_of_another_size_are_refused_with_a_list() -> None:
    backbone = Backbone(BackboneConfig(SMALL))
    other = Backbone(BackboneConfig(TrunkConfig(width=32, depth=2, heads=2, patch=8)))
    with pytest.raises(ValueError, match=r"other\.pt does not fit(?s:.)*missing +adapters\.2"):
        load_state_dict_strict(backbone, other.state_dict(), "other.pt")


def test_adapters_begin_at_a_block() -> None:
    """As in the published giant: half of the blocks have none, and drop path stays everywhere."""
    config = BackboneConfig(SMALL, adapters_from_block=2)
    backbone = Backbone(config)
    assert {name.split(".")[1] for name in backbone.state_dict() if "adapters." in name} == {"2"}
    assert backbone.adapters_after(1) == [] and len(backbone.adapters_after(2)) == 1
    assert config.last_frozen_cut is None
    with pytest.raises(ValueError, match="adapters_from_block must be a block from 0 to 2"):
        BackboneConfig(SMALL, adapters_from_block=3)


def side_by_side(backbone: Backbone, pixels: Tensor, first: int) -> Tensor:
    """AdaTAD's side network as its paper has it, in plain convolutions over whole windows."""
    plain = Backbone(BackboneConfig(SMALL, mode="frozen")).eval()
    trunk = {k: v for k, v in backbone.state_dict().items() if k.startswith("trunk.")}
    plain.load_state_dict(trunk)
    found = plain(pixels, stop=SMALL.depth - 1)
    for block in range(first, SMALL.depth):
        adapter = backbone.get_submodule(f"ladder.adapters.{block}")
        assert isinstance(adapter, TemporalAdapter)
        y = torch.nn.functional.gelu(adapter.down(plain(pixels, stop=block)))
        along_time = y.permute(0, 2, 3, 1).flatten(0, 1)
        z = adapter.pointwise(adapter.depthwise(along_time))
        y = y + z.unflatten(0, (len(y), -1)).permute(0, 3, 1, 2)
        found = found + adapter.up(y) * adapter.gamma
    return found.mean(2).transpose(1, 2)


@pytest.mark.parametrize("first", [0, 1, 2])
def test_side_mode_is_a_ladder_beside_the_transformer(first: int) -> None:
    config = BackboneConfig(SMALL, mode="side", adapters_from_block=first)
    backbone = shaken(Backbone(config))
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.mul_(2)
        expected = side_by_side(backbone, frames(), first)
        assert relative(backbone(frames()), expected) < 1e-6
    # Neither gradients nor drop path reach the transformer: training sees what testing sees.
    features = backbone.train()(frames())
    assert torch.equal(features.detach(), backbone.eval()(frames()).detach())
    features.square().sum().backward()
    learning = {name for name, p in backbone.named_parameters() if p.grad is not None}
    assert learning and all(name.startswith("ladder.") for name in learning)


@torch.inference_mode()
def test_side_mode_resumes_from_what_its_ladder_looks_at() -> None:
    config = BackboneConfig(SMALL, mode="side", adapters_from_block=1)
    backbone = shaken(Backbone(config))
    assert config.cuts == (0, "ladder", "features") and config.last_frozen_cut is None
    later = replace(config, trainable_from_block=1)
    assert later.last_frozen_cut == "ladder"
    whole = backbone(frames())
    for cut, channels in ((0, 32), ("ladder", 64)):
        tokens = backbone(frames(), stop=cut)
        assert tokens.shape == (2, 16, 4, channels)
        assert torch.equal(backbone(tokens, start=cut), whole)
    with pytest.raises(ValueError, match="cannot run from cut 1 to cut features"):
        backbone(whole, start=1)
