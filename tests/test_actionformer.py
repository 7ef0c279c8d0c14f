"""The head against reference numbers, and what must hold whatever its weights are."""

import json
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from extract.checkpoints.key_maps import head_from_opentad, head_to_opentad
from extract.checkpoints.strict import load_state_dict_strict
from extract.checkpoints.tensor_files import read_tensors
from tests.conftest import GOLDEN
from train.modeling.actionformer import ActionFormer, TransformerBlock
from train.modeling.attention import local_attention
from train.modeling.config import HeadConfig
from train.modeling.convolution import conv_over_time
from train.modeling.points import decode_segments, pyramid_points

SMALL = HeadConfig(width=16, heads=2, levels=4)
CPU = torch.device("cpu")


def relative(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).detach().norm() / expected.detach().norm())


def small_head() -> ActionFormer:
    """A head in eval mode whose residual branches count, which they hardly do at their start."""
    torch.manual_seed(0)
    head = ActionFormer(8, 3, SMALL).eval()
    for name, parameter in head.named_parameters():
        if "_path." in name:
            nn.init.constant_(parameter, 1.0)
    return head


def prefix_mask(*valid: int, length: int) -> Tensor:
    return torch.arange(length) < torch.tensor(valid)[:, None]


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    return load_file(GOLDEN / "activations.safetensors")


@pytest.fixture(scope="module")
def opentad_state() -> dict[str, Tensor]:
    tensors = read_tensors(GOLDEN / "opentad_checkpoint.pth").tensors
    named = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    others = ("backbone.", "rpn_head.loss_normalizer")
    return {name: tensor for name, tensor in named.items() if not name.startswith(others)}


@pytest.fixture(scope="module")
def tiny(opentad_state: dict[str, Tensor]) -> ActionFormer:
    sizes = json.loads((GOLDEN / "config.json").read_text())
    config = HeadConfig(width=sizes["proj"], heads=4, levels=sizes["levels"])
    head = ActionFormer(sizes["embed"], sizes["ncls"], config).eval()
    load_state_dict_strict(head, head_from_opentad(opentad_state), "golden")
    return head


@torch.inference_mode()
def test_pyramid_matches_reference(tiny: ActionFormer, golden: dict[str, Tensor]) -> None:
    levels, masks = tiny.pyramid(golden["head_in"], golden["head_mask"])
    assert len(levels) == len(masks) == 4
    for index, (level, mask) in enumerate(zip(levels, masks, strict=True)):
        assert relative(level, golden[f"pyramid_{index}"]) < 1e-5
        assert torch.equal(mask, golden[f"pyramid_mask_{index}"])


@torch.inference_mode()
def test_predictions_match_reference(tiny: ActionFormer, golden: dict[str, Tensor]) -> None:
    output = tiny(golden["head_in"], golden["head_mask"])
    for level in range(4):
        assert relative(output.logits[level], golden[f"cls_logits_{level}"]) < 1e-5
        assert relative(output.distances[level], golden[f"reg_{level}"]) < 1e-5


@torch.inference_mode()
def test_segments_and_scores_match_reference(tiny: ActionFormer, golden: dict[str, Tensor]) -> None:
    logits, distances, valid = tiny(golden["head_in"], golden["head_mask"]).flat()
    segments = decode_segments(pyramid_points(64, 4, CPU), distances)
    for window in range(2):
        keep = valid[window]
        assert relative(segments[window, keep], golden[f"segments_{window}"]) < 1e-5
        assert relative(logits[window, keep].sigmoid(), golden[f"scores_{window}"]) < 1e-5


def test_opentad_names_convert_there_and_back(opentad_state: dict[str, Tensor]) -> None:
    back = head_to_opentad(head_from_opentad(opentad_state))
    assert back.keys() == opentad_state.keys()
    for key, value in back.items():
        assert value.shape == opentad_state[key].shape, key
        assert torch.equal(value, opentad_state[key]), key


def test_published_sizes_convert_without_a_reference() -> None:
    state = ActionFormer(8, 20, HeadConfig(width=32)).state_dict()
    there = head_to_opentad(state)
    assert there["rpn_head.scale.5.scale"].shape == ()
    assert there["projection.branch.4.drop_path_mlp.scale"].shape == (1, 32, 1)
    assert there["projection.stem.1.attn.query.weight"].shape == (32, 32, 1)
    back = head_from_opentad(there)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], state[key]) for key in state)


@pytest.mark.parametrize("valid", [1, 2, 7, 8, 9, 31, 32])
@torch.inference_mode()
def test_valid_points_halve_rounding_up(valid: int) -> None:
    mask = prefix_mask(valid, length=32)
    output = small_head()(torch.randn(1, 8, 32), mask)
    for level in range(4):
        assert output.logits[level].shape == (1, 3, 32 >> level)
        assert output.distances[level].shape == (1, 2, 32 >> level)
        assert output.masks[level].sum() == math.ceil(valid / 2**level)


@pytest.mark.parametrize("valid", [5, 16, 19])
@torch.inference_mode()
def test_padding_beyond_its_first_step_is_never_seen(valid: int) -> None:
    head = small_head()
    mask = prefix_mask(valid, length=32)
    features = torch.randn(1, 8, 32)
    other = features.clone()
    other[..., valid + 1 :] = 100 * torch.randn(8, 32 - valid - 1)
    first, second = head(features, mask), head(other, mask)
    logits, distances, keep = first.flat()
    other_logits, other_distances, _ = second.flat()
    torch.testing.assert_close(other_logits[keep], logits[keep])
    torch.testing.assert_close(other_distances[keep], distances[keep])

    other[..., valid] += 1  # the step next to the last valid one is
    assert not torch.allclose(head(other, mask).logits[0], first.logits[0])


@torch.inference_mode()
def test_longer_zero_padding_changes_nothing() -> None:
    head = small_head()
    features = torch.randn(1, 8, 32)
    features[..., 11:] = 0
    short = head(features[..., :16], prefix_mask(11, length=16))
    long = head(features, prefix_mask(11, length=32))
    for level in range(4):
        keep = math.ceil(11 / 2**level)
        torch.testing.assert_close(short.logits[level][..., :keep], long.logits[level][..., :keep])
        torch.testing.assert_close(
            short.distances[level][..., :keep], long.distances[level][..., :keep]
        )


@torch.inference_mode()
def test_windows_of_a_batch_are_independent() -> None:
    head = small_head()
    features, mask = torch.randn(2, 8, 16), prefix_mask(16, 9, length=16)
    both, alone = head(features, mask), head(features[1:], mask[1:])
    for level in range(4):
        torch.testing.assert_close(both.logits[level][1:], alone.logits[level])
        torch.testing.assert_close(both.distances[level][1:], alone.distances[level])


@torch.inference_mode()
def test_levels_share_towers_but_do_not_see_each_other() -> None:
    head = small_head()
    levels, masks = head.pyramid(torch.randn(1, 8, 32), prefix_mask(32, length=32))
    together = head.predict(levels, masks)
    for index, (level, mask) in enumerate(zip(levels, masks, strict=True)):
        x = y = level.mT
        for class_conv, distance_conv in zip(head.class_tower, head.distance_tower, strict=True):
            x, y = class_conv(x, mask[..., None]), distance_conv(y, mask[..., None])
        alone = head.scales[index](head.distance_out(y.mT)).relu()
        torch.testing.assert_close(together.logits[index], head.class_out(x.mT))
        torch.testing.assert_close(together.distances[index], alone)


def test_every_parameter_gets_a_gradient() -> None:
    torch.manual_seed(0)
    head = ActionFormer(8, 3, HeadConfig(width=16, heads=2, levels=4, drop_path=0.0))
    # A positive bias: where ReLU gives zero, the boundary predictor would be silent.
    nn.init.ones_(head.get_parameter("distance_out.bias"))
    output = head(torch.randn(2, 8, 32), prefix_mask(32, 20, length=32))
    logits, distances, _ = output.flat()
    (logits.sigmoid().square().sum() + distances.square().sum()).backward()
    silent = [name for name, p in head.named_parameters() if p.grad is None or not p.grad.any()]
    # Softmax does not change when all keys move by the same vector: rounding alone decides there.
    assert [name for name in silent if not name.endswith("key.linear.bias")] == []


def test_initialisation_follows_the_reference() -> None:
    torch.manual_seed(0)
    head = ActionFormer(8, 3, SMALL)
    probability = torch.sigmoid(head.state_dict()["class_out.bias"])
    torch.testing.assert_close(probability, torch.full((3,), 0.01))
    for name, value in head.state_dict().items():
        if "_path.0.gamma" in name:
            assert (value == 1e-4).all(), name
        elif name.startswith("scales.") or ("norm" in name and name.endswith("weight")):
            assert (value == 1).all(), name
        elif name.endswith("bias") and "_out." not in name:
            assert not value.any(), name
    in_block = head.branch[0].attention_norm, head.stem[0].attention.query.norm  # type: ignore[union-attr]
    assert {norm.eps for norm in in_block} == {1e-5}  # type: ignore[union-attr]
    assert {norm.eps for norm in (head.norms[0], head.embed[0].norm)} == {1e-6}  # type: ignore[union-attr]


def test_no_boundary_begins_beyond_learning() -> None:
    """Where ReLU gives 0 at every point, neither the boundary nor its weights ever move."""
    features = torch.randn(4, 96, 64, generator=torch.Generator().manual_seed(0))
    for seed in range(40):
        torch.manual_seed(seed)
        head = ActionFormer(96, 3, HeadConfig(width=64, heads=4, levels=4)).eval()
        with torch.no_grad():
            distances = head(features, torch.ones(4, 64, dtype=torch.bool)).flat()[1]
        learning = (distances > 0).float().mean((0, 1))
        assert learning.min() > 0.75, (seed, learning)


def test_weight_decay_can_go_by_the_number_of_axes() -> None:
    for name, parameter in ActionFormer(8, 3, SMALL).named_parameters():
        is_kernel = name.endswith("weight") and "norm" not in name
        assert (parameter.ndim > 1) == is_kernel, name


def test_drop_path_acts_in_training_only() -> None:
    head = small_head()
    features, mask = torch.randn(4, 8, 16), prefix_mask(16, 16, 16, 16, length=16)
    with torch.no_grad():
        assert torch.equal(head(features, mask).logits[0], head(features, mask).logits[0])
        head.train()
        assert not torch.equal(head(features, mask).logits[0], head(features, mask).logits[0])


def test_half_precision_autocast_stays_close() -> None:
    head = small_head()
    features, mask = torch.randn(2, 8, 16), prefix_mask(16, 9, length=16)
    with torch.no_grad():
        exact = head(features, mask)
        with torch.autocast("cpu", torch.bfloat16):
            rough = head(features, mask)
    assert rough.logits[0].dtype == torch.bfloat16
    assert relative(rough.logits[0].float(), exact.logits[0]) < 0.02


def test_length_that_does_not_fit_is_explained() -> None:
    with pytest.raises(ValueError, match="multiple of 8"):
        small_head()(torch.randn(1, 8, 20), prefix_mask(20, length=20))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("heads", 3),
        ("levels", 0),
        ("width", 0),
        ("drop_path", 1.0),
        ("tower_convs", -1),
        ("attention_window", 4),
        ("attention_window", (3, 5)),  # of six levels
        ("attention_window", (3, 4, 3, 3, None, None)),
        ("projection_dropout", 1.0),
    ],
)
def test_impossible_sizes_are_refused(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=field):
        HeadConfig(**{field: value})  # type: ignore[arg-type]


def test_a_head_needs_classes() -> None:
    with pytest.raises(ValueError, match="0 classes"):
        ActionFormer(8, 0, SMALL)


@pytest.mark.parametrize(("steps", "window"), [(300, 19), (64, 19), (70, 1), (129, 101), (5, 3)])
def test_local_attention_is_masked_full_attention(steps: int, window: int) -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 2, 4, steps, 8, dtype=torch.float64)
    valid = torch.ones(2, steps, dtype=torch.bool)
    valid[1, steps // 2 :] = False
    place = torch.arange(steps)
    near = (place[:, None] - place).abs() <= window // 2
    scores = query @ key.mT / math.sqrt(8)
    scores = scores.masked_fill(~(near & valid[:, None, None]), -math.inf)
    expected = scores.softmax(-1) @ value
    found = local_attention(query, key, value, valid, window)
    rows = valid[:, None, :, None].expand_as(found)  # what padding attends to counts nowhere
    assert torch.allclose(found[rows], expected[rows], atol=1e-12)
    assert found.isfinite().all()


@pytest.mark.parametrize(("steps", "window"), [(300, 19), (64, 9), (129, 101)])
@pytest.mark.parametrize("masked", [False, True])
def test_blocks_of_queries_are_a_batch(
    monkeypatch: pytest.MonkeyPatch, steps: int, window: int, masked: bool
) -> None:
    """CUDA's fused kernels take [batch, heads, steps, channels] alone, channels side by side."""
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 2, 4, steps, 16)
    valid = torch.ones(2, steps, dtype=torch.bool)
    valid[1, steps // 2 :] = not masked
    seen, attend = list[Tensor](), F.scaled_dot_product_attention

    def look(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor) -> Tensor:
        seen.extend((query, key, value))
        assert attn_mask.ndim == 4
        return attend(query, key, value, attn_mask)

    monkeypatch.setattr(F, "scaled_dot_product_attention", look)
    given = [x.clone().requires_grad_() for x in (query, key, value)]
    found = local_attention(given[0], given[1], given[2], valid, window)
    found.square().sum().backward()
    assert [x.ndim for x in seen] == [4] * 3 and {x.stride(-1) for x in seen} == {1}
    monkeypatch.undo()
    for x in (query, key, value):
        x.requires_grad_()
    expected = five_axes(query, key, value, valid, window)
    expected.square().sum().backward()
    assert torch.allclose(found, expected, rtol=0, atol=1e-6)
    for one, other in zip(given, (query, key, value), strict=True):
        assert one.grad is not None and other.grad is not None
        assert relative(one.grad, other.grad) < 1e-6


def five_axes(query: Tensor, key: Tensor, value: Tensor, valid: Tensor, window: int) -> Tensor:
    """Return local attention with blocks on an axis of their own."""
    steps, reach, block = query.shape[2], window // 2, 64
    blocks = -(-steps // block)
    behind, length = blocks * block - steps, block + 2 * reach
    queries = F.pad(query, (0, 0, 0, behind)).unflatten(2, (blocks, block))
    keys, values = (
        F.pad(x, (0, 0, reach, reach + behind)).unfold(2, length, block).mT for x in (key, value)
    )
    seen = F.pad(valid, (reach, reach + behind)).unfold(1, length, block)
    offset = torch.arange(length) - reach - torch.arange(block)[:, None]
    mask = seen[:, None, :, None] & (offset.abs() <= reach) | (offset == 0)
    mixed = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
    return mixed.flatten(2, 3)[:, :, :steps]


def test_a_window_wider_than_the_video_is_global_attention() -> None:
    features, mask = torch.randn(2, 8, 32), torch.ones(2, 32, dtype=torch.bool)
    mask[1, 20:] = False
    outputs = []
    for window in (None, 63):
        torch.manual_seed(0)
        head = ActionFormer(8, 3, replace(SMALL, attention_window=window)).eval()
        outputs.append(head(features, mask).flat())
    for one, other in zip(*outputs, strict=True):
        assert torch.equal(one, other)


def test_a_head_of_2304_steps_learns_with_local_attention() -> None:
    """What padding holds changes nothing, and every parameter gets a finite gradient."""
    torch.manual_seed(0)
    head = ActionFormer(8, 3, replace(SMALL, attention_window=19)).eval()
    features, mask = torch.randn(1, 8, 2304), torch.ones(1, 2304, dtype=torch.bool)
    mask[:, 1500:] = False
    features[:, :, 1500:] = 0
    logits, distances, points = head(features, mask).flat()
    (logits[points].square().mean() + distances[points].sum()).backward()
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    short = head(features[..., :1504], mask[..., :1504]).flat()
    for one, other in zip((logits, distances), short[:2], strict=True):
        assert torch.allclose(one[points], other[short[2]], atol=1e-5)


def test_every_level_may_have_a_window_of_its_own() -> None:
    """The first is the stem's; one for all levels is the same as one for each."""
    windows = (5, 3, None, 7)
    head = ActionFormer(8, 3, replace(SMALL, attention_window=windows))
    blocks = [*head.stem, *head.branch]
    found = [block.attention.window for block in blocks]
    assert found == [5] * len(head.stem) + [3, None, 7]
    features, mask = torch.randn(2, 8, 64), torch.ones(2, 64, dtype=torch.bool)
    outputs = []
    for window in (5, (5,) * SMALL.levels, windows):
        torch.manual_seed(0)
        head = ActionFormer(8, 3, replace(SMALL, attention_window=window)).eval()
        outputs.append(head(features, mask).flat()[0])
    assert torch.equal(outputs[0], outputs[1]) and not torch.equal(outputs[0], outputs[2])


def test_projection_dropout_stands_behind_projections(monkeypatch: pytest.MonkeyPatch) -> None:
    """After attention's output, GELU and the second layer (OpenTAD's `proj_pdrop`)."""
    torch.manual_seed(0)
    plain = TransformerBlock(replace(SMALL, drop_path=0.0), stride=1)
    block = TransformerBlock(replace(SMALL, drop_path=0.0, projection_dropout=0.25), stride=1)
    block.load_state_dict(plain.state_dict())
    x, valid = torch.randn(2, 16, SMALL.width), torch.ones(2, 16, 1, dtype=torch.bool)
    assert torch.equal(block.eval()(x, valid)[0], plain(x, valid)[0])

    def tripled(x: Tensor, p: float, training: bool, inplace: bool) -> Tensor:
        assert training is (p == 0.25)
        return 3 * x if training else x

    monkeypatch.setattr(torch.nn.functional, "dropout", tripled)
    found, _ = block.train()(x, valid)
    plain.eval()
    y = x + plain.attention_path(3 * plain.attention(plain.attention_norm(x), valid))
    first, second = plain.mlp[0], plain.mlp[2]
    hidden = 3 * torch.nn.functional.gelu(first(plain.mlp_norm(y)))
    torch.testing.assert_close(found, y + plain.mlp_path(3 * second(hidden)))


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("steps", [1, 2, 13, 64])
@pytest.mark.parametrize(("channels", "out", "groups"), [(16, 16, 1), (16, 3, 1), (16, 16, 16)])
def test_a_convolution_over_time_is_conv1d(
    channels: int, out: int, groups: int, steps: int, stride: int
) -> None:
    torch.manual_seed(0)
    conv = nn.Conv1d(channels, out, 3, stride, padding=1, groups=groups)
    x = torch.randn(2, steps, channels, requires_grad=True)
    expected, found = conv(x.mT).mT, conv_over_time(conv, x)
    assert found.shape == expected.shape
    assert relative(found, expected) < 1e-5
    of, change = (x, *conv.parameters()), torch.randn_like(expected)
    for one, other in zip(
        torch.autograd.grad(found, of, change),
        torch.autograd.grad(expected, of, change),
        strict=True,
    ):
        assert relative(one, other) < 1e-5
