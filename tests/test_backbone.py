"""The backbone against reference numbers of an independent implementation."""

import json

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import extract.backbone
from extract.adapters import TemporalAdapter
from extract.backbone import Backbone, BackboneConfig, Mode
from extract.recompute import Recompute
from extract.videomae import Block, TrunkConfig
from extract.weights import from_opentad, load_strictly, read_tensors
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
    tensors, _ = from_opentad(read_tensors(GOLDEN / "opentad_checkpoint.pth"))
    load_strictly(backbone, tensors, "golden")
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


@pytest.mark.parametrize("mode", ["adapter", "frozen", "full"])
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
    assert all(name.startswith("adapters." if mode == "adapter" else "trunk.") for name in learning)
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
        monkeypatch.setattr(extract.backbone, "CPU_ELEMENTS", elements)
        torch.manual_seed(3)
        features = backbone(frames(length=64))
        gradients = torch.autograd.grad(
            features.square().sum(), list(backbone.adapters.parameters())
        )
        found.append([features, *gradients])
    for one, two in zip(*found, strict=True):
        assert relative(two, one) < 1e-5


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
    backbone = Backbone(BackboneConfig(SMALL))
    with pytest.raises(ValueError, match="30 frames do not divide into clips of 16"):
        backbone(frames(length=30))
    with pytest.raises(ValueError, match="multiple of 8"):
        backbone(torch.zeros(1, 3, 16, 12, 16, dtype=torch.uint8))


def test_weights_of_another_size_are_refused_with_a_list() -> None:
    backbone = Backbone(BackboneConfig(SMALL))
    other = Backbone(BackboneConfig(TrunkConfig(width=32, depth=2, heads=2, patch=8)))
    with pytest.raises(ValueError, match=r"other\.pt does not fit(?s:.)*missing +adapters\.2"):
        load_strictly(backbone, other.state_dict(), "other.pt")
