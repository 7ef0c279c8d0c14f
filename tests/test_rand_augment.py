"""RandAugment's operations, each against PIL or its formula, and how they are drawn."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

from extract.sampling import rand_augment
from extract.sampling.rand_augment import OPERATIONS, RandAugment

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


def applied(operation: Callable[[Tensor], Tensor], frames: NDArray[np.uint8]) -> NDArray[np.int64]:
    result = operation(torch.from_numpy(frames).permute(0, 3, 1, 2))
    assert result.dtype == torch.uint8 and result.shape == (len(frames), 3, HEIGHT, WIDTH)
    return result.permute(0, 2, 3, 1).long().numpy()


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
    operation: Callable[[Tensor], Tensor],
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
    operation: Callable[[Tensor], Tensor],
    source: Callable[[int], tuple[NDArray[np.float64], NDArray[np.float64]]],
) -> None:
    expected = [sampled(frames, *source(sign)) for sign in (1, -1)]
    met = set()
    for seed in range(12):
        torch.manual_seed(seed)
        found = applied(operation, frames)
        errors = [float(np.abs(found - one).max()) for one in expected]
        assert min(errors) <= 1 and max(errors) > 20, errors
        met.add(errors.index(min(errors)))
    assert met == {0, 1}


def test_a_grey_square_anywhere_is_cut_out(frames: NDArray[np.uint8]) -> None:
    frames[frames == 128] = 127
    sides, places = set(), []
    for seed in range(200):
        torch.manual_seed(seed)
        found = applied(rand_augment.cut_out, frames)
        hole = (found == 128).all((0, 3))
        assert np.array_equal(found[:, ~hole], frames[:, ~hole])
        rows, columns = (np.flatnonzero(hole.any(axis)) for axis in (1, 0))
        assert hole.sum() == len(rows) * len(columns) > 0
        sides |= {len(rows), len(columns)}
        if len(rows) == len(columns) == max(sides):
            places.append((rows.mean() / HEIGHT, columns.mean() / WIDTH))
    assert max(sides) == round(0.18 * HEIGHT) and min(sides) < max(sides)  # at the border, less
    assert np.ptp(np.array(places), axis=0).min() > 0.7


def test_two_different_operations_are_drawn_for_all_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[int] = []

    def noting(place: int) -> Callable[[Tensor], Tensor]:
        def note(video: Tensor) -> Tensor:
            drawn.append(place)
            return video

        return note

    monkeypatch.setattr(rand_augment, "OPERATIONS", tuple(map(noting, range(len(OPERATIONS)))))
    counts = np.zeros(len(OPERATIONS), int)
    for seed in range(600):
        torch.manual_seed(seed)
        drawn.clear()
        RandAugment(2)(torch.zeros(3, 3, 8, 8, dtype=torch.uint8))
        assert len(drawn) == 2 and drawn[0] < drawn[1]
        counts[drawn] += 1
    assert len(OPERATIONS) == 15 and counts.min() > 40 and counts.max() < 130  # 80 each


def test_the_same_draw_for_parts_of_a_window(frames: NDArray[np.uint8]) -> None:
    video = torch.from_numpy(frames).permute(0, 3, 1, 2)
    for seed in range(60):
        results = []
        for part in (video, video[:1], video[1:]):
            torch.manual_seed(seed)
            results.append(RandAugment(2)(part))
        assert torch.equal(results[0], torch.cat(results[1:])), seed
