"""What every backbone that begins with pixels promises: shapes, cuts and what learns."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from extract.backbone.backbone import Backbone, PixelBackbone
from extract.backbone.tada_backbone import TAdaBackbone
from extract.settings.backbone import BackboneConfig, Cut, TAdaSize, TrunkConfig
from extract.settings.units import CLIP_FRAMES, TUBELET

TRUNK = TrunkConfig(width=24, depth=3, heads=2, patch=8, image_size=16, drop_path=0.0)
VIDEOMAE = BackboneConfig(trunk=TRUNK)
TADA = BackboneConfig(network="tada2d", tada=TAdaSize((1, 1), 8), mode="frozen")
MEMBERS = {
    "adapter": VIDEOMAE,
    "adapter after the upper blocks": replace(VIDEOMAE, adapters_from_block=1),
    "adapter of the last blocks": replace(VIDEOMAE, trainable_from_block=2),
    "second adapters": replace(VIDEOMAE, second_from_block=1),
    "frozen": replace(VIDEOMAE, mode="frozen"),
    "full": replace(VIDEOMAE, mode="full"),
    "full of the last blocks": replace(VIDEOMAE, mode="full", trainable_from_block=1),
    "side": replace(VIDEOMAE, mode="side", adapters_from_block=1),
    "adapter recomputed": replace(VIDEOMAE, recompute="full"),
    "TAda2D frozen": TADA,
    "TAda2D full": replace(TADA, mode="full"),
}


def build(config: BackboneConfig) -> PixelBackbone:
    """Return a backbone whose weights are all unlike zero, in eval mode."""
    torch.manual_seed(0)
    network = TAdaBackbone(config) if config.network == "tada2d" else Backbone(config)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return network.eval()


def module(backbone: PixelBackbone) -> nn.Module:
    assert isinstance(backbone, nn.Module)
    return backbone


def frames(length: int = 2 * CLIP_FRAMES) -> Tensor:
    drawn = torch.Generator().manual_seed(1)
    return torch.randint(256, (2, 3, length, 16, 16), dtype=torch.uint8, generator=drawn)


@pytest.fixture(params=MEMBERS)
def backbone(request: pytest.FixtureRequest) -> PixelBackbone:
    return build(MEMBERS[request.param])


@pytest.mark.parametrize("clips", [1, 3])
def test_a_feature_is_of_a_tubelet(backbone: PixelBackbone, clips: int) -> None:
    features = backbone(frames(clips * CLIP_FRAMES))
    assert features.shape == (2, backbone.config.width, clips * CLIP_FRAMES // TUBELET)
    assert features.dtype == torch.float32 and bool(features.isfinite().all())


def test_a_pass_goes_on_from_every_cut(backbone: PixelBackbone) -> None:
    pixels = frames()
    with torch.no_grad():
        whole, before = backbone(pixels), None
        for cut in backbone.config.cuts:
            at_cut = backbone(pixels, stop=cut)
            assert torch.equal(backbone(at_cut, cut), whole), cut
            if before is not None:
                name, activation = before
                assert torch.equal(backbone(activation, name, cut), at_cut), (name, cut)
            before = cut, at_cut
        assert torch.equal(backbone(whole, "features"), whole)


def test_cuts_out_of_order_are_refused(backbone: PixelBackbone) -> None:
    absent: list[tuple[Cut | None, Cut]] = [(None, 99), (99, "features")]
    if len(backbone.config.cuts) > 1:
        absent.append(("features", backbone.config.cuts[0]))
    for start, stop in absent:
        with pytest.raises(ValueError, match=r"cut"):
            backbone(frames(), start, stop)


@pytest.mark.parametrize("length", [CLIP_FRAMES - 1, CLIP_FRAMES + TUBELET])
def test_frames_come_in_whole_clips(backbone: PixelBackbone, length: int) -> None:
    with pytest.raises(ValueError, match=str(length)):
        backbone(frames(length))


def test_videos_of_a_batch_do_not_meet(backbone: PixelBackbone) -> None:
    pixels = frames()
    with torch.no_grad():
        torch.testing.assert_close(backbone(pixels)[1:], backbone(pixels[1:]), rtol=1e-4, atol=1e-5)


def test_gradients_are_of_what_the_config_says_learns(backbone: PixelBackbone) -> None:
    config, network = backbone.config, module(backbone).train()
    learns = {name for name, each in network.named_parameters() if each.requires_grad}
    assert bool(learns) == config.learns
    features = backbone(frames())
    assert features.requires_grad == config.learns
    if not learns:
        return
    features.square().mean().backward()
    moved = {name for name, each in network.named_parameters() if each.grad is not None}
    assert moved == learns
    assert all(
        bool(each.grad.isfinite().all()) and bool(each.grad.any())
        for each in network.parameters()
        if each.grad is not None
    )
    # What stands before the last frozen cut is not asked: its activations can be kept.
    frozen = config.last_frozen_cut
    if frozen is not None:
        network.zero_grad(set_to_none=True)
        with torch.no_grad():
            kept = backbone(frames(), stop=frozen)
        backbone(kept, frozen).square().mean().backward()
        again = {name for name, each in network.named_parameters() if each.grad is not None}
        assert again == learns


def test_weights_come_back_from_their_names(backbone: PixelBackbone) -> None:
    other = build(backbone.config)
    with torch.no_grad():
        for parameter in module(other).parameters():
            parameter.zero_()
    module(other).load_state_dict(backbone.state_dict())
    with torch.no_grad():
        assert torch.equal(other(frames()), backbone(frames()))
