"""RandAugment as the published recipes have it: mmaction2's `ImgAug('default')`.

Some of fifteen operations, all at magnitude 9 of 10 (Cubuk et al., 2019; strengths from
EfficientNet's AutoAugment, which mmaction2 borrowed). Colours, contrast, brightness and sharpness
are only ever enhanced. torchvision's RandAugment counts 31 magnitudes, has other operations and
strengths, and is about a third as strong at 9.

All frames of a window get the same operations, in the order of the list. Signs are drawn for every
window; mmaction2 draws them once a run, with its configuration.

Operations work on levels as `extract.augmentation.colours` has them, float32 [3, N, H, W], and may
overwrite what they are given. Each takes two shares in [0, 1), which decide a sign or a place.
"""

import math
from functools import partial
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from extract.augmentation.colours import (
    HIGHEST,
    Change,
    adjust_brightness,
    adjust_contrast,
    adjust_saturation,
    whole,
)

LEVEL = 0.9  # magnitude 9 of 10
SHEAR = math.tan(math.radians(17.19 * LEVEL))  # 0.28
ROTATION = math.radians(30 * LEVEL)
SHIFT = 0.2 * LEVEL  # of the side
FACTOR = 1.8 * LEVEL + 0.1  # 1 is the picture as it is
STEP = 2 ** (8 - int(4 * LEVEL))  # from one level to the next that the highest bits can say
SOLARISED_FROM = 256 * LEVEL
HOLE = 0.2 * LEVEL  # of the side
GREY = 128
BLUR = 1 / 13, 5 / 13  # of the neighbours, and of the pixel itself
Pair = tuple[float, float]


class Operation(Protocol):
    """One of the fifteen."""

    def __call__(self, levels: Tensor, shares: Pair) -> Tensor: ...


def shear_x(levels: Tensor, shares: Pair) -> Tensor:
    """Shear along the rows, about the centre."""
    return _moved(levels, ((1.0, _signed(SHEAR, shares)), (0.0, 1.0)))


def shear_y(levels: Tensor, shares: Pair) -> Tensor:
    """Shear along the columns, about the centre."""
    return _moved(levels, ((1.0, 0.0), (_signed(SHEAR, shares), 1.0)))


def translate_x(levels: Tensor, shares: Pair) -> Tensor:
    """Move the picture to one side."""
    return _moved(levels, shift=(_signed(SHIFT * levels.shape[-1], shares), 0.0))


def translate_y(levels: Tensor, shares: Pair) -> Tensor:
    """Move the picture up or down."""
    return _moved(levels, shift=(0.0, _signed(SHIFT * levels.shape[-2], shares)))


def rotate(levels: Tensor, shares: Pair) -> Tensor:
    """Turn the picture about its centre."""
    angle = _signed(ROTATION, shares)
    cos, sin = math.cos(angle), math.sin(angle)
    return _moved(levels, ((cos, -sin), (sin, cos)))


def posterise(levels: Tensor, shares: Pair) -> Tensor:
    """Keep the highest bits of every value."""
    return levels.div_(STEP).floor_().mul_(STEP)


def solarise(levels: Tensor, shares: Pair) -> Tensor:
    """Invert the brightest values."""
    bright = torch.ge(levels, SOLARISED_FROM, out=torch.empty_like(levels))
    return levels.lerp_(HIGHEST - levels, bright)


def enhance_colour(levels: Tensor, shares: Pair) -> Tensor:
    """Move colours away from grey."""
    return adjust_saturation(levels, FACTOR)


def enhance_contrast(levels: Tensor, shares: Pair) -> Tensor:
    """Move values away from the frame's mean."""
    return adjust_contrast(levels, FACTOR)


def enhance_brightness(levels: Tensor, shares: Pair) -> Tensor:
    """Move values away from black."""
    return adjust_brightness(levels, FACTOR)


def enhance_sharpness(levels: Tensor, shares: Pair) -> Tensor:
    """Move values away from a smoothed picture's; those at the border stay."""
    if min(levels.shape[-2:]) < 3:
        return levels
    of_neighbours, of_itself = BLUR
    rows = levels[..., :-2, :] + levels[..., 1:-1, :]
    rows += levels[..., 2:, :]
    smooth = rows[..., :-2] + rows[..., 1:-1]
    smooth += rows[..., 2:]
    inside = levels[..., 1:-1, 1:-1]
    smooth.mul_(of_neighbours).add_(inside, alpha=of_itself - of_neighbours).round_()
    inside.add_(smooth.sub_(inside), alpha=1 - FACTOR)
    return whole(levels)


def auto_contrast(levels: Tensor, shares: Pair) -> Tensor:
    """Stretch each frame's channels to all values."""
    lowest, highest = (
        levels.amin((-2, -1), keepdim=True),
        levels.amax((-2, -1), keepdim=True),
    )
    flat = highest == lowest
    scale = ((highest - lowest) * (1 / HIGHEST)).masked_fill_(flat, 1)
    return whole(levels.sub_(lowest.masked_fill_(flat, 0)).div_(scale))


def equalise(levels: Tensor, shares: Pair) -> Tensor:
    """Make each frame's histograms flat."""
    # Imported where it is used: the processes that decode never come here, and would wait for it.
    from torchvision.transforms.v2 import functional

    return functional.equalize(levels.to(torch.uint8).transpose(0, 1)).transpose(0, 1).float()


def invert(levels: Tensor, shares: Pair) -> Tensor:
    """Return the negative."""
    return levels.neg_().add_(HIGHEST)


def cut_out(levels: Tensor, shares: Pair) -> Tensor:
    """Cover a square with grey, centred anywhere in the picture."""
    height, width = levels.shape[-2:]
    side = round(HOLE * min(height, width))
    top, left = (int(c * n) - side // 2 for c, n in zip(shares, (height, width), strict=True))
    levels[..., max(top, 0) : top + side, max(left, 0) : left + side] = GREY
    return levels


OPERATIONS: tuple[Operation, ...] = (
    shear_x,
    shear_y,
    translate_x,
    translate_y,
    rotate,
    posterise,
    solarise,
    enhance_colour,
    enhance_contrast,
    enhance_brightness,
    enhance_sharpness,
    auto_contrast,
    equalise,
    invert,
    cut_out,
)


def draw_operations(rng: np.random.Generator, count: int) -> list[Change]:
    """Draw different operations and their shares, in the order of the list."""
    chosen = sorted(rng.permutation(len(OPERATIONS))[:count].tolist())
    return [
        partial(OPERATIONS[number], shares=tuple(rng.uniform(size=2).tolist())) for number in chosen
    ]


def _signed(strength: float, shares: Pair) -> float:
    return strength if shares[0] < 0.5 else -strength


def _moved(
    levels: Tensor,
    matrix: tuple[Pair, Pair] = ((1.0, 0.0), (0.0, 1.0)),
    shift: Pair = (0.0, 0.0),
) -> Tensor:
    """Return levels from other places, bilinear; what comes into view is black.

    Args:
        matrix: that gives a pixel's source, (x, y) from the centre; `shift`: less this, in pixels.
    """
    height, width = levels.shape[-2:]
    # From plain numbers, as a tensor made on the host would make it wait for the device.
    x = torch.arange(width, device=levels.device) - (width - 1) / 2
    y = torch.arange(height, device=levels.device)[:, None] - (height - 1) / 2
    (xx, xy), (yx, yy) = matrix
    grid = torch.stack(
        [
            (xx * x + xy * y - shift[0]) * (2 / width),
            (yx * x + yy * y - shift[1]) * (2 / height),
        ],
        -1,
    )
    # All frames as channels of one picture: weights are computed once.
    flat = levels.reshape(1, -1, height, width)
    return grid_sample(flat, grid[None], align_corners=False).round_().view(levels.shape)
