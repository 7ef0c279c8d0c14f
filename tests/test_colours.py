"""Colour jitter against torchvision's, the whole augmentation against its formulas and draws."""

import pickle
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from extract.augmentation import colours
from extract.augmentation.rand_augment import OPERATIONS
from extract.sampling import transforms
from extract.sampling.transforms import Augmentation, augment, draw_augmentation
from extract.sampling.windows import whole_video
from extract.settings.pixels import PixelConfig
from extract.settings.sampling import SamplingConfig
from tests.waits import Copies, Operations
from train.data.batch import Sample, collate

ALL = PixelConfig(size=40)


def every_colour() -> Tensor:
    """All colours of 52 levels a channel, greys and the bounds too, uint8 [3, 52, 52, 52]."""
    levels = torch.arange(0, 256, 5, dtype=torch.uint8)
    return torch.stack(torch.meshgrid(levels, levels, levels, indexing="ij"))


@pytest.mark.parametrize("factor", [0.5, 0.93, 1.0, 1.31, 1.5])
@pytest.mark.parametrize(
    ("change", "witness"),
    [
        (colours.adjust_brightness, functional.adjust_brightness),
        (colours.adjust_contrast, functional.adjust_contrast),
        (colours.adjust_saturation, functional.adjust_saturation),
    ],
)
def test_factors_are_torchvisions(
    change: Callable[..., Tensor], witness: Callable[..., Tensor], factor: float
) -> None:
    frames = every_colour()
    found = augment(frames, (partial(change, factor=factor),)).int()
    expected = witness(frames.transpose(0, 1), factor).transpose(0, 1).int()
    assert (found - expected).abs().max() <= 1
    assert (found != expected).float().mean() < 1e-3


@pytest.mark.parametrize("turns", [-0.5, -0.1, -0.013, 0.0, 0.05, 0.1, 0.4, 0.5])
def test_the_hue_is_turned_as_torchvision_does(turns: float) -> None:
    frames = every_colour()
    found = augment(frames, (partial(colours.adjust_hue, turns=turns),)).int()
    expected = functional.adjust_hue(frames.transpose(0, 1), turns).transpose(0, 1).int()
    assert (found - expected).abs().max() <= 1
    assert (found != expected).float().mean() < 0.01


def test_jitter_is_torchvisions_whatever_the_order() -> None:
    """Four changes one after the other, each rounded: never far from torchvision's."""
    frames = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 4, 40, 40), np.uint8))
    witnesses = {
        "adjust_brightness": functional.adjust_brightness,
        "adjust_contrast": functional.adjust_contrast,
        "adjust_saturation": functional.adjust_saturation,
        "adjust_hue": functional.adjust_hue,
    }
    jitter, differing, orders = replace(ALL, rand_augment=0), [], set()
    for seed in range(200):
        changes = draw_augmentation(np.random.default_rng(seed), jitter)
        expected = frames.transpose(0, 1)
        for change in changes:
            (number,) = change.keywords.values()  # type: ignore[attr-defined]
            expected = witnesses[change.func.__name__](expected, number)  # type: ignore[attr-defined]
        difference = (augment(frames, changes).int() - expected.transpose(0, 1).int()).abs()
        assert difference.max() <= 2  # a level that differs is stretched by what follows
        differing.append(float((difference > 0).float().mean()))
        orders.add(tuple(change.func for change in changes))  # type: ignore[attr-defined]
    assert np.mean(differing) < 1e-4 and len(orders) == 24


def test_jitter_is_drawn_as_torchvision_draws() -> None:
    strengths = (0.5, 1.2, 0.3, 0.1)
    theirs = v2.ColorJitter(*strengths)
    numbers: dict[str, list[float]] = {}
    for seed in range(400):
        for change in colours.draw_jitter(np.random.default_rng(seed), strengths):
            (number,) = change.keywords.values()  # type: ignore[attr-defined]
            numbers.setdefault(change.func.__name__, []).append(number)  # type: ignore[attr-defined]
    for name, bounds in {
        "adjust_brightness": theirs.brightness,
        "adjust_contrast": theirs.contrast,
        "adjust_saturation": theirs.saturation,
        "adjust_hue": theirs.hue,
    }.items():
        low, high = bounds
        assert low <= min(numbers[name]) < low + (high - low) / 20
        assert high >= max(numbers[name]) > high - (high - low) / 20
        assert np.mean(numbers[name]) == pytest.approx((low + high) / 2, abs=(high - low) / 20)


@pytest.mark.parametrize("strengths", [(0.5, 0.5, 0.5, 0.6), (-0.1, 0.5, 0.5, 0.1)])
def test_strengths_that_mean_nothing_are_refused(
    strengths: tuple[float, float, float, float],
) -> None:
    with pytest.raises(ValueError, match=r"pixels\.colour_jitter"):
        PixelConfig(colour_jitter=strengths)


def random_frames(count: int = 5) -> Tensor:
    rng = np.random.default_rng(0)
    return torch.from_numpy(rng.integers(0, 256, (3, count, 40, 40), np.uint8))


def draws(count: int) -> list[Augmentation]:
    return [draw_augmentation(np.random.default_rng(seed), ALL) for seed in range(count)]


def test_frames_are_changed_alike_and_apart_from_each_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In pieces or at once, alone or together: bit for bit, and the frames given stay."""
    frames = random_frames()
    same = frames[:, :1].expand(-1, 5, -1, -1)
    for drawn in draws(40):
        whole = augment(frames, drawn)
        assert torch.equal(frames, random_frames())
        one = augment(same, drawn)
        assert torch.equal(one, one[:, :1].expand_as(one))
        monkeypatch.setattr(transforms, "AT_ONCE", {"cpu": 2 * 3 * 40 * 40})
        assert torch.equal(augment(frames, drawn), whole)
        monkeypatch.undo()


def test_a_draw_travels_between_processes() -> None:
    frames = random_frames(2)
    for drawn in draws(20):
        sent = pickle.loads(pickle.dumps(drawn))
        assert torch.equal(augment(frames, sent), augment(frames, drawn))


def test_a_draw_depends_on_the_seed_alone() -> None:
    frames = random_frames(2)
    first, again = draws(20), draws(20)
    assert all(
        torch.equal(augment(frames, a), augment(frames, b))
        for a, b in zip(first, again, strict=True)
    )
    assert len({augment(frames, drawn).numpy().tobytes() for drawn in first}) == 20


def test_the_host_never_waits_for_the_device() -> None:
    frames = random_frames(2)
    every = tuple(
        partial(operation, shares=(0.2, 0.7)) for operation in OPERATIONS
    ) + draw_augmentation(np.random.default_rng(0), replace(ALL, rand_augment=0))
    with Operations() as operations, Copies() as copies:
        augment(frames, every)
    assert [*operations.seen, *copies.seen] == []


def sample(directions: int, augmentation: Augmentation, seed: int) -> Sample:
    sampling = SamplingConfig(window_size=16)
    frames = torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (3, 16, 8, 8), np.uint8))
    return Sample(
        video=f"video {seed}",
        window=whole_video(sampling.samples, sampling),
        inputs=(frames, frames.flip(1))[:directions],
        mask=torch.ones(16, dtype=torch.bool),
        segments=(torch.zeros(0, 2),) * directions,
        labels=torch.zeros(0, dtype=torch.long),
        augmentation=augmentation,
    )


@pytest.mark.parametrize("directions", [1, 2])
def test_every_window_of_a_batch_gets_its_own_augmentation_once(directions: int) -> None:
    """All streams see the same pixels, each in its own time."""
    drawn = [*draws(3), ()]
    samples = [sample(directions, each, seed) for seed, each in enumerate(drawn)]
    batch = collate(samples)
    augmented = batch.to(torch.device("cpu")).augmented()
    for row, each in enumerate(samples):
        expected = augment(each.inputs[0], drawn[row])
        assert torch.equal(augmented.inputs[0][row], expected)
        if directions == 2:
            assert torch.equal(augmented.inputs[1][row], expected.flip(1))
    assert augmented.augmented() is augmented
    assert torch.equal(batch.inputs[0], torch.stack([each.inputs[0] for each in samples]))


def test_a_batch_without_augmentation_is_not_copied() -> None:
    batch = collate([sample(1, (), 0)])
    assert batch.augmented() is batch
