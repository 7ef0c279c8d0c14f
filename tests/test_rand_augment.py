"""RandAugment's operations, each against PIL or its formula, and how they are drawn."""

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps

from extract.augmentation import rand_augment
from extract.augmentation.rand_augment import OPERATIONS, Operation, Pair, draw_operations
from extract.sampling.transforms import augment

HEIGHT, WIDTH = 48, 64


@pytest.fixture
def frames() -> NDArray[np.uint8]:
    """Two smooth frames with all kinds of values, and noise; uint8 [2, H, W, 3]."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    rng = np.random.default_rng(0)
    waves = [127 + 110 * np.sin(x / (9 + k) + y / (7 + k) + k) for k in range(6)]
    pictures = np.stack(waves, -1).reshape(HEIGHT, WIDTH, 2, 3).transpose(2, 0, 1, 3)
    noisy = pictures + rng.integers(-9, 10, pictures.shape)
    return np.clip(noisy, 3, 248).astype(np.uint8)


def applied(
    operation: Operation, frames: NDArray[np.uint8], shares: Pair = (0.3, 0.3)
) -> NDArray[np.int64]:
    given = torch.from_numpy(frames).permute(3, 0, 1, 2)
    result = augment(given, (partial(operation, shares=shares),))
    assert result.dtype == torch.uint8 and result.shape == (3, len(frames), HEIGHT, WIDTH)
    assert np.array_equal(given.permute(1, 2, 3, 0).numpy(), frames)
    return result.permute(1, 2, 3, 0).long().numpy()


def by_pil(
    change: Callable[[Image.Image], Image.Image], frames: NDArray[np.uint8]
) -> NDArray[np.int64]:
    return np.stack([np.array(change(Image.fromarray(f)), np.int64) for f in frames])


@pytest.mark.parametrize(
    ("operation", "witness", "levels"),
    [
        (rand_augment.posterise, lambda f: ImageOps.posterize(f, 3), 0),
        (rand_augment.solarise, lambda f: ImageOps.solarize(f, 231), 0),
        (rand_augment.invert, ImageOps.invert, 0),
        (rand_augment.auto_contrast, ImageOps.autocontrast, 1),
        (rand_augment.equalise, ImageOps.equalize, 1),
        (rand_augment.enhance_colour, lambda f: ImageEnhance.Color(f).enhance(1.72), 1),
        (rand_augment.enhance_contrast, lambda f: ImageEnhance.Contrast(f).enhance(1.72), 1),
        (rand_augment.enhance_brightness, lambda f: ImageEnhance.Brightness(f).enhance(1.72), 1),
        (rand_augment.enhance_sharpness, lambda f: ImageEnhance.Sharpness(f).enhance(1.72), 1),
    ],
)
def test_colours_are_changed_as_pil_does(
    frames: NDArray[np.uint8],
    operation: Operation,
    witness: Callable[[Image.Image], Image.Image],
    levels: int,
) -> None:
    found, expected = applied(operation, frames), by_pil(witness, frames)
    assert np.abs(found - expected).max() <= levels
    assert np.abs(found - frames).max() > 5


def sampled(
    frames: NDArray[np.uint8], x: NDArray[np.float64], y: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return values at places [H, W] between pixels, bilinear, black outside the picture."""
    padded = np.pad(frames.astype(np.float64), ((0, 0), (1, 1), (1, 1), (0, 0)))
    x, y = np.clip(x + 1, 0, WIDTH + 1), np.clip(y + 1, 0, HEIGHT + 1)
    left, top = np.minimum(x.astype(int), WIDTH), np.minimum(y.astype(int), HEIGHT)
    a, b = (x - left)[..., None], (y - top)[..., None]
    above = padded[:, top, left] * (1 - a) + padded[:, top, left + 1] * a
    below = padded[:, top + 1, left] * (1 - a) + padded[:, top + 1, left + 1] * a
    return above * (1 - b) + below * b


Y, X = np.mgrid[0:HEIGHT, 0:WIDTH].astype(np.float64)
MIDDLE_X, MIDDLE_Y = (WIDTH - 1) / 2, (HEIGHT - 1) / 2
SHEAR, TURN = math.tan(math.radians(15.471)), math.radians(27)


def turned(sign: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    x, y, sin = X - MIDDLE_X, Y - MIDDLE_Y, sign * math.sin(TURN)
    return math.cos(TURN) * x + sin * y + MIDDLE_X, math.cos(TURN) * y - sin * x + MIDDLE_Y


@pytest.mark.parametrize(
    ("operation", "source"),
    [
        (rand_augment.shear_x, lambda sign: (X + sign * SHEAR * (Y - MIDDLE_Y), Y)),
        (rand_augment.shear_y, lambda sign: (X, Y + sign * SHEAR * (X - MIDDLE_X))),
        (rand_augment.translate_x, lambda sign: (X + sign * 0.18 * WIDTH, Y)),
        (rand_augment.translate_y, lambda sign: (X, Y + sign * 0.18 * HEIGHT)),
        (rand_augment.rotate, turned),
    ],
)
def test_pictures_are_moved_by_the_published_strengths_either_way(
    frames: NDArray[np.uint8],
    operation: Operation,
    source: Callable[[int], tuple[NDArray[np.float64], NDArray[np.float64]]],
) -> None:
    expected = [sampled(frames, *source(sign)) for sign in (1, -1)]
    met = set()
    for shares in np.random.default_rng(0).uniform(size=(12, 2)):
        found = applied(operation, frames, tuple(shares))
        errors = [float(np.abs(found - one).max()) for one in expected]
        assert min(errors) <= 1 and max(errors) > 20, errors
        met.add(errors.index(min(errors)))
    assert met == {0, 1}


def test_a_grey_square_anywhere_is_cut_out(frames: NDArray[np.uint8]) -> None:
    frames[frames == 128] = 127
    sides, places = set(), []
    for shares in np.random.default_rng(0).uniform(size=(200, 2)):
        found = applied(rand_augment.cut_out, frames, tuple(shares))
        hole = (found == 128).all((0, 3))
        assert np.array_equal(found[:, ~hole], frames[:, ~hole])
        rows, columns = (np.flatnonzero(hole.any(axis)) for axis in (1, 0))
        assert hole.sum() == len(rows) * len(columns) > 0
        sides |= {len(rows), len(columns)}
        if len(rows) == len(columns) == max(sides):
            places.append((rows.mean() / HEIGHT, columns.mean() / WIDTH))
    assert max(sides) == round(0.18 * HEIGHT) and min(sides) < max(sides)  # at the border, less
    assert np.ptp(np.array(places), axis=0).min() > 0.7


def test_two_different_operations_are_drawn_in_the_order_of_the_list() -> None:
    counts = np.zeros(len(OPERATIONS), int)
    shares = []
    for seed in range(600):
        changes = draw_operations(np.random.default_rng(seed), 2)
        drawn = [OPERATIONS.index(change.func) for change in changes]  # type: ignore[attr-defined]
        assert len(drawn) == 2 and drawn[0] < drawn[1]
        counts[drawn] += 1
        shares += [change.keywords["shares"] for change in changes]  # type: ignore[attr-defined]
    assert len(OPERATIONS) == 15 and counts.min() > 40 and counts.max() < 130  # 80 each
    assert abs(np.mean(shares) - 0.5) < 0.03 and len(set(shares)) == len(shares)


def test_the_same_draw_for_parts_of_a_window(frames: NDArray[np.uint8]) -> None:
    video = torch.from_numpy(frames).permute(3, 0, 1, 2)
    for seed in range(60):
        changes = tuple(draw_operations(np.random.default_rng(seed), 2))
        parts = [augment(part, changes) for part in (video[:, :1], video[:, 1:])]
        assert torch.equal(augment(video, changes), torch.cat(parts, 1)), seed
