"""A span group by group gives what one pass over the whole of it gives."""

from collections.abc import Sequence
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from extract.backbone.backbone import Backbone
from extract.backbone.streaming import StreamingPass
from extract.settings.backbone import BackboneConfig, Cut, Mode, TrunkConfig
from tests.test_backbone import SMALL, frames, relative, shaken
from tests.test_sizes import from_reference, published, span

CUTS: tuple[Cut, ...] = (0, 1, 2, "features")
GROUPS = [(1,), (5,), (1,) * 7, (2,) * 4, (2, 2, 1), (3, 1, 2, 1), (1, 4)]


def join(pieces: Sequence[dict[Cut, Tensor]], cut: Cut, backwards: bool = False) -> Tensor:
    found = [piece[cut] for piece in pieces if cut in piece]
    assert 0 not in [piece.numel() for piece in found]
    return torch.cat(found[::-1] if backwards else found, 2 if cut == "features" else 1)


def run(wavefront: StreamingPass, span: Tensor, groups: Sequence[int]) -> dict[Cut, Tensor]:
    """Push a span in groups of so many clips and put together what comes out.

    Args:
        groups: clips of each, in the order of the span.
    """
    axis, clip = (2, 16) if span.dtype == torch.uint8 else (1, 8)
    parts = span.split([clip * group for group in groups], axis)
    arriving = reversed(parts) if wavefront.backwards else parts
    pieces = [*map(wavefront.push, arriving), wavefront.finish()]
    return {cut: join(pieces, cut, wavefront.backwards) for cut in wavefront.cuts}


@pytest.fixture(scope="module")
def small() -> Backbone:
    return shaken(Backbone(BackboneConfig(SMALL)))


@torch.inference_mode()
@pytest.mark.parametrize("groups", GROUPS, ids=str)
@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("mode", ["adapter", "frozen", "full", "side"])
def test_all_cuts_equal_the_whole_pass(
    mode: Mode, backwards: bool, groups: tuple[int, ...]
) -> None:
    backbone = shaken(Backbone(BackboneConfig(SMALL, mode=mode, adapters_from_block=1)))
    span, cuts = frames(1, 16 * sum(groups)), backbone.config.cuts
    found = run(StreamingPass(backbone, cuts, backwards=backwards), span, groups)
    for cut in cuts:
        expected = backbone(span, stop=cut)
        assert found[cut].shape == expected.shape and relative(found[cut], expected) < 1e-5


@torch.inference_mode()
@pytest.mark.parametrize("start", [0, 1, 2])
@pytest.mark.parametrize("backwards", [False, True])
def test_starts_from_any_block(small: Backbone, start: int, backwards: bool) -> None:
    span = frames(1, 112)
    cuts = CUTS[start:]
    wavefront = StreamingPass(small, cuts, start, backwards)
    found = run(wavefront, small(span, stop=start), (1, 3, 1, 2))
    for cut in cuts:
        assert relative(found[cut], small(span, stop=cut)) < 1e-5


@torch.inference_mode()
@pytest.mark.parametrize("start", [0, "ladder"])
@pytest.mark.parametrize("backwards", [False, True])
def test_a_ladder_climbs_group_by_group(start: Cut, backwards: bool) -> None:
    backbone = shaken(Backbone(BackboneConfig(SMALL, mode="side", adapters_from_block=1)))
    span = frames(1, 112)
    cuts = backbone.config.cuts[backbone.config.cuts.index(start) :]
    wavefront = StreamingPass(backbone, cuts, start, backwards)
    found = run(wavefront, backbone(span, stop=start), (1, 3, 1, 2))
    for cut in cuts:
        assert relative(found[cut], backbone(span, stop=cut)) < 1e-5


@torch.inference_mode()
def test_reversed_span_from_a_forward_decode(small: Backbone) -> None:
    """What the backwards pass is for: groups of frames as they are decoded, each turned round."""
    span = frames(1, 80)
    wavefront = StreamingPass(small, ["features"], backwards=True)
    pieces = [wavefront.push(group.flip(2)) for group in span.split(32, 2)]
    pieces.append(wavefront.finish())
    found = join(pieces, "features", backwards=True)
    assert relative(found, small(span.flip(2))) < 1e-5


@torch.inference_mode()
def test_only_the_clips_that_need_a_neighbour_wait(small: Backbone) -> None:
    """After every block it is one; all others come out of the push that brought them."""
    wavefront = StreamingPass(small, CUTS)
    first = wavefront.push(frames(1, 48))
    assert {cut: first[cut].shape[1] for cut in first} == {0: 16, 1: 8}
    second = wavefront.push(frames(1, 48))
    assert second.keys() == set(CUTS) and second["features"].shape == (1, 32, 24)
    last = wavefront.finish()
    assert {cut: last[cut].shape[1] for cut in (0, 1, 2)} == {0: 8, 1: 16, 2: 24}


@torch.inference_mode()
@pytest.mark.parametrize("backwards", [False, True])
def test_memory_does_not_grow_with_the_span(small: Backbone, backwards: bool) -> None:
    """Nor with the group: 9 tubelets of 4 tokens of 32 channels wait after each of 3 blocks."""
    for clips in (1, 3):
        wavefront = StreamingPass(small, CUTS, backwards=backwards)
        sizes = []
        for _ in range(50):
            wavefront.push(frames(1, 16 * clips))
            storages = [tensor.untyped_storage() for tensor in wavefront.pending.values()]
            sizes.append(sum(storage.nbytes() for storage in storages))
        assert set(sizes[4:]) == {3 * 9 * 4 * 32 * 4} and max(sizes) == sizes[4]
        wavefront.finish()
        assert not wavefront.pending


@pytest.mark.parametrize("backwards", [False, True])
def test_no_graph_is_kept_where_gradients_are_on(small: Backbone, backwards: bool) -> None:
    wavefront = StreamingPass(small, ["features"], backwards=backwards)
    pushed = wavefront.push(frames(1, 64))
    kept = [*pushed.values(), *wavefront.pending.values(), *wavefront.finish().values()]
    assert len(kept) == 5 and not any(tensor.requires_grad for tensor in kept)


@torch.inference_mode()
def test_each_clip_is_embedded_and_attended_once_and_only_as_deep_as_wanted(
    small: Backbone,
) -> None:
    with (
        patch.object(small.trunk, "embed", wraps=small.trunk.embed) as embed,
        patch.object(small, "run_block", wraps=small.run_block) as block,
    ):
        run(StreamingPass(small, [1]), frames(1, 112), (3, 1, 2, 1))
    assert [len(call.args[0]) for call in embed.call_args_list] == [3, 1, 2, 1]
    for k in (0, 1, 2):
        tubelets = sum(call.args[1].shape[1] for call in block.call_args_list if call.args[0] == k)
        assert tubelets == (0 if k == 2 else 56)


@torch.inference_mode()
@pytest.mark.parametrize("backwards", [False, True])
def test_half_precision(small: Backbone, backwards: bool) -> None:
    span = frames(1, 112)
    with torch.autocast("cpu", torch.bfloat16):
        found = run(StreamingPass(small, CUTS, backwards=backwards), span, (3, 1, 2, 1))
        for cut in CUTS:
            expected = small(span, stop=cut)
            assert found[cut].dtype == expected.dtype
            # What bfloat16 itself does to them is 100 times as much as what the groups may.
            assert relative(found[cut], expected) < 1e-3


def test_misuse_says_what_to_do(small: Backbone) -> None:
    wavefront = StreamingPass(small, ["features"])
    with pytest.raises(RuntimeError, match="nothing was pushed"):
        wavefront.finish()
    for length in (0, 30):
        with pytest.raises(ValueError, match=f"{length} frames do not make whole clips of 16; pad"):
            wavefront.push(frames(1, length))
    with pytest.raises(ValueError, match="12 tubelets do not make whole clips of 8"):
        StreamingPass(small, [2], start=0).push(torch.zeros(1, 12, 4, 32))
    wavefront.push(frames(1, 16))  # a refused group has changed nothing
    wavefront.finish()
    with pytest.raises(RuntimeError, match="start a new StreamingPass"):
        wavefront.push(frames(1, 16))
    with pytest.raises(RuntimeError, match="start a new StreamingPass"):
        wavefront.finish()
    with pytest.raises(ValueError, match="at least one cut"):
        StreamingPass(small, [])
    with pytest.raises(ValueError, match="cannot run from cut 1 to cut 0 of 3 blocks"):
        StreamingPass(small, [2, 0], start=1)
    with pytest.raises(ValueError, match="no block runs after"):
        StreamingPass(small, ["features"], start="features")
    with pytest.raises(ValueError, match="eval mode"):
        StreamingPass(Backbone(BackboneConfig(SMALL)), ["features"])


@torch.inference_mode()
def test_a_failed_push_ends_the_span(small: Backbone) -> None:
    """Else what comes after it would be put together from clips that are no neighbours."""
    wavefront = StreamingPass(small, ["features"])
    wavefront.push(frames(1, 32))
    with pytest.raises(ValueError, match="hold no patch"):
        wavefront.push(torch.zeros(1, 3, 16, 7, 16, dtype=torch.uint8))
    with pytest.raises(RuntimeError, match="start a new StreamingPass"):
        wavefront.push(frames(1, 32))


@torch.inference_mode()
@pytest.mark.parametrize("backwards", [pytest.param(False, marks=pytest.mark.slow), True])
def test_published_size_matches_reference(shared: Path, backwards: bool) -> None:
    """VideoMAE-S with adapters, one clip at a time, against another implementation's one pass."""
    backbone, _ = published(shared, "s")
    wavefront = StreamingPass(backbone, ["features"], backwards=backwards)
    found = run(wavefront, span(), (1, 1))["features"]
    assert relative(found, backbone(span())) < 1e-5
    resized = torch.nn.functional.interpolate(found, size=32, mode="linear")
    assert relative(resized[0], from_reference(shared, "s")) < 1e-4


@pytest.mark.slow
@torch.inference_mode()
@pytest.mark.parametrize("backwards", [False, True])
def test_the_huge_size_is_as_exact_as_one_pass(backwards: bool) -> None:
    torch.manual_seed(0)
    trunk = TrunkConfig(width=1280, depth=32, heads=16, image_size=64)
    backbone = Backbone(BackboneConfig(trunk)).eval()
    for adapter in backbone.adapters.values():
        torch.nn.init.normal_(adapter.get_parameter("up.weight"), std=0.02)
    span = torch.randint(0, 256, (1, 3, 80, 64, 64), dtype=torch.uint8)
    found = run(StreamingPass(backbone, ["features"], backwards=backwards), span, (2, 1, 2))
    assert relative(found["features"], backbone(span)) < 1e-4
