"""Both directions meet where they should, and nothing that is fused starts worse than its parts."""

from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import torch
from torch import Tensor

from configs.loader import load
from extract.backbone.backbone import Backbone
from extract.sampling.reversal import find_partners, reverse_segments
from extract.sampling.reversal import pair_points as pair_up
from extract.sampling.window_frames import arrange
from extract.sampling.windows import Window
from extract.settings.sampling import Pairing
from tests.conftest import REPOSITORY
from tests.marks import slow
from train.config import Experiment
from train.detector.model import Detector
from train.modeling.actionformer import HeadOutput
from train.modeling.config import FEATURE_METHODS, MIXING_METHODS, FusionConfig, Method
from train.modeling.fusion import FeatureFusion, PredictionFusion, align
from train.modeling.losses import detection_losses
from train.modeling.points import Targets, decode_segments, pyramid_points

SIZE, LEVELS, CLASSES = 64, 5, 3
POINTS = [SIZE // 2**level for level in range(LEVELS)]
ANSWERS_OF_POINTS: tuple[Method, ...] = ("average", "calibrated")
METHODS: tuple[Method, ...] = ("average", "calibrated", *MIXING_METHODS)
RIGHT: tuple[Pairing, ...] = ("nearest", "index")
VALID = range(1, SIZE + 1)  # every length of a padded window
SOME = (1, 2, 3, 17, 32, 47, 63, 64)


def masks(valid: int) -> tuple[Tensor, ...]:
    mask = torch.arange(SIZE)[None] < valid
    return tuple(mask[:, :: 2**level] for level in range(LEVELS))


def outputs(valid: int, seed: int) -> HeadOutput:
    """Random predictions; what stands at padding is not even a number."""
    generator = torch.Generator().manual_seed(seed)
    of = masks(valid)

    def level(mask: Tensor, channels: int) -> Tensor:
        values = torch.randn(1, channels, mask.shape[-1], generator=generator, dtype=torch.float64)
        return values.where(mask.unsqueeze(1), torch.nan)

    return HeadOutput(
        tuple(level(mask, CLASSES) for mask in of), tuple(level(mask, 2).abs() for mask in of), of
    )


def perfect(valid: int, segment: tuple[float, float]) -> HeadOutput:
    """What a stream would predict that knows exactly where the only segment is."""
    distances = []
    for level, count in enumerate(POINTS):
        time = torch.arange(count, dtype=torch.float64) * 2**level
        both = torch.stack([time - segment[0], segment[1] - time]) / 2**level
        distances.append(both[None])
    logits = tuple(torch.zeros(1, CLASSES, n, dtype=torch.float64) for n in POINTS)
    return HeadOutput(logits, tuple(distances), masks(valid))


def segments(output: HeadOutput) -> Tensor:
    """Return the segments [P, 2] of all points, in feature steps, in float64."""
    points = pyramid_points(SIZE, LEVELS, torch.device("cpu"))
    reach = output.flat()[1][0] * points.stride[:, None]
    return torch.stack([points.time - reach[:, 0], points.time + reach[:, 1]], -1)


def build(method: Method, pairing: Pairing = "nearest", **rest: str | bool) -> PredictionFusion:
    config = FusionConfig(method=method, pairing=pairing, **rest)  # type: ignore[arg-type]
    return PredictionFusion(config, POINTS, CLASSES).double()


@pytest.mark.parametrize("pairing", RIGHT)
@pytest.mark.parametrize("fraction", [0.0, 0.25, 0.75])
def test_aligned_boundaries_are_where_they_were(pairing: Pairing, fraction: float) -> None:
    """Both directions know a segment exactly: aligned, every point of every level says the same."""
    for valid in VALID:
        reflection = valid - 1 + fraction  # fractions come from several samples a step
        truth = (0.3 * valid, 0.9 * valid)
        there = perfect(valid, (reflection - truth[1], reflection - truth[0]))
        own = perfect(valid, truth)
        found = align(there, own, torch.tensor([reflection], dtype=torch.float64), pairing)
        ours = segments(found)[found.flat()[2][0]]
        assert torch.allclose(ours, ours.new_tensor(truth).expand_as(ours), atol=1e-9, rtol=0)


def test_misalignment_is_noticed() -> None:
    """The same test fails without the offset, within the padded length, or with roles kept."""
    valid, truth = 47, torch.tensor([14.0, 40.0], dtype=torch.float64)
    right = torch.tensor([valid - 1.0], dtype=torch.float64)
    there = perfect(valid, (float(right - truth[1]), float(right - truth[0])))
    own = perfect(valid, (float(truth[0]), float(truth[1])))
    kept = HeadOutput(there.logits, tuple(d.flip(1) for d in there.distances), there.masks)
    for wrong in (
        align(there, own, right, "uncorrected"),
        align(there, own, torch.full_like(right, SIZE - 1), "nearest"),
        align(kept, own, right, "nearest"),
    ):
        ours = segments(wrong)[wrong.flat()[2][0]]
        assert (ours - truth).abs().max() > 0.9


def test_nearest_points_stand_nearer() -> None:
    for valid in VALID:
        reflection, count = torch.tensor([valid - 1.0]), torch.tensor([1])
        for level in range(LEVELS):
            points = count * -(-valid // 2**level)
            total, offset = pair_up(reflection, 2**level, points, "nearest")
            assert offset.abs() <= 0.5
            _, other = pair_up(reflection, 2**level, points, "index")
            assert offset.abs() <= other.abs()
            partner, met = find_partners(total, masks(valid)[level])
            places = torch.arange(met.shape[-1])[None]
            assert (partner[met] + places[met] == total).all()
            # A pair is one from either side.
            assert torch.equal(met.gather(1, partner)[met], met[met])


@pytest.mark.parametrize(
    ("stride", "ratio", "total"),
    [(2, 0.5, 0), (2, 1.5, 1), (2, 2.5, 2), (4, 30.5, 30), (2, 1.25, 1), (4, 1.75, 2), (8, 3.0, 3)],
)
def test_pairs_add_up_to_the_rounded_reflection(stride: int, ratio: float, total: int) -> None:
    """i + j = round(R / r); a tie goes down, always: neither up nor to the even number."""
    reflection, points = torch.tensor([ratio * stride]), torch.tensor([99])
    found, offset = pair_up(reflection, stride, points, "nearest")
    assert found.tolist() == [total] and offset.tolist() == [ratio - total]


@pytest.mark.parametrize("level", range(1, LEVELS))
def test_ties_leave_no_point_alone(level: int) -> None:
    """Where R / r lies halfway between two sums, the greater one would leave point 0 alone."""
    stride = 2**level
    for count in range(1, SIZE // stride + 1):
        valid = (count - 1) * stride + stride // 2 + 1  # R / r = count − 1/2
        mask = masks(valid)[level]
        assert int(mask.sum()) == count
        total, _ = pair_up(torch.tensor([valid - 1.0]), stride, mask.sum(-1), "nearest")
        assert find_partners(total, mask)[1].sum() == count


@pytest.mark.parametrize("pairing", RIGHT)
@pytest.mark.parametrize(
    ("method", "rest"),
    [
        *((method, {"axis": axis}) for method in METHODS for axis in ("level", "all")),
        *((method, {"agreement": True}) for method in ANSWERS_OF_POINTS),
    ],
)
def test_swapped_streams_swap_the_results(
    method: Method, rest: dict[str, str | bool], pairing: Pairing
) -> None:
    """The reversed video shows each stream what the other saw; learned weights in place."""
    fusion = build(method, pairing, **rest)
    torch.manual_seed(0)
    for parameter in fusion.parameters():
        parameter.data.normal_()
    swapped = build(method, pairing, **rest)
    swapped.load_state_dict(fusion.state_dict())
    if method == "calibrated":  # it knows the streams apart
        swapped.load_state_dict(
            {n: t.flip(0) if n == "mix.weight" else t for n, t in swapped.state_dict().items()}
        )
    for valid in SOME:
        a, b = outputs(valid, 1), outputs(valid, 2)
        reflection = torch.tensor([valid - 1.0], dtype=torch.float64)
        forward, backward = fusion(a, b, reflection)
        backward_then, forward_then = swapped(b, a, reflection)
        for one, other in ((forward, forward_then), (backward, backward_then)):
            for here, there in zip(
                (*one.logits, *one.distances), (*other.logits, *other.distances), strict=True
            ):
                mask = one.masks[0][:, :: SIZE // here.shape[-1]].unsqueeze(1).expand_as(here)
                assert here[mask].isfinite().all()
                assert torch.allclose(here[mask], there[mask], atol=1e-9, rtol=0)


@pytest.mark.parametrize("pairing", [*RIGHT, "uncorrected"])
def test_both_results_of_the_mean_are_one(pairing: Pairing) -> None:
    """In absolute time the mean says the same from either side, at every level and length."""
    fusion = build("average", pairing)
    apart = 0.0
    for valid in VALID:
        a, b = outputs(valid, 1), outputs(valid, 2)
        reflection = torch.tensor([valid - 1.0], dtype=torch.float64)
        forward, backward = fusion(a, b, reflection)
        mirrored = reverse_segments(segments(backward).numpy(), valid - 1.0)
        first = 0
        for level, mask in enumerate(forward.masks):
            total, _ = pair_up(reflection, 2**level, mask.sum(-1), pairing)
            (partner,), (met,) = find_partners(total, mask)
            here = segments(forward)[first : first + len(met)][met]
            there = torch.from_numpy(mirrored.copy())[first + partner[met]]
            apart = max(apart, float((here - there).abs().max()) if len(here) else 0.0)
            first += len(met)
    assert apart < 1e-9 if pairing != "uncorrected" else apart > 1


def overlaps(one: Tensor, other: Tensor) -> Tensor:
    """The temporal IoU of segments [P, 2], pair by pair, from its definition."""
    shared = torch.minimum(one[:, 1], other[:, 1]) - torch.maximum(one[:, 0], other[:, 0])
    shared = shared.clamp(min=0)
    length = (one[:, 1] - one[:, 0]) + (other[:, 1] - other[:, 0])
    return shared / (length - shared)


@pytest.mark.parametrize("pairing", RIGHT)
def test_scores_are_multiplied_by_how_far_both_segments_overlap(pairing: Pairing) -> None:
    mean, weighed = build("average", pairing), build("average", pairing, agreement=True)
    seen = []
    for valid in SOME:
        a, b = outputs(valid, 1), outputs(valid, 2)
        reflection = torch.tensor([valid - 1.0], dtype=torch.float64)
        before, after = mean(a, b, reflection)[0], weighed(a, b, reflection)[0]
        there = segments(a), segments(align(b, a, reflection, pairing))
        points = before.flat()[2][0]
        # Segments that alignment turned round overlap nothing.
        right = (there[1][:, 1] > there[1][:, 0]) & points
        expected = before.flat()[0].sigmoid()[0] * overlaps(*there)[:, None]
        found = after.flat()[0].sigmoid()[0]
        assert torch.allclose(found[right], expected[right], atol=1e-6, rtol=0)
        assert torch.equal(after.flat()[1][0][points], before.flat()[1][0][points])
        assert after.flat()[0][0][points].isfinite().all()
        seen.append(overlaps(*there)[right])
    assert torch.cat(seen).min() == 0
    assert pairing == "index" or torch.cat(seen).max() == 1  # own where none meets


def test_streams_that_agree_keep_their_scores() -> None:
    a = outputs(SIZE, 1)
    sure = HeadOutput(tuple(50 * x for x in a.logits), a.distances, a.masks)
    for output in (a, sure):
        fused = build("average", agreement=True)(output, output, None)[0]
        assert torch.allclose(
            fused.flat()[0].sigmoid(), output.flat()[0].sigmoid(), atol=1e-6, rtol=0
        )
        assert fused.flat()[0].isfinite().all()


@pytest.mark.parametrize("method", [m for m in get_args(Method) if m not in ANSWERS_OF_POINTS])
def test_only_answers_of_points_can_be_weighed_by_agreement(method: Method) -> None:
    with pytest.raises(ValueError, match=f"fusion.agreement.*{method}"):
        FusionConfig(method=method, agreement=True)


@pytest.mark.parametrize("axis", ["level", "all"])
@pytest.mark.parametrize("method", METHODS)
def test_untrained_fusions_are_the_mean(method: Method, axis: str) -> None:
    for valid in SOME:
        a, b = outputs(valid, 1), outputs(valid, 2)
        reflection = torch.tensor([valid - 1.0], dtype=torch.float64)
        found, _ = build(method, axis=axis)(a, b, reflection)
        mean, _ = build("average")(a, b, reflection)
        valid_points = mean.flat()[2]
        for one, other in zip(found.flat()[:2], mean.flat()[:2], strict=True):
            assert torch.equal(one[valid_points], other[valid_points])


def test_padding_is_never_mixed_in() -> None:
    """Whatever stands at padding, the same comes out, with any weights."""
    for method in MIXING_METHODS:
        for axis in ("level", "all"):
            fusion = build(method, axis=axis)
            for parameter in fusion.parameters():
                parameter.data.normal_()
            a, b = outputs(21, 1), outputs(21, 2)
            sevens = [
                HeadOutput(
                    tuple(x.nan_to_num(7.0) for x in o.logits),
                    tuple(x.nan_to_num(7.0) for x in o.distances),
                    o.masks,
                )
                for o in (a, b)
            ]
            reflection = torch.tensor([20.0], dtype=torch.float64)
            one, other = fusion(a, b, reflection)[0], fusion(*sevens, reflection)[0]
            valid = one.flat()[2]
            assert torch.equal(one.flat()[0][valid], other.flat()[0][valid])
            assert torch.equal(one.flat()[1][valid], other.flat()[1][valid])


def test_losses_of_any_fused_prediction_are_finite() -> None:
    """Boundaries that have passed each other or their point, and points next to padding."""
    output = outputs(40, 3)
    wild = HeadOutput(
        tuple((x.float() * 1e3).requires_grad_() for x in output.logits),
        tuple((x.float() * 100 - 50).requires_grad_() for x in output.distances),
        output.masks,
    )
    points = sum(POINTS)
    targets = Targets(torch.ones(1, points, CLASSES), torch.rand(1, points, 2))
    losses = detection_losses(wild, targets)
    assert all(loss.isfinite() for loss in losses)
    sum(losses).backward()  # type: ignore[union-attr]
    for level in (*wild.logits, *wild.distances):
        assert level.grad is not None and level.grad.isfinite().all()


def fused(fusion: FusionConfig) -> Experiment:
    """The demo's experiment with streams that stay as they are."""
    config = load(Experiment, REPOSITORY / "configs/e2e/demo/forward.yaml")
    return replace(
        config,
        fusion=fusion,
        head=replace(config.head, learns=False),
        backbone=replace(config.backbone, trainable_from_block=config.backbone.trunk.depth),
    )


def two_streams(method: Method, same: bool = False) -> Detector:
    config = fused(FusionConfig(method=method, partner="forward" if same else "reversed"))
    config = replace(config, sampling=replace(config.sampling, window_size=SIZE))
    torch.manual_seed(5)
    detector = Detector(config, ("a", "b", "c")).eval()
    detector.load_pretrained()
    for stream in detector.streams:  # an untrained adapter is the identity
        for name, parameter in stream.named_parameters():
            if "adapters" in name:
                parameter.data.normal_(std=0.05)
    return detector


@pytest.mark.parametrize("method", ["average", slow("fc"), "fc_conv", slow("fc_mean")])
def test_a_reversed_video_swaps_the_outputs_of_a_detector(method: Method) -> None:
    """From pixels to predictions: the video turned round, the streams exchanged."""
    detector = two_streams(method)
    assert detector.fusion is not None
    for parameter in detector.fusion.parameters():
        parameter.data.normal_()
    other = two_streams(method)
    other.load_state_dict(detector.state_dict())
    for ours, theirs in zip(other.streams, list(detector.streams)[::-1], strict=True):
        ours.load_state_dict(theirs.state_dict())
    for samples, valid in ((1, SIZE), (1, 37), (4, 4 * SIZE), (4, 150)):  # 150: half a step is left
        frames = [torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8) for _ in range(valid)]
        mirror = (valid - 1) / samples
        window = Window(np.arange(valid), 0.0, samples, SIZE, samples * SIZE, mirror)
        mask, reflection = torch.from_numpy(window.mask())[None], torch.tensor([mirror])
        views, turned_views = (
            [arrange(order, window, direction)[None] for direction in detector.config.directions]
            for order in (frames, frames[::-1])
        )
        with torch.no_grad():
            here = detector.fusion(
                *detector.outputs(detector.features(views, None), mask), reflection
            )
            turned = other.fusion(
                *other.outputs(other.features(turned_views, None), mask), reflection
            )  # type: ignore[misc]
        for one, two in zip(here, turned[::-1], strict=True):
            shown = one.flat()[2]
            for left, right in zip(one.flat()[:2], two.flat()[:2], strict=True):
                assert torch.allclose(left[shown], right[shown], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("method", FEATURE_METHODS)
def test_untrained_feature_fusions_are_the_first_stream(method: Method) -> None:
    detector = two_streams(method)
    features = [torch.randn(2, 96, SIZE // 2) for _ in range(2)]
    mask = torch.arange(SIZE)[None] < torch.tensor([[SIZE], [37]])
    reflection = torch.tensor([SIZE - 1.0, 36.0])
    with torch.no_grad():
        answers = detector.predict(features, mask, reflection, of_streams=True)
    ((fused, _),), ((forward, _),) = answers["fused"], answers["forward"]
    valid = fused.flat()[2]
    for one, two in zip(fused.flat()[:2], forward.flat()[:2], strict=True):
        assert torch.allclose(one[valid], two[valid], atol=1e-5)
    # The second stream is looked at as soon as there are weights.
    assert detector.fusion is not None
    for parameter in detector.fusion.parameters():
        parameter.data.normal_(std=0.1)
    with torch.no_grad():
        here = detector.predict(features, mask, reflection)["fused"][0][0]
        there = detector.predict([features[0], features[0]], mask, reflection)["fused"][0][0]
    assert not torch.allclose(here.logits[0], there.logits[0])


@pytest.mark.parametrize("samples", [1, 4])
def test_features_meet_where_they_show_the_same(samples: int) -> None:
    """Steps numbered by the frames they show, some samples each: early fusion puts like to like."""
    fusion = two_streams("early").fusion
    assert isinstance(fusion, FeatureFusion)
    for valid in range(1, SIZE + 1):
        mask = torch.arange(SIZE)[None] < valid
        frames = torch.arange(SIZE * samples).view(SIZE, samples)
        forward = frames.float().mean(1)
        backward = torch.cat([frames[:valid].flatten().flip(0), frames[valid:].flatten()])
        seen: list[Tensor] = []
        fusion.head.forward = lambda x, mask, seen=seen: seen.append(x)  # type: ignore[method-assign,misc]
        steps = backward.view(SIZE, samples).float().mean(1)
        reflection = torch.tensor([valid - 1 / samples])
        fusion(forward.expand(1, 1, -1), steps.expand(1, 1, -1), mask, reflection)
        one, other = seen[0][0, :, :valid]
        assert torch.equal(one, other)


def test_streams_share_a_frozen_transformer() -> None:
    detector = two_streams("average")
    first, second = detector.streams
    assert isinstance(first.backbone, Backbone) and isinstance(second.backbone, Backbone)
    assert first.backbone.trunk is second.backbone.trunk
    assert first.backbone.adapters is not second.backbone.adapters
    trunk = sum(p.nbytes for p in first.backbone.trunk.parameters())
    held = {p.data_ptr(): p.nbytes for p in detector.parameters()}
    single = sum(p.nbytes for p in first.parameters())
    assert sum(held.values()) == 2 * single - trunk


def test_two_streams_of_one_direction_are_not_turned() -> None:
    detector = two_streams("average", same=True)
    assert detector.stream_names == ("first", "second")
    a, b = outputs(47, 1), outputs(47, 2)
    assert detector.fusion is not None
    fused, again = detector.fusion(a, b, detector.reflection_if_opposed(torch.tensor([46.0])))
    mask = fused.masks[1].unsqueeze(1).expand_as(fused.logits[1])
    mean = (a.logits[1] + b.logits[1]) / 2
    assert torch.equal(fused.logits[1][mask], mean[mask])
    assert torch.equal(again.logits[1][mask], mean[mask])


def test_all_methods_are_built() -> None:
    for method in get_args(Method):
        detector = Detector(fused(FusionConfig(method=method)), ("a",))
        assert len(detector.streams) == (1 if method == "none" else 2)
        assert detector.count_parameters()["fusion"] > 0 or method in (
            "none",
            "average",
            "segments",
        )


def test_decoded_fused_segments_never_end_before_they_start() -> None:
    from tests.test_detector import select_candidates
    from train.config import EvaluationConfig

    crossed = outputs(SIZE, 4)
    crossed = HeadOutput(
        tuple(x.float() for x in crossed.logits),
        tuple(x.float() - 1 for x in crossed.distances),
        crossed.masks,
    )
    points = pyramid_points(SIZE, LEVELS, torch.device("cpu"))
    ends = decode_segments(points, crossed.flat()[1])
    assert (ends[..., 1] < ends[..., 0]).any()
    (found,) = select_candidates(crossed, EvaluationConfig())
    assert len(found.scores) and (found.segments[:, 1] >= found.segments[:, 0]).all()
